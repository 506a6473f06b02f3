"""Alert rules and dashboard, filled in from the requirements: change a number there and both follow."""

import json
from pathlib import Path
from string import Template
from typing import Any

import yaml

from ..params import Monitoring, Requirements

ROOM = Path(__file__).parent


class _At(Template):
    delimiter = "@"  # a dollar belongs to Grafana


def alert_rules(requirements: Requirements, monitoring: Monitoring, package: str) -> dict[str, Any]:
    """The Prometheus rules of alerts.yml, filled in; each links its paragraph in the runbook."""
    rules: dict[str, Any] = _fill(yaml.safe_load((ROOM / "alerts.yml").read_text(encoding="utf-8")), _values(requirements, monitoring))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["annotations"]["runbook"] = f"src/{package}/step7_monitoring/README.md#{rule['alert'].lower()}"
    return rules


def dashboard(requirements: Requirements, monitoring: Monitoring) -> dict[str, Any]:
    """The Grafana dashboard of dashboard.json: a row per kind of metric, four panels wide, its limits filled in."""
    spec = _fill(json.loads((ROOM / "dashboard.json").read_text(encoding="utf-8")), _values(requirements, monitoring))
    panels: list[dict[str, Any]] = []
    height = 0
    for title, row in spec["rows"].items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": height, "w": 24, "h": 1}})
        panels += [_panel(p, 6 * (k % 4), height + 1 + 8 * (k // 4)) for k, p in enumerate(row)]
        height += 1 + 8 * -(-len(row) // 4)
    board = {"uid": "predictions", "title": spec["title"], "timezone": "utc", "schemaVersion": 39, "refresh": "30s"}
    return board | {"time": {"from": "now-6h", "to": "now"}, "panels": [{"id": k, **p} for k, p in enumerate(panels, start=1)]}


def _panel(spec: dict[str, Any], x: int, y: int) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}] + ([{"color": "red", "value": spec["limit"]}] if "limit" in spec else [])
    style = {"thresholdsStyle": {"mode": "line" if "limit" in spec else "off"}}
    return {
        "type": "timeseries",
        "title": spec["title"],
        "gridPos": {"x": x, "y": y, "w": 6, "h": 8},
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "targets": [{"refId": "A", "expr": spec["expr"]}],
        "fieldConfig": {"defaults": {"unit": spec["unit"], "thresholds": {"mode": "absolute", "steps": steps}, "custom": style}, "overrides": []},
    }


def _values(requirements: Requirements, monitoring: Monitoring) -> dict[str, Any]:
    """What may stand behind an @ in alerts.yml and dashboard.json."""
    budget, failed = 1 - requirements.availability, 'predict_requests_total{outcome=~"failed|overloaded"}'
    shares = {w: f"sum(rate({failed}[{w}])) / sum(rate(predict_requests_total[{w}]))" for w in ("5m", "30m", "1h", "6h", "3d")}
    seconds = "sum by (le) (rate(predict_latency_seconds_bucket[WINDOW]))"
    slow = (("p856", 0.856, "5m"), ("p856", 0.856, "1h"), ("p94", 0.94, "30m"), ("p94", 0.94, "6h"), ("p99", 0.99, "6h"), ("p99", 0.99, "3d"))
    return {
        **{f"errors_{window}": share for window, share in shares.items()},
        **{f"{name}_{w}": f"histogram_quantile({share}, {seconds.replace('WINDOW', w)})" for name, share, w in slow},
        "availability": requirements.availability,
        "budget": round(budget, 9),
        "budget_steady": round(6 * budget, 9),
        "budget_fast": round(14.4 * budget, 9),
        "p50_seconds": requirements.latency_ms.p50 / 1000,
        "p99_seconds": requirements.latency_ms.p99 / 1000,
        "p99_ms": f"{requirements.latency_ms.p99:g}",
        "throughput": requirements.throughput_per_second,
        "psi": monitoring.drift.psi,
        "missing": monitoring.max_missing_increase,
        "labelled": monitoring.performance.min_labelled,
        "silence_seconds": monitoring.window_hours * 2 * 3600,
        "old_seconds": monitoring.retrain.after_days * 2 * 86_400,
        "kpi": requirements.kpi.name,
        "kpi_target": requirements.kpi.target,
        "goal": requirements.goal,
    }


def _fill(tree: Any, values: dict[str, Any]) -> Any:
    """The tree with every @name replaced; a text that is one name alone becomes its value, number or not."""
    if isinstance(tree, dict):
        return {key: _fill(value, values) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_fill(value, values) for value in tree]
    if not isinstance(tree, str):
        return tree
    return values[tree[1:]] if tree.startswith("@") and tree[1:] in values else _At(tree).substitute(values)
