"""The prediction service.

Requests with a body are answered in raw ASGI, straight from the bytes to the validator: the web framework's
request machinery would cost more than the model. FastAPI answers and describes the rest.
"""

import asyncio
import hashlib
import logging
import math
import os
import secrets
import signal
import socket
import threading
import traceback
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import accumulate, count, islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import prometheus_client as prometheus
import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import Counter, Gauge, Histogram
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ..params import BUNDLE, ONLINE, Input, Latency, Limits, Params
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import inputs_of, label_text
from .guard import JSON, PROBLEM, Keys, Receive, Refused, Scope, Send, not_as_agreed, read_body, security_headers, to_json
from .prediction_log import Logged, PredictionLog
from .predictor import Predictor
from .schema import Feedback, describe, naive_utc, request_adapter

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page.html"
OPEN = {"/", "/docs", "/health/live", "/health/ready", "/metrics"}  # without a key: they hold no data
ROLES = ("champion", "fallback", "canary", "shadow")
REVIEW = "review"
CLOSE = (b"connection", b"close")


class Metrics:
    """Every metric of the service; children are kept, because looking them up costs more than counting."""

    def __init__(self, served: "Served", latency: Latency) -> None:
        registry = self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)  # CPU and memory
        wanted = (latency.p50 / 1000, *(latency.p99 / 1000 * k for k in (1, 2, 5, 10)))  # the requirement, and well beyond
        ladder = sorted({0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, *wanted})
        self.seconds = Histogram("predict_latency_seconds", "Time to answer a predict request", buckets=ladder, registry=registry)
        requests = Counter("predict_requests", "Predict requests by outcome", ["outcome"], registry=registry)
        self.requests = {outcome: requests.labels(outcome) for outcome in ("ok", "refused", "overloaded", "failed")}
        decisions = Counter("predictions", "Predictions by decision and by the model's role", ["decision", "role"], registry=registry)
        self.decisions = {(name, role): decisions.labels(name or "number", role) for name in (*served.classes, REVIEW, None) for role in ROLES}
        scores = Histogram("prediction_score", "Scores by the model's role", ["role"], buckets=served.score_buckets(), registry=registry)
        self.scores = {role: scores.labels(role) for role in ROLES}
        model = Histogram("model_latency_seconds", "Time to score the records that came together", ["role"], buckets=ladder, registry=registry)
        self.model_seconds = {role: model.labels(role) for role in ROLES}
        self.apart = Histogram(
            "shadow_difference", "Distance of the shadow's score from the answer", buckets=served.score_buckets(), registry=registry
        )
        self.disagree = Counter("shadow_disagreements", "Shadows that decide otherwise than the answer", registry=registry)
        self.challenger_failed = Counter("challenger_failures", "Requests that the challenger could not score; the champion did", registry=registry)
        missing = Counter("input_missing", "Null values received", ["column"], registry=registry)
        self.missing = {i.name: missing.labels(i.name) for i in inputs_of(served.framing, "request")}
        self.outside = Counter("input_out_of_range", "Values outside the contract", ["column"], registry=registry)
        self.labels = Counter("feedback_labels", "Labels received", registry=registry)
        self.model = Gauge("model_info", "The models in service", ["version", "fallback", "role"], registry=registry)
        self.reloads = Counter("model_reloads", "New bundles found, by what became of them", ["outcome", "role"], registry=registry)
        self.dropped = Counter("prediction_log_dropped", "Predictions and labels that could not be logged", registry=registry)
        self.log_failing = Gauge("prediction_log_failing", "1 while the prediction log cannot be written", registry=registry)
        self.log_waiting = Gauge("prediction_log_waiting", "Entries that wait to be written", registry=registry)


class Served(Predictor):
    """A predictor with what the API needs around it."""

    def __init__(self, bundle: Path, online: Path, limits: Limits, *, fallback: bool = False) -> None:
        super().__init__(bundle, online, fallback=fallback)
        example = self.manifest["example"]
        self.many, self.one = (request_adapter(self.framing, most, example) for most in (limits.records, 1))
        self.bounded = [i for i in self.framing.inputs if i.values or i.min is not None or i.max is not None]

    def score_buckets(self) -> list[float]:
        """Where scores are counted: evenly for probabilities, and by the quantiles of held-back predictions for numbers."""
        if self.framing.task != "regression":
            return [k / 20 for k in range(1, 21)]
        quantiles = sorted({float(q) for q in self.manifest.get("score_quantiles", (0.0,))})
        return [*quantiles, *(quantiles[-1] + (abs(quantiles[-1]) or 1.0) * k for k in (1, 9))]


class Slot:
    """A model's place in the service: its bundle is watched, and another one takes over once it has proved itself."""

    def __init__(self, role: str, bundle: Path, load: Callable[[Path], Served], like: "Slot | None" = None) -> None:
        self.role, self.bundle, self.load, self.like = role, bundle, load, like
        self.served: Served | None = None
        self.seen = self.settling = self.stamp()

    def stamp(self) -> list[Any]:
        """What tells one state of the folder from another."""
        try:
            return sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size, p.stat().st_ino) for p in self.bundle.iterdir())
        except OSError:
            return []

    def look(self, count_as: Callable[[str], None], *, at_once: bool = False) -> bool:
        """Load a bundle that is another than before and lies still; true when it took over, and the old one goes on when it did not."""
        stamp = self.stamp()
        if not stamp or stamp == self.seen:
            return False
        if stamp != self.settling and not at_once:  # somebody may still be copying
            self.settling = stamp
            return False
        self.seen = stamp
        try:
            found, old = self.load(self.bundle), self.served or (self.like and self.like.served)
            if old and (why := misfit(old, found)):
                raise StepFailed(f"{why}; a service with another contract has to be started anew")
        except Exception as error:
            log.error("serve: %s is refused (%s); what was in service goes on", self.bundle, error)
            count_as("refused")
            return False
        log.warning("serve: version %s takes over as %s", found.version, self.role)
        self.served = found
        count_as("swapped")
        return True


class Asked(NamedTuple):
    """A valid request that waits for the others of its turn of the event loop."""

    records: list[dict[str, Any]]
    answer: asyncio.Future[bytes]


class Scored(NamedTuple):
    """One record's answer, and who gave it."""

    role: str
    by: Served
    score: float
    decision: str | None
    review: bool
    scores: dict[str, float] | None


class Service:
    """The ASGI application: guards every request, answers those with a body, and hands the others to FastAPI."""

    def __init__(self, params: Params, bundle: Path, online: Path) -> None:
        constraints, settings = params.requirements.constraints, params.deployment
        self.settings, self.entity = settings, params.framing.entity
        self.keys = Keys(os.environ) if settings.keys == "required" else None
        if not self.keys:
            log.warning("serve: deployment.keys is none, so anybody who can reach this port may ask")
        self.champion = Slot("champion", bundle, lambda folder: Served(folder, online, settings.limits))
        self.champion.served = served = _load(bundle, online, settings.limits, constraints.fallback_allowed)
        self.slots, self.metrics = [self.champion], Metrics(served, params.requirements.latency_ms)
        if settings.canary:
            self.slots.append(Slot("challenger", Path(settings.canary.bundle), self.champion.load, self.champion))
            self.slots[1].seen = []
            if not self._look(self.slots[1], at_once=True):
                log.error("serve: there is no challenger in %s yet; the champion answers all", settings.canary.bundle)
        self._show_models()
        self.version, self.entity = served.version, served.framing.entity
        self.personal = settings.log.personal if self.entity in constraints.personal_columns else "clear"
        self.log_key = os.environ.get("LOG_KEY", "").encode()[:64]
        if self.personal == "hashed" and not self.log_key:
            log.warning("serve: LOG_KEY is not set, so whoever can guess a %s can find it in the prediction log", self.entity)
        self.ids, self.prefix = count(), secrets.token_hex(8)
        self.waiting, self.draining, self.changed = 0, False, asyncio.Event()
        self.asked: list[Asked] = []
        self.page = PAGE.read_text(encoding="utf-8")
        self.headers = security_headers(self.page)
        self.posts = {"/v1/predict": (self.predict, 200), "/v1/explain": (self.explain, 200), "/v1/feedback": (self.feedback, 202)}
        self.app = _routes(self)

    # ---- from outside in -------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers, start, outcome = scope["path"], dict(scope["headers"]), perf_counter(), "refused"
        post, more = self.posts.get(path), [*self.headers, CLOSE] if self.draining else self.headers
        try:
            if self.keys and path not in OPEN and not self.keys.let_in(headers.get(b"authorization", b"")):
                raise Refused(401, "Send a key: `Authorization: Bearer <key>`", headers={"www-authenticate": "Bearer"})
            if post is None:
                await self.app(scope, receive, _adding(more, send))
                return
            if scope["method"] != "POST":
                raise Refused(405, "Use POST", headers={"allow": "POST"})
            status, kind, body, outcome = post[1], JSON, await self._post(post[0], headers, receive), "ok"
        except (Refused, ValidationError) as error:
            refused = not_as_agreed(error) if isinstance(error, ValidationError) else error
            status, kind, body = refused.status, PROBLEM, refused.body()
            more = [*more, *((name.encode(), value.encode()) for name, value in refused.headers.items())]
            outcome = "overloaded" if status == 503 else "refused"
        except Exception as error:  # its message may hold inputs, so only its kind and place are told
            log.error("%s failed: %s\n%s", path, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)[-3:]))
            status, kind, body, outcome = 500, PROBLEM, Refused(500, "It failed, and the service's own log says where").body(), "failed"
        head = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})
        if path == "/v1/predict":
            self.metrics.requests[outcome].inc()
            if outcome == "ok":
                self.metrics.seconds.observe(perf_counter() - start)

    async def _post(self, answer: Callable[[bytes], Awaitable[bytes]], headers: dict[bytes, bytes], receive: Receive) -> bytes:
        if self.waiting >= self.settings.limits.concurrency:
            raise Refused(503, "More is being asked than can be answered; come back in a second", headers={"retry-after": "1"})
        self.waiting += 1
        try:
            return await answer(await read_body(headers, receive, self.settings.limits))
        finally:
            self.waiting -= 1

    # ---- requests with a body --------------------------------------------------------------

    async def predict(self, body: bytes) -> bytes:
        """POST /v1/predict: checked alone, scored with all that came in the same turn of the loop."""
        asked = Asked(self._in_service().many.validate_json(body)["records"], self.loop.create_future())
        self._enqueue([asked])
        return await asked.answer

    def _enqueue(self, asked: list[Asked]) -> None:
        if asked and not self.asked:
            self.loop.call_soon(self._answer_together)
        self.asked += asked

    def _answer_together(self) -> None:
        """Answer what waits in one run of the model, which costs hardly more for sixteen records than for one; as many as one request may hold."""
        asked, self.asked = self.asked, []
        ends = list(accumulate(len(one.records) for one in asked))
        fit = max(1, bisect_right(ends, self.settings.limits.records))
        asked, later = asked[:fit], asked[fit:]
        self._enqueue(later)
        try:
            answers: list[bytes | Exception] = list(self._answers([one.records for one in asked]))
        except Exception:  # of one of them, perhaps
            answers = [self._answer_alone(one.records) for one in asked]
        for one, answer in zip(asked, answers, strict=True):
            if one.answer.done():  # nobody waits for it any more
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)

    def _answer_alone(self, records: list[dict[str, Any]]) -> bytes | Exception:
        try:
            return self._answers([records])[0]
        except Exception as error:
            return error

    def _answers(self, requests: list[list[dict[str, Any]]]) -> list[bytes]:
        """One body for each request, all its predictions counted and logged."""
        served, now = self._in_service(), datetime.now(UTC).replace(tzinfo=None)
        records = self._records(served, [record for request in requests for record in request], now)
        ids, at = [f"{self.prefix}{next(self.ids):010x}" for _ in records], now.isoformat()
        answers, shadows = self._divide(served, records, ids)
        logged = [self._logged(*given, at) for given in zip(ids, records, answers, strict=True)]
        logged += [self._logged(ids[k], records[k], shadow, at) for k, shadow in shadows]
        for scored in (*answers, *(shadow for _, shadow in shadows)):
            self.metrics.decisions[REVIEW if scored.review else scored.decision, scored.role].inc()
            self.metrics.scores[scored.role].observe(scored.score)
        for k, shadow in shadows:
            self.metrics.apart.observe(abs(shadow.score - answers[k].score))
            self.metrics.disagree.inc(shadow.decision != answers[k].decision)
        predictions = map(self._prediction, ids, records, answers)
        head = {"model_version": served.version, "fallback": served.fallback}
        bodies = [to_json({**head, "predictions": list(islice(predictions, len(request)))}) for request in requests]
        self.log.add(logged)  # last, so that nothing is in the log that was not answered
        return bodies

    async def explain(self, body: bytes) -> bytes:
        """POST /v1/explain."""
        await asyncio.sleep(0)  # all that came in this turn wait for each other, and are counted
        served = self._in_service()
        records = self._records(served, served.one.validate_json(body)["records"], datetime.now(UTC).replace(tzinfo=None))
        method = "one-at-a-time occlusion: the score minus that of the same record with the input's reference value"
        return to_json({"model_version": served.version, "method": method, "moved_by": served.moved_by(records[0])})

    async def feedback(self, body: bytes) -> bytes:
        """POST /v1/feedback."""
        await asyncio.sleep(0)
        now = datetime.now(UTC)
        framing, given = self._in_service().framing, Feedback.model_validate_json(body).labels
        labels = [(x.prediction_id, naive_utc(x.at or now).isoformat(), label_text(framing, x.label) or "") for x in given]
        self.log.add_labels(labels)
        self.metrics.labels.inc(len(labels))
        return to_json({"accepted": len(labels)})

    def _in_service(self) -> Served:
        assert self.champion.served
        return self.champion.served

    def _records(self, served: Served, records: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
        """The records with event time and history."""
        time = served.framing.time
        for record in records:
            if time and record.get(time) is None:
                record[time] = now
            for name in served.dates:
                if record.get(name) is not None:
                    record[name] = naive_utc(record[name])
        served.complete(records)
        return records

    def _divide(self, served: Served, records: list[dict[str, Any]], ids: list[str]) -> tuple[list[Scored], list[tuple[int, Scored]]]:
        """Who answers which record, and what the shadow says of which."""
        role = "fallback" if served.fallback else "champion"
        challenger, canary = (self.slots[1].served if len(self.slots) > 1 else None), self.settings.canary
        drawn = [k for k, r in enumerate(records) if self._drawn(r, ids[k], challenger, canary.share)] if challenger and canary else []
        if not (drawn and challenger and canary):
            return self._score(role, served, records), []
        theirs_in = [records[k] for k in drawn]
        try:
            challenger.complete(theirs_in)
            theirs = list(zip(drawn, self._score(canary.mode, challenger, theirs_in), strict=True))
        except Exception as error:
            log.error("the challenger failed: %s; the champion answers", type(error).__name__)
            self.metrics.challenger_failed.inc()
            return self._score(role, served, records), []
        if canary.mode == "shadow":
            return self._score(role, served, records), theirs
        rest = [k for k in range(len(records)) if k not in set(drawn)]
        mine = zip(rest, self._score(role, served, [records[k] for k in rest]) if rest else [], strict=True)
        both = dict([*theirs, *mine])
        return [both[k] for k in range(len(records))], []

    def _drawn(self, record: dict[str, Any], prediction_id: str, challenger: Served, share: float) -> bool:
        """Whether the challenger gets a record: the same entity always, for as long as the challenger is the same."""
        entity = record.get(self.entity or "")
        who = f"{challenger.version} {prediction_id if entity is None else entity}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(who, digest_size=8).digest()) < share * 2**64

    def _score(self, role: str, served: Served, records: list[dict[str, Any]]) -> list[Scored]:
        start = perf_counter()
        raw = served.scores(served.columns_from(records))
        self.metrics.model_seconds[role].observe(perf_counter() - start)
        low, high = self.settings.review or (1.0, 0.0)
        several = served.framing.task == "multiclass"
        each = [dict(zip(served.classes, row, strict=True)) for row in raw.tolist()] if several else [None] * len(raw)
        found = zip(served.main_scores(raw), served.decisions(raw), each, strict=True)
        return [Scored(role, served, score, decision, low <= score < high, of_each) for score, decision, of_each in found]

    def _prediction(self, prediction_id: str, record: dict[str, Any], scored: Scored) -> dict[str, Any]:
        prediction: dict[str, Any] = {
            "prediction_id": prediction_id, "model_version": scored.by.version, "score": scored.score,
            "decision": REVIEW if scored.review else scored.decision, "threshold": scored.by.threshold,
        }  # fmt: skip
        if scored.scores:
            prediction["scores"] = scored.scores
        if warnings := self._look_at(scored.by, record):
            prediction["warnings"] = warnings
        return prediction

    def _look_at(self, served: Served, record: dict[str, Any]) -> list[str]:
        """Count nulls, and count and name the values outside the contract."""
        for name, counter in self.metrics.missing.items():
            if record[name] is None:
                counter.inc()
        warnings = [w for field in served.bounded if (w := _outside(field, record.get(field.name)))]
        for warning in warnings:
            self.metrics.outside.labels(warning[0]).inc()
        return [f"{name} is {value!r}, {what}" for name, value, what in warnings]

    def _logged(self, prediction_id: str, record: dict[str, Any], scored: Scored, at: str) -> Logged:
        """A row of the log; a personal entity is in it as a keyed hash, or not at all, unless params.yaml says `clear`."""
        entity, by = record.get(self.entity or ""), scored.by
        if entity is not None and self.personal != "clear":
            hashed = hashlib.blake2b(str(entity).encode("utf-8", "replace"), key=self.log_key, digest_size=16).hexdigest()
            entity = hashed if self.personal == "hashed" else None
            record = record | {str(self.entity): entity}
        return Logged(
            prediction_id, at, by.version, by.fallback, to_json(record).decode(), scored.score, scored.decision, by.threshold,
            scored.role, scored.review, None if entity is None else str(entity).replace("\0", "\ufffd"),
        )  # fmt: skip

    # ---- while it runs ---------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, _: Any = None) -> AsyncIterator[None]:
        """The log open and the bundles watched; SIGHUP looks at once."""
        self.log = PredictionLog(self.settings.log.path, self.settings.log.flush_seconds, self.settings.log.queue, self.metrics.dropped.inc)
        self.metrics.log_failing.set_function(lambda: self.log.failing)
        self.metrics.log_waiting.set_function(lambda: len(self.log.waiting))
        self.loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            self.loop.add_signal_handler(signal.SIGHUP, self.changed.set)
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()
        await asyncio.to_thread(self.log.close)

    async def _watch(self) -> None:
        while True:
            at_once = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.reload_seconds):
                    at_once = await self.changed.wait()
            self.changed.clear()
            if self.keys:
                self.keys.refresh()
            for slot in self.slots:
                if await asyncio.to_thread(self._look, slot, at_once=at_once):
                    self._show_models()

    def _look(self, slot: Slot, *, at_once: bool = False) -> bool:
        return slot.look(lambda outcome: self.metrics.reloads.labels(outcome, slot.role).inc(), at_once=at_once)

    def _show_models(self) -> None:
        self.metrics.model.clear()
        for slot in self.slots:
            if slot.served:
                self.metrics.model.labels(slot.served.version, str(slot.served.fallback).lower(), slot.role).set(1)


def create_app(params: Params, bundle: Path = BUNDLE, online: Path = ONLINE) -> Service:
    """The service over one bundle, to be run by an ASGI server.

    Raises:
        StepFailed: when the bundle cannot be trusted, or keys are required and there are none.
    """
    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
    return Service(params, bundle, online)


class Server(uvicorn.Server):
    """Leaves politely on SIGTERM."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A second SIGTERM, or Ctrl+C, is for at once."""
        if sig != signal.SIGTERM or self.service.draining:
            super().handle_exit(sig, frame)
        else:
            self.service.draining, leave = True, super().handle_exit
            self.service.loop.call_soon_threadsafe(self.service.loop.call_later, self.service.settings.drain_seconds, leave, sig, frame)


def run(service: Service, host: str, port: int, fd: int | None = None) -> None:
    """Serve on a host and port, or on an open socket, until SIGTERM or Ctrl+C.

    SIGTERM: readiness goes off, every answer closes its connection, and after `drain_seconds` what is in flight
    is finished, new work refused and the log written. A second process on the same socket loses nothing.
    """
    patience = math.ceil(service.settings.limits.body_seconds) + 1  # who does not take an answer holds up the end no longer
    config = uvicorn.Config(service, host=host, port=port, access_log=False, log_level="warning", server_header=False, proxy_headers=False,
                            timeout_graceful_shutdown=patience)  # fmt: skip
    Server(service, config).run(None if fd is None else [socket.socket(fileno=fd)])


def misfit(old: Served, new: Served) -> str:
    """Why requests that the old model answers would not fit the new one; empty when they all do."""
    for what in ("task", "target", "entity", "time"):
        if getattr(old.framing, what) != getattr(new.framing, what):
            return f"its {what} is {getattr(new.framing, what)}, not {getattr(old.framing, what)}"
    if old.classes != new.classes:
        return f"its labels are {new.classes}, not {old.classes}"
    before, now = ({i.name: i for i in inputs_of(s.framing, "request")} for s in (old, new))
    if before.keys() != now.keys():
        return f"its inputs are others: {', '.join(sorted(before.keys() ^ now.keys()))}"
    other = [n for n, i in before.items() if i.kind != now[n].kind or (i.nullable and not now[n].nullable)]
    return f"{other[0]} is no longer the same kind of input" if other else ""


def _load(bundle: Path, online: Path, limits: Limits, fallback_allowed: bool) -> Served:
    try:
        return Served(bundle, online, limits)
    except StepFailed:
        raise
    except Exception as error:
        if not fallback_allowed:
            raise StepFailed(f"serve: the model cannot be loaded ({error}), and requirements.constraints.fallback_allowed is false") from error
        log.error("serve: the model cannot be loaded (%s); the rule-like baseline answers", error)
        return Served(bundle, online, limits, fallback=True)


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


def _adding(headers: Sequence[tuple[bytes, bytes]], send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return sending


def _problem(status: int, detail: str, headers: Any = None) -> Response:
    return Response(Refused(status, detail).body(), status, headers, PROBLEM.decode())


def _routes(service: Service) -> FastAPI:
    """What has no body."""
    title = f"Predicts {service._in_service().framing.target}"
    app = FastAPI(title=title, version=service.version, lifespan=service.running, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), error.headers)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """What the models in service were trained on, their metrics, and the verdicts of their requirements."""
        shown = {slot.role: {k: v for k, v in slot.served.manifest.items() if k != "samples"} for slot in service.slots if slot.served}
        return {**shown.pop("champion"), **shown}

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "live"}

    @app.get("/health/ready", response_model=dict[str, str], responses={503: {"description": "It is about to stop"}})
    async def ready() -> Any:
        """Whether it wants to be asked, which model answers, and whether the prediction log can be written."""
        if service.draining:
            return _problem(503, "The service is about to stop")
        return {"status": "ready", "model_version": service._in_service().version, "log": "failing" if service.log.failing else "written"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(prometheus.generate_latest(service.metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        served = service._in_service()
        return describe(app.openapi(), served.many, served.one, served.manifest["example"], keys=service.keys is not None)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(service.page, media_type="text/html")

    return app
