"""Every system, as its user would: run the seven steps, the tests, the checks; then run again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import lint
import pytest
from conftest import OPTIONS

SYSTEMS = dict(zip(OPTIONS["system"], cycle((OPTIONS["tracking"][0], OPTIONS["tracking"][-1])), strict=False))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=SYSTEMS)
def project(request: pytest.FixtureRequest, bake_into: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh bake in a git repository of its own, with the seven steps run."""
    system = request.param
    folder = bake_into(tmp_path_factory.mktemp(system), system=system, tracking=SYSTEMS[system], project_name=f"The {system} system")
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, sys.executable, "-m", folder.name.replace("-", "_"), "run")
    return folder


def run(folder: Path, *command: str) -> str:
    """Run a command in the project with its package importable; fails with its output."""
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_all_seven_steps_pass(project: Path) -> None:
    printed = run(project, sys.executable, "-m", project.name.replace("-", "_"), "report")
    assert printed.count("pass ") == 7, printed


def test_a_second_run_does_nothing(project: Path) -> None:
    printed = run(project, sys.executable, "-m", project.name.replace("-", "_"), "run")
    assert "passed, see" not in printed, printed  # what a step says when it ran


def test_its_own_tests_pass(project: Path) -> None:
    run(project, sys.executable, "-m", "pytest", "-p", "no:cacheprovider")


def test_lint_types_and_layers_hold(project: Path) -> None:
    for command in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("lint-imports",)):
        tool = shutil.which(command[0], path=str(Path(sys.executable).parent))
        assert tool, f"{command[0]} is not installed"
        run(project, tool, *command[1:])


def test_the_service_and_batch_scoring_agree(project: Path) -> None:
    package = project.name.replace("-", "_")
    run(project, sys.executable, "-m", package, "score", "data/prepared/test.parquet", "scored.parquet")
    code = f"""
import json, pyarrow.parquet as pq
from pathlib import Path
from {package}.step6_deployment.loadtest import ask, running_service
scored = pq.read_table("scored.parquet").slice(0, 200)
samples = json.loads(Path("models/bundle/manifest.json").read_text())["samples"]
with running_service(Path("models/bundle"), Path("data/agree.sqlite")) as port:
    answers = ask(port, json.dumps({{"records": samples}}).encode())["predictions"]
assert [a["score"] for a in answers] == scored.column("score").to_pylist()[: len(answers)]
print(len(answers), "equal")
"""
    assert "20 equal" in run(project, sys.executable, "-c", code)


def test_windows_takes_every_file_name(project: Path) -> None:
    """Also of what running made: reports, registry, DVC's cache."""
    assert lint.names_that_windows_takes(project) == []


def test_the_project_stays_small_enough_to_read(project: Path, template: Path, post_hook: SimpleNamespace) -> None:
    """Ninety files, and those of its choices, of which the defaults bring ten."""
    answers = {"package_name": lint.PACKAGE} | {option: choices[0] for option, choices in OPTIONS.items()}
    sources = [name.removeprefix(f"{lint.PROJECT}/") for name, _ in lint.files(template, lint.PROJECT)]
    own = [name for option in post_hook.OPTIONS for name in post_hook.places(option, answers, sources)]
    files = subprocess.run(["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) - len(own) <= 90, (len(files), len(own))
