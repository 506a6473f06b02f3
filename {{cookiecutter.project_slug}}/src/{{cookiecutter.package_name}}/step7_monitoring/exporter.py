"""What a look found, as Prometheus metrics: data, model and business; the service exports the system's own."""

from __future__ import annotations

from collections import Counter as Tally
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ..params import Params
from . import audit
from .audit import Line

if TYPE_CHECKING:
    from .monitor import Look


def metrics_text(params: Params, found: Look, lines: list[Line], now: datetime) -> str:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    psi = Gauge("drift_psi_ratio", "Population stability index against the reference", ["column"], registry=registry)
    distance = Gauge("drift_distance_ratio", "Kolmogorov-Smirnov statistic or Cramer's V against the reference", ["column"], registry=registry)
    drifted = Gauge("drift_detected", "1 where a column moved beyond chance and beyond the limit", ["column"], registry=registry)
    missing = Gauge("window_missing_ratio", "Share of missing values in the window", ["column"], registry=registry)
    gone = Gauge("window_missing_increase_ratio", "Share of missing values in the window less that in the reference", ["column"], registry=registry)
    for m in found.moved:
        for gauge, value in ((psi, m.psi), (distance, m.distance), (drifted, m.drifted), (missing, m.missing_now),
                             (gone, m.missing_now - m.missing_before)):  # fmt: skip
            gauge.labels(m.column).set(value)
    Gauge("window_predictions_rows", "Predictions in the window", registry=registry).set(found.predictions)
    newest = Gauge("newest_prediction_timestamp_seconds", "When the newest prediction of the log was made", registry=registry)
    newest.set(_seconds(found.newest) if found.newest else 0)
    other = Gauge("newest_prediction_by_other_model", "1 where the service has not taken up the bundle that is to serve", registry=registry)
    other.set(found.newest_by not in (None, found.version))
    labels = Gauge("labels_rows", "Labels in the log by what is odd about them", ["kind"], registry=registry)
    for kind, count in found.labels.items():
        labels.labels(kind).set(count)
    share = float("nan") if found.labelled is None else found.labelled
    Gauge("labels_matured_ratio", "Share of the newest matured window's predictions that have a label", registry=registry).set(share)
    quality = Gauge("quality_units", "A metric on matured labels, in its own unit, with its interval", ["metric", "part"], registry=registry)
    to_bound = Gauge("quality_to_bound_ratio", "How much better than its bound a metric is, as a share", ["metric", "group"], registry=registry)
    breached = Gauge("quality_breached", "1 where the whole interval is on the wrong side of the bound", ["metric", "group"], registry=registry)
    for j in found.judged:
        for part, value in (("value", j.value), ("low", j.low), ("high", j.high)):
            quality.labels(j.metric, part).set(value)
        to_bound.labels(j.metric, j.group).set(j.to_bound)
        breached.labels(j.metric, j.group).set(j.breached)
    guess = Gauge("quality_estimate_units", "A metric as the scores promise it before labels arrive: an estimate", ["metric"], registry=registry)
    if found.estimate:
        guess.labels(found.estimate[0]).set(found.estimate[1])
    Gauge("window_confidence_ratio", "Mean probability of what was answered in the window", registry=registry).set(found.confidence)
    importance = Gauge("importance_change_ratio", "An input's share of the importance, less that in the reference", ["column"], registry=registry)
    for column, (then, today) in found.importance.items():
        importance.labels(column).set(today - then)
    kpi, moved_by = params.requirements.kpi, {j.metric: j.value for j in found.judged}.get(params.requirements.kpi.moved_by.metric)
    business = Gauge("kpi_units", "The KPI in its own unit: baseline, target, and expected from matured labels", ["part"], registry=registry)
    expected = float("nan") if moved_by is None else kpi.expected(moved_by)
    for part, value in (("baseline", kpi.baseline), ("target", kpi.target), ("expected", expected)):
        business.labels(part).set(value)
    lacks = "What the expected KPI lacks of the way from baseline to target; above 1 it is worse than the baseline"
    Gauge("kpi_shortfall_ratio", lacks, registry=registry).set((kpi.target - expected) / (kpi.target - kpi.baseline))
    decisions = Gauge("loop_decisions_rows", "Lines of the audit log by decision", ["decision"], registry=registry)
    for decision, count in Tally(line.decision for line in lines).items():
        decisions.labels(decision).set(count)
    ended, needed = audit.last(lines, *audit.DONE, "accepted"), audit.open_alert(lines) is not None
    bad = ended is not None and (ended.decision in ("failed", "interrupted") or (ended.decision == "refused" and needed))
    Gauge("loop_last_outcome_bad", "1 when the newest retraining broke, or an alert is open and it was refused", registry=registry).set(bad)
    came = audit.last(lines, *audit.CAME)
    Gauge("model_age_seconds", "How long the champion has been serving", registry=registry).set((now - came.moment).total_seconds() if came else 0)
    Gauge("monitor_last_run_timestamp_seconds", "When the monitor last looked", registry=registry).set(_seconds(found.at))
    return generate_latest(registry).decode()


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
