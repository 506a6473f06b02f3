"""Step 6: the export equals the model, a changed bundle is refused, and the service answers everything, the bad included."""

import asyncio
import json
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.package_name }}.params import FORMER, ONLINE, Canary, Framing, Limits, Params
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed, load_verdict
from {{ cookiecutter.package_name }}.step2_framing.contract import label_text
from {{ cookiecutter.package_name }}.step3_data.encode import columns_of, columns_read, encode, encode_labels
from {{ cookiecutter.package_name }}.step4_model.pipeline import frame_of, predict
from {{ cookiecutter.package_name }}.step4_model.tracking import CHALLENGER, CHAMPION, open_tracker
from {{ cookiecutter.package_name }}.step4_model.train import Part, fit
from {{ cookiecutter.package_name }}.step6_deployment import batch, loadtest
from {{ cookiecutter.package_name }}.step6_deployment.batch import score_file
from {{ cookiecutter.package_name }}.step6_deployment.guard import Refused, read_body
from {{ cookiecutter.package_name }}.step6_deployment.loadtest import Load, closed_loop, constant_rate, running_service
from {{ cookiecutter.package_name }}.step6_deployment.prediction_log import Logged, PredictionLog, ask_log, results_of_canary
from {{ cookiecutter.package_name }}.step6_deployment.predictor import FALLBACK, MANIFEST, MODEL, SUMS, Predictor, open_bundle, seal
from {{ cookiecutter.package_name }}.step6_deployment.service import create_app
from {{ cookiecutter.package_name }}.step6_deployment.stage import _crown, _judge, check_parity, export, run

JSON, PROBLEM = {"content-type": "application/json"}, "application/problem+json"


class Service:
    """The service in this process, with its start and its end."""

    def __init__(self, runner: asyncio.Runner, app: Any) -> None:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")
        self.run, self.app, self.request = runner.run, app, client.request

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Any request."""
        return self.run(self.request(method, path, **more))

    def wait(self, seconds: float) -> None:
        """Let what runs in the background run."""
        self.run(asyncio.sleep(seconds))

    def predict(self, records: Any) -> dict[str, Any]:
        """The answer to records that are in order."""
        answer = self.ask("POST", "/v1/predict", content=json.dumps({"records": records}), headers=JSON)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def status(self, method: str, path: str, **more: Any) -> int:
        """Of an answer that is a problem document, or good."""
        answer = self.ask(method, path, **more)
        assert answer.status_code < 300 or (answer.headers["content-type"], answer.json()["status"]) == (PROBLEM, answer.status_code), answer.text
        return answer.status_code

    def until(self, true: Callable[[], bool]) -> None:
        """Let what runs in the background run until something is true."""
        deadline = monotonic() + 20
        while not true():
            assert monotonic() < deadline
            self.wait(0.01)

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics."""
        families = text_string_to_metric_families(self.ask("GET", "/metrics").text)
        return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def serving(bundle: Path, params: Params, log: Path | str, **changes: Any) -> Iterator[Service]:
    """A service on a bundle that logs to `log`; `changes` are of params.deployment."""
    settings = params.deployment
    settings = settings.model_copy(update={"log": settings.log.model_copy(update={"path": str(log)}), **changes})
    app = create_app(params.model_copy(update={"deployment": settings}), bundle)
    with asyncio.Runner() as runner:
        lifespan = app.running()
        runner.run(lifespan.__aenter__())
        yield Service(runner, app)
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


class Away(Exception):
    """The registry does not answer: with a good challenger, this is how far the step comes."""


def test_the_gate_asks_about_the_new_bundle_alone_and_replaces_nothing_before_the_registry_knows(
    bundle: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a canary nor small limits close it, a sample is asked at a time. A bundle that the registry does not call champion would be
    compared with the wrong one, and the former one would be lost."""

    def away() -> None:
        raise Away

    content = {k: v for k, v in open_bundle(bundle).items() if k not in ("samples", "sample_scores")}
    challenger = Path(shutil.copytree(bundle, tmp_path / "challenger"))
    shutil.copy(challenger / FALLBACK, challenger / MODEL)
    seal(challenger, content | {"version": content["version"] | {"version": "challenger"}})
    monkeypatch.setenv("PARAMS__DEPLOYMENT__CANARY", json.dumps({"bundle": str(challenger), "share": 0.9, "mode": "canary"}))
    monkeypatch.setenv("PARAMS__DEPLOYMENT__LIMITS__RECORDS", "3")
    for name, instead in (("open_tracker", away), *((n, lambda *_: Load(1, 1, (1.0,), 0)) for n in ("constant_rate", "closed_loop"))):
        monkeypatch.setattr(f"{run.__module__}.{name}", instead)
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in bundle.iterdir()}
    few = params.deployment.model_copy(update={"parity": params.deployment.parity.model_copy(update={"rows": 7})})
    generous = params.requirements.model_copy(update={"throughput_per_second": 1e-9, "cost_per_prediction_usd": 1e9})
    with pytest.raises(Away):
        run(params.model_copy(update={"deployment": few, "requirements": generous}))
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in bundle.iterdir()} == before
    with pytest.raises(Away):
        _crown("another")
    assert not FORMER.exists()


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
    arrays = encode(odd, columns)
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


def test_an_interrupted_score_goes_on_where_it_stopped(
    odd_bundle: tuple[Path, Any], odd_table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, predictor = tmp_path / "rows.parquet", tmp_path / "scored.parquet", Predictor(odd_bundle[0], tmp_path / "none")
    pq.write_table(odd_table, source)
    monkeypatch.setattr(batch, "BATCH", 100)
    score, calls = batch._score, []

    def dying(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return score(*given)

    monkeypatch.setattr(batch, "_score", dying)
    with pytest.raises(StepFailed, match="disk is full"):
        score_file(predictor, source, target)
    assert not target.exists()
    assert score_file(predictor, source, target) == 300
    assert len(calls) == 4
    assert pq.read_table(target).column("score").to_pylist() == pytest.approx(odd_bundle[1], abs=1e-5)
    assert not target.with_name("scored.parquet.parts").exists()


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
        create_app(params, folder)


def test_the_rules_answer_for_a_model_that_does_not_load_if_they_may(bundle: Path, changed: Any, manifest: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (folder / MODEL).write_bytes(b"no model")
    seal(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    with serving(folder, changed({"requirements.constraints.fallback_allowed": True}), tmp_path / "log.sqlite") as service:
        assert service.predict([manifest["example"]])["fallback"] is True
        assert service.metric("model_info", fallback="true") == 1
    with pytest.raises(StepFailed, match="fallback_allowed is false"):
        create_app(changed({"requirements.constraints.fallback_allowed": False}), folder)


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
    alone = [service.predict([r])["predictions"][0] for r in manifest["samples"]]
    assert [a["score"] for a in alone] == [t["score"] for t in together]


@pytest.mark.parametrize("most", [1000, 4])
def test_requests_that_come_together_share_a_run_and_each_gets_its_own_answer(
    most: int, bundle: Path, params: Params, manifest: Any, tmp_path: Path
) -> None:
    """Also where not all of them fit into one run; everything is in the log."""
    groups = [manifest["samples"][k : k + 1 + k % 3] for k in range(8)]
    limits = params.deployment.limits.model_copy(update={"records": most, "concurrency": 8})
    with serving(bundle, params, tmp_path / "log.sqlite", limits=limits) as service:
        apart = [[p["score"] for p in service.predict(group)["predictions"]] for group in groups]
        runs = service.metric("model_latency_seconds_count")

        async def crowd() -> list[httpx.Response]:
            return await asyncio.gather(*(service.request("POST", "/v1/predict", content=as_json(g), headers=JSON) for g in groups))

        answers = [a.json()["predictions"] for a in service.run(crowd())]
        assert [[p["score"] for p in predictions] for predictions in answers] == apart
        assert service.metric("model_latency_seconds_count") - runs == (1 if most == 1000 else 5)  # of 3, 4, 3, 3, 2 records
        ids = {p["prediction_id"] for predictions in answers for p in predictions}
    assert len(ids) == sum(map(len, groups))
    assert ids <= {row[0] for row in logged(tmp_path / "log.sqlite")}


def test_a_request_that_cannot_be_answered_spoils_no_other_of_its_run(
    bundle: Path, params: Params, manifest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [manifest["samples"][:1], manifest["samples"][:2], manifest["samples"][:3]]
    with serving(bundle, params, tmp_path / "log.sqlite") as service:
        score = service.app._score
        monkeypatch.setattr(service.app, "_score", lambda role, served, records: score(role, served, records if len(records) in (1, 3) else None))

        async def crowd() -> list[httpx.Response]:
            return await asyncio.gather(*(service.request("POST", "/v1/predict", content=as_json(g), headers=JSON) for g in groups))

        answers = service.run(crowd())
        assert [a.status_code for a in answers] == [200, 500, 200]
        assert [len(a.json()["predictions"]) for a in answers if a.status_code == 200] == [1, 3]
    assert len(logged(tmp_path / "log.sqlite")) == 4


def test_a_run_that_fails_after_its_model_ran_is_logged_once(
    bundle: Path, params: Params, manifest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its requests is answered alone then, and nothing of the failed run is in the log."""
    calls = count()
    with serving(bundle, params, tmp_path / "log.sqlite") as service:
        write = service.app._prediction
        monkeypatch.setattr(service.app, "_prediction", lambda *given: write(*(given if next(calls) != 2 else ())))

        async def crowd() -> list[httpx.Response]:
            record = as_json(manifest["samples"][:1])
            return await asyncio.gather(*(service.request("POST", "/v1/predict", content=record, headers=JSON) for _ in range(3)))

        ids = {a.json()["predictions"][0]["prediction_id"] for a in service.run(crowd())}
    assert {row[0] for row in logged(tmp_path / "log.sqlite")} == ids
    assert len(ids) == 3


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
    field = next((i.name for i in params.framing.inputs if i.origin == "request" and i.kind != "date"), "")
    if not field:
        pytest.skip("a request holds nothing but dates")
    answer = service.ask("POST", "/v1/predict", content=body(manifest["example"], field, params.deployment.limits), headers=JSON)
    problem = answer.json()
    assert (answer.status_code, problem["status"], answer.headers["content-type"]) == (status, status, "application/problem+json")
    assert not named or any(e["field"].startswith(f"records.0.{field}") for e in problem["errors"]), problem
    assert service.predict([manifest["example"]])["predictions"]


@pytest.mark.parametrize(("method", "path", "headers", "status"), [
    ("POST", "/v1/predict", {"content-type": "text/csv"}, 415), ("GET", "/v1/predict", {}, 405), ("GET", "/nowhere", {}, 404),
    ("POST", "/v1/feedback", JSON, 422), ("PUT", "/v1/model", {}, 405), ("POST", "/v1/explain", JSON, 422),
])  # fmt: skip
def test_every_refusal_is_a_problem_document(method: str, path: str, headers: dict[str, str], status: int, service: Service) -> None:
    assert service.status(method, path, headers=headers, content="{}") == status


@pytest.mark.parametrize("label", [
    {"label": "x" * 201}, {"label": "\0"}, {"label": 10**4000}, {"label": None}, {"label": []}, {"prediction_id": "'; --"},
    {"prediction_id": "x" * 65}, {"prediction_id": 5}, {"at": "yesterday"}, {"when": 1},
], ids=str)  # fmt: skip
def test_a_bad_label_is_refused(label: dict[str, Any], service: Service) -> None:
    assert service.status("POST", "/v1/feedback", json={"labels": [{"prediction_id": "1", "label": True} | label]}) == 422


def test_the_ends_of_time_are_answered(service: Service, manifest: dict[str, Any], params: Params) -> None:
    """A zone must not push a date out of the calendar."""
    for name in {i.name for i in params.framing.inputs if i.kind == "date" and i.origin == "request"} | ({params.framing.time} - {None}):
        for moment in ("0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00"):
            assert service.predict([manifest["example"] | {name: moment}])
    assert service.status("POST", "/v1/feedback", json={"labels": [{"prediction_id": "1", "label": 1, "at": "0001-01-01T00:00:00+12:00"}]}) == 202


# ---- who may ask, and how much ---------------------------------------------------------------


def test_only_a_key_opens_and_keys_change_without_a_restart(
    bundle: Path, params: Params, manifest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, (old, new) = tmp_path / "keys", ("a" * 32, "b" * 32)
    keys.write_text(f"{old}\n")
    monkeypatch.setenv("API_KEYS", f"{'c' * 20}, {'d' * 20}")
    monkeypatch.setenv("API_KEYS_FILE", str(keys))

    def status(key: str) -> int:
        return service.status("POST", "/v1/predict", json={"records": [manifest["example"]]}, headers={"authorization": f"Bearer {key}"})

    with serving(bundle, params, tmp_path / "log.sqlite", keys="required") as service:
        assert [status(k) for k in (old, "c" * 20, "d" * 20, new, "", "a" * 31, "a" * 33)] == [200] * 3 + [401] * 4
        assert service.ask("GET", "/v1/model").headers["www-authenticate"] == "Bearer"
        assert [service.status("GET", path) for path in ("/health/live", "/health/ready")] == [200, 200]
        keys.write_text(f"{new}\n{'e' * 16}\n")
        service.until(lambda: status(new) == 200)
        assert status(old) == 401
        keys.write_text("")
        service.wait(0.1)
        assert status(new) == 200


@pytest.mark.parametrize(("given", "said"), [("", "no API keys"), ("short", "fewer than 16")])
def test_without_good_keys_the_service_does_not_start(given: str, said: str, bundle: Path, changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", given)
    monkeypatch.delenv("API_KEYS_FILE", raising=False)
    with pytest.raises(StepFailed, match=said):
        create_app(changed({"deployment.keys": "required"}), bundle)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
def test_more_at_once_than_may_wait_is_told_to_come_back(path: str, bundle: Path, params: Params, manifest: Any, tmp_path: Path) -> None:
    limits = params.deployment.limits.model_copy(update={"concurrency": 3})
    with serving(bundle, params, tmp_path / "log.sqlite", limits=limits) as service:

        async def crowd() -> list[httpx.Response]:
            return await asyncio.gather(*(service.request("POST", path, json={"records": [manifest["example"]]}) for _ in range(8)))

        answers = service.run(crowd())
        assert sorted(a.status_code for a in answers) == [200] * 3 + [503] * 5
        assert {a.headers.get("retry-after") for a in answers if a.status_code == 503} == {"1"}
        assert service.metric("predict_requests_total", outcome="overloaded") == (5 if path == "/v1/predict" else 0)
        assert service.predict([manifest["example"]])


def test_a_service_that_is_about_to_stop_says_so_and_answers_until_then(bundle: Path, params: Params, manifest: Any, tmp_path: Path) -> None:
    with serving(bundle, params, tmp_path / "log.sqlite") as service:
        service.app.draining = True
        answer = service.ask("POST", "/v1/predict", json={"records": [manifest["example"]]})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert service.status("GET", "/health/ready") == 503


def test_every_answer_carries_the_security_headers_and_the_page_asks_nobody_else(service: Service) -> None:
    for path in ("/", "/docs", "/openapi.json", "/nowhere", "/v1/predict"):
        headers = service.ask("GET", path).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"], headers["cache-control"]) == ("nosniff", "no-referrer", "no-store")
        assert headers["content-security-policy"].startswith("default-src 'none'; connect-src 'self'; script-src 'sha256-")
    assert "//" not in service.ask("GET", "/").text.replace("<!--", "")


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
    assert service.ask("GET", "/v1/model").json() == {k: v for k, v in manifest.items() if k != "samples"}
    record = service.ask("GET", "/openapi.json").json()["components"]["schemas"]["Record"]
    assert {i.name for i in params.framing.inputs} <= record["properties"].keys()


def test_what_moved_a_score_adds_up_with_the_score_itself(service: Service, manifest: dict[str, Any], framing: Framing) -> None:
    """An input's effect is the score minus that of the record with the input's reference value."""
    record = manifest["samples"][0]
    moved = service.ask("POST", "/v1/explain", json={"records": [record]}).json()["moved_by"]
    assert {m["input"] for m in moved} == {i.name for i in framing.inputs}
    for m in [m for m in moved if m["reference"] is not None and framing.task != "multiclass"][:1]:  # a text has none
        one, other = service.predict([record, record | {m["input"]: m["reference"]}])["predictions"]
        assert one["score"] - other["score"] == pytest.approx(m["effect"], abs=1e-6 + 1e-6 * abs(one["score"]))


# ---- another model, and two at once ----------------------------------------------------------


def version_of(bundle: Path, folder: Path, version: str, **manifest: Any) -> Path:
    """A copy of the bundle under another version, put in its place as one."""
    fresh = Path(shutil.copytree(bundle, folder.with_name(f"{folder.name}.{version}")))
    content = json.loads((fresh / MANIFEST).read_text(encoding="utf-8"))
    seal(fresh, content | {"version": content["version"] | {"version": version}} | manifest)
    shutil.rmtree(folder, ignore_errors=True)
    return fresh.rename(folder)


def test_a_new_bundle_takes_over_and_a_bad_one_does_not(bundle: Path, params: Params, manifest: Any, tmp_path: Path) -> None:
    folder = version_of(bundle, tmp_path / "bundle", "one")
    bad = {
        "a changed byte": lambda: (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1] + b"?"),
        "another contract": lambda: version_of(bundle, folder, "bad", framing=manifest["framing"] | {"target": "another"}),
        "other answers": lambda: version_of(bundle, folder, "bad", sample_scores=[1.5 * s + 1 for s in manifest["sample_scores"]]),
    }
    with serving(folder, params, tmp_path / "log.sqlite") as service:
        for number, (fault, plant) in enumerate(bad.items(), start=1):
            plant()
            service.until(lambda n=number: service.metric("model_reloads_total", outcome="refused") == n)
            assert service.predict([manifest["example"]])["model_version"] == ("one" if number == 1 else f"after {number - 1}"), fault
            version_of(bundle, folder, f"after {number}")
            service.until(lambda n=number: service.predict([manifest["example"]])["model_version"] == f"after {n}")
        service.until(lambda: service.metric("model_info", version="after 3", role="champion") == 1)


@pytest.mark.parametrize("mode", ["canary", "shadow"])
def test_a_challenger_gets_its_share(mode: Any, bundle: Path, params: Params, framing: Framing, manifest: Any, tmp_path: Path) -> None:
    """The same entity always the same model; a shadow is in the log, and nowhere else."""
    canary = Canary(bundle=str(version_of(bundle, tmp_path / "challenger", "next")), share=0.4, mode=mode)
    who = [{framing.entity: f"e{k % 100}"} if framing.entity else {} for k in range(200)]
    records = [manifest["example"] | w for w in who]
    with serving(bundle, params, tmp_path / "log.sqlite", canary=canary) as service:
        answers = [p for k in range(0, 200, 20) for p in service.predict(records[k : k + 20])["predictions"]]
        versions = [a["model_version"] for a in answers]
        assert service.metric("model_info", version="next", role="challenger") == 1
    rows = ask_log(tmp_path / "log.sqlite", "SELECT prediction_id, model_version, role FROM predictions WHERE role <> 'champion'")
    assert 40 < len(rows) < 120
    assert {(version, role) for _, version, role in rows} == {("next", mode)}
    assert {r[0] for r in rows} <= {a["prediction_id"] for a in answers}
    assert versions.count("next") == (len(rows) if mode == "canary" else 0)
    assert framing.entity is None or versions[:100] == versions[100:]
    log = PredictionLog(tmp_path / "log.sqlite", 60, 1000)
    log.add_labels([(a["prediction_id"], "2030-01-01", "0") for a in answers])
    log.close()
    arms, _ = results_of_canary(tmp_path / "log.sqlite")
    units = 100 if framing.entity else 200  # the champion's from before the canary's first are left out
    assert units * 0.9 <= len(arms["champion"]) + len(arms["challenger"]) <= units if mode == "canary" else not arms["challenger"]


def test_scores_in_the_band_are_for_a_person_until_the_verdict_comes(bundle: Path, params: Params, manifest: Any, tmp_path: Path) -> None:
    log, queue = tmp_path / "log.sqlite", "SELECT prediction_id FROM review_queue"
    with serving(bundle, params, log) as service:
        scores = sorted({p["score"] for p in service.predict(manifest["samples"])["predictions"]})
    low, high = scores[0], scores[-1]
    with serving(bundle, params, log, review=(low, high)) as service:
        answers = service.predict(manifest["samples"])["predictions"]
        doubtful = [a["prediction_id"] for a in answers if a["decision"] == "review"]
        assert doubtful == [a["prediction_id"] for a in answers if low <= a["score"] < high] != []
        service.until(lambda: [r[0] for r in ask_log(log, queue)] == sorted(doubtful))
        service.ask("POST", "/v1/feedback", json={"labels": [{"prediction_id": doubtful[0], "label": "no"}]})
        service.until(lambda: doubtful[0] not in {r[0] for r in ask_log(log, queue)})


# ---- the prediction log --------------------------------------------------------------------


def test_every_answer_and_every_label_is_in_the_log_at_the_end(bundle: Path, params: Params, manifest: dict[str, Any], tmp_path: Path) -> None:
    with serving(bundle, params, tmp_path / "log.sqlite") as service:
        ids = [p["prediction_id"] for _ in range(20) for p in service.predict(manifest["samples"][:3])["predictions"]]
        labels = {"labels": [{"prediction_id": i, "label": True} for i in ids[:5]]}
        assert service.ask("POST", "/v1/feedback", json=labels).json() == {"accepted": 5}
        assert service.metric("predictions_total") == len(ids)
    assert sorted(row[0] for row in logged(tmp_path / "log.sqlite")) == sorted(ids)
    assert [(row[0], row[2]) for row in logged(tmp_path / "log.sqlite", "labels")] == [(i, label_text(params.framing, True)) for i in ids[:5]]


def test_a_log_that_cannot_be_written_is_loud_and_stops_no_answer(bundle: Path, params: Params, manifest: Any, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    with serving(bundle, params, tmp_path / "file" / "log.sqlite") as service:
        assert service.predict(manifest["samples"])["predictions"]
    assert "cannot be written" in caplog.text


def test_a_log_that_can_be_written_again_gets_what_waited(bundle: Path, params: Params, manifest: Any, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with serving(bundle, params, tmp_path / "log" / "log.sqlite") as service:
        service.until(lambda: service.metric("prediction_log_failing") == 1)
        service.predict(manifest["samples"])
        (tmp_path / "log").unlink()
        service.until(lambda: service.metric("prediction_log_failing") == 0)
    assert len(logged(tmp_path / "log" / "log.sqlite")) == len(manifest["samples"])


@pytest.mark.parametrize("personal", ["hashed", "left_out", "clear"])
def test_a_personal_entity_is_not_in_the_log_unless_asked_for(
    personal: Any, bundle: Path, params: Params, framing: Framing, manifest: Any, tmp_path: Path
) -> None:
    if framing.entity not in params.requirements.constraints.personal_columns:
        pytest.skip("no entity is personal here")
    log = params.deployment.log.model_copy(update={"personal": personal, "path": str(tmp_path / "log.sqlite")})
    with serving(bundle, params.model_copy(update={"deployment": params.deployment.model_copy(update={"log": log})}), log.path) as service:
        service.predict([manifest["example"] | {framing.entity: "who-is-it"}] * 2)
    rows = ask_log(log.path, "SELECT entity, inputs FROM predictions")
    assert len({row[0] for row in rows}) == 1
    assert ("who-is-it" in str(rows)) == (personal == "clear")
    assert (rows[0][0] is None) == (personal == "left_out")


def test_one_bad_row_holds_up_no_other(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = PredictionLog(tmp_path / "log.sqlite", 60, 10, dropped.append)
    log.add([Logged(str(k), "2026-01-01", "1", False, "{}", None if k == 1 else 0.5, None) for k in range(3)])  # type: ignore[arg-type]
    log.close()
    assert ([r[0] for r in logged(tmp_path / "log.sqlite")], sum(dropped)) == (["0", "2"], 1)


def test_what_finds_the_queue_full_is_counted(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = PredictionLog(tmp_path / "log.sqlite", 60, 10, dropped.append)
    log.add([Logged(str(k), "2026-01-01", "1", False, "{}", 0.5, None) for k in range(25)])
    log.close()
    assert (len(logged(tmp_path / "log.sqlite")), sum(dropped)) == (10, 15)


def test_what_is_being_written_counts_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes a connection and says nothing would else be waited for with ever more in memory."""
    asked, answer, dropped = threading.Event(), threading.Event(), list[int]()

    def silent(_: str) -> None:
        asked.set()
        answer.wait(20)
        raise OSError("it never said anything")

    monkeypatch.setattr(f"{PredictionLog.__module__}.open_log", silent)
    log = PredictionLog(tmp_path / "log.sqlite", 0.01, 10, dropped.append)
    for _ in range(2):
        log.add([Logged(str(k), "2026-01-01", "1", False, "{}", 0.5, None) for k in range(10)])
        assert asked.wait(20)
    assert sum(dropped) == 10
    answer.set()
    log.close()


def test_a_body_that_never_begins_keeps_no_place(params: Params) -> None:
    async def nothing() -> Any:
        await asyncio.Event().wait()

    limits = params.deployment.limits.model_copy(update={"body_seconds": 0.05})
    with pytest.raises(Refused) as refused:
        asyncio.run(asyncio.wait_for(read_body({b"content-type": b"application/json"}, nothing, limits), 20))
    assert refused.value.status == 408


@pytest.mark.parametrize(("key", "said"), [("", True), ("0123456789abcdef", False)])
def test_hashes_without_a_key_are_told(
    key: str, said: bool, bundle: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads the log could hash every card number there is."""
    if params.framing.entity not in params.requirements.constraints.personal_columns:
        pytest.skip("no entity is personal here")
    monkeypatch.setenv("LOG_KEY", key)
    log = params.deployment.log.model_copy(update={"personal": "hashed"})
    with serving(bundle, params.model_copy(update={"deployment": params.deployment.model_copy(update={"log": log})}), tmp_path / "log.sqlite"):
        assert any("LOG_KEY is not set" in message for message in caplog.messages) == said


# ---- the load test -------------------------------------------------------------------------


@pytest.mark.parametrize(("milliseconds", "failures", "closed"), [
    (1.0, 0, []),
    (5000.0, 0, ["latency_ms.p50", "latency_ms.p99", "throughput_per_second", "cost_per_prediction_usd"]),
    (1.0, 1, ["latency_ms.p50", "latency_ms.p99", "throughput_per_second", "cost_per_prediction_usd"]),
])  # fmt: skip
def test_a_slow_or_failing_service_closes_the_gate(milliseconds: float, failures: int, closed: list[str], changed: Any) -> None:
    params = changed({"requirements.latency_ms": {"p50": 50, "p99": 200}})
    load = Load(100, 100, (milliseconds,) * 100, failures)
    assert [c.requirement for c in _judge(params, [load], load) if c.outcome == "fail"] == closed


def test_a_service_that_dies_or_goes_silent_under_load_ends_in_a_sentence(
    bundle: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the sentence says where its own words are."""
    settings, start, started = params.deployment.load_test, subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: started.append(start(*given, **named)) or started[-1])
    with pytest.raises(StepFailed, match=r"ended with code .*no answer.*log\.stderr"), running_service(bundle, tmp_path / "log.sqlite") as port:
        started[-1].kill()
        closed_loop(port, b"{}", settings)
    monkeypatch.setattr(loadtest, "PATIENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(TimeoutError, match="no answer in"):
        constant_rate(deaf.getsockname()[1], b"{}", settings, 20)
