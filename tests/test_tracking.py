"""Every choice of tracking keeps what a training gives it: read back from what it wrote, without the project's code."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import OPTIONS

LOG = """
from pathlib import Path
from tracked.step4_model.tracking import Run, open_tracker
tracker = open_tracker()
for depth in (3, 4):
    run = tracker.log(Run(f"depth {depth}", {"depth": depth, "kind": "tree"}, {"recall": depth / 8}, {"data": "v1"}, Path("files")))
    version = tracker.register(run)
    tracker.set_alias("champion", version)
tracker.set_alias("challenger", "1")
print(tracker.version_of("champion"), tracker.version_of("challenger"))
"""
Runs = list[tuple[str, str, str, str]]  # of each run, in order: depth, kind, recall, and what its artifact says
EXPECTED: Runs = [("3", "tree", "0.375", "weights"), ("4", "tree", "0.5", "weights")]


def mlflow(project: Path) -> Runs:
    with closing(sqlite3.connect(project / "mlflow.db")) as store:
        runs = [run for (run,) in store.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED' ORDER BY start_time, name")]
        rows = [row for kind in ("params", "metrics") for row in store.execute(f"SELECT run_uuid, key, value FROM {kind}")]
    held = {(run, key): str(value) for run, key, value in rows}
    artifact = "mlartifacts/{}/artifacts/model/weights.txt"
    return [(held[run, "depth"], held[run, "kind"], held[run, "recall"], (project / artifact.format(run)).read_text()) for run in runs]


def wandb(project: Path) -> Runs:
    """From the files that `wandb sync` would send: protocol buffers, in which a name is followed by field 16, its value as JSON."""
    found = []
    for file in sorted(project.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        content, artifact = file.read_bytes(), project / "wandb/registry/runs" / file.stem.removeprefix("run-") / "weights.txt"
        after = [content.partition(name + b"\x82\x01")[2] for name in (b"depth", b"kind", b"recall")]  # the value's length, the value
        depth, kind, recall = (str(json.loads(value[1 : 1 + value[0]])) for value in after)
        found.append((depth, kind, recall, artifact.read_text()))
    return found


def files(project: Path) -> Runs:
    runs = [(json.loads((folder / "run.json").read_text()), folder) for folder in (project / "runs").iterdir() if folder.is_dir()]
    runs.sort(key=lambda run: str(run[0]["name"]))
    return [
        (str(run["parameters"]["depth"]), run["parameters"]["kind"], str(run["metrics"]["recall"]), (folder / "model/weights.txt").read_text())
        for run, folder in runs
    ]


READERS: dict[str, Callable[[Path], Runs]] = {"mlflow": mlflow, "wandb": wandb, "files": files}


@pytest.mark.slow
@pytest.mark.parametrize("choice", OPTIONS["tracking"])
def test_runs_parameters_metrics_artifacts_and_aliases_are_kept(choice: str, bake_into: Callable[..., Path], tmp_path: Path) -> None:
    project = bake_into(tmp_path, tracking=choice, project_name="Tracked")
    (project / "files").mkdir()
    (project / "files" / "weights.txt").write_text("weights")
    env = os.environ | {"PYTHONPATH": str(project / "src")}
    done = subprocess.run([sys.executable, "-c", LOG], cwd=project, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["2", "1"]
    assert READERS[choice](project) == EXPECTED
