"""Step 7: drift is found and calm is left alone, the log is read as it was written, and alerts follow the requirements."""

import json
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.package_name }} import __main__ as verbs
from {{ cookiecutter.package_name }}.params import DASHBOARD, FORMER, REFERENCE, RULES, Drift, Framing, Params
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed, load_verdict
from {{ cookiecutter.package_name }}.step2_framing.contract import as_text
from {{ cookiecutter.package_name }}.step3_data.encode import columns_of
from {{ cookiecutter.package_name }}.step4_model.tracking import CHAMPION, open_tracker
from {{ cookiecutter.package_name }}.step5_evaluation.metrics import Answers
from {{ cookiecutter.package_name }}.step6_deployment.prediction_log import Logged, PredictionLog, ask_log
from {{ cookiecutter.package_name }}.step6_deployment.predictor import seal
from {{ cookiecutter.package_name }}.step6_deployment.service import create_app
from {{ cookiecutter.package_name }}.step7_monitoring import audit
from {{ cookiecutter.package_name }}.step7_monitoring.alerts import alert_rules, dashboard
from {{ cookiecutter.package_name }}.step7_monitoring.audit import AUDIT, Line
from {{ cookiecutter.package_name }}.step7_monitoring.drift import SCORE, compare
from {{ cookiecutter.package_name }}.step7_monitoring.exporter import metrics_text
from {{ cookiecutter.package_name }}.step7_monitoring.monitor import REPORT, Look, keep_looking, look, monitor, write_evidently
from {{ cookiecutter.package_name }}.step7_monitoring.quality import Judged, turned_bad
from {{ cookiecutter.package_name }}.step7_monitoring.retrain import UNDO, Trigger, decide, extend_raw, recover, retrain, rollback, serving
from {{ cookiecutter.package_name }}.step7_monitoring.window import JOINED, add_labels, count_labels, read_window

SETTINGS = Drift(psi=0.2, significance=0.01, min_rows=200)
NOW = datetime(2030, 1, 31)  # a moment like another; the log's times are relative to it
LABEL_WORDS = re.compile(r"\b(by|without|on) *\([^)]*\)|\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"")


@pytest.fixture(scope="module")
def usual(prepared: Path, framing: Framing) -> pa.Table:
    """Rows of the test part in no order: what the service is asked on an ordinary day."""
    table = pq.read_table(prepared / "test.parquet", columns=[i.name for i in framing.inputs])
    if table.num_rows < SETTINGS.min_rows:
        pytest.skip(f"{table.num_rows} rows to test on are too few to judge drift by")
    return table.take(np.random.default_rng(0).permutation(table.num_rows)[:400])


@pytest.fixture
def after(params: Params, monitored: Path, tmp_path: Path) -> Iterator[Callable[[list[dict[str, Any]]], Look]]:
    """What the monitor says after these records were answered and logged, with the reference's own scores."""
    in_no_order = np.random.default_rng(1).permutation
    scores = in_no_order(pq.read_table(monitored, columns=[SCORE]).column(0).to_numpy()).tolist()

    def watch(records: list[dict[str, Any]], now: datetime = NOW) -> Look:
        watched = logging_to(params, tmp_path / "log.sqlite")
        write_log(tmp_path / "log.sqlite", records, [scores[k % len(scores)] for k in range(len(records))])
        return monitor(watched, Stub(), now, act=False)[0]

    yield watch
    AUDIT.unlink(missing_ok=True)


def logging_to(params: Params, path: Path) -> Params:
    """The same with its prediction log elsewhere, and drift judged on few rows."""
    deployment = params.deployment.model_copy(update={"log": params.deployment.log.model_copy(update={"path": str(path), "queue": 10_000})})
    return params.model_copy(update={"deployment": deployment, "monitoring": params.monitoring.model_copy(update={"drift": SETTINGS})})


def write_log(path: Path, records: list[dict[str, Any]], scores: list[float], at: datetime = NOW) -> None:
    """Log answered records, as the service does."""
    log, answered = PredictionLog(path, 60, 10_000), enumerate(zip(records, scores, strict=True))
    log.add([Logged(f"{at} {k}", at.isoformat(), "1", False, json.dumps(record, default=str), score, None) for k, (record, score) in answered])
    log.close()


# ---- drift ---------------------------------------------------------------------------------


def odd_columns(table: pa.Table, odd: Framing, rows: int, seed: int) -> dict[str, Any]:
    """Rows drawn from the odd table, with a score."""
    rng = np.random.default_rng(seed)
    drawn = table.take(rng.integers(0, table.num_rows, rows))
    return columns_of(drawn, [i.name for i in odd.inputs]) | {SCORE: rng.random(rows)}


@pytest.mark.parametrize("seed", range(5))
def test_the_same_world_is_quiet(seed: int, odd: Framing, odd_table: pa.Table) -> None:
    found = compare(odd, SETTINGS, odd_columns(odd_table, odd, 3000, seed), odd_columns(odd_table, odd, 500, seed + 100))
    assert [m.column for m in found if m.drifted] == []
    assert len(found) == len(odd.inputs) + 1


MOVES: dict[str, Callable[[Any], Any]] = {
    "living area (m²)": lambda old: np.asarray(old) * 1.5,
    "class": lambda old: ["a" if k % 3 else v for k, v in enumerate(old)],
    "1st.größe": lambda old: ["4" if k % 2 else v for k, v in enumerate(old)],
    'say "hi"': lambda old: [v and v + " and three more" for v in old],
    "it's ok; --": lambda old: [True if k % 2 else v for k, v in enumerate(old)],
    "sold on": lambda old: np.asarray(old) + np.timedelta64(10**7, "s"),
    SCORE: lambda old: np.asarray(old) ** 3,
}


@pytest.mark.parametrize("column", MOVES)
def test_a_moved_column_is_found_and_no_other(column: str, odd: Framing, odd_table: pa.Table) -> None:
    """Numbers, categories old and new, lengths of texts, booleans, dates and the score."""
    window = odd_columns(odd_table, odd, 500, 1)
    window[column] = MOVES[column](window[column])
    found = compare(odd, SETTINGS, odd_columns(odd_table, odd, 3000, 0), window)
    assert [m.column for m in found if m.drifted] == [column]


def test_few_rows_never_alarm(odd: Framing, odd_table: pa.Table) -> None:
    window = odd_columns(odd_table, odd, 100, 1) | {SCORE: np.full(100, 0.99)}
    assert not any(m.drifted for m in compare(odd, SETTINGS, odd_columns(odd_table, odd, 3000, 0), window))


@pytest.mark.parametrize("zeros", [0.6, 1.0])
@pytest.mark.parametrize("instead", [-999.0, 1.0])
def test_a_column_of_mostly_one_value_moves_both_ways(zeros: float, instead: float, odd: Framing) -> None:
    """A source that writes -999 where it wrote 0 lies below every decile."""
    column, rng = "living area (m²)", np.random.default_rng(0)
    old, new = (np.where(rng.random(rows) < zeros, 0.0, 2.0 + rng.random(rows)) for rows in (4000, 500))
    assert [m.drifted for m in compare(odd, SETTINGS, {column: old}, {column: new})] == [False]
    assert [m.drifted for m in compare(odd, SETTINGS, {column: old}, {column: np.where(new == 0, instead, new)})] == [True]


# ---- the monitor ---------------------------------------------------------------------------


def test_the_step_passes_its_own_checks(monitored: Path) -> None:
    assert {c.outcome for c in load_verdict("monitoring") or []} == {"pass"}


def test_the_log_is_read_back_as_it_was_written(framing: Framing, usual: pa.Table, tmp_path: Path) -> None:
    """Every value of the window returns, and nothing older does."""
    records = usual.to_pylist()
    write_log(tmp_path / "log.sqlite", records[:100], [0.25] * 100)
    write_log(tmp_path / "log.sqlite", records[100:], [0.75] * (len(records) - 100), NOW - timedelta(days=9))
    window = read_window(str(tmp_path / "log.sqlite"), framing, NOW, "at > ?", (NOW - timedelta(days=1)).isoformat())
    assert (window.columns.pop(SCORE), window.of) == ([0.25] * 100, 100)
    for field in framing.inputs:
        written = [None if as_text(r[field.name]) is None else r[field.name] for r in records[:100]]
        read = [None if as_text(v) is None else v for v in window.columns[field.name]]
        assert sorted(map(comparable, read)) == sorted(map(comparable, written)), field.name


def comparable(value: Any) -> str:
    return str(np.datetime64(value, "us")) if isinstance(value, datetime | np.datetime64) else as_text(value) or ""


def test_an_ordinary_day_is_quiet(after: Callable[..., Look], usual: pa.Table) -> None:
    found = after(usual.to_pylist())
    assert (found.predictions, found.alarms) == (usual.num_rows, [])


@pytest.mark.parametrize(("decision", "drifted"), [("promoted", False), ("accepted", False), ("refused", True)])
def test_what_had_moved_when_a_champion_was_chosen_is_no_news(
    decision: str, drifted: bool, after: Callable[..., Look], usual: pa.Table, framing: Framing, tmp_path: Path
) -> None:
    """A promotion, or proof that the champion will do, settles it; missing values are never settled, what moves afterwards is found."""
    numbers = [i.name for i in framing.inputs if i.kind == "number" and usual.column(i.name).null_count < usual.num_rows / 4]
    if len(numbers) < 2:
        pytest.skip("there are no two columns of numbers to move")
    first, second = numbers[:2]
    others = [i.name for i in framing.inputs if i.name not in (first, second, framing.time)]
    lost = next(name for name in others if usual.column(name).null_count < usual.num_rows / 2)
    moved = [r | {first: 1e6 + k % 7, lost: None} for k, r in enumerate(usual.to_pylist())]
    write_log(tmp_path / "log.sqlite", moved, [0.5] * len(moved), NOW - timedelta(hours=2))
    audit.write(replace(at(1 / 24, decision), after=serving()))
    found = after(moved)
    assert any(m.column == first and m.drifted for m in found.moved) == drifted
    assert any(why.startswith(f"{lost} is missing in 100%") for _, why, _ in found.alarms)
    later = NOW + timedelta(minutes=1)
    write_log(tmp_path / "log.sqlite", [r | {second: 1e6 + k % 7} for k, r in enumerate(moved * 3)], [0.5] * 3 * len(moved), later)
    assert any(m.column == second and m.drifted for m in after([], later).moved)


def test_a_flood_of_missing_values_alarms_and_starts_no_training(after: Callable[..., Look], usual: pa.Table, framing: Framing) -> None:
    """A broken source is mended, not learned from."""
    known = [i.name for i in framing.inputs if i.name != framing.time and usual.column(i.name).null_count < usual.num_rows / 2]
    if not known:
        pytest.skip("nothing but the event time is an input")
    column = known[0]
    found = after([r | {column: None} for r in usual.to_pylist()])
    assert any(rule == "missing" and why.startswith(f"{column} is missing in 100%") for rule, why, _ in found.alarms)
    assert not any(line.decision == "alert" and line.rule == "missing" for line in audit.read())


def test_the_monitor_writes_a_page_a_record_and_metrics(after: Callable[..., Look], usual: pa.Table) -> None:
    found = after(usual.to_pylist())
    assert json.loads((REPORT / "monitor.json").read_text(encoding="utf-8"))["predictions"] == found.predictions
    assert "All is quiet." in (REPORT / "index.html").read_text(encoding="utf-8")
    assert {"drift_psi_ratio", "monitor_last_run_timestamp_seconds"} <= names_in((REPORT / "monitor.prom").read_text(encoding="utf-8"))


def test_a_look_that_may_not_act_writes_only_its_report_and_the_audit_log(after: Callable[..., Look], usual: pa.Table, project: Path) -> None:
    """In a container everything else is read-only."""

    def files() -> set[tuple[str, int]]:
        return {(p.relative_to(project).as_posix(), p.stat().st_mtime_ns) for p in project.rglob("*") if p.is_file()}

    before = files()
    after(usual.to_pylist())
    assert {name.rpartition("/")[0] for name, _ in files() - before} == {"reports/monitor", "models/audit"}


def test_an_empty_window_is_no_alarm(after: Callable[..., Look]) -> None:
    found = after([])
    assert (found.predictions, found.alarms, found.calm) == (0, [], False)


@pytest.mark.parametrize("damage", ["missing", "cut short", "not a log", "locked"])
def test_a_damaged_log_ends_in_a_sentence(damage: str, params: Params, monitored: Path, usual: pa.Table, tmp_path: Path) -> None:
    path, connect = tmp_path / "log.sqlite", sqlite3.connect
    if damage in ("cut short", "locked"):
        write_log(path, usual.to_pylist(), [0.5] * usual.num_rows)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:9000])
    elif damage == "not a log":
        path.write_text("hello, I am a text and no database, however long I am" * 100, encoding="utf-8")
    with closing(connect(path if damage == "locked" else ":memory:", isolation_level=None)) as other, pytest.MonkeyPatch.context() as patch:
        for order in ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "CREATE TABLE mine (a)"):
            other.execute(order)
        patch.setattr(sqlite3, "connect", lambda *args, **more: connect(*args, **more | {"timeout": 0}))  # it would wait for five seconds
        with pytest.raises(StepFailed, match=r"there is no prediction log|cannot be read"):
            monitor(logging_to(params, path), Stub(), NOW)


def test_a_clock_that_jumps_back_is_survived(after: Callable[..., Look], usual: pa.Table) -> None:
    """Predictions, labels and decisions of tomorrow are there, and count once it is tomorrow."""
    audit.write(at(-1, "noticed"))
    assert after(usual.to_pylist(), NOW - timedelta(hours=1)).predictions == 0
    assert after([], NOW).predictions == usual.num_rows


def test_a_service_that_runs_another_model_is_told_and_rules_that_stand_in_are_not_judged_as_the_model(
    after: Callable[..., Look], usual: pa.Table, params: Params, tmp_path: Path
) -> None:
    def answer(version: str, role: str, minutes: int) -> Look:
        log, asked = PredictionLog(tmp_path / "log.sqlite", 60, 10_000), (NOW - timedelta(minutes=minutes)).isoformat()
        log.add([Logged(f"{role} {k}", asked, version, False, "{}", 0.5, None, None, role) for k in range(300)])
        log.close()
        return after([])

    own = serving() or ""
    assert "newest_prediction_by_other_model 0.0" in prom_after(after, usual)
    stood_in = answer(own, "fallback", 2)
    assert (stood_in.predictions, stood_in.newest_by) == (usual.num_rows, own)
    assert not [a for a in answer("of a canary", "canary", 1).alarms if a[0] == "version"]
    found = answer("another", "champion", 0)
    assert [rule for rule, _, _ in found.alarms] == ["version"]
    assert "newest_prediction_by_other_model 1.0" in (REPORT / "monitor.prom").read_text(encoding="utf-8")


def prom_after(after: Callable[..., Look], usual: pa.Table) -> str:
    """The metrics of a look at an ordinary day that ended some minutes ago."""
    write = usual.to_pylist()
    after(write, NOW)
    return (REPORT / "monitor.prom").read_text(encoding="utf-8")


def test_while_params_are_edited_the_bundles_own_contract_holds(
    params: Params, monitored: Path, usual: pa.Table, tmp_path: Path, changed: Any
) -> None:
    """An input more in params.yaml is no reason to stop; another problem is, in a sentence."""
    write_log(tmp_path / "log.sqlite", usual.to_pylist(), [0.5] * usual.num_rows)
    inputs = [i.model_dump(by_alias=True) for i in params.framing.inputs]
    audit.write(replace(at(1 / 24, "promoted"), after=serving()))
    more = changed({"framing.inputs": [*inputs, {"name": "one more", "kind": "number"}]})
    assert look(logging_to(more, tmp_path / "log.sqlite"), NOW).predictions == usual.num_rows
    AUDIT.unlink()
    other = params.framing.model_copy(update={"target": "another"})
    with pytest.raises(StepFailed, match="`run` first"):
        look(logging_to(params.model_copy(update={"framing": other}), tmp_path / "log.sqlite"), NOW)


def test_a_look_that_fails_is_not_the_last_one(params: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    errors: Iterator[BaseException] = iter([OSError("disk full"), KeyError("column"), StepFailed("no log"), KeyboardInterrupt()])

    def once() -> None:
        raise next(errors)

    monkeypatch.setattr(f"{monitor.__module__}.ThreadingHTTPServer", lambda *_: SimpleNamespace(serve_forever=lambda: None))
    with pytest.raises(KeyboardInterrupt):
        keep_looking(once, params.deployment, 0)
    assert caplog.messages == ["OSError: disk full", "KeyError: 'column'", "no log"]


def test_a_refusal_is_told_while_an_alert_is_open_and_a_failure_always(after: Callable[..., Look], usual: pa.Table, params: Params) -> None:
    found = after(usual.to_pylist())
    bad = {ending: [f"loop_last_outcome_bad {float(told)}" in metrics_text(params, found, lines, NOW)
                    for told, lines in ((alone, [at(2, ending)]), (alerted, [at(9, "alert"), at(2, ending)]))]
           for ending, alone, alerted in (("refused", 0, 1), ("failed", 1, 1), ("interrupted", 1, 1), ("promoted", 0, 0))}  # fmt: skip
    assert all(told == [True, True] for told in bad.values()), bad


def test_evidently_reports_too_or_the_sentence_says_what_to_install(params: Params, monitored: Path, usual: pa.Table, tmp_path: Path) -> None:
    write_log(tmp_path / "log.sqlite", usual.to_pylist(), [0.1 + k / 1000 for k in range(usual.num_rows)])
    if find_spec("evidently"):
        assert "Drift" in write_evidently(logging_to(params, tmp_path / "log.sqlite"), NOW).read_text(encoding="utf-8")
    else:
        with pytest.raises(StepFailed, match="group evidently"):
            write_evidently(logging_to(params, tmp_path / "log.sqlite"), NOW)


# ---- quality -------------------------------------------------------------------------------


def answered(right: Sequence[float], task: str, rng: np.random.Generator) -> Answers:
    """Answers to rows that are right with these probabilities (numbers: as near as that)."""
    share = np.asarray(right)
    labels, hit = rng.integers(0, 2, len(share)), rng.random(len(share)) < share
    if task == "regression":
        return Answers(labels.astype(float), labels + rng.normal(0, 2 - share), labels.astype(float))
    scores = np.where(hit == (labels == 1), 0.9, 0.1)
    return Answers(labels, scores if task == "binary" else np.column_stack([1 - scores, scores]), scores > 0.5)


@pytest.mark.parametrize("newest", [300, 2500])
@pytest.mark.parametrize("began", [0, 3500, 4600])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_day_on_which_quality_was_lost_is_found(task: str, began: int, newest: int) -> None:
    """Whether the newest labels came in a burst (all of them from after that day) or rarely (many from before it)."""
    rng = np.random.default_rng(0)
    then = answered([0.9] * 3000, task, rng)
    now = answered([0.9] * began + [0.5] * (5000 - began), task, rng)
    assert abs(turned_bad(then, now, newest) - began) < 100


# ---- labels --------------------------------------------------------------------------------


def test_labels_are_joined_by_id_and_odd_ones_counted(framing: Framing, usual: pa.Table, tmp_path: Path) -> None:
    """The newest label that is known counts; one for no prediction, one twice, one against another, one late and one from tomorrow."""
    path, day = tmp_path / "log.sqlite", timedelta(days=1)
    write_log(path, usual.to_pylist()[:4], [0.5] * 4, NOW - 10 * day)
    ids = [f"{NOW - 10 * day} {k}" for k in range(4)]
    log = PredictionLog(path, 60, 100)
    came = [(ids[0], 9, "a"), (ids[0], 9, "a"), (ids[1], 9, "a"), (ids[1], 8, "b"), (ids[2], 1, "c"), (ids[3], -1, "d"), ("nobody", 9, "a")]
    log.add_labels([(i, (NOW - age * day).isoformat(), label) for i, age, label in [*came, (ids[3], 11, "e")]])
    log.close()
    assert read_window(str(path), framing, NOW, "1 = 1").label == ["a", "b", "c", "e"]
    with closing(sqlite3.connect(path)) as store, store:
        store.execute("INSERT INTO predictions SELECT prediction_id, at, '2', fallback, inputs, score, decision, threshold, 'shadow', review, entity "
                      "FROM predictions")  # fmt: skip
    counted = count_labels(str(path), NOW, NOW - 99 * day, 5)
    assert counted == {"received": 8, "duplicate": 1, "contradictory": 2, "unknown": 1, "late": 1, "before_prediction": 1, "in_future": 1}


def test_a_label_told_again_is_no_younger_and_a_corrected_one_is(usual: pa.Table, tmp_path: Path) -> None:
    path, day = str(tmp_path / "log.sqlite"), timedelta(days=1)
    write_log(tmp_path / "log.sqlite", usual.to_pylist()[:2], [0.5] * 2, NOW - 9 * day)
    first, second = (f"{NOW - 9 * day} {k}" for k in range(2))
    log = PredictionLog(path, 60, 100)
    came = [(first, 5, "a"), (first, 1, "a"), (second, 5, "a"), (second, 2, "b")]
    log.add_labels([(i, (NOW - age * day).isoformat(), label) for i, age, label in came])
    log.close()
    known = ask_log(path, f"SELECT prediction_id, label, label_at FROM {JOINED} ORDER BY prediction_id", [NOW.isoformat()] * 3)
    assert known == [(first, "a", (NOW - 5 * day).isoformat()), (second, "b", (NOW - 2 * day).isoformat())]


def test_a_correction_can_be_taken_back(framing: Framing, usual: pa.Table, tmp_path: Path) -> None:
    write_log(tmp_path / "log.sqlite", usual.to_pylist()[:1], [0.5])
    for day, label in enumerate(("no", "yes", "no"), start=1):
        (tmp_path / "labels.csv").write_text(f"prediction_id,label,at\n{NOW} 0,{label},2030-02-0{day}\n", encoding="utf-8")
        assert add_labels(tmp_path / "labels.csv", framing, str(tmp_path / "log.sqlite"), tmp_path)["added"] == 1
    assert read_window(str(tmp_path / "log.sqlite"), framing, NOW + timedelta(days=9), "1 = 1").label == ["no"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set here")
def test_labels_with_a_time_zone_are_read_in_utc(framing: Framing, usual: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "log.sqlite", usual.to_pylist()[:1], [0.5])
    noon = pa.array([datetime(2030, 2, 1, 12)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"prediction_id": [f"{NOW} 0"], "label": ["x"], "at": noon}), tmp_path / "labels.parquet")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    add_labels(tmp_path / "labels.parquet", framing, str(tmp_path / "log.sqlite"), tmp_path)
    monkeypatch.undo()
    time.tzset()
    assert ask_log(str(tmp_path / "log.sqlite"), "SELECT at FROM labels") == [("2030-02-01T12:00:00",)]


def test_labels_are_all_written_however_long_it_takes(framing: Framing, usual: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service gives up at its end; who hands in a file waits."""
    write_log(tmp_path / "log.sqlite", usual.to_pylist()[:1], [0.5])
    waited: list[float | None] = []
    join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: (waited.append(timeout), join(self, timeout))[1])
    (tmp_path / "labels.csv").write_text(f"prediction_id,label\n{NOW} 0,yes\n", encoding="utf-8")
    add_labels(tmp_path / "labels.csv", framing, str(tmp_path / "log.sqlite"), tmp_path)
    assert waited == [None]


def test_a_batch_of_labels_can_be_given_twice(framing: Framing, usual: pa.Table, tmp_path: Path) -> None:
    write_log(tmp_path / "log.sqlite", usual.to_pylist()[:2], [0.5] * 2)
    (tmp_path / "labels.csv").write_text(f"prediction_id,label,at\n{NOW} 0,yes,2030-02-01\n{NOW} 1,,\nnobody,no,\n", encoding="utf-8")
    first, again = (add_labels(tmp_path / "labels.csv", framing, str(tmp_path / "log.sqlite"), tmp_path) for _ in range(2))
    assert first == {"added": 2, "known before": 0, "without a prediction": 1, "empty": 1}
    assert (again["added"], again["known before"]) == (0, 2)


# ---- decisions -----------------------------------------------------------------------------


class Stub:
    """A project whose pipeline does what the test says."""

    def __init__(self, run: Callable[[], None] = lambda: None) -> None:
        self.run = run

    def track(self) -> None:
        """Nothing to note."""

    commit = track


def at(days: float, decision: str, since: str | None = None) -> Line:
    return Line((NOW - timedelta(days=days)).isoformat(), decision, "rule", "", None, None, since)


@pytest.mark.parametrize(("lines", "labels", "rule"), [
    ([at(5, "noticed")], 0, None),
    ([at(5, "noticed"), at(4, "alert")], 99, None),
    ([at(5, "noticed"), at(4, "alert")], 100, "rule"),
    ([at(5, "noticed"), at(4, "alert"), at(3, "quiet")], 100, None),
    ([at(50, "noticed"), at(40, "alert"), at(13, "retraining"), at(13, "refused")], 100, None),
    ([at(50, "noticed"), at(40, "alert"), at(15, "retraining"), at(15, "refused")], 100, "rule"),
    ([at(50, "noticed"), at(40, "alert"), at(-1, "retraining"), at(-1, "refused")], 100, None),
    ([at(91, "noticed")], 0, "age"),
    ([at(91, "noticed"), at(4, "alert")], 99, None),
    ([at(91, "noticed"), at(20, "retraining"), at(20, "refused")], 0, None),
    ([at(50, "noticed")], 1000, "new_labels"),
    ([at(20, "retraining", "moved"), at(20, "promoted", "moved")], 99, None),
    ([at(20, "retraining", "moved"), at(20, "promoted", "moved")], 100, "new_labels"),
    ([at(80, "refused", "moved"), at(60, "failed", "moved"), at(40, "promoted", "moved"), at(20, "interrupted", "moved")], 100, "new_labels"),
    ([at(60, "retraining", "moved"), at(60, "promoted", "moved"), at(20, "retraining", "moved"), at(20, "refused", "moved")], 199, None),
    ([at(60, "retraining", "moved"), at(60, "promoted", "moved"), at(20, "retraining", "moved"), at(20, "promoted", "moved")], 200, "new_labels"),
    ([at(50, "promoted", "moved"), *[at(20, "refused", "moved")] * 9], 1000, "new_labels"),
    ([at(20, "retraining"), at(20, "promoted")], 100, None),
    ([at(40, "retraining", "moved"), at(40, "promoted", "moved"), at(20, "rolled_back")], 100, None),
    ([at(20, "retraining", "moved"), at(20, "refused", "moved"), at(20, "accepted", "moved")], 100, None),
    ([at(50, "noticed"), at(40, "alert"), at(15, "refused"), at(15, "accepted")], 100, None),
])  # fmt: skip
def test_when_to_train_again(lines: list[Line], labels: int, rule: str | None, changed: Any) -> None:
    """Drift waits for labels of the new world, calm or proof that the champion will do cancels it, the cool-down holds (also when the clock
    jumps back), age and labels count, and a new world's champion is challenged again whenever its labels have doubled."""
    rules = {"automatic": True, "min_labels": 100, "new_labels": 1000, "after_days": 90, "cooldown_days": 14}
    found = decide(changed({"monitoring.retrain": rules}), lines, NOW, labels)
    assert (found and found.rule) == rule


def test_an_audit_line_that_a_crash_cut_short_is_skipped_and_hurts_no_other(project: Path) -> None:
    audit.write(at(2, "noticed"))
    with AUDIT.open("ab") as file:
        file.write(b'{"at": "2030')
    audit.write(at(1, "alert"))
    assert [line.decision for line in audit.read()] == ["noticed", "alert"]
    AUDIT.unlink()


@pytest.fixture
def logged(params: Params, monitored: Path, usual: pa.Table, tmp_path: Path) -> Iterator[Params]:
    """A project with a log of answered and labelled predictions; data/raw and params.yaml are put back after the test."""
    raw, path = Path(params.data.raw), tmp_path / "log.sqlite"
    kept, settings = raw.read_bytes(), Path("params.yaml").read_bytes()
    labels = pq.read_table(raw, columns=[params.framing.target]).column(0).drop_null().to_pylist()
    records = [r | ({params.framing.time: NOW - timedelta(days=1)} if params.framing.time else {}) for r in usual.to_pylist()]
    write_log(path, records, [0.5] * len(records), NOW - timedelta(days=1))
    log = PredictionLog(path, 60, 10_000)
    log.add_labels([(f"{NOW - timedelta(days=1)} {k}", NOW.isoformat(), as_text(labels[k % len(labels)]) or "") for k in range(100)])
    log.close()
    yield logging_to(params, path)
    raw.write_bytes(kept)
    Path("params.yaml").write_bytes(settings)
    AUDIT.unlink(missing_ok=True)


def test_a_retraining_learns_from_the_log_and_its_labels(logged: Params) -> None:
    """Rows that were brought stay, the log's come once however often it is read, with the labels that are in."""
    raw, framing = Path(logged.data.raw), logged.framing
    before, seen = pq.read_table(raw), []
    for _ in range(2):
        retrain(logged, Trigger("rule", "why", "2029-12-31"), Stub(lambda: seen.append(pq.read_table(raw))), NOW)
        assert pq.read_table(raw).equals(before)
    for table in seen if framing.time else ():
        mine = table.filter(pc.is_valid(table.column("prediction_id")))
        assert (table.num_rows - mine.num_rows, mine.column(framing.target).null_count) == (before.num_rows, mine.num_rows - 100)
        assert mine.num_rows > 150
        assert mine.column(framing.target).type == before.column(framing.target).type
    assert seen[0].num_rows == seen[1].num_rows


@pytest.mark.parametrize(
    ("error", "outcome"), [(StepFailed("the gate is closed"), "refused"), (OSError("disk full"), "failed"), (KeyboardInterrupt(), "failed")]
)
def test_a_retraining_that_fails_leaves_all_as_it_was(error: BaseException, outcome: str, logged: Params) -> None:
    raw, champion = Path(logged.data.raw), serving()
    before = raw.read_bytes(), Path("params.yaml").read_bytes()

    def stop() -> None:
        raise error

    with suppress(KeyboardInterrupt):
        retrain(logged, Trigger("rule", "why", "2029-12-31"), Stub(stop), NOW)
    assert (raw.read_bytes(), Path("params.yaml").read_bytes()) == before
    assert [(line.decision, line.before, line.after) for line in audit.read()] == [("retraining", champion, None), (outcome, champion, champion)]
    assert serving() == champion


def test_a_retraining_that_was_killed_is_undone_by_the_next_look(logged: Params) -> None:
    raw, before = Path(logged.data.raw), Path(logged.data.raw).read_bytes()

    def kill() -> None:
        raise SystemExit(9)

    with pytest.MonkeyPatch.context() as dead, suppress(SystemExit):
        dead.setattr(f"{retrain.__module__}.restore", lambda _: None)  # a killed process puts nothing back
        retrain(logged, Trigger("rule", "why"), Stub(kill), NOW)
    AUDIT.write_text(AUDIT.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert raw.read_bytes() != before
    recover(Stub(), NOW)
    assert (raw.read_bytes(), audit.read()[-1].decision, UNDO.exists()) == (before, "interrupted", False)


@pytest.mark.parametrize("error", [StepFailed("monitoring: no disk"), OSError("no disk"), KeyboardInterrupt()])
def test_what_stops_after_the_swap_leaves_a_promotion(error: BaseException, logged: Params, bundle: Path) -> None:
    """The service has the new model, so the audit log, data and params.yaml go with it."""
    raw, champion = Path(logged.data.raw), serving() or ""
    before = raw.read_bytes()

    def swap_and_stop() -> None:
        rename_version(bundle, "new")
        raise error

    with suppress(KeyboardInterrupt):
        retrain(logged, Trigger("rule", "why", "2029-12-31"), Stub(swap_and_stop), NOW)
    line = audit.read()[-1]
    assert (line.decision, line.before, line.after, UNDO.exists()) == ("promoted", champion, "new", False)
    assert raw.read_bytes() != before
    rename_version(bundle, champion)


@pytest.mark.parametrize("where", ["restore", "audit.write"])
def test_a_crash_while_a_refusal_is_dealt_with_loses_nothing(where: str, logged: Params) -> None:
    """Before data and params.yaml are back, and after it, before the audit log tells: the next look finds what is to be done."""
    raw, before = Path(logged.data.raw), (Path(logged.data.raw).read_bytes(), Path("params.yaml").read_bytes())

    def die(*_: Any) -> None:
        raise SystemExit(9)

    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):

        def stop() -> None:
            patch.setattr(f"{retrain.__module__}.{where}", die)
            raise StepFailed("the gate is closed")

        retrain(logged, Trigger("rule", "why", "2029-12-31"), Stub(stop), NOW)
    recover(Stub(), NOW)
    assert (raw.read_bytes(), Path("params.yaml").read_bytes()) == before
    assert (audit.read()[-1].decision, UNDO.exists()) == ("interrupted", False)


def test_a_retraining_without_raw_data_fails_and_says_so(logged: Params) -> None:
    raw = Path(logged.data.raw)
    raw.unlink()
    assert retrain(logged, Trigger("rule", "why"), Stub(), NOW).decision == "failed"
    assert "FileNotFoundError" in audit.read()[-1].why


@pytest.mark.parametrize(("made", "said"), [("what DVC knows", ""), ("something else", "names other data")])
def test_data_that_cannot_be_fetched_are_not_made_up(made: str, said: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the remote, the simulator's data will do only where they are what DVC names: gates on others would say nothing."""
    raw, known = Path(params.data.raw), Path(params.data.raw).parent.with_suffix(".dvc")

    def make(*_: Any) -> None:
        raw.parent.mkdir(parents=True)
        raw.touch()
        known.write_text(f"outs:\n- path: raw\n  md5: {made}\n", encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    known.parent.mkdir(parents=True)
    known.write_text("outs:\n- md5: what DVC knows\n  path: raw\n", encoding="utf-8")
    monkeypatch.setattr(verbs, "_dvc", lambda *_: 1)
    monkeypatch.setattr(verbs, "_make_sample", make)
    with pytest.raises(StepFailed, match=said) if said else nullcontext():
        verbs._fetch_raw(params)
    assert (raw.exists(), "md5: what DVC knows" in known.read_text(encoding="utf-8")) == (not said, True)


def test_rows_of_a_pruned_log_stay_learned(logged: Params) -> None:
    raw, seen = Path(logged.data.raw), list[int]()
    before, settings = raw.read_bytes(), Path("params.yaml").read_bytes()
    for _ in range(2):
        extend_raw(logged, NOW)
        seen.append(pq.read_table(raw).num_rows)
        with closing(sqlite3.connect(logged.deployment.log.path)) as store, store:
            store.execute("DELETE FROM predictions WHERE prediction_id LIKE '%5'")
    assert (seen[0] == seen[1], Path("params.yaml").read_bytes()) == (True, settings)
    raw.write_bytes(before)


def test_one_retraining_at_a_time(logged: Params) -> None:
    said = []

    def again() -> None:
        with pytest.raises(StepFailed, match="another retraining"):
            rollback(Stub(), "by hand", "", NOW)
        said.append((recover(Stub(), NOW), UNDO.exists()))  # a look meanwhile takes nothing back

    retrain(logged, Trigger("rule", "why"), Stub(again), NOW)
    assert said == [(False, True)]


def keep_former(bundle: Path) -> None:
    """Bundle and reference as those of a former champion, version 0."""
    for folder in (bundle, REFERENCE.parent):
        shutil.copytree(folder, FORMER / folder.name)
    rename_version(FORMER / bundle.name, "0")


def rename_version(bundle: Path, version: str) -> None:
    """The same bundle as that of another version."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["version"]["version"] = version
    seal(bundle, manifest)


@pytest.mark.parametrize(("days", "decisions"), [(1, ["promoted", "rolled_back"]), (9999, ["promoted"])])
def test_a_guard_rail_rolls_a_new_champion_back_once(days: float, decisions: list[str], logged: Params, bundle: Path, changed: Any) -> None:
    """Only while the promotion is on probation, and the former champion is not thrown out again for the same labels."""
    settings = changed({"monitoring.retrain": logged.monitoring.retrain.model_dump() | {"after_days": 10**6, "new_labels": 10**6}}).monitoring
    params, new = logged.model_copy(update={"monitoring": settings}), serving()
    keep_former(bundle)
    audit.write(replace(at(days, "promoted"), after=new))
    broken = replace(look(params, NOW), judged=[Judged("guard_rails", "mae", 3, 2, 4, 1, breached=True)], alarms=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{rollback.__module__}.open_tracker", lambda: SimpleNamespace(set_alias=lambda *_: None))
        patch.setattr(f"{monitor.__module__}.look", lambda *_: replace(broken, version=serving()))
        for _ in range(2):
            monitor(params, Stub(), NOW)
        assert ([line.decision for line in audit.read()], serving()) == (decisions, new if days > 1 else "0")
        if days == 1:
            rollback(Stub(), "by hand", "", NOW)
    shutil.rmtree(FORMER)


def test_rollback_brings_the_former_champion_back_and_forth(logged: Params, bundle: Path) -> None:
    """Bundle and alias; a second rollback undoes the first, and without a former champion it says so."""
    with pytest.raises(StepFailed, match="no former champion"):
        rollback(Stub(), "by hand", "", NOW)
    new = serving()
    tracker = open_tracker()
    keep_former(bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{rollback.__module__}.open_tracker", lambda: SimpleNamespace(set_alias=lambda *_: None))
        assert (rollback(Stub(), "by hand", "", NOW).after, serving()) == ("0", "0")
    assert (rollback(Stub(), "by hand", "", NOW).after, serving(), tracker.version_of(CHAMPION)) == (new, new, new)
    shutil.rmtree(FORMER)


@pytest.mark.parametrize("renames", range(5))
def test_a_rollback_that_is_killed_between_two_renames_leaves_a_whole_bundle(renames: int, logged: Params, bundle: Path) -> None:
    """Whichever is in its place after the next look, it is whole, and a rollback works."""
    keep_former(bundle)
    new, rename, left = serving() or "", os.replace, iter(range(renames))

    def dying(old: Any, place: Any) -> None:
        if str(old).startswith("models") and next(left, None) is None:
            raise SystemExit(9)
        rename(old, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{rollback.__module__}.open_tracker", lambda: SimpleNamespace(set_alias=lambda *_: None))
        with suppress(SystemExit), pytest.MonkeyPatch.context() as dead:
            dead.setattr(os, "replace", dying)
            rollback(Stub(), "by hand", "", NOW)
        recover(Stub(), NOW)
        assert (serving() in (new, "0"), REFERENCE.exists()) == (True, True)
        if (FORMER / bundle.name).exists():
            rollback(Stub(), "by hand", "", NOW)
    assert serving() in (new, "0")
    rename_version(bundle, new)
    shutil.rmtree(FORMER)


# ---- alerts and dashboard ------------------------------------------------------------------


def expressions(params: Params) -> dict[str, str]:
    """Alert name to expression."""
    rules = alert_rules(params.requirements, params.monitoring, "package")
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


@pytest.mark.parametrize(("requirement", "value", "alerts", "limit"), [
    ("requirements.availability", 0.9, {"ErrorBudgetBurnFast", "ErrorBudgetBurnSteady", "ErrorBudgetBurnSlow"}, 1.44),
    ("requirements.latency_ms", {"p50": 1, "p99": 777}, {"LatencyBurnFast", "LatencyBurnSteady", "LatencyBurnSlow"}, 0.777),
    ("monitoring.window_hours", 5, {"MonitorSilent", "NoPredictions"}, 36000),
])  # fmt: skip
def test_alerts_follow_the_requirements(requirement: str, value: Any, alerts: set[str], limit: float, params: Params, changed: Any) -> None:
    """One changed number changes the alerts that rest on it, and no other."""
    before, now = expressions(params), expressions(changed({requirement: value}))
    assert {alert for alert in before if before[alert] != now[alert]} == alerts
    assert any(re.search(rf"> {limit:g}(\.0)?\b", now[alert]) for alert in alerts)


def test_the_dashboards_thresholds_follow_the_requirements(params: Params, changed: Callable[..., Params]) -> None:
    strict = changed({"requirements.latency_ms": {"p50": 11, "p99": 777}, "requirements.throughput_per_second": 4321})
    board = json.dumps(dashboard(strict.requirements, strict.monitoring))
    assert all(f'"value": {limit}' in board for limit in (0.011, 0.777, 4321))
    assert "@" not in board.replace(strict.requirements.kpi.name, "")


def test_every_metric_that_is_asked_for_is_exported(monitored: Path, bundle: Path, params: Params, after: Any, usual: pa.Table) -> None:
    """Rules and dashboard name only what the service or the monitor exports (and `up`, which Prometheus makes)."""
    after(usual.to_pylist())
    exported = names_in(generate_latest(create_app(params, bundle).metrics.registry).decode())
    exported |= names_in((REPORT / "monitor.prom").read_text(encoding="utf-8"))
    asked = {name for expression in asked_for() for name in metrics_in(expression)}
    assert len(asked) > 5
    assert {name for name in asked if not name.startswith("process_")} - {"up"} <= exported  # those of the process exist on Linux only


def test_every_metric_has_a_panel(monitored: Path, bundle: Path, params: Params, after: Any, usual: pa.Table) -> None:
    """What the service and the monitor say of themselves can be looked at; the time at which a counter began is no metric."""
    after(usual.to_pylist())
    texts = generate_latest(create_app(params, bundle).metrics.registry).decode(), (REPORT / "monitor.prom").read_text(encoding="utf-8")
    families = {f.name for text in texts for f in text_string_to_metric_families(text) if not f.name.startswith("process_")}
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    shown = {name for panel in board for target in panel.get("targets", ()) for name in metrics_in(target["expr"])}
    assert {f for f in families if not f.endswith("_created") and not any(name.startswith(f) for name in shown)} == set()


def names_in(text: str) -> set[str]:
    """The samples of a Prometheus text, and those that families without samples yet will have."""
    families = list(text_string_to_metric_families(text))
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {s.name for f in families for s in f.samples} | {f.name + suffix for f in families for suffix in suffixes.get(f.type, ())}


def asked_for() -> Iterator[str]:
    """Every expression of the rules and the dashboard that the step wrote."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def metrics_in(expression: str) -> set[str]:
    """The metric names of a PromQL expression: words that are no function, keyword, label or number."""
    words = re.findall(r"(?<![\w.$])[a-z_][a-z0-9_]*\b(?! *\()", LABEL_WORDS.sub(" ", expression))
    return set(words) - {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
