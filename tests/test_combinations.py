"""Whole projects at work: any two choices of any two options together, each trained, gated, exported, served, tested and checked."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import pytest
from conftest import OPTIONS, ROOT
from covertable import make
from lint import PROJECT

BakeInto = Callable[..., Path]
# Fewer rows and resamples, and wide limits of latency, because other tests share the cores.
SHRUNK = {
    r"    rows: \d+ ": "    rows: 20000 ",
    r"bootstrap: \d+": "bootstrap: 100",
    r"(load_test: \{seconds): [\d.]+": r"\1: 1",
    r"latency_ms: \{p50: \d+, p99: \d+\}": "latency_ms: {p50: 500, p99: 2000}",
    r"throughput_per_second: \d+": "throughput_per_second: 300",
}
HEAVIEST = {"tracking": "wandb", "data_remote": "azure", "orchestrator": "airflow", "deployment": "kubernetes", "ci": "gitlab"}


def rows() -> list[dict[str, str]]:
    """Answers in which any two options meet in all their combinations of choices; the default comes first."""
    default = {name: choices[0] for name, choices in OPTIONS.items()}
    return [default, *(dict(row) for row in make(OPTIONS, strength=2) if row != default)]


def name_of(answers: Mapping[str, str]) -> str:
    return "-".join(answers[option] for option in OPTIONS)


def test_any_two_choices_meet() -> None:
    """Counted, and not believed."""
    names = list(OPTIONS)
    wanted = {(a, x, b, y) for i, a in enumerate(names) for b in names[i + 1 :] for x in OPTIONS[a] for y in OPTIONS[b]}
    assert wanted == {(a, row[a], b, row[b]) for row in rows() for i, a in enumerate(names) for b in names[i + 1 :]}


@pytest.mark.parametrize(
    ("per_replica", "now", "required", "most", "expected"),
    [
        (2500, 23, 1000, 10, (2, 4)),
        (100, 23, 1000, 20, (2, 17)),
        (100, 200, 1000, 40, (7, 34)),
        (1000, 2400, 3000, 41, (8, 40)),
        (500, 20, 500, 3, (2, 3)),
    ],
)
def test_the_autoscalers_bounds_follow_from_the_rates(per_replica: float, now: float, required: float, most: int, expected: tuple[int, int]) -> None:
    script = runpy.run_path(str(ROOT / PROJECT / "deploy" / "to" / "kubernetes" / "from_requirements.py"))
    assert script["bounds"](per_replica, now, required, most) == expected
    with pytest.raises(ValueError, match=r"replicas are needed, but deployment\.max_replicas is 1"):
        script["bounds"](per_replica, now, 10 * required, 1)


@pytest.fixture
def prepared(bake_into: BakeInto, tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """A bake in a git repository, with shrunk data."""

    def bake(answers: Mapping[str, str]) -> Path:
        project = bake_into(tmp_path, **answers)
        text = (project / "params.yaml").read_text(encoding="utf-8")
        for old, new in SHRUNK.items():
            text, changes = re.subn(old, new, text)
            assert changes, f"params.yaml has nothing like {old}"
        (project / "params.yaml").write_text(text, encoding="utf-8")
        for command in (["init", "--quiet"], ["add", "--all"]):
            subprocess.run(["git", *command], cwd=project, check=True)
        return project

    return bake


def work(project: Path, *targets: str, **more: str) -> None:
    """Make's targets, one after the other; fails with what the first bad one said."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}
    for target in targets:
        command = ["make", target] if not target.startswith(".venv") else target.split()
        done = subprocess.run(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("answers", [pytest.param(row, id=name_of(row), marks=[pytest.mark.all] if i else []) for i, row in enumerate(rows())])
def test_a_project_runs_and_passes_its_own_tests_and_checks(
    answers: Mapping[str, str], prepared: Callable[[Mapping[str, str]], Path], record_property: Callable[[str, object], None]
) -> None:
    """In this environment, which has what every choice needs, so that nothing is installed."""
    project, start = prepared(answers), perf_counter()
    (project / ".venv").symlink_to(sys.prefix)
    (project / ".venv" / ".ready").touch()
    shared = {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    work(project, "run", "test", "check", ".venv/bin/pre-commit run --all-files", **shared)
    if answers["deployment"] == "kubernetes":
        work(project, ".venv/bin/python deploy/kubernetes/from_requirements.py", **shared)
    record_property("summary", f"run, test, check and pre-commit in {perf_counter() - start:.0f} s: {name_of(answers)}")


@pytest.mark.slow
@pytest.mark.all
@pytest.mark.parametrize("answers", [{}, HEAVIEST], ids=["default", "heaviest"])
def test_a_project_installs_itself_from_nothing(answers: Mapping[str, str], prepared: Callable[[Mapping[str, str]], Path]) -> None:
    """In an environment of its own, where only what pyproject.toml declares is there."""
    project = prepared(answers)
    work(project, "run", "test", "check", UV_LINK_MODE="copy", PYTHONPATH="")
    assert (project / ".venv" / "pyvenv.cfg").is_file()
    assert not (project / ".venv").is_symlink()
