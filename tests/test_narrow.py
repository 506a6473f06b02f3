"""A platform group's narrower template: choices go, each with its files and its word, and no test needs another edit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
from conftest import OPTIONS, copy_committed, files_of
from lint import PROJECT
from narrow import narrowed, take_out

#: What most is written for: each option's default, where another choice can take its place.
DEFAULTS = [(option, choices[0]) for option, choices in OPTIONS.items() if len(choices) > 1]
ONE_LEFT = pytest.mark.skipif(not DEFAULTS, reason="every option has a single choice here, so none can go")


@pytest.mark.slow
@pytest.mark.all
@ONE_LEFT
@pytest.mark.parametrize(
    "tests",
    [["-m", "not slow and not all"], ["-m", "not all", "tests/test_combinations.py"]],
    ids=["tests of seconds", "new default at work"],
)
def test_a_template_without_its_defaults_passes_its_tests(tests: list[str], tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Those that take seconds, and the new default's run, tests, checks and pre-commit."""
    root, start = narrowed(tmp_path / "template", DEFAULTS), perf_counter()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *tests]
    done = subprocess.run(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:]
    gone = " ".join(f"{option}={choice}" for option, choice in DEFAULTS)
    record_property("summary", f"without {gone}: {done.stdout.splitlines()[-1]}, {perf_counter() - start:.0f} s")


@ONE_LEFT
def test_what_goes_is_the_choices_files_and_its_word(tmp_path: Path) -> None:
    before = files_of(copy_committed(tmp_path / "template"))
    option, choice = DEFAULTS[0]
    take_out(tmp_path / "template", [(option, choice)])
    after = files_of(tmp_path / "template")
    assert [name for name in after if after[name] != before[name]] == ["cookiecutter.json"]
    assert {name.split("/")[0] for name in before.keys() - after.keys()} == {PROJECT}
    assert not [path for path in (tmp_path / "template").rglob("*") if path.is_dir() and not any(path.iterdir())]
    word = f'"{choice}", '.encode()
    assert after["cookiecutter.json"] == before["cookiecutter.json"].replace(b": [" + word, b": [", 1)


@pytest.mark.parametrize(
    ("option", "choice"),
    [("nobody", "asks"), (next(iter(OPTIONS)), "nothing like it"), ("project_name", "Fraud Detection"), ("_copy_without_render", "systems/*/*")],
)
def test_what_is_no_choice_cannot_go(option: str, choice: str, tmp_path: Path) -> None:
    root = copy_committed(tmp_path / "template")
    with pytest.raises(ValueError, match=f"{option}={choice.replace('*', '.')} cannot go"):
        take_out(root, [(option, choice)])


def test_an_options_last_choice_stays(tmp_path: Path) -> None:
    root = copy_committed(tmp_path / "template")
    option, choices = next(iter(OPTIONS.items()))
    with pytest.raises(ValueError, match=f"{choices[-1]} cannot go"):
        take_out(root, [(option, choice) for choice in choices])
