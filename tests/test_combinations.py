"""Whole projects at work: any two choices of any two options together, each trained, gated, exported, served, tested and checked."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from conftest import OPTIONS
from covertable import make
from environments import run, uv
from serving import KEY, listening

BakeInto = Callable[..., Path]
# Fewer rows and resamples, and wide limits of latency, because other tests share the cores.
SHRUNK = {
    r"    rows: \d+ ": "    rows: 20000 ",
    r"bootstrap: \d+": "bootstrap: 100",
    r"(load_test: \{seconds): [\d.]+": r"\1: 1",
    r"latency_ms: \{p50: \d+, p99: \d+\}": "latency_ms: {p50: 500, p99: 2000}",
    r"throughput_per_second: \d+": "throughput_per_second: 300",
}
HEAVY = {"tracking": "wandb", "data_remote": "azure", "orchestrator": "airflow", "deployment": "kubernetes", "ci": "gitlab"}
HEAVIEST = {option: choice for option, choice in HEAVY.items() if choice in OPTIONS[option]}


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
def test_a_project_installs_itself_from_nothing(answers: Mapping[str, str], prepared: Callable[[Mapping[str, str]], Path], tmp_path: Path) -> None:
    """In an environment of its own, where only what pyproject.toml declares is there; and then as its container image would serve it."""
    project = prepared(answers)
    work(project, "run", "test", "check", UV_LINK_MODE="copy", PYTHONPATH="")
    assert (project / ".venv" / "pyvenv.cfg").is_file()
    assert not (project / ".venv").is_symlink()
    if not answers:  # what is no part of a usual installation
        run([uv(), "sync", "--quiet", "--all-extras", "--group", "evidently"], project)
        run([".venv/bin/python", "-c", "import evidently"], project)
        work(project, ".venv/bin/python -m pytest -k evidently")
    image = image_of(project, tmp_path)
    assert answer_of(image, project.name.replace("-", "_")).keys() == {"model_version", "fallback", "predictions"}


@pytest.mark.slow
@pytest.mark.all
@pytest.mark.parametrize("end", ["oldest packages", "newest Python"])
def test_a_project_works_at_the_ends_of_what_it_admits(end: str, prepared: Callable[[Mapping[str, str]], Path]) -> None:
    """With every requirement at its lower bound, and on the newest Python that is here; nothing that was installed is of another age."""
    if end == "oldest packages":
        chosen = {"UV_RESOLUTION": "lowest-direct"}
    elif found := newest_python():
        chosen = {"UV_PYTHON": found}
    else:
        pytest.skip("there is no newer Python here than the one that runs this, so a newer one was NOT tried")
    project = prepared({})
    work(project, "run", "test", UV_LINK_MODE="copy", PYTHONPATH="", **chosen)
    look = "import fastapi, sys; print(fastapi.__version__, sys.version_info.minor)"
    version, minor = subprocess.check_output([project / ".venv/bin/python", "-c", look], text=True).split()
    floor = re.findall(r'"fastapi>=([\d.]+)"', (project / "pyproject.toml").read_text(encoding="utf-8"))[0]
    assert version.startswith(floor) if end == "oldest packages" else int(minor) > sys.version_info.minor


def newest_python() -> str | None:
    """The newest Python on PATH or among pyenv's, if it is newer than the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(20, sys.version_info.minor, -1):
        for program in (shutil.which(f"python3.{minor}"), *pyenv.glob(f"3.{minor}.*/bin/python")):
            if program and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0:  # a shim may stand for nothing
                return str(program)
    return None


def image_of(project: Path, folder: Path) -> Path:
    """The folder that deploy/Dockerfile makes: the package installed with what serving needs, and beside it what .dockerignore lets in."""
    app, venv = folder / "image" / "app", folder / "image" / "venv"
    let_in = [line[1:] for line in (project / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    removed = re.findall(r"rm -r (.*?) &&", (project / "deploy" / "Dockerfile").read_text(encoding="utf-8"))[0].split()
    assert set(removed) < set(let_in)
    for name in set(let_in) - set(removed):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        if (project / name).is_dir():
            shutil.copytree(project / name, app / name)
        elif (project / name).exists():
            shutil.copy(project / name, app / name)
    run([uv(), "venv", "--quiet", "--python", sys.executable, str(venv)])
    run([uv(), "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), str(project)])
    (app / "log").mkdir()
    return app


def answer_of(app: Path, package: str) -> Any:
    """What the image's service answers to the bundle's example; it may write nothing but its log."""
    held = sorted(app.rglob("*"))
    env = {"PATH": os.environ["PATH"], "API_KEYS": KEY, "PARAMS__DEPLOYMENT__LOG__PATH": "log/predictions.sqlite", "PYTHONDONTWRITEBYTECODE": "1"}
    with listening() as on:
        command = [str(app.parent / "venv" / "bin" / "python"), "-m", package, "serve", "--fd", str(on.fileno())]
        service = subprocess.Popen(command, cwd=app, env=env, pass_fds=[on.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        example = json.loads((app / "models/bundle/manifest.json").read_text(encoding="utf-8"))["example"]
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"http://127.0.0.1:{on.getsockname()[1]}/v1/predict", json.dumps({"records": [example]}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # the socket listens already, so this waits for the start
                found = json.load(answer)
        except OSError as error:
            error.add_note(stopped(service))
            raise
    said = stopped(service)
    assert [p for p in sorted(app.rglob("*")) if p not in held and p.parent.name != "log"] == [], said
    return found


def stopped(service: subprocess.Popen[str]) -> str:
    """What a service has said, once it has ended."""
    service.terminate()
    return service.communicate(timeout=60)[0]
