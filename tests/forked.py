"""Runs verbs of a baked project in fresh processes that need not import the heavy libraries again.

A server process imports them once; every verb is a fork of it: its own process, arguments, output and exit code.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HEAVY = (
    "duckdb", "fastapi", "joblib", "matplotlib.pyplot", "mlflow.artifacts", "mlflow.store.tracking.sqlalchemy_store", "onnxruntime", "pandera.pandas",
    "pyarrow.parquet", "skl2onnx", "sklearn.compose", "sklearn.ensemble", "sklearn.feature_extraction.text", "sklearn.inspection", "sklearn.tree",
    "typer", "uvicorn",
)  # fmt: skip
TIMEOUT_SECONDS = 180
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([*HEAVY, __name__])


class Done(NamedTuple):
    """How a verb ended; a killed process has minus the signal as its code."""

    code: int
    said: str


def package_of(project: Path) -> str:
    return next(p.name for p in (project / "src").iterdir() if (p / "__main__.py").exists())


def verb(project: Path, *words: str, timeout: float = TIMEOUT_SECONDS) -> Done:
    """`python -m <package> words…` in the project's folder; one that does not end in time is killed."""
    with tempfile.NamedTemporaryFile() as heard:
        process = _forks.Process(target=_run, args=(str(project), package_of(project), words, heard.name))
        process.start()
        process.join(timeout)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        said = Path(heard.name).read_text(encoding="utf-8", errors="replace")
    assert not late, f"{' '.join(words)} did not end in {timeout} s\n{said}"
    return Done(process.exitcode or 0, said)


def _run(project: str, package: str, words: tuple[str, ...], heard: str) -> None:
    source = str(Path(project, "src"))
    os.chdir(project)
    os.environ["PYTHONPATH"] = source
    sys.path.insert(0, source)
    with Path(heard).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [package, *words]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
