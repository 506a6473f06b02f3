"""One look at the newest window of the prediction log: drift, missing values, performance, and whether to retrain."""

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ..params import REFERENCE, REPORTS, Params
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import BLUE, axes, figure, page, section, table, whole_folder, write_text
from ..step3_data.encode import columns_of
from .drift import SCORE, Moved, compare

REPORT = REPORTS / "monitor"


@dataclass(frozen=True)
class Look:
    """What one look found; `retrain` holds the reasons to train again, none when all is quiet."""

    at: str
    predictions: int
    labels: int
    moved: list[Moved]
    retrain: list[str]


def look(params: Params, now: datetime | None = None) -> Look:
    """Judge the newest window and write reports/monitor (page, JSON and Prometheus metrics).

    Raises:
        StepFailed: when there is no prediction log, or no reference to compare with.
    """
    now = now or datetime.now(UTC).replace(tzinfo=None)
    if not REFERENCE.exists():
        raise StepFailed(f"monitor: {REFERENCE} is not here; `run` writes it")
    reference = pq.read_table(REFERENCE)
    window, labels = _window(Path(params.deployment.log.path), now - timedelta(hours=params.monitoring.window_hours))
    rows = len(window[SCORE])
    moved = compare(params.framing, params.monitoring.drift, columns_of(reference, reference.column_names), window)
    retrain = [f"{m.column} drifted: PSI {m.psi:.2f}" for m in moved if m.drifted]
    if rows >= params.monitoring.drift.min_rows:
        gone = [m for m in moved if m.missing_now - m.missing_before > params.monitoring.max_missing_increase]
        retrain += [f"{m.column} is missing in {m.missing_now:.0%} of rows, {m.missing_before:.0%} before" for m in gone]
    found = Look(now.isoformat(timespec="seconds"), rows, labels, moved, retrain)
    with whole_folder(REPORT) as folder:
        write_text(folder / "index.html", _page(params, found))
        write_text(folder / "monitor.json", json.dumps(asdict(found), indent=2))
        write_text(folder / "monitor.prom", _metrics(found, now))
    return found


def _window(path: Path, since: datetime) -> tuple[dict[str, list[Any]], int]:
    """Inputs and scores logged since a moment as columns, and the number of labels among them."""
    if not path.exists():
        raise StepFailed(f"monitor: there is no prediction log at {path}; `serve` writes it once it is asked")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as store:
        rows = store.execute("SELECT inputs, score FROM predictions WHERE at >= ? AND role <> 'shadow' ORDER BY at", (since.isoformat(),)).fetchall()
        labels = store.execute(
            "SELECT count(DISTINCT prediction_id) FROM labels JOIN predictions USING (prediction_id) WHERE predictions.at >= ?", (since.isoformat(),)
        ).fetchone()[0]
    records = [json.loads(r[0]) for r in rows]
    columns = {name: [r.get(name) for r in records] for name in (records[0] if records else {})}
    return columns | {SCORE: [r[1] for r in rows]}, labels


def _metrics(found: Look, now: datetime) -> str:
    registry = CollectorRegistry()
    psi = Gauge("drift_psi_ratio", "Population stability index against the reference", ["column"], registry=registry)
    drifted = Gauge("drift_detected", "1 where a column moved beyond chance and beyond the limit", ["column"], registry=registry)
    missing = Gauge("window_missing_ratio", "Share of missing values in the window", ["column"], registry=registry)
    for m in found.moved:
        psi.labels(m.column).set(m.psi)
        drifted.labels(m.column).set(m.drifted)
        missing.labels(m.column).set(m.missing_now)
    Gauge("window_predictions", "Predictions in the window", registry=registry).set(found.predictions)
    Gauge("monitor_last_run_timestamp_seconds", "When the monitor last looked", registry=registry).set(now.replace(tzinfo=UTC).timestamp())
    return generate_latest(registry).decode()


def _page(params: Params, found: Look) -> str:
    rows = [(m.column, m.psi, m.test, m.p_value, m.missing_before, m.missing_now, m.rows, "yes" if m.drifted else "no") for m in found.moved]
    shown = sorted(found.moved, key=lambda m: m.psi)[-20:]
    drawing, panel = axes(7, 0.8 + 0.22 * max(1, len(shown)))
    panel.barh([m.column[:40] for m in shown], [m.psi for m in shown], color=BLUE)
    panel.axvline(params.monitoring.drift.psi, color="#b3382c", linestyle="--")
    panel.set_xlabel("population stability index; dashed: the limit")
    lead = f"{found.predictions:,} predictions in the last {params.monitoring.window_hours:g} hours, {found.labels:,} labels. "
    lead += "All is quiet." if not found.retrain else "Train again: " + "; ".join(found.retrain) + "."
    header = ("column", "PSI", "test", "p", "missing before", "missing now", "rows", "drifted")
    return page("Monitor", lead, section("Drift", figure(drawing, "Every input and the score against the reference data."), table(header, rows)))
