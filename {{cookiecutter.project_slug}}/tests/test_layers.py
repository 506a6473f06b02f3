"""The layer rule, and that dvc.yaml, the rooms' READMEs and the serving path are what they claim to be."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from {{ cookiecutter.package_name }} import params as lowest
from {{ cookiecutter.package_name }}.step1_requirements.checks import STEPS

SOURCE = Path(lowest.__file__).parent
PACKAGE, ROOT = SOURCE.name, Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ROOMS = sorted(SOURCE.glob("step*_*"))
NOT_WHILE_SERVING = ("sklearn", "pandas", "scipy", "pyarrow", "duckdb", "matplotlib", "mlflow", "skl2onnx", "onnx", "optuna", "pandera", "joblib")


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, lazy: bool = True) -> Iterator[Path]:
    """The files of this package that a file imports; without `lazy`, only what is imported with it."""
    tree = parsed(path)
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in [None, *(alias.name for alias in node.names)]:
                target = base / name if name else base
                found = [p for p in (target.with_suffix(".py"), target / "__init__.py") if p.is_file()]
                yield from (p for p in found if p != SOURCE / "__init__.py")


def floor(path: Path) -> int:
    """Which floor a file is on: params 0, step 1 to 7, and the rest above them all."""
    room = path.relative_to(SOURCE).parts[0]
    return 0 if room == "params.py" else int(room[4]) if room.startswith("step") else 8


def test_a_step_imports_only_params_and_lower_steps() -> None:
    upward = [(p, t) for p in SOURCE.rglob("*.py") for t in imports(p) if floor(t) > floor(p)]
    assert upward == []
    assert {floor(p) for p in SOURCE.rglob("*.py")} == set(range(9))


def needed(stage: str) -> set[Path]:
    """The files that a stage runs: its own room's stage.py, what that imports, and the files beside them that they name."""
    found, todo = set(), [SOURCE / f"step{STEPS[stage].replace('-', '_')}" / "stage.py"]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imports(path, lazy=path.name == "stage.py")
    texts = {(p, str(n.value)) for p in found for n in ast.walk(parsed(p)) if isinstance(n, ast.Constant)}
    return found | {p.parent / text for p, text in texts if re.fullmatch(r"[\w-]+\.[a-z]+", text) and (p.parent / text).is_file()}


def listed(stage: str) -> set[Path]:
    """The source files and folders among a stage's dependencies."""
    return {ROOT / dep.replace("${src}", f"src/{PACKAGE}") for dep in STAGES[stage]["deps"] if dep.startswith("${src}")}


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_the_code_that_it_runs_and_no_other(stage: str) -> None:
    """So that an edit runs again what it changes, and nothing else."""
    files = {ROOT / "src" / PACKAGE / p.relative_to(SOURCE) for p in needed(stage) if p.name != "__init__.py" or "tracking" in p.parts}
    missing = [p for p in files if not any(p.is_relative_to(dep) for dep in listed(stage))]
    unused = [dep for dep in listed(stage) if not any(p.is_relative_to(dep) for p in files)]
    assert (missing, unused) == ([], [])


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_lists_the_params_that_it_reads_and_no_other(
    stage: str, monitored: Path, run_step: Callable[[str], None], reads: dict[str, set[str]]
) -> None:
    if stage not in reads:
        run_step(stage)
    names = STAGES[stage]["params"]
    missing = [read for read in sorted(reads[stage]) if not any(f"{read}.".startswith(f"{name}.") for name in names)]
    unused = [name for name in names if not any(f"{read}.".startswith(f"{name}.") for read in reads[stage])]
    assert (missing, unused) == ([], [])


def test_each_stage_waits_for_the_verdict_of_the_one_before() -> None:
    for before, stage in zip(list(STEPS), list(STEPS)[1:], strict=False):
        assert f"reports/{STEPS[before]}/verdict.json" in STAGES[stage]["deps"], stage


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_in_25_lines(room: Path) -> None:
    """Step 7's README is longer: it holds the runbook."""
    text = (room / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 25 or room.name.startswith("step7")


def test_serving_imports_only_what_the_container_installs() -> None:
    code = "import sys, NAME.__main__, NAME.step6_deployment.service; print(*(m.partition('.')[0] for m in sys.modules))".replace("NAME", PACKAGE)
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    assert [name for name in NOT_WHILE_SERVING if name in loaded] == []
