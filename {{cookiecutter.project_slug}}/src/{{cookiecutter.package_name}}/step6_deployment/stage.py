"""Step 6 at work: export, prove the export, build the bundle, load-test it, and promote what passed."""

import json
import logging
import math
import platform
from datetime import date, datetime
from decimal import Decimal
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..params import BUNDLE, CANDIDATE, ONLINE, PREPARED, REPORTS, SCRATCH, Params
from ..step1_requirements.checks import STEPS, Check, StepFailed, check_bound, check_that, checks_section, raise_if_failed, save_verdict
from ..step1_requirements.page import BLUE, RED, axes, figure, page, paragraph, section, table, whole_folder, write_text
from ..step2_framing.contract import as_text, inputs_of
from ..step3_data.features import refresh_online
from ..step4_model.pipeline import predict
from ..step4_model.tracking import CHAMPION, open_tracker
from ..step4_model.train import Part, Trained, read, read_part
from .bundle import FALLBACK, seal
from .bundle import MODEL as ONNX
from .export import check_parity, export, first_rows
from .loadtest import Load, ask, closed_loop, constant_rate, running_service
from .predictor import Predictor, Scorer

RESULT = "evaluation.json"
log = logging.getLogger(__name__)
SAMPLES = 20  # rows that travel in the bundle with their scores


def run(params: Params) -> None:
    """Write models/bundle and reports/6-deployment, and make the model champion.

    Raises:
        StepFailed: when the export differs or the service misses a requirement; the old bundle stays.
    """
    framing, target = params.framing, REPORTS / STEPS["deployment"]
    evaluation = json.loads((REPORTS / STEPS["evaluation"] / RESULT).read_text(encoding="utf-8"))
    candidate = json.loads((CANDIDATE / "version.json").read_text(encoding="utf-8"))
    if candidate != evaluation["version"]:
        evaluated = evaluation["version"]["version"]
        raise StepFailed(f"deployment: {CANDIDATE} is version {candidate['version']}, but {evaluated} was evaluated; run `evaluation` first")
    trained = read(CANDIDATE / "model.joblib")
    test = read_part(framing, PREPARED / "test.parquet", trained.classes)
    online = SCRATCH / ONLINE.name  # the old table serves the old bundle until the new one is whole
    entities = refresh_online(params, path=online)
    with whole_folder(BUNDLE) as folder:
        checks = _build(params, trained, test, evaluation, folder)
        raise_if_failed("deployment", checks, target / "index.html")
        log.info("deployment: load test of the bundle, about %.0f s", 2 * params.deployment.load_test.seconds + 1)
        steady, fastest = _load(params, folder, online, checks)
        checks += _judge(params, steady, fastest)
        with whole_folder(target) as report:
            write_text(report / "index.html", _page(params, checks, steady, fastest, entities))
            write_text(report / "load.json", json.dumps(_figures(params, steady, fastest), indent=2))
            save_verdict("deployment", checks, report)
        raise_if_failed("deployment", checks, target / "index.html")
    if online.exists():
        online.replace(ONLINE)
    open_tracker().set_alias(CHAMPION, evaluation["version"]["version"])


def _build(params: Params, trained: Trained, test: Part, evaluation: dict[str, Any], folder: Path) -> list[Check]:
    """Fill the bundle and compare its models with the pipelines on held-back rows."""
    framing, settings = params.framing, params.deployment.parity
    rows, checks = first_rows(test.arrays, settings.rows), []
    for name, pipeline, what in ((ONNX, trained.model, "model"), (FALLBACK, trained.rule, "fallback")):
        export(framing, pipeline, folder / name)
        expected = predict(framing, pipeline, test.frame.iloc[: settings.rows])
        checks.append(check_parity(settings, expected, Scorer(folder / name).score(rows), what))
    samples = [_record(params, row) for row in pq.read_table(PREPARED / "test.parquet").slice(0, SAMPLES).to_pylist()]
    request = {i.name for i in inputs_of(framing, "request")} | {framing.entity, framing.time}
    seal(folder, {
        **{key: evaluation[key] for key in ("version", "task", "classes", "threshold", "metrics", "checks")},
        "framing": json.loads(framing.model_dump_json(by_alias=True)),
        "example": {name: value for name, value in samples[0].items() if name in request},
        "samples": samples,
        "made_with": {"python": platform.python_version(), **{p: version_of(p) for p in ("scikit-learn", "skl2onnx", "onnxruntime", "numpy")}},
    })  # fmt: skip
    return checks


def _record(params: Params, row: dict[str, Any]) -> dict[str, Any]:
    """A prepared row as a request record: keys and inputs, JSON values only."""
    names = [k for k in (params.framing.entity, params.framing.time) if k] + [i.name for i in params.framing.inputs]
    return {name: _json_value(row[name]) for name in dict.fromkeys(names)}


def _json_value(value: Any) -> Any:
    if isinstance(value, date):
        return (value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)).isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return None if as_text(value) is None else value


def _load(params: Params, folder: Path, online: Path, checks: list[Check]) -> tuple[Load, Load]:
    """Start the service on the bundle, check that it answers as the bundle does, and load it."""
    predictor = Predictor(folder, online)
    samples: list[dict[str, Any]] = predictor.manifest["samples"]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    log_path = SCRATCH / "loadtest.sqlite"
    try:
        with running_service(folder, log_path, online) as port:
            answer = ask(port, json.dumps({"records": samples}).encode())
            columns = {n: [_parsed(params, n, s[n]) for s in samples] for n in predictor.names}
            expected = predictor.main_scores(predictor.scores(columns, len(samples)))
            same = [p["score"] for p in answer["predictions"]] == expected  # type: ignore[attr-defined]
            checks.append(check_that("bundle", "the service's answers to the bundle's samples", same, "equal" if same else "different", "equal"))
            body = json.dumps({"records": [predictor.manifest["example"]]}).encode()
            settings = params.deployment.load_test
            constant_rate(port, body, settings.model_copy(update={"seconds": 0.5}), settings.rate_per_second)  # warm up
            return constant_rate(port, body, settings, settings.rate_per_second), closed_loop(port, body, settings)
    finally:
        for path in SCRATCH.glob("loadtest.*"):
            path.unlink(missing_ok=True)


def _parsed(params: Params, name: str, value: Any) -> Any:
    dates = [i.name for i in params.framing.inputs if i.kind == "date"]
    return datetime.fromisoformat(value) if name in dates and value is not None else value


def _figures(params: Params, steady: Load, fastest: Load) -> dict[str, float]:
    """The numbers that gates, autoscaler and cost estimate read."""
    per_replica = fastest.answered_per_second if not fastest.failed else 0.0
    wanted = params.requirements.throughput_per_second
    return {
        "rate_per_second": steady.rate_per_second,
        "p50_ms": steady.percentile(50),
        "p99_ms": steady.percentile(99),
        "requests_per_second_per_replica": per_replica,
        "replicas_needed": math.ceil(wanted / per_replica) if per_replica else math.inf,
        "cost_per_prediction_usd": params.deployment.core_hour_usd / 3600 / per_replica if per_replica else math.inf,
    }


def _judge(params: Params, steady: Load, fastest: Load) -> list[Check]:
    required, found = params.requirements, _figures(params, steady, fastest)
    at = f"at {steady.rate_per_second:,.0f} requests a second"
    most = params.deployment.max_replicas
    slow = "Something in the request path is slow: profile step6_deployment/service.py, or make the model smaller."
    return [
        check_bound("latency_ms.p50", f"p50 {at}", found["p50_ms"], at_most=required.latency_ms.p50, unit="ms", mend=slow),
        check_bound("latency_ms.p99", f"p99 {at}", found["p99_ms"], at_most=required.latency_ms.p99, unit="ms", mend=slow),
        check_bound("throughput_per_second", f"highest rate of {most} replicas", found["requests_per_second_per_replica"] * most,
                    at_least=required.throughput_per_second, unit="requests/s", mend=slow + " Or raise deployment.max_replicas."),
        check_bound("cost_per_prediction_usd", "one core's price over its highest rate", found["cost_per_prediction_usd"],
                    at_most=required.cost_per_prediction_usd, unit="USD", mend=slow),
    ]  # fmt: skip


def _page(params: Params, checks: list[Check], steady: Load, fastest: Load, entities: int) -> str:
    found, required = _figures(params, steady, fastest), params.requirements
    drawing, panel = axes(7, 2.8)
    panel.plot(sorted(steady.latencies_ms), [(i + 1) / len(steady.latencies_ms) * 100 for i in range(len(steady.latencies_ms))], color=BLUE)
    for limit, share in ((required.latency_ms.p50, 50), (required.latency_ms.p99, 99)):
        panel.plot(limit, share, "v", color=RED)
        panel.annotate(
            f"p{share} must be below {limit:g} ms", (limit, share), fontsize=8, color=RED, ha="right", xytext=(-6, -3), textcoords="offset points"
        )
    panel.set(xscale="log", xlabel="latency in ms, from when the request was due", ylabel="% of requests answered")
    caption = f"{len(steady.latencies_ms):,} requests at a constant {steady.rate_per_second:,.0f} a second, one process."
    rows = [(k.replace("_", " "), v) for k, v in found.items()]
    return page(
        "Step 6: deployment",
        "The gate is closed." if any(c.outcome == "fail" for c in checks) else "The service answers like the model and meets its requirements.",
        checks_section(checks),
        section("Load test", figure(drawing, caption), table(("what", "measured"), rows)),
        section("What was built", paragraph(f"{BUNDLE}: two ONNX models (the model and the rule-like fallback), manifest.json and SHA256SUMS. "
                                            f"{ONLINE}: history of {entities:,} entities.")),
    )  # fmt: skip
