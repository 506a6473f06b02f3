"""A time machine: days of traffic through the real service, log, labels and monitor, at full speed, in a project of its own."""

import json
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from ..params import BUNDLE, ONLINE, PATH, PREPARED, REPORTS, SCRATCH, Params, Sample, load
from ..step1_requirements.checks import STEPS, StepFailed, close_gate
from ..step1_requirements.page import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    RED,
    axes,
    figure,
    markdown_table,
    page,
    plain,
    section,
    table,
    whole_folder,
    write_text,
)
from ..step3_data.encode import columns_of, columns_read, encode, encode_labels
from ..step3_data.features import QUERY, build
from ..step3_data.source import connect, in_sql, open_events, write_query, write_sample
from ..step4_model.pipeline import frame_of, predict
from ..step4_model.train import fit, read_part
from ..step5_evaluation.metrics import Answers, answers_of, bootstrap, lead, measure, resample
from ..step6_deployment.loadtest import own_key, running_service
from ..step6_deployment.predictor import Predictor
from . import audit
from .audit import Line
from .monitor import monitor
from .retrain import serving

REPORT = REPORTS / "simulation"
PATIENCE_SECONDS = 30.0
DAYS_TO_LEARN = 25  # traffic is such that the labels for a retraining take so long


@dataclass(frozen=True)
class Story:
    """What happens: so many days of traffic after the history that the first model learns from; the world moves on one of them."""

    days: int
    drift_at: int
    drift: str
    seed: int


@dataclass
class Told:
    """What came of it. Qualities are of framing.metric, one a week: with the loop, and had the first model stayed."""

    story: Story
    start: datetime
    lines: list[Line] = field(default_factory=list)
    with_loop: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, int] = field(default_factory=dict)  # rows that each version was trained on

    def day(self, line: Line) -> float:
        """The day of the story on which something was decided."""
        return (line.moment - self.start) / timedelta(days=1)


class _Steps:
    """The pipeline in this process, without DVC: see retrain.Project."""

    def run(self) -> None:
        params = load()
        for step in list(STEPS)[2:]:
            try:
                import_module(f"..step{STEPS[step].replace('-', '_')}.stage", __package__).run(params)
            except StepFailed as error:
                close_gate(step, error)
                raise

    def track(self) -> None:
        """Nothing is under version control here."""

    commit = track


def play(params: Params, story: Story) -> Told:
    """Tell one story in a folder of its own in data/.scratch; the project itself is not touched.

    Raises:
        StepFailed: when the project has no simulator, or its first model does not pass the gates.
    """
    if params.data.sample is None:
        raise StepFailed("simulate: params.yaml has no data.sample: only a simulated world can be made to drift on a chosen day")
    delay = params.requirements.label_delay_days
    history = max(90, round(4 * delay))
    per_window = 2 * params.monitoring.drift.min_rows * 24 / params.monitoring.window_hours
    rows = max(per_window, params.data.sample.rows / history, params.monitoring.retrain.min_labels / DAYS_TO_LEARN)  # a day
    days = history + story.days + round(delay) + 1
    sample = params.data.sample.model_copy(update={
        "rows": round(rows * days), "days": days, "seed": story.seed, "drift": story.drift, "drift_day": history + story.drift_at})  # fmt: skip
    told = Told(story, datetime.fromisoformat(sample.start) + timedelta(days=history))
    with whole_folder(SCRATCH / f"simulation-{story.drift}-{story.seed}") as folder:  # trackers keep files open
        tree = yaml.safe_load(PATH.read_text(encoding="utf-8"))
        tree["data"].update(raw="data/raw/events.parquet", since=None)
        tree["requirements"]["latency_ms"] = {"p50": 30_000, "p99": 60_000}  # the loop is played, not the load test
        tree["deployment"]["log"].update(path="data/predictions.sqlite", flush_seconds=0.05, queue=1_000_000, personal="clear")
        tree["evaluation"]["bootstrap"] = 100  # there are many looks
        tree["deployment"]["reload_seconds"] = 0.1
        tree["deployment"]["load_test"].update(seconds=0.3, rate_per_second=20)
        write_text(folder / PATH.name, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        with chdir(folder):
            _live(load(), sample, told)
    return told


def _live(params: Params, sample: Sample, told: Told) -> None:
    framing, story, steps = params.framing, told.story, _Steps()
    world = _make_world(params, sample, Path("world.parquet"))
    moment, known = world.column(framing.time), world.column(framing.label_time) if framing.label_time else None
    before = pc.less(moment, pa.scalar(told.start, moment.type))
    _write_history(params, Path(params.data.raw), told.start)
    steps.run()
    first = Predictor(BUNDLE, ONLINE)
    told.learned[first.version] = pq.read_metadata(PREPARED / "train.parquet").num_rows
    posted, scores, original = np.zeros(world.num_rows, dtype=bool), list[Any](), list[Any]()
    ids = np.empty(world.num_rows, dtype=object)
    offset = int(pc.sum(before).as_py())
    every = max(1, round(params.monitoring.window_hours / 24))
    with ExitStack() as stack:
        port = stack.enter_context(running_service(BUNDLE, Path(params.deployment.log.path)))
        current, low = first, offset
        for day in range(story.days):
            now = told.start + timedelta(days=day + 1)
            high = int(pc.sum(pc.less(moment, pa.scalar(now, moment.type))).as_py())
            today = world.slice(low, high - low)
            ids[low:high] = _ask(port, params, today)
            _date(params, ids[low:high], today.column(framing.time).to_pylist())
            for model, kept in ((current, scores), (first, original)):
                kept.append(model.scores(columns_of(today, model.names)))
            arrived = np.array(known.to_pylist() if known else moment.to_pylist(), dtype="datetime64[us]") <= np.datetime64(now, "us")
            due = np.flatnonzero(arrived & ~posted & (np.arange(world.num_rows) < high) & (np.arange(world.num_rows) >= offset))
            _tell(port, params, world, ids, due)
            posted[due], low = True, high
            if (day + 1) % min(every, 7) == 0:
                monitor(params, steps, now)
                params = load()
            if serving() != current.version:
                current = Predictor(BUNDLE, ONLINE)
                told.learned.setdefault(current.version, pq.read_metadata(PREPARED / "train.parquet").num_rows)
                _wait(partial(_serves, port, current.version), "take up the new bundle")
    told.lines = audit.read()
    _measure(params, sample, told, world.slice(offset, low - offset), scores, original, first)


def _make_world(params: Params, sample: Sample, path: Path) -> pa.Table:
    """Every event of a world, with its history as of then and its label, in time order."""
    own = params.data.model_copy(update={"raw": "world/events.parquet"})
    write_sample(sample, Path(own.raw))
    with closing(connect(own.memory_gb, SCRATCH)) as connection:
        open_events(connection, own, params.framing)
        build(connection, in_sql(params.framing), QUERY.read_text(encoding="utf-8"))
        names = [c[0] for c in connection.execute("DESCRIBE SELECT * FROM events JOIN features USING (row_id)").fetchall()]
        write_query(connection, f'SELECT * FROM events JOIN features USING (row_id) ORDER BY "{params.framing.time}", row_id', names, path)
    return pq.read_table(path)


def _write_history(params: Params, path: Path, start: datetime) -> None:
    """The raw data as they were on the first day: earlier events, and only labels that had arrived."""
    events, framing = pq.read_table("world/events.parquet"), params.framing
    moment = events.column(framing.time)
    events = events.filter(pc.less(moment, pa.scalar(start, moment.type)))
    if framing.label_time:
        arrived = pc.fill_null(pc.less(events.column(framing.label_time), pa.scalar(start, moment.type)), False)
        for column in (framing.target, framing.label_time):
            kept = pc.if_else(arrived, events.column(column), pa.scalar(None, events.column(column).type))
            events = events.set_column(events.column_names.index(column), column, kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, path)


def _ask(port: int, params: Params, rows: pa.Table) -> list[str]:
    """The prediction ids of one day's rows, asked in requests as large as allowed."""
    names = dict.fromkeys([k for k in (params.framing.entity, params.framing.time) if k] + [i.name for i in params.framing.inputs])
    records, ids = rows.select(list(names)).to_pylist(), []
    for part in _parts(records, params.deployment.limits.records):
        ids += [p["prediction_id"] for p in _post(port, "predict", {"records": part})["predictions"]]
    return ids


def _tell(port: int, params: Params, world: pa.Table, ids: Any, rows: Any) -> None:
    framing = params.framing
    values, at = world.column(framing.target).take(rows).to_pylist(), world.column(framing.label_time or framing.time).take(rows).to_pylist()
    labels = [{"prediction_id": ids[k], "label": v, "at": a} for k, v, a in zip(rows, values, at, strict=True) if v is not None]
    for part in _parts(labels, 5_000):
        _post(port, "feedback", {"labels": part})


def _date(params: Params, ids: Any, at: list[datetime]) -> None:
    """Turn the log's clock back: what was answered just now was asked then."""
    with closing(sqlite3.connect(params.deployment.log.path, timeout=PATIENCE_SECONDS)) as store:
        _wait(partial(_logged, store, ids[-1]), "log what it answered")
        with store:
            store.executemany("UPDATE predictions SET at = ? WHERE prediction_id = ?", [(a.isoformat(), i) for i, a in zip(ids, at, strict=True)])


def _logged(store: sqlite3.Connection, prediction_id: str) -> bool:
    try:
        return store.execute("SELECT 1 FROM predictions WHERE prediction_id = ?", (prediction_id,)).fetchone() is not None
    except sqlite3.OperationalError:  # the log is being made
        return False


def _serves(port: int, version: str) -> bool:
    """Whether the service took up a new bundle by itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10) as answer:
        return bool(json.load(answer).get("model_version") == version)


def _wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        if time.monotonic() > deadline:
            raise StepFailed(f"simulate: the service did not {what} within {PATIENCE_SECONDS:g} s")
        time.sleep(0.02)


def _post(port: int, what: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body, default=lambda v: v.isoformat() if hasattr(v, "isoformat") else str(v)).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {own_key()}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{what}", data, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback only
        found: dict[str, Any] = json.load(answer)
        return found


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    yield from (items[k : k + size] for k in range(0, len(items), size))


def _measure(params: Params, sample: Sample, told: Told, world: pa.Table, scores: list[Any], original: list[Any], first: Predictor) -> None:
    """Week by week with the true labels, and against a model that only ever saw the new world."""
    framing, metric = params.framing, params.framing.metric
    labels = encode_labels(framing, first.classes, world.column(framing.target).to_pylist())
    ours, theirs = (answers_of(framing.task, labels, np.concatenate(s), first.threshold) for s in (scores, original))
    ends = np.cumsum([0, *(len(s) for s in scores)])
    weeks = [np.arange(ends[a], ends[b]) for a, b in pairwise([*range(0, len(scores), 7), len(scores)])]
    told.with_loop, told.without = ([measure(metric, a.at(week)) for week in weeks] for a in (ours, theirs))
    done = audit.last(told.lines, "promoted")
    alerts = [line for line in told.lines if line.decision == "alert"]
    late = [line for line in alerts if told.story.drift != "none" and told.day(line) >= told.story.drift_at]
    begun = [line.rule for line in told.lines if line.decision == "retraining"]
    wait = told.story.drift_at + (params.requirements.label_delay_days if late and late[0].rule == "performance" else 0)
    told.figures = {
        "false alarms": len(alerts) - len(late),
        "alert by": late[0].rule if late else None,
        "windows to alert": round((told.day(late[0]) - wait) / (params.monitoring.window_hours / 24), 1) if late else None,
        "retrainings": sum(rule in ("drift", "performance") for rule in begun),
        "other retrainings": sum(rule not in ("drift", "performance") for rule in begun),
        "promoted": sum(line.decision == "promoted" for line in told.lines),
        "metric": metric,
        "before the move": measure(metric, ours.at(np.arange(0, ends[told.story.drift_at]))),
    }  # fmt: skip
    settled = told.story.drift_at if done is None else int(told.day(done)) + 1
    rows = np.arange(ends[min(settled, len(scores))], ends[-1])
    if told.story.drift != "none" and len(rows):
        part = ours.at(rows)
        told.figures |= {"days judged": len(scores) - settled, "without the loop": measure(metric, theirs.at(rows)), "with it": measure(metric, part)}
        best = _new_world(params, sample, told, world.take(rows), first, part)
        weights = resample(len(rows), params.evaluation.bootstrap, 0)
        ahead = lead(metric, part, best, bootstrap([metric], part, weights)[metric], weights, params.evaluation.confidence)
        told.figures |= {"model of the new world": measure(metric, best), "lead over it": str(ahead), "within noise": bool((ahead.high or 0) >= 0)}


def _new_world(params: Params, sample: Sample, told: Told, rows: pa.Table, first: Predictor, part: Answers) -> Answers:
    """What a model says that only ever saw the new world: as many rows as the model in service learned, but no more than there were."""
    framing, other = params.framing, sample.model_copy(update={"seed": sample.seed + 1000, "drift_day": 0})
    learned = _make_world(params, other, Path("other.parquet"))
    moment, delay = learned.column(framing.time), timedelta(days=params.requirements.label_delay_days)
    due = pc.less_equal(moment, pa.scalar(pc.max(moment).as_py() - delay, moment.type))  # of younger rows, only the quickest labels are known
    known = learned.filter(pc.and_(due, pc.is_valid(learned.column(framing.target))))
    rows_then = min(told.learned[serving() or first.version], pq.read_metadata(PREPARED / "train.parquet").num_rows)
    pq.write_table(known.slice(max(0, known.num_rows - rows_then)), "other.parquet")
    trained = fit(framing, params.model, read_part(framing, Path("other.parquet"), first.classes), first.classes)
    arrays = encode(framing, columns_of(rows, columns_read(framing)))
    return answers_of(framing.task, part.labels, predict(framing, trained.model, frame_of(arrays)), first.threshold)


def write_story(params: Params, told: list[Told]) -> str:
    """Write reports/simulation, and return the figures as a Markdown table."""
    header = ["drift", "seed", *max((t.figures for t in told), key=len)]
    rows = [[t.story.drift, t.story.seed, *(t.figures.get(k) for k in header[2:])] for t in told]
    caption = f"{params.framing.metric} by week; dotted: its target."
    figures = [figure(_draw(params, t), f"{t.story.drift} drift, seed {t.story.seed}: {caption}") for t in told]
    decided = [(t.story.drift, t.story.seed, round(t.day(line)), line.decision, line.rule, line.why) for t in told for line in t.lines]
    flipped = table(("what", *(f"{r[0]}, seed {r[1]}" for r in rows)), list(zip(header, *rows, strict=True))[2:])
    with whole_folder(REPORT) as folder:
        write_text(folder / "simulation.json", json.dumps([t.figures | {"drift": t.story.drift, "seed": t.story.seed} for t in told], indent=2))
        write_text(folder / "index.html", page(
            "The time machine", f"{told[0].story.days} days of traffic; the world moves on day {told[0].story.drift_at}.",
            section("Stories", *figures), section("Figures", flipped),
            section("Decisions", table(("drift", "seed", "day", "decision", "rule", "why"), decided))))  # fmt: skip
    cells = [[plain(c) if isinstance(c, float) else "–" if c is None else c for c in row] for row in rows]
    return markdown_table(header, cells)


def _draw(params: Params, told: Told) -> Any:
    drawing, panel = axes(9, 3.2)
    weeks = np.arange(len(told.with_loop)) * 7 + 3.5
    panel.plot(weeks, told.without, color=GREY, linestyle="--", label="had the first model stayed")
    panel.plot(weeks, told.with_loop, color=BLUE, label="with the loop")
    if told.story.drift != "none":
        panel.axvline(told.story.drift_at, color=GREY, linewidth=1)
        panel.annotate("the world moves", (told.story.drift_at, 1), xycoords=("data", "axes fraction"), fontsize=8, rotation=90, va="top", ha="right")
    colours = {"alert": AMBER, "retraining": BLUE, "promoted": GREEN, "refused": RED, "failed": RED, "rolled_back": RED}
    for line in (line for line in told.lines if line.decision in colours):
        panel.axvline(told.day(line), color=colours[line.decision], linewidth=1)
        panel.annotate(line.decision.replace("_", " "), (told.day(line), 0), xycoords=("data", "axes fraction"), fontsize=8, rotation=90,
                       va="bottom", ha="left" if line.decision in ("promoted", "refused") else "right", color=colours[line.decision])  # fmt: skip
    for target in (t for t in params.requirements.quality if t.metric == params.framing.metric):
        panel.axhline(target.bound, color=RED, linestyle=":", linewidth=1)
    panel.set(xlabel="day", ylabel=params.framing.metric)
    panel.legend(loc="upper left", bbox_to_anchor=(0, 1.15), ncols=2)
    return drawing
