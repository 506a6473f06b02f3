"""Step 6 at work: export, prove the export, build the bundle, load-test it, and promote what passed."""

import json
import logging
import platform
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date, datetime
from decimal import Decimal
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.pipeline import Pipeline

from ..params import BUNDLE, CANDIDATE, FORMER, ONLINE, PREPARED, REFERENCE, REPORTS, SCRATCH, Framing, Params, Parity
from ..step1_requirements.checks import STEPS, Check, StepFailed, check_bound, check_that, checks_section, raise_if_failed, save_report
from ..step1_requirements.page import page, paragraph, section, whole_folder
from ..step2_framing.contract import as_text, inputs_of
from ..step3_data.encode import number_names, string_inputs
from ..step3_data.features import refresh_online
from ..step4_model.pipeline import predict
from ..step4_model.tracking import CHAMPION, open_tracker
from ..step4_model.train import Part, Trained, read, read_part
from .loadtest import Load, ask, closed_loop, constant_rate, figures, load_sections, running_service
from .predictor import FALLBACK, MANIFEST, MODEL, Predictor, Scorer, seal

RESULT = "evaluation.json"
log = logging.getLogger(__name__)
SAMPLES = 20  # rows that travel in the bundle with their scores
OPSET = {"": 18, "ai.onnx.ml": 3}  # what ONNX Runtime 1.16 and later reads


def run(params: Params) -> None:
    """Write models/bundle and reports/6-deployment, and make the model champion.

    Raises:
        StepFailed: when the export differs or the service misses a requirement; the old bundle stays.
    """
    framing = params.framing
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
        raise_if_failed("deployment", checks)
        log.info("deployment: load test of the bundle, about %.0f s", 2 * params.deployment.load_test.seconds + 1)
        loads, fastest = _load(params, folder, online, checks)
        checks += _judge(params, loads, fastest)
        load = json.dumps(figures(params, loads, fastest), indent=2)
        save_report("deployment", checks, _page(params, checks, loads, fastest, entities), {"load.json": load})
        raise_if_failed("deployment", checks)
        _crown(evaluation["version"]["version"])
    if online.exists():
        online.replace(ONLINE)


def export(framing: Framing, pipeline: Pipeline, path: Path) -> None:
    """Write the whole pipeline as one ONNX file with the inputs `numbers` and `strings`."""
    shapes = [("numbers", FloatTensorType, len(number_names(framing))), ("strings", StringTensorType, len(string_inputs(framing)))]
    types = [(name, kind([None, width])) for name, kind, width in shapes if width]
    options = None if framing.task == "regression" else {id(pipeline): {"zipmap": False}}
    path.write_bytes(to_onnx(pipeline, initial_types=types, options=options, target_opset=OPSET).SerializeToString())


def check_parity(settings: Parity, expected: NDArray[Any], exported: NDArray[Any], what: str) -> Check:
    """The largest difference between pipeline and export on held-back rows; numbers relative to their size."""
    scale = np.maximum(np.abs(expected), 1.0)
    difference = float(np.max(np.abs(expected - exported.reshape(expected.shape)) / scale)) if len(expected) else float("nan")
    mend = "The export computes something else: train another model.kind, or find the column with `tests/test_step6_deployment.py`."
    check = f"largest difference of the {what} export on {len(expected):,} rows"
    return check_bound("parity", check, difference, at_most=settings.max_difference, mend=mend)


def _crown(version: str) -> None:
    """Make a version champion in the registry and set the one that it replaces aside, with its reference, for `rollback`.

    Before the bundle is swapped: a registry that is away leaves everything as it was.
    """
    served = BUNDLE / MANIFEST
    with ExitStack() as stack:
        if served.exists() and json.loads(served.read_text(encoding="utf-8"))["version"]["version"] != version:
            folder = stack.enter_context(whole_folder(FORMER))
            for part in (BUNDLE, REFERENCE.parent):
                if part.exists():
                    shutil.copytree(part, folder / part.name)
        open_tracker().set_alias(CHAMPION, version)


def _build(params: Params, trained: Trained, test: Part, evaluation: dict[str, Any], folder: Path) -> list[Check]:
    """Fill the bundle and compare its models with the pipelines on held-back rows."""
    framing, settings = params.framing, params.deployment.parity
    rows, checks, said = {name: array[: settings.rows] for name, array in test.arrays.items()}, [], []
    for name, pipeline, what in ((MODEL, trained.model, "model"), (FALLBACK, trained.rule, "fallback")):
        export(framing, pipeline, folder / name)
        said.append(predict(framing, pipeline, test.frame.iloc[: settings.rows]))
        checks.append(check_parity(settings, said[-1], Scorer((folder / name).read_bytes()).score(rows), what))
    table = pq.read_table(PREPARED / "test.parquet")
    personal = {framing.entity} & set(params.requirements.constraints.personal_columns)
    shown = table.slice(0, min(SAMPLES, settings.rows)).to_pylist()
    samples = [{k: v for k, v in _record(params, row).items() if k not in personal} for row in shown]
    request = {i.name for i in inputs_of(framing, "request")} | {framing.entity, framing.time}
    main = said[0] if said[0].ndim == 1 else said[0][:, 1] if framing.task == "binary" else said[0].max(axis=1)
    seal(folder, {
        **{key: evaluation[key] for key in ("version", "task", "classes", "threshold", "metrics", "checks")},
        "framing": json.loads(framing.model_dump_json(by_alias=True)),
        "example": {str(k): "somebody" for k in personal} | {name: value for name, value in samples[0].items() if name in request},
        "samples": samples,
        "sample_scores": [float(v) for v in main[: len(samples)]],
        "max_difference": settings.max_difference,
        "reference": {i.name: _json_value(_typical(table.column(i.name))) for i in framing.inputs if i.kind != "text"},
        "score_quantiles": [float(f"{q:.3g}") for q in np.quantile(main, np.linspace(0.05, 0.95, 19))],
        "made_with": {"python": platform.python_version(), **{p: version_of(p) for p in ("scikit-learn", "skl2onnx", "onnxruntime", "numpy")}},
    })  # fmt: skip
    return checks


def _typical(column: pa.ChunkedArray) -> Any:
    """The middle value of numbers and dates, the most frequent one of all else: what an input is held against when a score is explained."""
    present = column.drop_null()
    if not len(present):
        return None
    if pa.types.is_boolean(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        counts = pc.value_counts(present)
        return counts.field("values")[pc.index(counts.field("counts"), pc.max(counts.field("counts"))).as_py()].as_py()
    return present.take(pc.sort_indices(present).slice(len(present) // 2, 1))[0].as_py()


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


def _load(params: Params, folder: Path, online: Path, checks: list[Check]) -> tuple[list[Load], Load]:
    """Start the service on the bundle, check that it answers as the bundle does, and load it."""
    predictor = Predictor(folder, online)
    samples: list[dict[str, Any]] = predictor.manifest["samples"]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    try:
        with running_service(folder, SCRATCH / "loadtest.sqlite", online) as port:
            answers = [ask(port, json.dumps({"records": [sample]}).encode())["predictions"][0]["score"] for sample in samples]
            expected = predictor.main_scores(predictor.scores(predictor.columns_from(samples)))
            same = answers == expected
            checks.append(check_that("bundle", "the service's answers to the bundle's samples", same, "equal" if same else "different", "equal"))
            body = json.dumps({"records": [predictor.manifest["example"]]}).encode()
            settings = params.deployment.load_test
            constant_rate(port, body, settings, settings.rate_per_second, 0.5)  # warm up
            steady, fastest = constant_rate(port, body, settings, settings.rate_per_second), closed_loop(port, body, settings)
            return [steady, constant_rate(port, body, settings, fastest.answered_per_second / 2, settings.seconds / 3)], fastest
    finally:
        for path in SCRATCH.glob("loadtest.sqlite*"):
            path.unlink(missing_ok=True)


def _judge(params: Params, loads: Sequence[Load], fastest: Load) -> list[Check]:
    required, found = params.requirements, figures(params, loads, fastest)
    at = f"at {loads[0].rate_per_second:,.0f} requests a second"
    most = params.deployment.max_replicas
    slow = "Something in the request path is slow: profile step6_deployment/service.py, or make the model smaller."
    return [
        check_bound("latency_ms.p50", f"p50 {at}", found["p50_ms"], at_most=required.latency_ms.p50, unit="ms", mend=slow),
        check_bound("latency_ms.p99", f"p99 {at}", found["p99_ms"], at_most=required.latency_ms.p99, unit="ms", mend=slow),
        check_bound("throughput_per_second", f"highest rate of {most} replicas within the latencies", found["requests_per_second_per_replica"] * most,
                    at_least=required.throughput_per_second, unit="requests/s", mend=slow + " Or raise deployment.max_replicas."),
        check_bound("cost_per_prediction_usd", "one core's price over its highest rate", found["cost_per_prediction_usd"],
                    at_most=required.cost_per_prediction_usd, unit="USD", mend=slow),
    ]  # fmt: skip


def _page(params: Params, checks: list[Check], loads: Sequence[Load], fastest: Load, entities: int) -> str:
    return page(
        "Step 6: deployment",
        "The gate is closed." if any(c.outcome == "fail" for c in checks) else "The service answers like the model and meets its requirements.",
        checks_section(checks),
        *load_sections(params, loads, fastest),
        section("What was built", paragraph(f"{BUNDLE}: two ONNX models (the model and the rule-like fallback), manifest.json and SHA256SUMS. "
                                            f"{ONLINE}: history of {entities:,} entities.")),
    )  # fmt: skip
