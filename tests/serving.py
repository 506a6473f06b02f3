"""A service of a generated project as its users meet it: processes, sockets, load, and what can go wrong while it is under load."""

import asyncio
import contextlib
import http.client
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import count, takewhile
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

KEY = secrets.token_hex(16)
LIMIT = 64  # requests that may wait; more are told to come back
RELOAD_SECONDS = 0.2


def prepare(folder: Path) -> Path:
    """Run the seven steps of a baked project; whether this machine is quiet enough for its gate of latency is not the subject."""
    package = folder.name.replace("-", "_")
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("latency_ms: {p50: 50, p99: 200}", "latency_ms: {p50: 5000, p99: 9000}"))
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", package, "run"]):
        done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": str(folder / "src"), "PATH": path, "API_KEYS": KEY, "DVC_NO_ANALYTICS": "1"} | more


def listening() -> socket.socket:
    """An open socket on a free port of loopback, for one process or for several in turn."""
    found = socket.create_server(("127.0.0.1", 0), backlog=2048)
    found.set_inheritable(True)
    return found


@dataclass
class Service:
    """One process on a socket."""

    folder: Path
    on: socket.socket
    bundle: str = "models/bundle"
    log: str = "data/log.sqlite"
    env: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Service":
        settings = {"LOG__PATH": self.log, "RELOAD_SECONDS": str(RELOAD_SECONDS), "LIMITS__CONCURRENCY": str(LIMIT)}
        env = environment(self.folder, **{f"PARAMS__DEPLOYMENT__{k}": v for k, v in settings.items()}) | self.env
        command = [sys.executable, "-m", self.folder.name.replace("-", "_"), "serve", "--fd", str(self.on.fileno()), "--bundle", self.bundle]
        self.said = self.folder / f"service-{secrets.token_hex(4)}.log"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, pass_fds=[self.on.fileno()], stdout=said, stderr=said)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def port(self) -> int:
        port: int = self.on.getsockname()[1]
        return port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request on a connection of its own; status, and the content as JSON or text."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, {"content-type": "application/json", "authorization": f"Bearer {KEY}"} | headers)
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if "json" in answer.headers.get("content-type", "") else said.decode()

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait for something to become true; it says what it waited for."""
        deadline = monotonic() + 40
        while not true():
            assert self.process.poll() is None, self.said.read_text()
            assert monotonic() < deadline, f"{what}\n{self.said.read_text()}"
            sleep(0.02)

    def ready(self) -> "Service":
        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.ask("GET", "/health/ready")[0] == 200
            return False

        self.until(answers, "not ready")
        return self

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def put_bundle(origin: Path, place: Path, version: str, *, corrupt: bool = False) -> None:
    """A bundle under another version, moved into its place; a corrupt one has a changed byte."""
    fresh = Path(shutil.copytree(origin, place.with_name(f"{place.name}.{version}")))
    manifest = json.loads((fresh / "manifest.json").read_text())
    manifest["version"]["version"] = version
    (fresh / "manifest.json").write_text(json.dumps(manifest))
    names = sorted(p.name for p in fresh.iterdir() if p.name != "SHA256SUMS")
    (fresh / "SHA256SUMS").write_text("".join(f"{sha256((fresh / n).read_bytes()).hexdigest()}  {n}\n" for n in names))
    if corrupt:
        model = (fresh / "model.onnx").read_bytes()
        (fresh / "model.onnx").write_bytes(model[:-20] + bytes([model[-20] ^ 1]) + model[-19:])
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


# ---- load ------------------------------------------------------------------------------------


def request(body: bytes) -> bytes:
    head = f"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, content, and whether the connection stays."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length), b"\r\nconnection: close" not in head


@dataclass
class Load:
    """What came of all requests: by status, the accepted ids, wrong answers, requests without an answer, and latencies in ms."""

    statuses: Counter[int] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    wrong: list[Any] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def take(self, status: int, content: bytes, expected: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            said = json.loads(content)["predictions"][0]
            self.versions.add(said["model_version"])
            if said["score"] != expected or said["prediction_id"] in self.ids:
                self.wrong.append(said)
            self.ids.add(said["prediction_id"])
        elif status != 503:
            self.wrong.append((status, content[:200]))


async def constant(
    port: int, requests: list[tuple[bytes, float]], rate: float, load: Load, goes_on: Callable[[float], bool], connections: int = 32
) -> None:
    """Evenly spaced requests as long as it goes on, given the seconds so far; latency counts from when each was due.

    A connection that is told to close is opened anew.
    """
    start = perf_counter() + 0.05
    todo = takewhile(lambda k: goes_on(k / rate), count())

    async def worker() -> None:
        reader = writer = None
        for k in todo:
            due = start + k / rate
            await asyncio.sleep(max(0.0, due - perf_counter()))
            body, expected = requests[k % len(requests)]
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(body)
                assert reader
                status, content, stays = await answered(reader)
                load.take(status, content, expected)
                load.latencies.append((perf_counter() - due) * 1000)
            except (OSError, EOFError) as error:
                load.lost.append(repr(error))
                stays = False
            if not stays and writer:
                writer.close()
                writer = None
        if writer:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(connections)))


async def burst(port: int, requests: list[tuple[bytes, float]], total: int, load: Load, connections: int) -> None:
    """Many requests at once: each connection writes all of its own before it reads the first answer."""
    each = max(1, total // connections)

    async def worker(number: int) -> None:
        chosen = [requests[(number * each + k) % len(requests)] for k in range(each)]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"".join(body for body, _ in chosen))
            for _, expected in chosen:
                status, content, _ = await answered(reader)
                load.take(status, content, expected)
            writer.close()
        except (OSError, EOFError) as error:
            load.lost.append(repr(error))

    await asyncio.gather(*(worker(number) for number in range(connections)))


# ---- the 60 seconds --------------------------------------------------------------------------


def expected_answers(service: Service) -> list[tuple[bytes, float]]:
    """Requests of one record each, and the score that every later answer must equal."""
    samples = json.loads((service.folder / service.bundle / "manifest.json").read_text())["samples"]
    scores = [p["score"] for p in service.ask("POST", "/v1/predict", {"records": samples})[1]["predictions"]]
    return [(request(json.dumps({"records": [s]}).encode()), score) for s, score in zip(samples, scores, strict=True)]


def full_disk(pid: int, size: int) -> None:
    """No file of the process may grow beyond a size: what a full disk does, and it can be undone."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def survive(folder: Path, seconds: float = 60, swaps: int = 20) -> Iterator[tuple[str, str]]:
    """Load at half capacity, and everything that happens to a service meanwhile; gives the rows of the table."""
    origin, place = folder / "models/bundle", folder / "models/live"
    put_bundle(origin, place, "start")
    log = folder / "data/log.sqlite"
    with listening() as on, Service(folder, on, bundle="models/live") as first, Service(folder, on, bundle="models/live") as second:
        second.process.send_signal(signal.SIGSTOP)  # it comes later, and then at once
        first.ready()
        requests, trial = expected_answers(first), Load()
        asyncio.run(burst(first.port, requests, 2000, trial, 16))
        start = perf_counter()
        asyncio.run(burst(first.port, requests, 4000, trial, 16))
        capacity = 4000 / (perf_counter() - start)
        load, rush = Load(), Load()

        async def troubles() -> None:
            for k in range(swaps):
                await asyncio.sleep(seconds * 0.5 / swaps)
                await asyncio.to_thread(put_bundle, origin, place, f"v{k}")
                await asyncio.to_thread(first.until, partial(load.versions.__contains__, f"v{k}"), f"v{k} never answered")
            await asyncio.to_thread(put_bundle, origin, place, "corrupt", corrupt=True)
            await asyncio.to_thread(first.until, lambda: first.metric("model_reloads_total") == swaps + 1, "the corrupt bundle was not looked at")
            await asyncio.to_thread(put_bundle, origin, place, "last")
            full_disk(first.process.pid, 4096)
            await asyncio.to_thread(first.until, lambda: first.metric("prediction_log_failing") == 1, "the log does not say that it fails")
            await asyncio.sleep(seconds * 0.05)
            full_disk(first.process.pid, resource.RLIM_INFINITY)
            await asyncio.to_thread(first.until, lambda: first.metric("prediction_log_failing") == 0, "the log does not recover")
            before.extend(load.latencies)
            await burst(first.port, requests, round(5 * capacity), rush, 5 * LIMIT)
            dropped.append(await asyncio.to_thread(first.metric, "prediction_log_dropped_total"))
            second.process.send_signal(signal.SIGCONT)
            record = json.loads(requests[0][0].partition(b"\r\n\r\n")[2])
            own = {i[:16] for i in load.ids}

            def another() -> bool:  # on a new connection, which either process may take
                return first.ask("POST", "/v1/predict", record)[1]["predictions"][0]["prediction_id"][:16] not in own

            await asyncio.to_thread(first.until, another, "the second process never answered")
            first.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(first.process.wait, 30)
            ended.append(first.process.returncode)

        async def both() -> None:
            events = asyncio.create_task(troubles())
            await constant(first.port, requests, capacity / 2, load, lambda so_far: so_far < seconds or not events.done())
            await events

        ended, before = list[int](), list[float]()
        dropped: list[float] = []
        asyncio.run(both())
    with closing(sqlite3.connect(log)) as store:
        logged = {row[0] for row in store.execute("SELECT prediction_id FROM predictions")}
    missing = (load.ids | rush.ids) - logged
    latencies = sorted(before)  # what comes in or after the burst waits for it, and for the one core of the clients
    yield "requests at half capacity", f"{sum(load.statuses.values()):,} at {capacity / 2:,.0f} a second"
    yield "model swaps under load", f"{len(load.versions & {f'v{k}' for k in range(swaps)})} of {swaps}"
    yield "corrupt bundles that answered", str(int("corrupt" in load.versions))
    yield "burst at 5 x capacity", f"{rush.statuses[200]:,} answered, {rush.statuses[503]:,} told to come back, {len(rush.lost)} lost"
    yield "told to come back outside the burst", str(load.statuses[503])
    yield "wrong answers", str(len(load.wrong) + len(rush.wrong))
    yield "lost answers", str(len(load.lost) + len(rush.lost))
    yield "first process ended with", str(ended)
    yield "accepted, not in the log", f"{len(missing)} ({dropped[0]:.0f} were counted as dropped)"
    yield "p50 / p99 ms before the burst", f"{latencies[len(latencies) // 2]:.1f} / {latencies[int(len(latencies) * 0.99)]:.1f}"
