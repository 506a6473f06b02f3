"""Alert rules and dashboard, written from the requirements: change a number there and both follow."""

from typing import Any

from ..params import Framing, Monitoring, Requirements

RUNBOOK = "src/{package}/step7_monitoring/README.md"
BURN = (("1h", "5m", 14.4, "page"), ("6h", "30m", 6.0, "page"), ("3d", "6h", 1.0, "ticket"))  # SRE workbook, chapter 5


def alert_rules(requirements: Requirements, monitoring: Monitoring, package: str) -> dict[str, Any]:
    """Prometheus alert rules as the YAML's content."""
    budget = 1 - requirements.availability
    slow = requirements.latency_ms.p99 / 1000
    runbook = RUNBOOK.format(package=package)
    rules = [
        _rule("ErrorBudgetBurn", f"{_errors(long)} > {burn * budget:.6g} and {_errors(short)} > {burn * budget:.6g}", "2m", severity,
              f"Errors burn the budget of availability {requirements.availability:g} {burn:g} times too fast", runbook, window=long)
        for long, short, burn, severity in BURN
    ]  # fmt: skip
    quiet = monitoring.window_hours * 2 * 3600
    others = [
        ("LatencyHigh", f"{_quantile(0.99, '5m')} > {slow:g}", "5m", "page", f"p99 latency is above {requirements.latency_ms.p99:g} ms"),
        ("ServiceDown", 'up{job="predictions"} == 0', "1m", "page", "The prediction service does not answer"),
        ("FallbackAnswers", 'max(model_info{fallback="true"}) == 1', "1m", "page", "No model could be loaded; the rule-like baseline answers"),
        ("PredictionsNotLogged", "increase(prediction_log_dropped_total[10m]) > 0", "0m", "ticket", "Predictions could not be logged"),
        ("ColumnDrift", f"max by (column) (drift_psi_ratio) > {monitoring.drift.psi:g}", "0m", "ticket", "A column moved away from the reference"),
        ("MonitorSilent", f"time() - monitor_last_run_timestamp_seconds > {quiet:g}", "10m", "ticket", "The monitor has not run"),
    ]
    rules += [_rule(*words, runbook) for words in others]
    return {"groups": [{"name": package, "rules": rules}]}


def dashboard(requirements: Requirements, framing: Framing, monitoring: Monitoring, title: str) -> dict[str, Any]:
    """A Grafana dashboard with a row per kind of metric and thresholds from the requirements."""
    kpi, latency = requirements.kpi, requirements.latency_ms
    rows: list[tuple[str, list[tuple[str, str, str, float | None]]]] = [
        ("System", [
            ("Requests a second", "sum(rate(predict_requests_total[$__rate_interval]))", "reqps", requirements.throughput_per_second),
            ("p50 latency", _quantile(0.5), "s", latency.p50 / 1000),
            ("p99 latency", _quantile(0.99), "s", latency.p99 / 1000),
            ("Share of failed requests", _errors("$__rate_interval"), "percentunit", 1 - requirements.availability),
        ]),
        ("Data", [
            ("Null values a second", "sum by (column) (rate(input_missing_total[$__rate_interval]))", "ops", None),
            ("Values outside the contract a second", "sum by (column) (rate(input_out_of_range_total[$__rate_interval]))", "ops", None),
            ("Drift of inputs (PSI)", "drift_psi_ratio", "none", monitoring.drift.psi),
        ]),
        ("Model", [
            ("Predictions a second by decision", "sum by (decision) (rate(predictions_total[$__rate_interval]))", "ops", None),
            ("Median score", "histogram_quantile(0.5, sum by (le) (rate(prediction_score_bucket[$__rate_interval])))", "none", None),
            ("Model in service", "max by (version, fallback) (model_info)", "none", None),
        ]),
        ("Business", [
            (f"Labels a second, for {kpi.name}", "sum(rate(feedback_labels_total[$__rate_interval]))", "ops", None),
        ]),
    ]  # fmt: skip
    panels: list[dict[str, Any]] = []
    for top, (row, contents) in enumerate(rows):
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": top * 9, "w": 24, "h": 1}}
        )
        width = 24 // len(contents)
        for index, (name, expression, unit, limit) in enumerate(contents):
            panels.append(_panel(len(panels) + 1, name, expression, unit, limit, {"x": index * width, "y": top * 9 + 1, "w": width, "h": 8}))
    return {"uid": "predictions", "title": title, "tags": [framing.task], "timezone": "utc", "schemaVersion": 39, "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"}, "panels": panels}  # fmt: skip


def _rule(name: str, expression: str, wait: str, severity: str, summary: str, runbook: str, **labels: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity, **labels},
        "annotations": {"summary": summary, "runbook": f"{runbook}#{name.lower()}"},
    }


def _errors(window: str) -> str:
    failed = 'predict_requests_total{outcome="failed"}'
    return f"sum(rate({failed}[{window}])) / sum(rate(predict_requests_total[{window}]))"


def _quantile(share: float, window: str = "$__rate_interval") -> str:
    return f"histogram_quantile({share}, sum by (le) (rate(predict_latency_seconds_bucket[{window}])))"


def _panel(number: int, title: str, expression: str, unit: str, limit: float | None, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if limit is not None:
        steps.append({"color": "red", "value": limit})
    return {
        "id": number, "type": "timeseries", "title": title, "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "targets": [{"refId": "A", "expr": expression, "datasource": {"type": "prometheus", "uid": "prometheus"}}],
        "fieldConfig": {"defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps},
                                     "custom": {"thresholdsStyle": {"mode": "line" if limit is not None else "off"}}}, "overrides": []},
    }  # fmt: skip
