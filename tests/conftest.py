"""Bakes for all tests: from a clean copy of the template, with no one's own cookiecutter settings."""

import functools
import json
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).parents[1]
QUESTIONS: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
OPTIONS: dict[str, list[str]] = {name: raw for name, raw in QUESTIONS.items() if isinstance(raw, list) and not name.startswith("_")}
#: For tests whose faults and figures belong to one worked example, where a platform group took it out.
ON_FRAUD = pytest.mark.skipif("fraud_detection" not in OPTIONS["system"], reason="system has no choice fraud_detection here")

Bake = Callable[..., Path]


def copy_committed(folder: Path) -> Path:
    """What git would commit, so that caches and other junk never reach a bake."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of this repository."""
    return copy_committed(tmp_path_factory.mktemp("template") / "template")


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the developer's ~/.cookiecutterrc out, and our answers out of the developer's home."""
    home = tmp_path_factory.mktemp("settings")
    config = home / "config.yaml"
    config.write_text(f"cookiecutters_dir: {(home / 'templates').as_posix()}\nreplay_dir: {(home / 'replay').as_posix()}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOKIECUTTER_CONFIG", str(config))
        yield


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread each, because tests run side by side; what DVC and cookiecutter leave behind is below the tests' folder."""
    with pytest.MonkeyPatch.context() as patch:
        file = functools.partial(tempfile.NamedTemporaryFile, dir=tmp_path_factory.mktemp("hooks"))  # cookiecutter never removes a rendered hook
        patch.setattr("cookiecutter.hooks.tempfile", SimpleNamespace(NamedTemporaryFile=file))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc")))
        yield


@pytest.fixture(scope="session", autouse=True)
def compile_once() -> Iterator[None]:
    """Jinja compiles every file anew for every bake, which is most of a bake's time."""
    compile_template: Any = jinja2.Environment.compile
    known: dict[Any, Any] = {}

    def compiled(self: jinja2.Environment, source: Any, name: Any = None, filename: Any = None, raw: bool = False, defer_init: bool = False) -> Any:
        key = (source, name, filename, raw, defer_init)
        if key not in known:
            known[key] = compile_template(self, source, name, filename, raw, defer_init)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compiled)
        yield


@pytest.fixture(scope="session")
def bake(template: Path, cookies_session: Any) -> Bake:
    """Bakes with the given answers and returns the project; the same answers give the same folder, so only read it."""

    @functools.cache
    def baked(**answers: str) -> Path:
        result = cookies_session.bake(extra_context=answers, template=str(template))
        assert result.exception is None, result.exception
        assert result.exit_code == 0
        assert answers.items() <= result.context.items(), "an answer was not carried"
        return Path(result.project_path)

    return baked


@pytest.fixture(scope="session")
def bake_into(template: Path) -> Callable[..., Path]:
    """Bakes into a folder of the test's own; raises what cookiecutter raises."""

    def baked(folder: Path, *, hooks: bool = True, overwrite: bool = False, **answers: str) -> Path:
        more = {"accept_hooks": hooks, "overwrite_if_exists": overwrite}
        return Path(cookiecutter(str(template), no_input=True, extra_context=answers, output_dir=str(folder), **more))

    return baked


def load_hook(name: str) -> SimpleNamespace:
    """A hook's functions, without running it."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "hooks" / name)))


@pytest.fixture(scope="session")
def pre_hook() -> SimpleNamespace:
    return load_hook("pre_gen_project.py")


@pytest.fixture(scope="session")
def post_hook() -> SimpleNamespace:
    return load_hook("post_gen_project.py")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's content by its path inside the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures that tests recorded as "summary" and the matrix of their "gates", also those of other processes."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "call"]
    lines = [value for report in reports for name, value in report.user_properties if name == "summary"]
    if lines:
        terminalreporter.section("variants")
        for line in lines:
            terminalreporter.line(line)
    rows = [value for report in reports for name, value in report.user_properties if name == "gates"]
    if rows:
        terminalreporter.section("faults and the gates that stop them")
        widths = {name: max(len(row[name]) for row in [{name: name}, *rows]) for name in rows[0]}
        rows.sort(key=lambda row: [*row.values(), "STOP"].index("STOP") % len(row))  # by the gate, the clean run first
        for row in [{name: name for name in widths}, *rows]:
            terminalreporter.line("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
