"""Takes a table through a baked project inside this process: adopt, the steps, and one prediction from the service."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import OPTIONS
from starlette.testclient import TestClient
from typer.testing import CliRunner

PACKAGE = "adopted"
STEPS = ("requirements", "framing", "data", "model", "evaluation")


class Project:
    """A baked project whose package is imported here; `fresh` brings back its params.yaml and features.sql."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.query = folder / f"src/{PACKAGE}/step3_data/features.sql"
        self.original = {path: path.read_bytes() for path in (folder / "params.yaml", self.query)}
        self.main, self.params = self.module("__main__"), self.module("params")
        self.main._dvc = lambda *_: 0

    def module(self, name: str) -> Any:
        """A module of the project's package."""
        return import_module(f"{PACKAGE}.{name}")

    def fresh(self) -> None:
        """As it was baked."""
        for folder in ("data", "models", "reports", "runs"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for path in self.folder.rglob("*.bak"):
            path.unlink()
        for path, content in self.original.items():
            path.write_bytes(content)

    def state(self) -> dict[str, bytes]:
        """Every file that is no cache."""
        files = (p for p in self.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {str(p): p.read_bytes() for p in files}

    def adopt(self, *words: str) -> SimpleNamespace:
        """The verb as a user types it."""
        answer = CliRunner().invoke(self.main.app, ["adopt", *words], env={"COLUMNS": "300"})
        if answer.exception and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        return SimpleNamespace(code=answer.exit_code, said=answer.stdout, error=answer.stderr)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What a user types in the project, in a process of its own."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = os.environ | {"PATH": path, "PYTHONPATH": str(self.folder / "src"), "COLUMNS": "300", "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(words, cwd=self.folder, env=env, check=False, capture_output=True, text=True)

    def red(self) -> list[str]:
        """The project's own tests that fail, as `make test` would say."""
        found = self.command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        return re.findall(r"^(?:FAILED|ERROR) (.*)", found.stdout, re.MULTILINE) or [found.stdout + found.stderr] * bool(found.returncode)

    def run(self) -> list[str]:
        """Steps 1 to 5; returns what gates said, and a closed gate of step 5 is taken for open."""
        said = []
        for number, step in enumerate(STEPS, start=1):
            try:
                self.module(f"step{number}_{step}.stage").run(self.params.load())
            except self.module("step1_requirements.checks").StepFailed as error:
                said.append(str(error))
                if step != "evaluation":
                    break
        return said

    def serve(self, table: Path, rows: int = 20) -> tuple[list[float], list[float]]:
        """Builds the bundle; returns what the service and what batch scoring of the user's own file say to the same rows."""
        stage, params = self.module("step6_deployment.stage"), self.params.load()
        trained = self.module("step4_model.train").read(self.params.CANDIDATE / "model.joblib")
        test = self.module("step4_model.train").read_part(params.framing, self.params.PREPARED / "test.parquet", trained.classes)
        evaluation = json.loads(Path("reports/5-evaluation/evaluation.json").read_text(encoding="utf-8"))
        self.params.BUNDLE.mkdir(parents=True, exist_ok=True)
        parity = stage._build(params, trained, test, evaluation, self.params.BUNDLE)
        assert all(c.outcome == "pass" for c in parity), parity
        scored = Path("scored.parquet")
        predictor = self.module("step6_deployment.predictor").Predictor(self.params.BUNDLE, self.params.ONLINE)
        self.module("step6_deployment.batch").score_file(predictor, table, scored)
        batch = pq.read_table(scored)
        raw = pq.read_table(params.data.raw)
        names = [i.name for i in params.framing.inputs]
        records = [{n: stage._json_value(v) for n, v in row.items()} for row in raw.select(names).slice(0, rows).to_pylist()]
        open_to_all = params.model_copy(update={"deployment": params.deployment.model_copy(update={"keys": "none"})})
        app = self.module("step6_deployment.service").create_app(open_to_all)
        with TestClient(app) as client:
            answer = client.post("/v1/predict", json={"records": records})
        assert answer.status_code == 200, answer.text
        score = next(n for n in reversed(batch.column_names) if n.endswith("score"))
        return [p["score"] for p in answer.json()["predictions"]], batch.column(score).slice(0, rows).to_pylist()


@contextlib.contextmanager
def imported(bake_into: Callable[..., Path], where: Path, *, full: bool = False) -> Iterator[Project]:
    """A bake whose package can be imported and whose folder is the current one; unless `full`, models are small and pictures not drawn."""
    folder = bake_into(where, project_name="Adopted", package_name=PACKAGE, tracking=OPTIONS["tracking"][-1])
    if not full:
        quick(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "src"))
        patch.chdir(folder)
        project = Project(folder)
        if not full:
            patch.setattr("matplotlib.figure.Figure.savefig", lambda _, file, **__: file.write("<svg/>"))
        try:
            yield project
        finally:
            for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
                del sys.modules[name]


def quick(path: Path) -> None:
    """Fewer trees and resamples: the subject is the table, not the model."""
    text = path.read_text(encoding="utf-8")
    for key, small in (("max_iter", 20), ("bootstrap", 100), ("max_words", 50)):
        text, changes = re.subn(rf"\b{key}: \d+", f"{key}: {small}", text)
        assert changes, f"params.yaml has no {key}"
    path.write_text(text, encoding="utf-8")


os.environ.setdefault("OMP_NUM_THREADS", "1")
