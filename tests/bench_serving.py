"""How fast a generated project serves, against what others do with the same model: ratios, from one run. `make bench-serving`.

The service has one core to itself, the load generator another (taskset). Every server gets the same record.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

import serving
from bench import clean_copy, shell

SECONDS, ROUNDS, CONNECTIONS = 2.0, 3, 16
SERVER_CORE, OUR_CORE = "0", "1"
PACKAGE = "fraud_detection"

#: What most templates do: FastAPI, a pickled pipeline, a data frame per request. And an endpoint that answers a constant.
USUAL = """
import json, sys
from pathlib import Path
import joblib
import pandas as pd
from fastapi import FastAPI, Request, Response
from PACKAGE.params import load
from PACKAGE.step3_data.encode import encode, columns_read
from PACKAGE.step4_model.pipeline import frame_of, predict
from PACKAGE.step4_model.train import read
params, trained = load(), read(Path("models/candidate/model.joblib"))
names = columns_read(params.framing)
app = FastAPI()

@app.post("/v1/predict")
def predict_frame(body: dict):
    frame = pd.DataFrame(body["records"])
    columns = {n: frame[n] if n in frame else [None] * len(frame) for n in names}
    arrays = encode(params.framing, columns)
    scores = predict(params.framing, trained.model, frame_of(arrays))[:, 1]
    return {"predictions": [{"score": float(s)} for s in scores]}

constant = FastAPI()

@constant.post("/v1/predict")
async def answer(request: Request):
    json.loads(await request.body())
    return Response(b'{"predictions": [{"score": 0.5}]}', media_type="application/json")
"""
MLFLOW = """
import json, mlflow, sys
import pandas as pd
from pathlib import Path
samples = pd.DataFrame(json.loads(Path("models/bundle/manifest.json").read_text())["samples"])
signature = mlflow.models.infer_signature(samples)  # as its guide advises: without one it would validate nothing
mlflow.set_tracking_uri("sqlite:///bench.db")
mlflow.pyfunc.save_model("bench_model", python_model=__import__("served").Model(), signature=signature, pip_requirements=[])
"""
MODEL = """
import mlflow, pandas as pd
from pathlib import Path
from PACKAGE.params import load
from PACKAGE.step3_data.encode import encode, columns_read
from PACKAGE.step4_model.pipeline import frame_of, predict
from PACKAGE.step4_model.train import read

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.framing, self.model = load().framing, read(Path("models/candidate/model.joblib")).model

    def predict(self, context, model_input, params=None):
        names = columns_read(self.framing)
        columns = {n: model_input[n] if n in model_input else [None] * len(model_input) for n in names}
        return predict(self.framing, self.model, frame_of(encode(self.framing, columns)))[:, 1]
"""


@contextlib.contextmanager
def server(folder: Path, command: list[str], port: int, path: str, **env: str) -> Iterator[tuple[float, subprocess.Popen[bytes]]]:
    """A server pinned to its core; gives the seconds until it answered, and its process."""
    start = perf_counter()
    everything = serving.environment(folder, **env)
    with (folder / "server.log").open("wb") as said:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, *command], cwd=folder, env=everything, stdout=said, stderr=said, start_new_session=True
        )
    try:
        while not answers(port, path):
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert perf_counter() - start < 90, (folder / "server.log").read_text()[-3000:]
            sleep(0.02)
        yield perf_counter() - start, process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status < 500
    return False


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process and its children have had of the processor: unlike rates, it hardly depends on what else the machine does."""
    total = 0.0
    for found in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = found.read_text().rpartition(")")[2].split()
            if int(fields[2]) == process.pid:  # its group, of which it is the leader
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process and its children."""
    listed = subprocess.run(["ps", "-o", "rss=", "-g", str(os.getsid(process.pid))], capture_output=True, text=True, check=False).stdout.split()
    return sum(map(int, listed)) / 1024


def rate(port: int, path: str, body: bytes, connections: int = CONNECTIONS, seconds: float = SECONDS) -> float:
    """Answers a second in a closed loop; any answer but 200 ends the benchmark."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer {serving.KEY}\r\n"
    sent, done = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body, [0]

    async def worker(end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while perf_counter() < end:
            writer.write(sent)
            status, content, _ = await serving.answered(reader)
            assert status == 200, content
            done[0] += 1
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(worker(perf_counter() + seconds) for _ in range(connections)))

    start = perf_counter()
    asyncio.run(all_of_them())
    return done[0] / (perf_counter() - start)


def main() -> None:
    """Print the table."""
    os.sched_setaffinity(0, {int(OUR_CORE)})
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) > 1:  # a project that has run
            project = Path(shutil.copytree(sys.argv[1], Path(scratch) / "fraud-detection"))
        else:
            template = clean_copy(Path(scratch) / "template")
            shell(Path(scratch), str(Path(sys.executable).parent / "cookiecutter"), "--no-input", "-o", scratch, str(template))
            project = serving.prepare(Path(scratch) / "fraud-detection")
        compare(project)
        batch(project)


def compare(project: Path) -> None:
    (project / "usual.py").write_text(USUAL.replace("PACKAGE", PACKAGE))
    (project / "served.py").write_text(MODEL.replace("PACKAGE", PACKAGE))
    shell(project, sys.executable, "-c", textwrap.dedent(MLFLOW.replace("PACKAGE", PACKAGE)), source=project / "src")
    record = json.loads((project / "models/bundle/manifest.json").read_text())["samples"][0]
    records, split = json.dumps({"records": [record]}).encode(), json.dumps({"dataframe_records": [record]}).encode()
    python, path_of = sys.executable, {"PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)]), "OMP_NUM_THREADS": "1"}
    uvicorn = [python, "-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--port"]
    mlflow = [str(Path(python).with_name("mlflow")), "models", "serve", "-m", "bench_model", "--env-manager", "local", "-w", "1", "-p", "18405"]
    ours = [python, "-m", PACKAGE, "serve", "--port", "18401"]
    contenders: dict[str, tuple[list[str], int, str, str, bytes]] = {
        "this service, all of it": (ours, 18401, "/health/ready", "/v1/predict", records),
        "constant, same framework": ([*uvicorn, "18402", "usual:constant"], 18402, "/", "/v1/predict", records),
        "FastAPI, scikit-learn, data frame": ([*uvicorn, "18403", "usual:app"], 18403, "/", "/v1/predict", records),
        "mlflow models serve": (mlflow, 18405, "/ping", "/invocations", split),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    starts: dict[str, float] = {}
    sizes: dict[str, float] = {}
    steady = (0.0, 0.0)
    for turn in range(ROUNDS):  # side by side, so that a busy moment hits all
        for name, (command, port, probe, path, body) in contenders.items():
            with server(project, command, port, probe, PARAMS__DEPLOYMENT__LOG__PATH="data/bench.sqlite", **path_of) as (seconds, process):
                rate(port, path, body, seconds=0.5)
                before = cpu_seconds(process)
                rates[name].append(rate(port, path, body))
                cpu[name].append((cpu_seconds(process) - before) / (rates[name][-1] * SECONDS) * 1e6)
                starts[name], sizes[name] = min(seconds, starts.get(name, 99.0)), memory_mb(process)
                if name.startswith("this") and turn == 0:
                    load = serving.Load()
                    score = 0.0
                    load.take = lambda *_: None  # type: ignore[method-assign]
                    asyncio.run(serving.constant(port, [(serving.request(body), score)], 1000, load, lambda so_far: so_far < 5))
                    ordered = sorted(load.latencies)
                    steady = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    mine = statistics.median(rates["this service, all of it"])
    own = statistics.median(cpu["this service, all of it"])
    print(f"{'one core, one record a request':36} {'a second':>9} {'ours is':>9} {'CPU us':>8} {'ours is':>9} {'start s':>8} {'MB':>5}")
    for name, found in rates.items():
        print(
            f"{name:36} {statistics.median(found):9,.0f} {mine / statistics.median(found):8.2f}x {statistics.median(cpu[name]):8.0f} "
            f"{statistics.median(cpu[name]) / own:8.2f}x {starts[name]:8.1f} {sizes[name]:5.0f}"
        )
    print(f"p50 / p99 at a constant 1,000 a second: {steady[0]:.2f} / {steady[1]:.2f} ms, the client's own share included")


def timed(project: Path, code: str, *words: str) -> tuple[float, float]:
    """Seconds of work after the imports, and the most memory in MB."""
    ending = "\nimport resource; print(perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-c", textwrap.dedent(code).replace("PACKAGE", PACKAGE) + ending, *words]
    done = subprocess.run(command, cwd=project, env=serving.environment(project, OMP_NUM_THREADS="1"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds, memory = map(float, done.stdout.split()[-2:])
    return seconds, memory


def batch(project: Path) -> None:
    """A file of a million rows, and memory with ten times as many."""
    grow = """
    import sys, pyarrow as pa, pyarrow.parquet as pq
    from time import perf_counter
    start, table, rows = perf_counter(), pq.read_table("data/prepared/test.parquet"), int(sys.argv[1])
    with pq.ParquetWriter(sys.argv[2], table.schema) as writer:
        for _ in range(rows // table.num_rows):
            writer.write_table(table)
    """
    ours = """
    import sys
    from pathlib import Path
    from time import perf_counter
    from PACKAGE.step6_deployment.batch import score_file
    from PACKAGE.step6_deployment.predictor import Predictor
    predictor = Predictor(Path("models/bundle"), Path("data/online.sqlite"))
    start = perf_counter()
    score_file(predictor, Path(sys.argv[1]), Path("scored.parquet"))
    """
    theirs = """
    import sys
    import pandas as pd
    from pathlib import Path
    from time import perf_counter
    from PACKAGE.params import load
    from PACKAGE.step3_data.encode import columns_read, encode
    from PACKAGE.step4_model.pipeline import frame_of, predict
    from PACKAGE.step4_model.train import read
    framing, model = load().framing, read(Path("models/candidate/model.joblib")).model
    start = perf_counter()
    frame = pd.read_parquet(sys.argv[1])
    arrays = encode(framing, {n: frame[n] for n in columns_read(framing)})
    frame["score"] = predict(framing, model, frame_of(arrays))[:, 1]
    frame.to_parquet("theirs.parquet")
    """
    for rows in (1_000_000, 10_000_000):
        timed(project, grow, str(rows), f"{rows}.parquet")
    small, large, usual = timed(project, ours, "1000000.parquet"), timed(project, ours, "10000000.parquet"), timed(project, theirs, "1000000.parquet")
    print(f"batch, Parquet to Parquet: {small[0]:.1f} s for 1 million rows, {usual[0] / small[0]:.2f} x pandas and scikit-learn ({usual[0]:.1f} s)")
    print(f"memory: {small[1]:.0f} MB for 1 million rows, {large[1]:.0f} MB for 10 ({large[0]:.0f} s); pandas {usual[1]:.0f} MB for 1 million")


if __name__ == "__main__":
    main()
