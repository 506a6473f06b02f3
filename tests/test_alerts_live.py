"""With a real Prometheus and Alertmanager: a slow handler and a changed world end at the webhook, and the loop mends what it can."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ON_FRAUD
from forked import package_of, verb

pytestmark = [pytest.mark.slow, ON_FRAUD]
WINDOWS = {"5m": "10s", "30m": "14s", "1h": "20s", "6h": "20s", "3d": "24s", "10m": "10s"}  # of the rules, so that seconds are enough
PATIENCE_SECONDS = 180
ROWS = 12_000
SLOW_SERVICE = """
import sys, time
from pathlib import Path
from PACKAGE.__main__ import main
from PACKAGE.step6_deployment.predictor import Predictor
fast = Predictor.scores
def scores(self, *given):
    if Path("slow").exists():
        time.sleep(1.2)
    return fast(self, *given)
Predictor.scores = scores
sys.argv = ["PACKAGE", "serve"]
main()
"""
NEW_WORLD = """
import json
from pathlib import Path
from datetime import UTC, datetime, timedelta
from PACKAGE.params import load
from PACKAGE.step7_monitoring.simulate import _make_world
params, start = load(), datetime.now(UTC).replace(tzinfo=None) - timedelta(days=62)
changes = {"rows": 2 * ROWS, "days": 62, "start": start.isoformat(), "drift": "concept", "drift_day": 0, "seed": 99}
world = _make_world(params, params.data.sample.model_copy(update=changes), Path("data/world.parquet")).to_pylist()
world = [row for row in world if row["is_fraud"] is not None][:ROWS]
names = {params.framing.entity, params.framing.time, *(i.name for i in params.framing.inputs)}
records = [{name: row[name] for name in names} for row in world]
stolen = {row["payment_id"] for row in world if row["is_fraud"]}
Path("data/world.json").write_text(json.dumps([records, [row["payment_id"] in stolen for row in world]], default=lambda v: v.isoformat()))
"""


@pytest.fixture(scope="module")
def project(bake_into: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has run, of few rows and quick to retrain, whose labels need no time to mature."""
    for program in ("prometheus", "prometheus-alertmanager"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (Debian package {program}): NOTHING LIVE WAS TESTED")
    folder = bake_into(tmp_path_factory.mktemp("live"), project_name="Live alerts")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    path = folder / "params.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    asked = tree["requirements"]
    asked.update(label_delay_days=0, latency_ms={"p50": 500, "p99": 1000}, lift_over_baseline=0.0, throughput_per_second=1, cost_per_prediction_usd=1)
    asked["scale"]["requests_per_day_in_a_year"] = 1
    asked["quality"] = [{"metric": "average_precision", "at_least": 0.3, "unit": "0 to 1"}]
    asked["guard_rails"] = [{"metric": "calibration_error", "at_most": 0.2, "unit": "0 to 1"}]
    tree["data"]["sample"].update(rows=20_000, days=90, start=(datetime.now(UTC) - timedelta(days=200)).date().isoformat())
    tree["evaluation"]["bootstrap"] = 100
    tree["evaluation"]["slices"].update(max_drop=1.0, max_gap=1.0)
    tree["deployment"].update(port=free_ports(), keys="none", reload_seconds=0.3)
    tree["deployment"]["log"].update(flush_seconds=0.1, personal="clear")
    tree["deployment"]["load_test"].update(seconds=0.5, rate_per_second=20)
    tree["monitoring"]["performance"].update(labels=1000)
    tree["monitoring"]["retrain"].update(min_labels=ROWS // 2)
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    done = verb(folder, "run", timeout=400)
    assert done.code == 0, done.said
    return folder


def free_ports() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two, suppress(OSError):
            port = random.randrange(20_000, 30_000)  # below those that the system gives away by itself
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + 1))
            return port


def get(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def wait_for(what: str, found: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, urllib.error.URLError, json.JSONDecodeError):
            if result := found():
                return result
        time.sleep(0.2)
    raise AssertionError(f"{what}: not in {seconds} s")


@contextmanager
def process(folder: Path, name: str, *command: str) -> Iterator[None]:
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder / f"{name}.log").open("wb") as said, subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said) as running:
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def webhook() -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """Its address, and (alert, status) of all that Alertmanager told it."""
    told: set[tuple[str, str]] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.update((alert["labels"]["alertname"], alert["status"]) for alert in message["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()


@contextmanager
def traffic(port: int, record: dict[str, Any]) -> Iterator[None]:
    """A request every now and then, one value outside the contract."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.3):
            with suppress(OSError):
                get(f"http://127.0.0.1:{port}/v1/predict", {"records": [record | {"amount": 99_999.0}]})

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    yield
    stop.set()
    asking.join(10)


def configure(project: Path, port: int, prometheus: int, alertmanager: int, hook: str) -> None:
    """The generated files with short windows and local addresses."""
    rules = (project / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    rules = re.sub(r"\[(\w+)\]", lambda m: f"[{WINDOWS[m.group(1)]}]", re.sub(r"for: \w+", "for: 0s", rules))
    (project / "live").mkdir()
    (project / "live/alerts.yml").write_text(rules, encoding="utf-8")
    config = yaml.safe_load((project / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    for job, where in zip(config["scrape_configs"], (port, port + 1), strict=True):
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{where}"]
    (project / "live/prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    routes = yaml.safe_load((project / "deploy/alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
    routes["route"].update(group_wait="0s", group_interval="1s")
    for receiver in routes["receivers"]:
        receiver["webhook_configs"] = [{"url": hook}, {"url": f"http://127.0.0.1:{port + 1}/"}]
    (project / "live/alertmanager.yml").write_text(yaml.safe_dump(routes), encoding="utf-8")
    assert prometheus != alertmanager


def without_data(project: Path, ask: Callable[[str], Any]) -> list[str]:
    """Expressions of panels and rules that return nothing; comparisons are asked for their truth, so that calm is data too."""
    board = json.loads((project / "deploy/grafana/dashboard.json").read_text(encoding="utf-8"))
    panels = [target["expr"].replace("$__rate_interval", "20s") for panel in board["panels"] for target in panel.get("targets", ())]
    groups = yaml.safe_load((project / "live/alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"] if rule["alert"] != "FallbackAnswers"]  # asks for what is not there
    return [e for e in [*panels, *(re.sub(r"(==|>|<) (?=[\d.]+)", r"\1 bool ", rule) for rule in rules)] if not ask(e)]


def test_trouble_reaches_the_webhook_and_the_loop_mends_the_model(project: Path) -> None:
    package, port, prometheus, alertmanager = package_of(project), params_port(project), free_ports(), free_ports()
    service, example = f"http://127.0.0.1:{port}", json.loads((project / "models/bundle/manifest.json").read_text(encoding="utf-8"))["example"]

    def ask(expression: str) -> Any:
        return get(f"http://127.0.0.1:{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["data"]["result"]

    def decisions() -> list[str]:
        lines = (project / "models/audit/decisions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["decision"] for line in lines]

    with ExitStack() as stack:
        hook, told = stack.enter_context(webhook())
        configure(project, port, prometheus, alertmanager, hook)
        stack.enter_context(process(project, "service", sys.executable, "-c", SLOW_SERVICE.replace("PACKAGE", package)))
        first = wait_for("the service", lambda: get(f"{service}/health/ready"))["model_version"]
        stack.enter_context(traffic(port, example))
        wait_for("the log", lambda: (project / "data/predictions.sqlite").exists())
        stack.enter_context(process(project, "monitor", sys.executable, "-m", package, "monitor", "--serve", "0.1"))
        flags = ("--config.file=live/alertmanager.yml", "--storage.path=live/am", "--cluster.listen-address=")
        stack.enter_context(process(project, "alertmanager", "prometheus-alertmanager", *flags, f"--web.listen-address=127.0.0.1:{alertmanager}"))
        flags = ("--config.file=live/prometheus.yml", "--storage.tsdb.path=live/tsdb", f"--web.listen-address=127.0.0.1:{prometheus}")
        stack.enter_context(process(project, "prometheus", "prometheus", *flags))
        wait_for("both to be scraped", lambda: [r for r in ask("sum(up)") if r["value"][1] == "2"])
        (project / "slow").touch()
        wait_for("the latency alert at the webhook", lambda: ("LatencyBurnFast", "firing") in told)
        (project / "slow").unlink()
        wait_for("the latency alert resolved", lambda: ("LatencyBurnFast", "resolved") in told)

        code = NEW_WORLD.replace("PACKAGE", package).replace("ROWS", str(ROWS))
        subprocess.run([sys.executable, "-c", code], cwd=project, env=os.environ | {"PYTHONPATH": str(project / "src")}, check=True)
        records, labels = json.loads((project / "data/world.json").read_text(encoding="utf-8"))

        def happens(part: slice) -> None:
            """Requests, and their labels at once."""
            ids = []
            for k in range(part.start, part.stop, 1000):
                ids += [p["prediction_id"] for p in get(f"{service}/v1/predict", {"records": records[k : min(k + 1000, part.stop)]})["predictions"]]
            pairs = zip(ids, labels[part], strict=True)
            get(f"{service}/v1/feedback", {"labels": [{"prediction_id": i, "label": label} for i, label in pairs]})

        happens(slice(0, 2000))  # enough for an alert; the labels to learn from come after it
        wait_for("lost quality at the webhook", lambda: ("QualityLost", "firing") in told)
        for k in range(2000, len(records), 5000):
            happens(slice(k, min(k + 5000, len(records))))
        wait_for(f"data behind every panel and rule, but not behind {without_data(project, ask)}", lambda: not without_data(project, ask), 30)
        wait_for("the promotion", lambda: "promoted" in decisions(), 400)
        wait_for("the swap", lambda: get(f"{service}/health/ready")["model_version"] != first)
        wait_for("lost quality resolved", lambda: ("QualityLost", "resolved") in told)
    assert decisions()[:4] == ["noticed", "alert", "retraining", "promoted"]


def params_port(project: Path) -> int:
    return int(yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["deployment"]["port"])
