"""Step 6: the export equals the model, a changed bundle is refused, and the service answers everything, the bad included."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.package_name }}.params import ONLINE, Framing, Limits, Params
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed, load_verdict
from {{ cookiecutter.package_name }}.step3_data.encode import columns_of, columns_read, encode, encode_labels
from {{ cookiecutter.package_name }}.step4_model.pipeline import frame_of, predict
from {{ cookiecutter.package_name }}.step4_model.tracking import CHALLENGER, CHAMPION, open_tracker
from {{ cookiecutter.package_name }}.step4_model.train import Part, fit
from {{ cookiecutter.package_name }}.step6_deployment.batch import score_file
from {{ cookiecutter.package_name }}.step6_deployment.bundle import MANIFEST, MODEL, SUMS, open_bundle, seal
from {{ cookiecutter.package_name }}.step6_deployment.export import check_parity, export
from {{ cookiecutter.package_name }}.step6_deployment.loadtest import Load
from {{ cookiecutter.package_name }}.step6_deployment.prediction_log import Logged, PredictionLog
from {{ cookiecutter.package_name }}.step6_deployment.predictor import Predictor
from {{ cookiecutter.package_name }}.step6_deployment.service import create_app
from {{ cookiecutter.package_name }}.step6_deployment.stage import _judge

JSON = {"content-type": "application/json"}


class Service:
    """The service in this process, with its start and its end."""

    def __init__(self, ask: Callable[..., httpx.Response]) -> None:
        self.ask = ask

    def predict(self, records: Any) -> dict[str, Any]:
        """The answer to records that are in order."""
        answer = self.ask("POST", "/v1/predict", content=json.dumps({"records": records}), headers=JSON)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics."""
        families = text_string_to_metric_families(self.ask("GET", "/metrics").text)
        return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def serving(bundle: Path, params: Params, log: Path, *, fallback_allowed: bool = True) -> Iterator[Service]:
    """A service on a bundle that logs to `log`."""
    settings = params.deployment.model_copy(update={"log": params.deployment.log.model_copy(update={"path": str(log)})})
    app = create_app(bundle, ONLINE, settings, fallback_allowed=fallback_allowed)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield Service(lambda *words, **more: runner.run(client.request(*words, **more)))
        runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def service(bundle: Path, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on your bundle."""
    with serving(bundle, params, tmp_path_factory.mktemp("log") / "log.sqlite") as running:
        yield running


@pytest.fixture
def manifest(bundle: Path) -> dict[str, Any]:
    """The bundle's manifest, with sample records."""
    return open_bundle(bundle)


def logged(path: Path, table: str = "predictions") -> list[tuple[Any, ...]]:
    """Every row of a table of the log."""
    with closing(sqlite3.connect(path)) as store:
        return store.execute(f"SELECT * FROM {table}").fetchall()


# ---- export and bundle ---------------------------------------------------------------------


def test_the_step_passes_its_checks_and_promotes_the_challenger(bundle: Path) -> None:
    assert {c.outcome for c in load_verdict("deployment") or []} == {"pass"}
    assert open_tracker().version_of(CHAMPION) == open_tracker().version_of(CHALLENGER)


def test_an_export_that_answers_otherwise_is_caught(params: Params) -> None:
    settings, right = params.deployment.parity, np.linspace(1, 2, 50)
    wrong = right + np.where(np.arange(50) == 49, settings.max_difference * 3, 0)
    assert check_parity(settings, right, right.copy(), "model").outcome == "pass"
    assert check_parity(settings, right, wrong, "model").outcome == "fail"
    assert check_parity(settings, right, np.full(50, np.nan), "model").outcome == "fail"


@pytest.fixture(scope="module")
def odd_bundle(odd: Framing, odd_table: pa.Table, params: Params, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A bundle for the odd table, and what its model said before the export."""
    folder, columns = tmp_path_factory.mktemp("odd"), columns_of(odd_table, columns_read(odd))
    arrays = encode(odd, columns, 300)
    labels = encode_labels(odd, ["no", "yes"], odd_table.column("y?").to_pylist())
    trained = fit(odd, params.model, Part(odd_table.to_pandas(), arrays, frame_of(arrays), labels), ["no", "yes"])
    for name, pipeline in ((MODEL, trained.model), ("fallback.onnx", trained.rule)):
        export(odd, pipeline, folder / name)
    framing = json.loads(odd.model_dump_json(by_alias=True))
    example = {i.name: None for i in odd.inputs}
    seal(folder, {"framing": framing, "classes": ["no", "yes"], "threshold": 0.5, "version": {"version": "1"}, "example": example})
    return folder, predict(odd, trained.model, frame_of(arrays))[:, 1]


def test_any_column_of_any_name_is_exported_and_served(
    odd_bundle: tuple[Path, np.ndarray], odd_table: pa.Table, params: Params, tmp_path: Path
) -> None:
    """Gaps, words of any script and names with spaces, dots and quotes; no time, no history and an entity that nobody looks up."""
    folder, expected = odd_bundle
    records = odd_table.drop_columns(["y?"]).slice(0, 25).to_pylist()
    with serving(folder, params, tmp_path / "log.sqlite") as service:
        answers = service.predict([json.loads(json.dumps(r, default=lambda v: v.isoformat())) for r in records])["predictions"]
    assert [a["score"] for a in answers] == pytest.approx(expected[:25], abs=1e-5)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_any_column_of_any_name_is_scored_from_a_file(kind: str, odd_bundle: tuple[Path, Any], odd_table: pa.Table, tmp_path: Path) -> None:
    source, target = tmp_path / f"rows.{kind}", tmp_path / "scored.parquet"
    (pq.write_table if kind == "parquet" else pa_csv.write_csv)(odd_table, source)
    assert score_file(Predictor(odd_bundle[0], tmp_path / "none"), source, target) == 300
    assert pq.read_table(target).column("score").to_pylist() == pytest.approx(odd_bundle[1], abs=1e-5)


def test_every_changed_byte_of_a_small_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(bytes(range(64)))
    seal(tmp_path, {"version": "1"})
    open_bundle(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in range(len(content)):
            for bit in (1, 4):
                path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
                with pytest.raises(StepFailed, match="bundle"):
                    open_bundle(tmp_path)
        path.write_bytes(content)


@pytest.mark.parametrize("fault", ["changed", "cut", "missing", "extra", "unsealed"])
def test_a_damaged_bundle_is_not_served(fault: str, bundle: Path, params: Params, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model, content = folder / MODEL, (folder / MODEL).read_bytes()
    damage: dict[str, Callable[[], Any]] = {
        "changed": lambda: model.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]), "cut": lambda: model.write_bytes(content[:-1]),
        "missing": model.unlink, "extra": (folder / "extra.pkl").touch, "unsealed": (folder / SUMS).unlink,
    }  # fmt: skip
    damage[fault]()
    with pytest.raises(StepFailed, match="bundle"):
        create_app(folder, ONLINE, params.deployment, fallback_allowed=True)


def test_the_rules_answer_for_a_model_that_does_not_load_if_they_may(bundle: Path, params: Params, manifest: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (folder / MODEL).write_bytes(b"no model")
    seal(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    with serving(folder, params, tmp_path / "log.sqlite") as service:
        assert service.predict([manifest["example"]])["fallback"] is True
        assert service.metric("model_info", fallback="true") == 1
    with pytest.raises(StepFailed, match="fallback_allowed is false"):
        create_app(folder, ONLINE, params.deployment, fallback_allowed=False)


# ---- the service ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_service_and_batch_scoring_give_equal_answers(
    kind: str, service: Service, manifest: Any, bundle: Path, prepared: Path, tmp_path: Path
) -> None:
    """Bit for bit, whether a row comes as JSON, Parquet or CSV."""
    source, target = tmp_path / f"rows.{kind}", tmp_path / f"scored.{kind}"
    rows = pq.read_table(prepared / "test.parquet").slice(0, len(manifest["samples"]))
    (pq.write_table if kind == "parquet" else pa_csv.write_csv)(rows, source)
    score_file(Predictor(bundle, ONLINE), source, target)
    scored = (pq.read_table if kind == "parquet" else pa_csv.read_csv)(target)
    answers = service.predict(manifest["samples"])["predictions"]
    assert [a["score"] for a in answers] == scored.column("score").to_pylist()


def test_alone_or_among_others_a_record_gets_the_same_answer(service: Service, manifest: dict[str, Any]) -> None:
    together = service.predict(manifest["samples"])["predictions"]
    alone = [service.predict([r])["predictions"][0] for r in manifest["samples"][:5]]
    assert [a["score"] for a in alone] == pytest.approx([t["score"] for t in together[:5]], rel=1e-6)


def as_json(records: Any) -> str:
    """A request body."""
    return json.dumps({"records": records})


#: The body, from an example, one of its fields and the limits; the status; and whether the field is named.
BAD: dict[str, tuple[Callable[[dict[str, Any], str, Limits], str | bytes], int, bool]] = {
    "an unknown field": (lambda e, f, _: as_json([e | {f"{f}?": 1}]), 422, True),
    "a missing field": (lambda e, f, _: as_json([{k: v for k, v in e.items() if k != f}]), 422, True),
    "a wrong kind": (lambda e, f, _: as_json([e | {f: {"a": []}}]), 422, True),
    "not a number": (lambda e, f, _: as_json([e | {f: float("nan")}]), 422, True),
    "beyond all numbers": (lambda e, f, _: as_json([e | {f: "HUGE"}]).replace('"HUGE"', "1e400"), 422, True),
    "no records": (lambda *_: as_json([]), 422, False),
    "too many records": (lambda e, _, limits: as_json([e] * (limits.records + 1)), 422, False),
    "too large": (lambda e, _, limits: as_json([e]) + " " * limits.body_kb * 1024, 413, False),
    "a list": (lambda *_: "[]", 422, False),
    "half of it": (lambda e, *_: as_json([e])[:-3], 422, False),
    "nothing": (lambda *_: "", 422, False),
    "not UTF-8": (lambda *_: b'{"records": [{"\xff\xfe": 1}]}', 422, False),
    "half a character": (lambda e, *_: as_json([e | {"\ud800": 1}]), 422, False),
    "nested without end": (lambda *_: "[" * 100_000, 422, False),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_request_is_told_what_is_wrong(fault: str, service: Service, manifest: dict[str, Any], params: Params) -> None:
    """A problem document that names the field, and the next request is answered."""
    body, status, named = BAD[fault]
    field = next(i.name for i in params.framing.inputs if i.origin == "request" and i.kind != "date")
    answer = service.ask("POST", "/v1/predict", content=body(manifest["example"], field, params.deployment.limits), headers=JSON)
    problem = answer.json()
    assert (answer.status_code, problem["status"], answer.headers["content-type"]) == (status, status, "application/problem+json")
    assert not named or any(e["field"].startswith(f"records.0.{field}") for e in problem["errors"]), problem
    assert service.predict([manifest["example"]])["predictions"]


@pytest.mark.parametrize(("method", "path", "headers", "status"), [
    ("POST", "/v1/predict", {"content-type": "text/csv"}, 415), ("GET", "/v1/predict", {}, 405), ("GET", "/nowhere", {}, 404),
    ("POST", "/v1/feedback", JSON, 422),
])  # fmt: skip
def test_every_refusal_is_a_problem_document(method: str, path: str, headers: dict[str, str], status: int, service: Service) -> None:
    answer = service.ask(method, path, headers=headers, content="{}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_null_is_answered_and_counted_where_it_may_be(service: Service, manifest: dict[str, Any], params: Params) -> None:
    for field in (i for i in params.framing.inputs if i.nullable and i.origin == "request"):
        before = service.metric("input_missing_total", column=field.name)
        service.predict([manifest["example"] | {field.name: None}])
        assert service.metric("input_missing_total", column=field.name) >= before + 1


def test_a_value_outside_the_contract_is_answered_with_a_warning(service: Service, manifest: dict[str, Any], params: Params) -> None:
    """The world moves: the request is not refused, but the answer says it and a counter counts it."""
    for field in (i for i in params.framing.inputs if i.origin == "request"):
        value = field.max * 2 + 1 if field.max is not None else "never seen" if isinstance((field.values or [0])[0], str) else None
        if value is not None:
            before = service.metric("input_out_of_range_total", column=field.name)
            warnings = service.predict([manifest["example"] | {field.name: value}])["predictions"][0]["warnings"]
            assert any(w.startswith(f"{field.name} is {value!r}") for w in warnings)
            assert service.metric("input_out_of_range_total", column=field.name) == before + 1


def test_the_other_routes_say_what_they_should(service: Service, manifest: dict[str, Any], params: Params) -> None:
    assert [service.ask("GET", f"/health/{kind}").json()["status"] for kind in ("live", "ready")] == ["live", "ready"]
    assert service.ask("GET", "/v1/model").json() == manifest
    record = service.ask("GET", "/openapi.json").json()["components"]["schemas"]["Record"]
    assert {i.name for i in params.framing.inputs} <= record["properties"].keys()


# ---- the prediction log --------------------------------------------------------------------


def test_every_answer_and_every_label_is_in_the_log_at_the_end(bundle: Path, params: Params, manifest: dict[str, Any], tmp_path: Path) -> None:
    with serving(bundle, params, tmp_path / "log.sqlite") as service:
        ids = [p["prediction_id"] for _ in range(20) for p in service.predict(manifest["samples"][:3])["predictions"]]
        labels = {"labels": [{"prediction_id": i, "label": True} for i in ids[:5]]}
        assert service.ask("POST", "/v1/feedback", json=labels).json() == {"accepted": 5}
        assert service.metric("predictions_total") == len(ids)
    assert sorted(row[0] for row in logged(tmp_path / "log.sqlite")) == sorted(ids)
    assert [(row[0], row[2]) for row in logged(tmp_path / "log.sqlite", "labels")] == [(i, "true") for i in ids[:5]]


def test_a_log_that_cannot_be_written_is_loud_and_stops_no_answer(bundle: Path, params: Params, manifest: Any, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    with serving(bundle, params, tmp_path / "file" / "log.sqlite") as service:
        assert service.predict(manifest["samples"])["predictions"]
    assert "cannot be written" in caplog.text


def test_what_finds_the_queue_full_is_counted(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = PredictionLog(tmp_path / "log.sqlite", 60, 10, dropped.append)
    log.add([Logged(str(k), "2026-01-01", "1", False, "{}", 0.5, None) for k in range(25)])
    log.close()
    assert (len(logged(tmp_path / "log.sqlite")), sum(dropped)) == (10, 15)


# ---- the load test -------------------------------------------------------------------------


@pytest.mark.parametrize(("milliseconds", "failures", "closed"), [
    (1.0, 0, []),
    (5000.0, 0, ["latency_ms.p50", "latency_ms.p99"]),
    (1.0, 1, ["latency_ms.p50", "latency_ms.p99", "throughput_per_second", "cost_per_prediction_usd"]),
])  # fmt: skip
def test_a_slow_or_failing_service_closes_the_gate(milliseconds: float, failures: int, closed: list[str], changed: Any) -> None:
    params = changed({"requirements.latency_ms": {"p50": 50, "p99": 200}})
    load = Load(100, 100, (milliseconds,) * 100, failures)
    assert [c.requirement for c in _judge(params, load, load) if c.outcome == "fail"] == closed
