"""The prediction service.

The predict route reads the raw body straight into the validator and is a plain route: the web
framework's request machinery would cost more than the model. Everything else is FastAPI.
"""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ..params import Deployment, Framing, Input
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import as_text
from .prediction_log import Logged, PredictionLog
from .predictor import Predictor, columns_from
from .schema import Feedback, Problem, naive_utc, request_adapter
from .schema import Response as PredictResponse

log = logging.getLogger(__name__)
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
TITLES = {404: "Not found", 405: "Wrong method", 413: "Too large", 415: "Wrong content type", 422: "Not as the contract says", 500: "Failed"}


class Metrics:
    """Every metric of the service; children are kept, because looking them up costs more than counting."""

    def __init__(self, framing: Framing, classes: Sequence[str]) -> None:
        registry = self.registry = CollectorRegistry()
        self.seconds = Histogram("predict_latency_seconds", "Time to answer a predict request", buckets=SECONDS, registry=registry)
        requests = Counter("predict_requests", "Predict requests by outcome", ["outcome"], registry=registry)
        self.requests = {outcome: requests.labels(outcome) for outcome in ("ok", "refused", "failed")}
        decisions = Counter("predictions", "Predictions by decision", ["decision"], registry=registry)
        self.decisions = {name: decisions.labels(name or "number") for name in (*classes, None)}
        self.score = Histogram("prediction_score", "Scores that were answered", buckets=[i / 20 for i in range(1, 21)], registry=registry)
        missing = Counter("input_missing", "Null values received", ["column"], registry=registry)
        self.missing = {i.name: missing.labels(i.name) for i in framing.inputs if i.origin == "request"}
        outside = Counter("input_out_of_range", "Values outside the contract", ["column"], registry=registry)
        self.outside = {i.name: outside.labels(i.name) for i in framing.inputs}
        self.dropped = Counter("prediction_log_dropped", "Predictions that could not be logged", registry=registry)
        self.labels = Counter("feedback_labels", "Labels received", registry=registry)
        self.model = Gauge("model_info", "The model in service", ["version", "fallback"], registry=registry)


def create_app(bundle: Path, online: Path, settings: Deployment, *, fallback_allowed: bool) -> FastAPI:
    """The service over one bundle.

    Raises:
        StepFailed: when the bundle cannot be trusted.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    predictor = _load(bundle, online, fallback_allowed)
    metrics = Metrics(predictor.framing, predictor.classes)
    metrics.model.labels(predictor.version, str(predictor.fallback).lower()).set(1)
    answerer = Answerer(predictor, metrics, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        answerer.log = PredictionLog(settings.log.path, settings.log.flush_seconds, settings.log.queue, metrics.dropped.inc)
        yield
        answerer.log.close()

    app = FastAPI(title=f"Predicts {predictor.framing.target}", version=predictor.version, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_route("/v1/predict", answerer.predict, methods=["POST"])
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse)

    @app.post("/v1/feedback", status_code=202)
    async def feedback(body: Feedback) -> dict[str, int]:
        """Labels that became known later, by prediction id."""
        now = datetime.now(UTC)
        labels = [(x.prediction_id, naive_utc(x.at or now).isoformat(), as_text(x.label) or "") for x in body.labels]
        answerer.log.add_labels(labels)
        metrics.labels.inc(len(labels))
        return {"accepted": len(labels)}

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """The manifest: what the model was trained on, its metrics, the verdicts of its requirements."""
        return predictor.manifest

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """Whether it can answer."""
        return {"status": "ready", "model_version": predictor.version}

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.openapi_schema = _openapi(app, answerer)
    return app


class Answerer:
    """Answers predict requests."""

    log: PredictionLog

    def __init__(self, predictor: Predictor, metrics: Metrics, settings: Deployment) -> None:
        self.predictor, self.metrics = predictor, metrics
        self.most_bytes = settings.limits.body_kb * 1024
        self.example: dict[str, Any] = predictor.manifest["example"]
        self.adapter = request_adapter(predictor.framing, settings.limits.records, self.example)
        self.ids, self.prefix = count(), secrets.token_hex(8)
        kinds = {i.name: i.kind for i in predictor.framing.inputs}
        self.dates = [name for name in predictor.names if kinds.get(name, "date") == "date"]
        self.bounded = [i for i in predictor.framing.inputs if i.values or i.min is not None or i.max is not None]

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict."""
        start = perf_counter()
        try:
            body = await self._body(request)
            records = self.adapter.validate_json(body)["records"]
        except ValidationError as error:
            return self._refused(422, "The request does not fit the contract", _errors(error))
        except _Refused as error:
            return self._refused(error.status, error.detail, [])
        try:
            answer = self._answer(records)
        except Exception:
            self.metrics.requests["failed"].inc()
            log.exception("predict failed")
            return _problem(500, "The prediction failed; it was logged", [])
        self.metrics.requests["ok"].inc()
        self.metrics.seconds.observe(perf_counter() - start)
        return Response(answer, media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _Refused(415, "Send application/json")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.most_bytes:
                raise _Refused(413, f"The body is larger than {self.most_bytes // 1024} KiB")
        return bytes(body)

    def _answer(self, records: list[dict[str, Any]]) -> bytes:
        predictor, now = self.predictor, datetime.now(UTC).replace(tzinfo=None)
        time = predictor.framing.time
        for record in records:
            if time and record.get(time) is None:
                record[time] = now
            for name in self.dates:
                if record.get(name) is not None:
                    record[name] = naive_utc(record[name])
        predictor.complete(records)
        raw = predictor.scores(columns_from(records, predictor.names), len(records))
        scores, decisions = predictor.main_scores(raw), predictor.decisions(raw)
        predictions, logged, at = [], [], now.isoformat()
        for index, (record, score, decision) in enumerate(zip(records, scores, decisions, strict=True)):
            prediction_id = f"{self.prefix}{next(self.ids):010x}"
            prediction: dict[str, Any] = {"prediction_id": prediction_id, "score": score, "decision": decision, "threshold": predictor.threshold}
            if predictor.framing.task == "multiclass":
                prediction["scores"] = dict(zip(predictor.classes, map(float, raw[index]), strict=True))
            if warnings := self._look(record):
                prediction["warnings"] = warnings
            predictions.append(prediction)
            inputs, role = json.dumps(record, default=str, ensure_ascii=False), "fallback" if predictor.fallback else "champion"
            row = Logged(prediction_id, at, predictor.version, predictor.fallback, inputs, score, decision, predictor.threshold, role)
            logged.append(row)
            self.metrics.decisions[decision].inc()
            self.metrics.score.observe(score)
        self.log.add(logged)
        return json.dumps({"model_version": predictor.version, "fallback": predictor.fallback, "predictions": predictions}).encode()

    def _look(self, record: dict[str, Any]) -> list[str]:
        """Count nulls, and count and name the values outside the contract."""
        for name, counter in self.metrics.missing.items():
            if record[name] is None:
                counter.inc()
        warnings = [w for field in self.bounded if (w := _outside(field, record[field.name]))]
        for warning in warnings:
            self.metrics.outside[warning[0]].inc()
        return [f"{name} is {value!r}, {what}" for name, value, what in warnings]

    def _refused(self, status: int, detail: str, errors: list[dict[str, str]]) -> Response:
        self.metrics.requests["refused"].inc()
        return _problem(status, detail, errors)


class _Refused(Exception):
    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail


def _load(bundle: Path, online: Path, fallback_allowed: bool) -> Predictor:
    try:
        return Predictor(bundle, online)
    except StepFailed:
        raise
    except Exception as error:
        if not fallback_allowed:
            raise StepFailed(f"serve: the model cannot be loaded ({error}), and requirements.constraints.fallback_allowed is false") from error
        log.error("serve: the model cannot be loaded (%s); the rule-like baseline answers", error)
        return Predictor(bundle, online, fallback=True)


def _outside(field: Input, value: Any) -> tuple[str, Any, str] | None:
    if value is None:
        return None
    if field.values:
        return None if value in field.values else (field.name, value, "a value the training data did not have")
    if field.min is not None and value < field.min:
        return field.name, value, f"below {field.min:g}"
    if field.max is not None and value > field.max:
        return field.name, value, f"above {field.max:g}"
    return None


def _errors(error: ValidationError) -> list[dict[str, str]]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"field": ".".join(map(str, e["loc"])), "reason": e["msg"]} for e in found[:20]]


def _problem(status: int, detail: str, errors: list[dict[str, str]]) -> JSONResponse:
    problem = Problem(title=TITLES.get(status, "Refused"), status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(), status, media_type="application/problem+json")


async def _refuse_invalid(_: Request, error: Exception) -> Response:
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    return _problem(422, "The request does not fit the contract", [{"field": ".".join(map(str, e["loc"])), "reason": e["msg"]} for e in errors[:20]])


async def _refuse(_: Request, error: Exception) -> Response:
    status, detail = (error.status_code, str(error.detail)) if isinstance(error, HTTPException) else (500, "")
    return _problem(status, detail, [])


def _openapi(app: FastAPI, answerer: Answerer) -> dict[str, Any]:
    """FastAPI's description of the other routes, plus the predict route with an example from the data."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    schema = answerer.adapter.json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {}) | {"Request": schema}
    for model in (PredictResponse, Problem):
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= made.pop("$defs", {}) | {model.__name__: made}
    problem = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    document["paths"]["/v1/predict"] = {"post": {
        "summary": "Predict", "operationId": "predict", "description": "Predictions for one record or many, in their order.",
        "requestBody": {"required": True, "content": {"application/json": {
            "schema": {"$ref": "#/components/schemas/Request"}, "example": {"records": [answerer.example]}}}},
        "responses": {
            "200": {"description": "Answered", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Response"}}}},
            **{str(code): {"description": TITLES[code], **problem} for code in (413, 415, 422)},
        },
    }}  # fmt: skip
    return document
