"""The service of a generated project from outside: what a user, a browser, a hostile client and a bad day do to it."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import serving
from conftest import ON_FRAUD
from filelock import FileLock
from forked import package_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Service

pytestmark = [pytest.mark.slow, ON_FRAUD]


@pytest.fixture(scope="session")
def project(bake_into: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The default project with its seven steps run, once for all processes."""
    root = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = root / "serving" / "fraud-detection"
    with FileLock(root / "serving.lock"):
        if not (root / "serving.done").exists():
            serving.prepare(bake_into(folder.parent))
            (root / "serving.done").touch()
    return folder


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[Service]:
    with serving.listening() as on, Service(project, on, log="data/hostile.sqlite") as running:
        yield running.ready()


@pytest.fixture(scope="module")
def example(project: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((project / "models/bundle/manifest.json").read_text())["example"]
    return record


# ---- a bad day ---------------------------------------------------------------------------------


def test_no_accepted_answer_is_wrong_or_lost_on_a_bad_day(project: Path, record_property: Callable[[str, Any], None]) -> None:
    """A minute at half capacity with 20 swaps, a corrupt bundle, a full log disk, a burst, and a SIGTERM with a second process taking over."""
    table = dict(serving.survive(project))
    for what, found in table.items():
        record_property("summary", f"{what:36} {found}")
    assert table["model swaps under load"] == "20 of 20"
    assert table["corrupt bundles that answered"] == "0"
    assert (table["wrong answers"], table["lost answers"]) == ("0", "0")
    missing, dropped = map(int, re.findall(r"\d+", table["accepted, not in the log"]))
    assert missing <= dropped
    assert " 0 lost" in table["burst at 5 x capacity"]


def test_kill_9_loses_at_most_one_flush_interval(project: Path, example: dict[str, Any]) -> None:
    """And leaves a log that is whole."""
    answered, flush = [], 0.2
    with (
        serving.listening() as on,
        Service(project, on, log="data/killed.sqlite", env={"PARAMS__DEPLOYMENT__LOG__FLUSH_SECONDS": str(flush)}) as running,
    ):
        running.ready()
        until = monotonic() + 8 * flush
        while monotonic() < until:
            answered.append((running.ask("POST", "/v1/predict", {"records": [example]})[1]["predictions"][0]["prediction_id"], monotonic()))
        killed = monotonic()
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    with closing(sqlite3.connect(project / "data/killed.sqlite")) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        there = {row[0] for row in store.execute("SELECT prediction_id FROM predictions")}
    assert len(answered) > 20
    assert [i for i, at in answered if i not in there and killed - at > 2 * flush] == []  # twice: a flush takes its time


# ---- hostile clients -----------------------------------------------------------------------------

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["1e400", "\0", "NaN", 10**400, -1e308, "0001-01-01T00:00:00+23:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_hostile_bodies_get_a_problem_and_never_a_failure(
    service: Service, example: dict[str, Any], record_property: Callable[[str, Any], None]
) -> None:
    """Records with anything in any place, and bytes that are no JSON at all."""
    names, tried, accepted = [*example, "card_amount_24h", "unknown"], count(1), []
    records = st.lists(st.dictionaries(st.sampled_from(names), JUNK, max_size=4).map(lambda d: example | d), max_size=3)
    wild = st.binary(max_size=60) | JUNK.map(lambda v: json.dumps(v).encode()) | st.integers(1, 5000).map(lambda n: b"[" * n)
    labels = st.lists(st.fixed_dictionaries({"prediction_id": JUNK, "label": JUNK}), max_size=3)
    bodies = records.map(lambda r: json.dumps({"records": r}).encode()) | wild | labels.map(lambda v: json.dumps({"labels": v}).encode())

    @given(st.sampled_from(["/v1/predict", "/v1/explain", "/v1/feedback"]), bodies)
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def attack(path: str, body: bytes) -> None:
        status, said = service.ask("POST", path, body)
        total = next(tried)
        assert status < 500, (path, body, said)
        if status >= 400:
            assert {"type", "title", "status", "detail"} <= said.keys()
        else:
            accepted.append(total)
            assert all(-1e18 < p["score"] < 1e18 for p in said.get("predictions", []))

    attack()
    record_property("summary", f"hostile bodies: {next(tried) - 1} tried, {len(accepted)} fit after all, none failed")
    assert service.metric('predict_requests_total{outcome="failed"}') == 0


def test_schemathesis_finds_nothing_in_the_services_own_description(service: Service, record_property: Callable[[str, Any], None]) -> None:
    """Every answer is one that the description announces, with its type and its shape."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program, "schemathesis is not installed"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [program, "run", f"http://127.0.0.1:{service.port}/openapi.json", "-H", f"Authorization: Bearer {serving.KEY}", "--checks", checks]
    command += ["--max-examples", "60", "--seed", "1", "--generation-database", "none", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=service.folder, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    record_property("summary", f"schemathesis: {re.findall(r'[0-9]+ generated, [0-9]+ passed', done.stdout)}")


# ---- PostgreSQL ------------------------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[tuple[str, Callable[[str], None]]]:
    """A server of our own on a Unix socket, never as root; its URL, and what runs pg_ctl."""
    found = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql), so the log on it was NOT tested")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")

    def command(program: str, *words: str) -> None:
        subprocess.run([str(Path(found).with_name(program)), *words], **user, cwd=folder, check=True, capture_output=True, timeout=60)  # type: ignore[call-overload]

    def control(verb: str) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        command("pg_ctl", verb, "-D", f"{folder}/data", "-w", "-m", "fast", "-l", f"{folder}/log", "-o", options)

    command("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
    control("start")
    yield f"postgresql://postgres@/postgres?host={folder}", control
    with contextlib.suppress(subprocess.CalledProcessError):
        control("stop")
    shutil.rmtree(folder, ignore_errors=True)


def test_the_log_goes_to_postgresql_and_survives_its_absence(project: Path, example: dict[str, Any], postgres: Any) -> None:
    url, control = postgres
    import psycopg

    def rows(query: str) -> list[Any]:
        with psycopg.connect(url) as connection:
            return connection.execute(query).fetchall()

    def predict(records: int) -> list[str]:
        return [p["prediction_id"] for p in running.ask("POST", "/v1/predict", {"records": [example] * records})[1]["predictions"]]

    with serving.listening() as on, Service(project, on, log=url, env={"PARAMS__DEPLOYMENT__REVIEW": "[0, 1]"}) as running:
        running.ready()
        ids = predict(30)
        running.until(lambda: running.metric("prediction_log_waiting") == 0, "nothing was written")
        control("stop")
        ids += predict(20)
        running.until(lambda: running.metric("prediction_log_failing") == 1, "the log does not say that it fails")
        control("start")
        running.until(lambda: running.metric("prediction_log_failing") == 0, "the log does not recover")
        status, _ = running.ask("POST", "/v1/feedback", {"labels": [{"prediction_id": ids[0], "label": True}]})
        assert status == 202
    assert {row[0] for row in rows("SELECT prediction_id FROM predictions")} == set(ids)
    assert rows("SELECT label FROM labels") == [("true",)]
    assert {row[0] for row in rows("SELECT prediction_id FROM review_queue")} == set(ids[1:])
    assert "password" not in running.said.read_text()
    code = f"""from datetime import datetime, timedelta, UTC
from {package_of(project)}.params import load
from {package_of(project)}.step7_monitoring.monitor import look
from {package_of(project)}.step7_monitoring.window import read_window
params, now = load(), datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=1)
print(look(params, now).predictions, set(read_window(params.deployment.log.path, params.framing, now, "1 = 1").label) - {{None}})"""
    env = os.environ | {"PYTHONPATH": str(project / "src"), "PARAMS__DEPLOYMENT__LOG__PATH": url}
    watched = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert watched.stdout.split() == ["50", "{'true'}"], watched.stderr


# ---- the page ------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, spoken to over its DevTools protocol."""

    def __init__(self, program: str, home: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
        command = [program, *options, f"--user-data-dir={home}", "--window-size=1100,1500", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self.process.stderr
        port = next(m[1] for line in self.process.stderr if (m := re.search(r"ws://127\.0\.0\.1:(\d+)", line)))
        from websockets.sync.client import connect

        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(p for p in json.load(answer) if p["type"] == "page")
        self.stack, self.ids = contextlib.ExitStack(), count(1)
        self.socket = self.stack.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        self.events: list[dict[str, Any]] = []
        for domain in ("Runtime", "Log", "Page", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message: dict[str, Any] = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number:
                return dict(message.get("result", message))
            self.events.append(message)

    def js(self, code: str) -> Any:
        return self("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)["result"].get("value")

    def until(self, code: str) -> None:
        look = f"if ({code}) {{ clearInterval(t); yes(true) }}"
        wait = f"new Promise((yes, no) => {{ const t = setInterval(() => {{ {look} }}, 20); setTimeout(no, 20000) }})"
        assert self.js(wait) is True, (code, self.js("document.body.innerText"))

    def shot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self) -> None:
        self.stack.close()
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("chromium is not installed, so the page was NOT tested in a browser")
    found = Browser(program, tmp_path / "home")
    yield found
    found.close()


def test_a_person_predicts_on_the_page(service: Service, browser: Browser, tmp_path: Path) -> None:
    """The door asks for the key, the form is filled with the example, a wrong value is told at its field, and nothing comes from elsewhere."""
    shown = "document.getElementById('{}').offsetParent !== null"
    browser("Page.navigate", url=f"http://127.0.0.1:{service.port}/")
    browser.until(shown.format("door"))
    browser.js(f"document.getElementById('key').value = '{serving.KEY}'; document.querySelector('#door button').click()")
    browser.until(shown.format("go"))
    assert browser.js("document.querySelector('label[data-name=country] input').value") == "home"
    browser.js("document.getElementById('go').click()")
    browser.until(shown.format("answer"))
    assert 0 <= float(browser.js("document.getElementById('score').textContent")) <= 1
    assert browser.js("document.querySelectorAll('#moved tr').length") == 8
    browser.shot(tmp_path / "page.png")
    before = browser.js("document.getElementById('score').textContent")
    browser.js("document.querySelector('label[data-name=amount] input').value = '15000'; document.getElementById('go').click()")
    browser.until(f"document.getElementById('score').textContent !== '{before}'")
    browser.js("document.querySelector('label[data-name=amount] input').value = ''; document.getElementById('go').click()")
    browser.until("document.querySelector('label[data-name=amount].wrong') !== null")
    browser("Page.navigate", url=f"http://127.0.0.1:{service.port}/docs")
    browser.until(shown.format("door"))
    browser.js(f"document.getElementById('key').value = '{serving.KEY}'; document.querySelector('#door button').click()")
    browser.until(shown.format("docs"))
    assert "POST /v1/predict" in browser.js("document.getElementById('docs').innerText")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith((f"http://127.0.0.1:{service.port}/", "about:", "data:"))} == set()
    said = [e for e in browser.events if e["method"] == "Runtime.exceptionThrown" or "Content Security Policy" in json.dumps(e)]
    assert said == []
