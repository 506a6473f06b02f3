"""Step 7: drift is found and calm is left alone, the log is read as it was written, and alerts follow the requirements."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.package_name }}.params import DASHBOARD, RULES, Drift, Framing, Params
from {{ cookiecutter.package_name }}.step1_requirements.checks import load_verdict
from {{ cookiecutter.package_name }}.step3_data.encode import columns_of
from {{ cookiecutter.package_name }}.step6_deployment.prediction_log import Logged, PredictionLog
from {{ cookiecutter.package_name }}.step6_deployment.service import create_app
from {{ cookiecutter.package_name }}.step7_monitoring.alerts import alert_rules, dashboard
from {{ cookiecutter.package_name }}.step7_monitoring.drift import SCORE, compare
from {{ cookiecutter.package_name }}.step7_monitoring.monitor import REPORT, Look, _window, look

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
def after(params: Params, monitored: Path, tmp_path: Path) -> Callable[[list[dict[str, Any]]], Look]:
    """What the monitor says after these records were answered and logged, with the reference's own scores."""
    scores = pq.read_table(monitored, columns=[SCORE]).column(0).to_pylist()

    def watch(records: list[dict[str, Any]]) -> Look:
        watched = logging_to(params, tmp_path / "log.sqlite")
        write_log(tmp_path / "log.sqlite", records, [scores[k % len(scores)] for k in range(len(records))])
        return look(watched, NOW)

    return watch


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


# ---- the monitor ---------------------------------------------------------------------------


def test_the_step_passes_its_own_checks(monitored: Path) -> None:
    assert {c.outcome for c in load_verdict("monitoring") or []} == {"pass"}


def test_the_log_is_read_back_as_it_was_written(params: Params, framing: Framing, usual: pa.Table, tmp_path: Path) -> None:
    """Every value of the window returns, and nothing older does."""
    records = usual.to_pylist()
    old = records.pop(), records.pop()
    write_log(tmp_path / "log.sqlite", records, [0.25] * len(records))
    write_log(tmp_path / "log.sqlite", old, [0.75] * 2, NOW - timedelta(days=9))
    columns, labels = _window(tmp_path / "log.sqlite", NOW - timedelta(days=1))
    assert (columns.pop(SCORE), labels) == ([0.25] * len(records), 0)
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert sorted(map(json.dumps, found)) == sorted(json.dumps(json.loads(json.dumps(r, default=str))) for r in records)


def test_an_ordinary_day_gives_no_reason_to_retrain(after: Callable[..., Look], usual: pa.Table) -> None:
    found = after(usual.to_pylist())
    assert (found.predictions, found.retrain) == (usual.num_rows, [])


def test_a_flood_of_missing_values_is_a_reason_to_retrain(after: Callable[..., Look], usual: pa.Table, framing: Framing) -> None:
    column = next(i.name for i in framing.inputs if i.name != framing.time and usual.column(i.name).null_count < usual.num_rows / 2)
    found = after([r | {column: None} for r in usual.to_pylist()])
    assert any(reason.startswith(f"{column} is missing in 100%") for reason in found.retrain)


def test_the_monitor_writes_a_page_a_record_and_metrics(after: Callable[..., Look], usual: pa.Table) -> None:
    found = after(usual.to_pylist())
    assert json.loads((REPORT / "monitor.json").read_text(encoding="utf-8"))["predictions"] == found.predictions
    assert "All is quiet." in (REPORT / "index.html").read_text(encoding="utf-8")
    assert {"drift_psi_ratio", "monitor_last_run_timestamp_seconds"} <= names_in((REPORT / "monitor.prom").read_text(encoding="utf-8"))


# ---- alerts and dashboard ------------------------------------------------------------------


def expressions(params: Params) -> dict[str, str]:
    """Alert name to expression."""
    rules = alert_rules(params.requirements, params.monitoring, "package")
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


@pytest.mark.parametrize(("requirement", "value", "alerts", "limit"), [
    ("requirements.availability", 0.9, {"ErrorBudgetBurnFast", "ErrorBudgetBurnSteady", "ErrorBudgetBurnSlow"}, 1.44),
    ("requirements.latency_ms", {"p50": 1, "p99": 777}, {"LatencyHigh"}, 0.777),
    ("monitoring.window_hours", 5, {"MonitorSilent"}, 36000),
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
    assert asked - {"up"} <= exported


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
