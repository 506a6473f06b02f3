"""Every alert rule fires when it should and stays quiet when it should, as promtool plays it; every alert has its paragraph in the runbook."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import OPTIONS
from forked import package_of

SYSTEMS = OPTIONS["system"]
OK, FAILED, AWAY = (f'predict_requests_total{{outcome="{outcome}"}}' for outcome in ("ok", "failed", "overloaded"))


class Case(NamedTuple):
    """Series that make an alert fire and others that must not, in steps; `keeps` are labels of the series that the alert carries on."""

    fires: dict[str, str]
    quiet: dict[str, str]
    step: str = "1m"
    at: str = "80m"
    keeps: Mapping[str, str] = MappingProxyType({})


def failing(share: float) -> dict[str, str]:
    """Requests of which a share gets no answer: some fail, most are turned away."""
    turned_away = round(8_000 * share)
    return {FAILED: f"0+{round(10_000 * share) - turned_away}x600", AWAY: f"0+{turned_away}x600", OK: f"0+{round(10_000 * (1 - share))}x600"}


def slow(share: float, limit: float) -> dict[str, str]:
    """Requests of which a share takes twice the limit, and the others a tenth of it."""
    fast = round(10_000 * (1 - share))
    counts = {limit / 10: fast, limit: fast, limit * 3: 10_000, "+Inf": 10_000}
    return {f'predict_latency_seconds_bucket{{le="{le}"}}': f"0+{count}x600" for le, count in counts.items()}


def outside(values: int) -> dict[str, str]:
    """So many odd values on each of two replicas, while they make 100 predictions, and a shadow as many again."""
    odd = {f'input_out_of_range_total{{column="amount",instance="{name}"}}': f"0+{values}x90" for name in "ab"}
    return odd | {'predictions_total{role="champion"}': "0+100x90", 'predictions_total{role="shadow"}': "0+100x90"}


def cases(params: Any) -> dict[str, Case]:
    requirements, monitoring = params["requirements"], params["monitoring"]
    limit, silence, budget = requirements["latency_ms"]["p99"] / 1000, monitoring["window_hours"] * 7200, 1 - requirements["availability"]
    old, missing = monitoring["retrain"]["after_days"] * 2 * 86_400, monitoring["max_missing_increase"]
    now: dict[str, Any] = {"at": "30m"}
    newest = "newest_prediction_timestamp_seconds"
    column, metric = {"column": "amount"}, {"metric": "recall"}
    stale: dict[str, Any] = {"step": "1h", "at": f"{round(silence / 3600) + 2}h"}
    hours = round(silence / 3600) + 9
    return {
        "ErrorBudgetBurnFast": Case(failing(20 * budget), failing(10 * budget)),
        "ErrorBudgetBurnSteady": Case(failing(8 * budget), failing(4 * budget), "10m", "10h"),
        "ErrorBudgetBurnSlow": Case(failing(2 * budget), failing(budget / 2), "1h", "80h"),
        "LatencyBurnFast": Case(slow(0.2, limit), slow(0.1, limit)),
        "LatencyBurnSteady": Case(slow(0.1, limit), slow(0.04, limit), "10m", "10h"),
        "LatencyBurnSlow": Case(slow(0.03, limit), slow(0.005, limit), "1h", "80h"),
        "ServiceDown": Case({f'up{{job="predictions",instance="{n}"}}': "1x10 0x30" for n in "ab"},
                            {'up{job="predictions",instance="a"}': "0x40", 'up{job="predictions",instance="b"}': "1x40"}, **now),
        "FallbackAnswers": Case({'model_info{fallback="true"}': "1x40"}, {'model_info{fallback="false"}': "1x40"}, **now),
        "PredictionsNotLogged": Case({"prediction_log_dropped_total": "0+1x40"}, {"prediction_log_dropped_total": "5x40"}, **now),
        "ColumnDrift": Case({'drift_detected{column="amount"}': "1x40"}, {'drift_detected{column="amount"}': "0x40"}, **now, keeps=column),
        "ValuesMissing": Case({'window_missing_increase_ratio{column="amount"}': f"{missing * 1.5}x40"},
                              {'window_missing_increase_ratio{column="amount"}': f"{missing / 2}x40"}, **now, keeps=column),
        "OutsideContract": Case(outside(round(100 * missing * 0.8)), outside(round(100 * missing * 0.4)), keeps=column),
        "NoPredictions": Case({newest: f"0x{hours}"}, {newest: f"0+3600x{hours}"}, **stale),
        "LabelsMissing": Case({"labels_matured_ratio": "0.1x90"}, {"labels_matured_ratio": "0.9x90"}),
        "QualityLost": Case({'quality_breached{metric="recall",group="quality"}': "1x40"},
                            {'quality_breached{metric="recall",group="guard_rails"}': "1x40"}, **now, keeps=metric),
        "GuardRailBreached": Case({'quality_breached{metric="recall",group="guard_rails"}': "1x40"},
                                  {'quality_breached{metric="recall",group="quality"}': "1x40"}, **now, keeps=metric),
        "OtherModelServes": Case({"newest_prediction_by_other_model": "1x90"}, {"newest_prediction_by_other_model": "0x90"}),
        "RetrainingFailed": Case({"loop_last_outcome_bad": "1x40"}, {"loop_last_outcome_bad": "0x40"}, **now),
        "ModelOld": Case({"model_age_seconds": f"{old + 1}x90"}, {"model_age_seconds": f"{old / 2}x90"}),
        "MonitorSilent": Case({"up": f"1x{hours}"}, {"monitor_last_run_timestamp_seconds": f"0+3600x{hours}"}, **stale),
        "KpiWorseThanBefore": Case({"kpi_shortfall_ratio": "1.2x40"}, {"kpi_shortfall_ratio": "0.4x40"}, **now),
    }  # fmt: skip


@pytest.fixture(scope="session", params=SYSTEMS)
def project(request: pytest.FixtureRequest, bake: Callable[..., Path]) -> Path:
    return bake(system=request.param, project_name=f"Alerts of {request.param}")


def rules_of(project: Path) -> Any:
    """The rules as the monitoring step writes them."""
    code = f"""import json
from {package_of(project)}.params import load
from {package_of(project)}.step7_monitoring.alerts import alert_rules
p = load()
print(json.dumps(alert_rules(p.requirements, p.monitoring, "{package_of(project)}")))"""
    env = os.environ | {"PYTHONPATH": str(project / "src")}
    return json.loads(subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=True).stdout)


def test_each_alert_fires_and_stays_quiet(project: Path, tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian package prometheus): the alert rules were not played")
    rules = rules_of(project)
    found = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    told = cases(yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8")))
    assert set(told) == set(found), "every alert needs a case, and every case an alert"
    tests = []
    for alert, case in told.items():
        rule = found[alert]
        fired = {"exp_labels": {**rule["labels"], **case.keeps}, "exp_annotations": rule["annotations"]}
        for series, expected in ((case.fires, [fired]), (case.quiet, [])):
            tests.append({
                "interval": case.step,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"eval_time": case.at, "alertname": alert, "exp_alerts": expected}],
            })  # fmt: skip
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    for step in {case.step for case in told.values()}:  # the rules are evaluated as often as there are samples
        played = {"rule_files": ["rules.yml"], "evaluation_interval": step, "tests": [t for t in tests if t["interval"] == step]}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(played), encoding="utf-8")
        done = subprocess.run(["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_paragraph_in_the_runbook(project: Path) -> None:
    """Where the alert's link points: what it means and what to do, under a heading of its own."""
    runbook = (project / "src" / package_of(project) / "step7_monitoring" / "README.md").read_text(encoding="utf-8")
    paragraphs = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=\n\n|\Z)", runbook, re.MULTILINE | re.DOTALL))
    for group in rules_of(project)["groups"]:
        for rule in group["rules"]:
            path, _, heading = rule["annotations"]["runbook"].partition("#")
            assert (project / path).is_file()
            assert heading == rule["alert"].lower()
            assert paragraphs[rule["alert"]].startswith(f"*{rule['labels']['severity']}.*")


def test_alertmanager_holds_back_only_alerts_that_there_are(project: Path) -> None:
    """An inhibition that names no alert, after one was renamed, would let a page and its echo through, and nothing would say so."""
    known = {rule["alert"] for group in rules_of(project)["groups"] for rule in group["rules"]}
    inhibitions = yaml.safe_load((project / "deploy/alertmanager/alertmanager.yml").read_text(encoding="utf-8"))["inhibit_rules"]
    for matcher in [m for rule in inhibitions for m in (*rule["source_matchers"], *rule["target_matchers"])]:
        for name in re.findall(r'"(.+)"', matcher)[0].split("|"):
            assert any(re.fullmatch(name, alert) for alert in known), matcher


@pytest.mark.skipif("compose" not in OPTIONS["deployment"], reason="deployment has no choice compose here")
def test_compose_writes_configs_only_where_it_can(bake: Callable[..., Path]) -> None:
    """Into a read-only container it writes no config that has its content in place: docker/compose issue 12031."""
    services = yaml.safe_load((bake(deployment="compose") / "deploy/compose/compose.yaml").read_text(encoding="utf-8"))["services"]
    with_configs = {name: service.get("read_only", False) for name, service in services.items() if service.get("configs")}
    assert with_configs == {"grafana": False}
