"""One look at the newest window of the prediction log, and what follows from it: calm, an alert, a retraining, a rollback."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ..params import BUNDLE, FORMER, ONLINE, REFERENCE, REPORTS, Deployment, Params, ParamsError
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import BLUE, GREY, RED, axes, figure, page, paragraph, plain, section, table, whole_folder, write_text
from ..step3_data.encode import columns_of, encode_labels
from ..step5_evaluation.metrics import answers_of
from ..step6_deployment.prediction_log import ask_log
from ..step6_deployment.predictor import Predictor
from . import audit
from .audit import Line
from .drift import SCORE, Moved, compare
from .exporter import metrics_text
from .quality import Judged, answers_in, confidence, estimate, importances, judge, turned_bad
from .retrain import Project, decide, new_labels, recover, retrain, rollback
from .window import JOINED, Window, count_labels, iso, read_window

REPORT, EVIDENTLY = REPORTS / "monitor", REPORTS / "evidently.html"
MOST_PICTURES = 12
LOOK_BACK = 10  # so many times performance.labels are searched for the day on which quality was lost
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What one look found. `alarms` are (rule, why, since) of what is not as it should be; `calm` means far from all limits."""

    at: str
    version: str
    predictions: int
    newest: str | None
    newest_by: str | None
    moved: list[Moved]
    labels: dict[str, int]
    labelled: float | None
    judged: list[Judged]
    estimate: tuple[str, float] | None
    confidence: float
    importance: dict[str, tuple[float, float]]
    alarms: list[tuple[str, str, str]]
    calm: bool


def monitor(params: Params, project: Project, now: datetime | None = None, *, act: bool = True) -> tuple[Look, list[Line]]:
    """Look, write what was found into reports/monitor, and let the rules decide; returns the look and the decisions made.

    Raises:
        StepFailed: when there is nothing to look at, or another retraining runs.
    """
    now = now or datetime.now(UTC).replace(tzinfo=None)
    before = len(audit.read())
    idle = act and recover(project, now)
    found = look(params, now)
    _note(found, now)
    publish(params, found, now)
    if idle and params.monitoring.retrain.automatic:
        lines = audit.read()
        broken = [j for j in found.judged if j.group == "guard_rails" and j.breached]
        came = audit.last(lines, *audit.CAME)
        new = params.requirements.label_delay_days + params.monitoring.retrain.cooldown_days  # so long a promotion is on probation
        if broken and came and came.decision == "promoted" and audit.within(came, now, new) and (FORMER / BUNDLE.name).exists():
            rollback(project, "guard_rail", f"{_say(broken[0])} with the new champion", now)
        elif trigger := decide(params, lines, now, new_labels(params, lines, now)):
            retrain(params, trigger, project, now)
        if len(audit.read()) > len(lines):
            publish(params, found, now)
    return found, audit.read()[before:]


def look(params: Params, now: datetime) -> Look:
    """Judge the newest window of the model in service, and its newest matured labels.

    Raises:
        StepFailed: when the prediction log, the bundle or the reference is missing or damaged.
    """
    if not REFERENCE.exists():
        raise StepFailed(f"monitor: {REFERENCE} is not here; `run` writes it")
    predictor, settings = Predictor(BUNDLE, ONLINE), params.monitoring
    framing, asked = predictor.framing, params.framing  # while params.yaml is edited, the bundle's own contract holds
    if (framing.task, framing.target, framing.metric) != (asked.task, asked.target, asked.metric):
        raise StepFailed("monitor: params.yaml frames another problem than the bundle in service answers; `run` first")
    reference = pq.read_table(REFERENCE)
    since, mature = now - timedelta(hours=settings.window_hours), now - timedelta(days=params.requirements.label_delay_days)
    log, own = params.deployment.log.path, "model_version = ? AND role <> 'fallback'"  # rules that stand in for a model are not it
    where = f"{own} AND label IS NOT NULL AND label_at <= ? AND at <= ?"
    window = read_window(log, framing, now, f"{own} AND at > ?", predictor.version, iso(since))
    matured = partial(read_window, log, framing, now, where, predictor.version, iso(now), iso(mature))
    labels = count_labels(log, now, since, params.requirements.label_delay_days)
    answers = "SELECT at, model_version FROM predictions WHERE at <= ? AND role IN ('champion', 'fallback') ORDER BY at DESC LIMIT 1"
    newest, by = next(iter(ask_log(log, answers, (iso(now),))), (None, None))
    due = f"SELECT count(*), count(label) FROM {JOINED} WHERE at > ? AND at <= ?"
    answered, labelled = ask_log(log, due, (*[iso(now)] * 3, iso(mature - (now - since)), iso(mature)))[0]
    moved = _moved(params, predictor, columns_of(reference, reference.column_names), window, now)
    judged, importance, bad_since = _judge(params, predictor, matured)
    alarms = [("drift", f"{m.column} drifted: PSI {m.psi:.2f}", iso(since)) for m in sorted(moved, key=lambda m: -m.psi) if m.drifted]
    alarms += [("performance", _say(j), bad_since) for j in judged if j.breached]
    if by not in (None, predictor.version):
        alarms.append(("version", f"the newest prediction is of model {by}: the service has not taken up model {predictor.version}", iso(since)))
    still = all(m.psi < settings.drift.psi / 2 or m.p_value >= settings.drift.significance for m in moved)
    calm = still and not any(j.breached for j in judged) and len(window) >= settings.drift.min_rows
    if len(window) >= settings.drift.min_rows:
        gone = [m for m in moved if m.missing_now - m.missing_before > settings.max_missing_increase]
        alarms += [("missing", f"{m.column} is missing in {m.missing_now:.0%} of rows, {m.missing_before:.0%} before", iso(since)) for m in gone]
    return Look(iso(now), predictor.version, window.of, newest, by, moved, labels, labelled / answered if answered else None, judged,
                estimate(framing, predictor.classes, window), confidence(framing, window), importance, alarms, calm)  # fmt: skip


def _moved(params: Params, predictor: Predictor, reference: dict[str, Any], window: Window, now: datetime) -> list[Moved]:
    """Each column against the reference, or against what was asked when the loop last promoted or accepted a champion, whichever is nearer.

    A decision settles what had moved by then: the labelled reference is older than it by the labels' delay, and history
    goes on moving for as long as it reaches back. What moves afterwards is far from both. Missing values are never settled.
    """
    drift, framing, decided = params.monitoring.drift, predictor.framing, audit.last(audit.read(), *audit.CAME, "accepted")
    moved = compare(framing, drift, reference, window.columns)
    if decided and decided.decision in ("promoted", "accepted"):
        began = iso(decided.moment - timedelta(hours=params.monitoring.window_hours))
        settled = read_window(params.deployment.log.path, framing, now, "at > ? AND at <= ?", began, decided.at)
        if len(settled) >= drift.min_rows:
            settled.columns[SCORE] = predictor.main_scores(predictor.scores(settled.columns))
            again = compare(framing, drift, settled.columns, window.columns)
            moved = [replace(min(m, n, key=lambda m: m.psi), missing_before=m.missing_before) for m, n in zip(moved, again, strict=True)]
    return moved


def publish(params: Params, found: Look, now: datetime) -> None:
    """Write reports/monitor: page, JSON and Prometheus metrics."""
    lines = audit.read()
    plain = asdict(replace(found, moved=[]))
    plain["moved"] = [{name: value for name, value in asdict(m).items() if name != "picture"} for m in found.moved]
    with whole_folder(REPORT) as folder:
        write_text(folder / "index.html", _page(params, found, lines))
        write_text(folder / "monitor.json", json.dumps(plain, indent=2, ensure_ascii=False))
        write_text(folder / "monitor.prom", metrics_text(params, found, lines, now))


def _judge(params: Params, predictor: Predictor, read: Callable[..., Window]) -> tuple[list[Judged], dict[str, tuple[float, float]], str]:
    """Quality on enough of the newest matured labels, each input's importance in the reference and now, and since when it is bad, if it is."""
    fewest, framing = params.monitoring.performance.labels, predictor.framing
    matured = read(newest=fewest)
    answers, asked, _ = answers_in(predictor, matured)
    if len(matured) < fewest or len(answers.labels) < fewest / 2:  # some may be labels that nobody knows
        return [], {}, ""
    reference = pq.read_table(REFERENCE)
    reference = reference.slice(max(0, reference.num_rows - len(answers.labels)))
    columns = columns_of(reference, predictor.names)
    labels = encode_labels(framing, predictor.classes, reference.column(framing.target).to_pylist())
    good = answers_of(framing.task, labels, predictor.scores(columns), predictor.threshold)
    then, now = importances(predictor, columns, good), importances(predictor, asked, answers)
    judged, since = judge(params, predictor, answers), ""
    if any(j.breached for j in judged):
        longer, _, at = answers_in(predictor, read(newest=LOOK_BACK * fewest))
        since = at[turned_bad(good, longer, len(answers.labels))]
    return judged, {name: (then[name], now[name]) for name in now}, since


def _note(found: Look, now: datetime) -> None:
    """Put into the audit log what changed: another champion, trouble that began, trouble that is over."""
    lines, at = audit.read(), iso(now)
    came = audit.last(lines, *audit.CAME)
    if came is None or came.after != found.version:
        why = "a bundle that the monitor did not put there"
        lines.append(audit.write(Line(at, "noticed", "champion", why, came.after if came else None, found.version)))
    alert = audit.open_alert(lines)
    causes = [a for a in found.alarms if a[0] in ("drift", "performance")]
    if causes and alert is None:
        rule, why, since = causes[0]
        audit.write(Line(at, "alert", rule, why if len(causes) == 1 else f"{why}, and {len(causes) - 1} more", found.version, None, since))
    elif alert and found.calm:
        audit.write(Line(at, "quiet", alert.rule, "no column is beyond half of its limit and chance, and no target is missed", found.version, None))


def _say(j: Judged) -> str:
    against = {"champion": "what it was at its evaluation, less the slack", "guard_rails": "its guard rail", "quality": "its target"}[j.group]
    return f"{j.metric} is {plain(j.value)} [{plain(j.low)}, {plain(j.high)}], on the wrong side of {against}, {plain(j.bound)}"


def _page(params: Params, found: Look, lines: list[Line]) -> str:
    drift, moved = params.monitoring.drift, sorted(found.moved, key=lambda m: -m.psi)
    shown = moved[:20][::-1]
    drawing, panel = axes(7, 0.8 + 0.22 * max(1, len(shown)))
    panel.barh([m.column[:40] for m in shown], [m.psi for m in shown], color=[RED if m.drifted else BLUE for m in shown])
    panel.axvline(drift.psi, color=RED, linestyle="--")
    panel.set_xlabel("population stability index; dashed: the limit")
    lead = f"{found.predictions:,} predictions of model {found.version} in the {params.monitoring.window_hours:g} hours up to {found.at[:16]}. "
    lead += "All is quiet." if not found.alarms else "; ".join(why for _, why, _ in found.alarms) + "."
    rows = [(m.column, m.psi, m.test.replace("Kolmogorov-Smirnov", "KS"), m.distance, float(f"{m.p_value:.1g}"), m.wasserstein,
             f"{m.missing_before:.1%}", f"{m.missing_now:.1%}", "yes" if m.drifted else "no") for m in moved]  # fmt: skip
    header = ("column", "PSI", "test", "distance", "p", "Wasserstein", "missing before", "missing now", "drifted")
    share = "none are due yet" if found.labelled is None else f"{found.labelled:.0%} of the predictions due in the newest matured window have theirs"
    quality = [paragraph(f"Labels: {', '.join(f'{n:,} {kind}' for kind, n in found.labels.items())}; {share}.".replace("_", " "))]
    if found.judged:
        rows_of = [(j.metric, j.value, j.low, j.high, j.bound, j.group.replace("_", " "), "fail" if j.breached else "pass") for j in found.judged]
        quality.append(table(("metric", "value", "from", "to", "bound", "whose", "verdict"), rows_of))
    else:
        quality.append(paragraph(f"Not measured: fewer than {params.monitoring.performance.labels:,} matured labels of this model."))
    if found.estimate:
        metric, value = found.estimate
        quality.append(paragraph(f"Estimate, not a measurement: {metric} of {value:.4g} in this window, if the scores are calibrated."))
    importance = [(name, then, now) for name, (then, now) in sorted(found.importance.items(), key=lambda item: -item[1][1])]
    done = [(d.at[:16].replace("T", " "), d.decision.replace("_", " "), d.rule, d.before or "", d.after or "", d.why) for d in lines[::-1][:20]]
    return page(
        "Monitor", lead,
        section("Drift", figure(drawing, "Against the reference, or the window before the last decision."), *_pictures(moved), table(header, rows)),
        section("Quality, once labels are in", *quality),
        *([section("What the model listens to", table(("input", "share in the reference", "share now"), importance))] if importance else []),
        section("Decisions", table(("when", "decision", "rule", "from", "to", "why"), done)),
    )  # fmt: skip


def _pictures(moved: list[Moved]) -> list[str]:
    """The columns that moved, reference beside window."""
    pictures = []
    for m in [m for m in moved if m.drifted][:MOST_PICTURES]:
        drawing, panel = axes(7, 2.2)
        place, (bins, old, new) = np.arange(len(m.picture[0])), m.picture
        panel.bar(place - 0.2, old, 0.4, color=GREY, label="reference")
        panel.bar(place + 0.2, new, 0.4, color=RED, label="window")
        panel.set_xticks(place, [b[:14] for b in bins], rotation=30, ha="right")
        panel.set(ylabel="share of rows")
        panel.legend()
        pictures.append(figure(drawing, f"{m.column}: PSI {m.psi:.2f}, {m.test} {m.distance:.2f}."))
    return pictures


def write_evidently(params: Params, now: datetime) -> Path:
    """Evidently's own drift report of numbers, categories, booleans and the score, as reports/evidently.html; decides nothing.

    Raises:
        StepFailed: when Evidently is not installed, or there are no predictions in the window or no log.
    """
    try:
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset
    except ImportError:
        raise StepFailed("monitor: Evidently is not installed; `uv sync --all-extras --group evidently` does it") from None
    kinds = {i.name: i.kind for i in params.framing.inputs} | {SCORE: "number"}
    numbers, words = ([n for n, kind in kinds.items() if kind in some] for some in (("number",), ("category", "boolean")))
    window = read_window(params.deployment.log.path, params.framing, now, "at > ?", iso(now - timedelta(hours=params.monitoring.window_hours)))
    if not len(window):
        raise StepFailed("monitor: no predictions in the window, so there is nothing for Evidently to compare")
    sides = window.columns, columns_of(pq.read_table(REFERENCE), numbers + words)
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=words)
    data = [Dataset.from_pandas(pd.DataFrame({n: side[n] for n in numbers + words}), definition) for side in sides]
    Report([DataDriftPreset()]).run(*data).save_html(str(EVIDENTLY))
    return EVIDENTLY


def keep_looking(once: Callable[[], None], settings: Deployment, minutes: float) -> None:
    """Look every so many minutes, and at once when Alertmanager posts an alert; the newest metrics are at /metrics."""
    due = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The newest metrics."""
            path = REPORT / "monitor.prom"
            self._answer(200 if path.exists() else 503, path.read_bytes() if path.exists() else b"")

        def do_POST(self) -> None:
            """An alert: look now, whatever it says."""
            self.rfile.read(int(self.headers.get("content-length") or 0))
            due.set()
            self._answer(202, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are not worth a line."""

    try:
        server = ThreadingHTTPServer((settings.host, settings.port + 1), Handler)
    except OSError as error:
        raise StepFailed(f"monitor: port {settings.port + 1} cannot be listened on ({error}); deployment.port is the one before it") from None
    Thread(target=server.serve_forever, daemon=True).start()
    while True:
        due.clear()
        try:
            once()
        except Exception as error:  # whatever it is, the next look may be luckier
            log.error("%s%s", "" if isinstance(error, StepFailed | ParamsError) else f"{type(error).__name__}: ", error)
        due.wait(minutes * 60)
