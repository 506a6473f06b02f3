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
    """The Grafana dashboard of dashboard.json, its thresholds filled in."""
    board: dict[str, Any] = _fill(json.loads((ROOM / "dashboard.json").read_text(encoding="utf-8")), _values(requirements, monitoring))
    return board


def _values(requirements: Requirements, monitoring: Monitoring) -> dict[str, Any]:
    """What may stand behind an @ in alerts.yml and dashboard.json."""
    budget, failed = 1 - requirements.availability, 'predict_requests_total{outcome="failed"}'
    shares = {w: f"sum(rate({failed}[{w}])) / sum(rate(predict_requests_total[{w}]))" for w in ("5m", "30m", "1h", "6h", "3d")}
    return {
        **{f"errors_{window}": share for window, share in shares.items()},
        "availability": requirements.availability,
        "budget": round(budget, 9),
        "budget_steady": round(6 * budget, 9),
        "budget_fast": round(14.4 * budget, 9),
        "p50_seconds": requirements.latency_ms.p50 / 1000,
        "p99_seconds": requirements.latency_ms.p99 / 1000,
        "p99_ms": requirements.latency_ms.p99,
        "throughput": requirements.throughput_per_second,
        "psi": monitoring.drift.psi,
        "silence_seconds": monitoring.window_hours * 2 * 3600,
        "kpi": requirements.kpi.name,
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
