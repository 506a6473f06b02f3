"""A bounded load test against a service on this machine, free of coordinated omission.

At a constant rate, a request's latency counts from when it was due and not from when a busy
client got round to sending it (Tene, "How NOT to Measure Latency"). A closed loop then finds
the highest rate one process answers.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep

import numpy as np

from ..params import ENV_PREFIX, ONLINE, LoadTest
from ..step1_requirements.checks import StepFailed

STARTUP_SECONDS = 30
MOST_REQUESTS = 500_000


@dataclass(frozen=True)
class Load:
    """What came back: latencies in milliseconds from when each request was due, and how many failed."""

    rate_per_second: float
    answered_per_second: float
    latencies_ms: tuple[float, ...]
    failed: int

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` percent of the requests stay below; infinite when any failed."""
        return float(np.percentile(self.latencies_ms, share)) if self.latencies_ms and not self.failed else float("inf")


def constant_rate(port: int, body: bytes, settings: LoadTest, rate: float) -> Load:
    """Send `rate` requests a second, evenly spaced, for settings.seconds."""
    count = min(MOST_REQUESTS, max(1, round(rate * settings.seconds)))
    return asyncio.run(_drive(port, body, settings.connections, [i / rate for i in range(count)], settings.seconds))


def closed_loop(port: int, body: bytes, settings: LoadTest) -> Load:
    """Send the next request as soon as the last is answered, on every connection, for settings.seconds."""
    return asyncio.run(_drive(port, body, settings.connections, None, settings.seconds))


async def _drive(port: int, body: bytes, connections: int, due: list[float] | None, seconds: float) -> Load:
    request = (
        f"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    start, failed = perf_counter() + 0.02, [0]
    latencies: list[float] = []
    todo = iter(due) if due is not None else None
    end = start + seconds

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            if todo is not None:
                offset = next(todo, None)
                if offset is None:
                    break
                at = start + offset
                await asyncio.sleep(max(0.0, at - perf_counter()))
            else:
                at = perf_counter()
                if at >= end or len(latencies) >= MOST_REQUESTS:
                    break
            writer.write(request)
            ok = await _answered(reader)
            latencies.append((perf_counter() - at) * 1000)
            failed[0] += not ok
        writer.close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    took = max(perf_counter() - start, 1e-9)
    return Load(len(due) / seconds if due else len(latencies) / took, len(latencies) / took, tuple(latencies), failed[0])


async def _answered(reader: asyncio.StreamReader) -> bool:
    """Read one whole response; true for a 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def running_service(bundle: Path, log_path: Path, online: Path = ONLINE) -> Iterator[int]:
    """A service on a free port in a process of its own, on the bundle given; gives the port when it is ready.

    Raises:
        StepFailed: with what the service said, when it ends or is not ready in STARTUP_SECONDS.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    own = {f"{ENV_PREFIX}DEPLOYMENT__LOG__PATH": json.dumps(str(log_path))}
    command = [sys.executable, "-m", __package__.partition(".")[0], "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--bundle", str(bundle), "--online", str(online)]
    errors = log_path.with_suffix(".stderr")
    with errors.open("wb") as stderr, subprocess.Popen(command, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=stderr) as process:
        try:
            deadline = monotonic() + STARTUP_SECONDS
            while not _ready(port):
                if process.poll() is not None or monotonic() > deadline:
                    raise StepFailed(f"deployment: the service did not start: {errors.read_text(encoding='utf-8', errors='replace')[-2000:].strip()}")
                sleep(0.05)
            yield port
        finally:
            process.send_signal(signal.SIGTERM) if os.name != "nt" else process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def ask(port: int, body: bytes) -> dict[str, object]:
    """One predict request; returns the parsed answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback only
        result: dict[str, object] = json.load(answer)
        return result


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
