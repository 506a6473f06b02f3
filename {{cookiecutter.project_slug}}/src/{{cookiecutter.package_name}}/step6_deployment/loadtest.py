"""A bounded load test against a service on this machine, free of coordinated omission.

At a constant rate, a request's latency counts from when it was due and not from when a busy
client got round to sending it (Tene, "How NOT to Measure Latency"). A closed loop finds the
highest rate that one process answers; the rates in between show where the requirements end.
"""

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any
from urllib.error import URLError

import numpy as np

from ..params import BUNDLE, ENV_PREFIX, ONLINE, REPORTS, SCRATCH, LoadTest, Params
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import BLUE, GREEN, GREY, RED, axes, figure, page, section, table, whole_folder, write_text
from .predictor import open_bundle

PATIENCE_SECONDS = 60  # for a start, and for a silence under load; on a quiet machine a start takes one
MOST_REQUESTS = 500_000
SHARES = (0.1, 0.25, 0.5, 0.7, 0.85, 0.95, 1.05)  # of the closed loop's rate: the constant rates of `loadtest`
REPORT = REPORTS / "loadtest"


@dataclass(frozen=True)
class Load:
    """What came back: latencies in milliseconds from when each request was due, and how many failed."""

    rate_per_second: float
    answered_per_second: float
    latencies_ms: tuple[float, ...]
    failed: int

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` percent of the requests stay below; infinite when any failed."""
        return float(np.percentile(self.latencies_ms, share)) if self.latencies_ms and not self.failed else math.inf


def constant_rate(port: int, body: bytes, settings: LoadTest, rate: float, seconds: float | None = None) -> Load:
    """Send `rate` requests a second, evenly spaced, for some seconds, else settings.seconds."""
    count = min(MOST_REQUESTS, max(1, round(rate * (seconds or settings.seconds))))
    return asyncio.run(_drive(port, body, max(settings.connections, min(64, round(rate / 50))), [i / rate for i in range(count)], count / rate))


def closed_loop(port: int, body: bytes, settings: LoadTest, seconds: float | None = None) -> Load:
    """Send the next request as soon as the last is answered, on every connection."""
    return asyncio.run(_drive(port, body, settings.connections, None, seconds or settings.seconds))


async def _drive(port: int, body: bytes, connections: int, due: list[float] | None, seconds: float) -> Load:
    head = f"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {own_key()}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    start, failed = perf_counter() + 0.02, [0]
    latencies: list[float] = []
    moments = (start + offset for offset in due) if due is not None else islice(_now_until(start + seconds), MOST_REQUESTS)

    async def worker() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                for at in moments:
                    if (early := at - perf_counter()) > 0:
                        await asyncio.sleep(early)
                    writer.write(request)
                    ok = await _answered(reader)
                    latencies.append((perf_counter() - at) * 1000)
                    failed[0] += not ok
        except (OSError, EOFError):  # the service closed the connection, or died
            failed[0] += 1

    work, before = asyncio.gather(*(worker() for _ in range(connections))), -1
    while not work.done():
        if len(latencies) == before:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            raise TimeoutError(f"no answer in {PATIENCE_SECONDS:g} seconds")
        before = len(latencies)
        await asyncio.wait([work], timeout=PATIENCE_SECONDS)
    work.result()
    if not latencies:
        raise ConnectionError("no answer at all")
    if due is not None:
        failed[0] += sum(1 for _ in moments)  # never sent
    took = max(perf_counter() - start, 1e-9)
    return Load(len(due) / seconds if due else len(latencies) / took, len(latencies) / took, tuple(latencies), failed[0])


def _now_until(end: float) -> Iterator[float]:
    """The moment at which the next one is asked for, until the end."""
    while (now := perf_counter()) < end:
        yield now


async def _answered(reader: asyncio.StreamReader) -> bool:
    """Read one whole response; true for a 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200")


@cache
def own_key() -> str:
    """The key that this process gives to the services it starts."""
    return secrets.token_hex(16)


@contextlib.contextmanager
def running_service(bundle: Path, log_path: Path, online: Path = ONLINE, **own: str) -> Iterator[int]:
    """A service on a free port in a process of its own, on the bundle given; gives the port when it is ready.

    `own` are environment variables for it alone; it lets `own_key` in.

    Raises:
        StepFailed: with what the service said, when it ends or is not ready in PATIENCE_SECONDS, and when it dies or goes silent while it is asked.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    own = {f"{ENV_PREFIX}DEPLOYMENT__LOG__PATH": json.dumps(str(log_path)), f"{ENV_PREFIX}DEPLOYMENT__KEYS": "required",
           f"{ENV_PREFIX}DEPLOYMENT__CANARY": "null", "API_KEYS": own_key()} | own  # fmt: skip
    command = [sys.executable, "-m", __package__.partition(".")[0], "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--bundle", str(bundle), "--online", str(online)]
    errors = log_path.with_suffix(".stderr")
    with errors.open("wb") as stderr, subprocess.Popen(command, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        try:
            deadline = monotonic() + PATIENCE_SECONDS
            while not _ready(port):
                if process.poll() is not None or monotonic() > deadline:
                    raise StepFailed(f"deployment: the service did not start: {errors.read_text(encoding='utf-8', errors='replace')[-2000:].strip()}")
                sleep(0.05)
            yield port
            if process.poll() is not None:
                raise ConnectionError("no answer any more")
        except (TimeoutError, ConnectionError, URLError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            state = "does not answer" if process.returncode is None else f"ended with code {process.returncode}"
            raise StepFailed(f"deployment: the service {state} while it was asked ({error}); what it said is in {errors}") from None
        finally:
            process.send_signal(signal.SIGINT) if os.name != "nt" else process.terminate()  # nobody else asks it, so at once
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def ask(port: int, body: bytes) -> dict[str, Any]:
    """One predict request; returns the parsed answer."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {own_key()}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback only
        result: dict[str, Any] = json.load(answer)
        return result


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def sweep(params: Params) -> dict[str, Any]:
    """The verb `loadtest`: the service in place under one rate after the other; writes reports/loadtest and returns `figures`.

    Raises:
        StepFailed: when there is no bundle, or the service does not start.
    """
    settings = params.deployment.load_test
    body = json.dumps({"records": [open_bundle(BUNDLE)["example"]]}).encode()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    try:
        with running_service(BUNDLE, SCRATCH / "loadtest.sqlite") as port:
            constant_rate(port, body, settings, settings.rate_per_second, 0.5)  # warm up
            fastest = closed_loop(port, body, settings, settings.sweep_seconds)
            rates = [settings.rate_per_second, *(fastest.answered_per_second * share for share in SHARES)]
            loads = [constant_rate(port, body, settings, max(1.0, rate), settings.sweep_seconds) for rate in rates]
    finally:
        for path in SCRATCH.glob("loadtest.sqlite*"):
            path.unlink(missing_ok=True)
    found = figures(params, loads, fastest)
    with whole_folder(REPORT) as folder:
        lead = f"One process meets the requirements up to {found['requests_per_second_per_replica']:,.0f} requests a second."
        write_text(folder / "index.html", page("Load test", lead, *load_sections(params, loads, fastest)))
        write_text(folder / "load.json", json.dumps(found, indent=2))
    return found


def figures(params: Params, loads: Sequence[Load], fastest: Load) -> dict[str, float]:
    """The numbers that gates, autoscaler and cost estimate read; the first load is the one that requirements are held against.

    A replica's rate is the highest that was sent and met the latency requirements; the closed loop counts where it did.
    """
    limits, wanted, steady = params.requirements.latency_ms, params.requirements.throughput_per_second, loads[0]
    good = [load for load in (*loads, fastest) if load.percentile(50) <= limits.p50 and load.percentile(99) <= limits.p99]
    per_replica = max((min(load.rate_per_second, load.answered_per_second) for load in good), default=0.0)
    return {
        "rate_per_second": steady.rate_per_second,
        "p50_ms": steady.percentile(50),
        "p99_ms": steady.percentile(99),
        "requests_per_second_per_replica": per_replica,
        "replicas_needed": math.ceil(wanted / per_replica) if per_replica else math.inf,
        "cost_per_prediction_usd": params.deployment.core_hour_usd / 3600 / per_replica if per_replica else math.inf,
    }


def load_sections(params: Params, loads: Sequence[Load], fastest: Load) -> tuple[str, ...]:
    """Latency over rate, the highest rate that meets the requirements, and what follows from it."""
    limits, found = params.requirements.latency_ms, figures(params, loads, fastest)
    drawing, panel = axes(7, 3)
    ordered = sorted(loads, key=lambda load: load.rate_per_second)
    shown = [load for load in ordered if not load.failed]
    for share, colour in ((50, GREEN), (90, GREY), (99, BLUE)):
        panel.plot([load.rate_per_second for load in shown], [load.percentile(share) for load in shown], "o-", color=colour, label=f"p{share}")
    for limit, name in ((limits.p50, "p50"), (limits.p99, "p99")):
        panel.axhline(limit, color=RED, linestyle="--", linewidth=1)
        panel.annotate(f"{name} at most {limit:g} ms", (0.01, limit), xycoords=("axes fraction", "data"), fontsize=8, color=RED, va="bottom")
    panel.axvline(found["requests_per_second_per_replica"], color=GREY, linestyle=":")
    panel.legend()
    panel.set(yscale="log", xlabel="requests a second, evenly spaced; dotted: the highest that meets the requirements", ylabel="latency in ms")
    panel.yaxis.set_major_formatter("{x:g}")
    header = ("rate", "answered a second", "p50 ms", "p99 ms", "failed")
    rows = [(load.rate_per_second, load.answered_per_second, load.percentile(50), load.percentile(99), load.failed) for load in ordered]
    rows.append((math.nan, fastest.answered_per_second, fastest.percentile(50), fastest.percentile(99), fastest.failed))
    caption = "One process, requests of one record; latency counts from when a request was due. The table's last row: as fast as it answers."
    return (
        section("Latency over rate", figure(drawing, caption), table(header, rows)),
        section("What follows", table(("what", "measured"), [(k.replace("_", " "), v) for k, v in found.items()])),
    )
