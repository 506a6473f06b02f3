"""The hooks: which files stay for which answer, twice over, without network, and with what an update hands over."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lint
import pytest
from conftest import OPTIONS, QUESTIONS, Bake, files_of
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.hooks import run_script_with_context
from cookiecutter.prompt import prompt_for_config

CHOICES = [(option, choice) for option, choices in OPTIONS.items() for choice in choices]
WORD_FOR_WORD = {  # and SHA-256; no line ends in a blank
    "MIT": "b65efaf3ab44cc21b9df39691389e0aeb876a01f79311c3c0956f79a23045f39",
    "Apache-2.0": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "BSD-3-Clause": "f33f83b4c0fdb218e07de4065baf76426a53184e5a2edf0026aa8c898a4f61cf",
}


def answers_for(template: Path, **answers: str) -> dict[str, Any]:
    return dict(prompt_for_config(generate_context(str(template / "cookiecutter.json"), extra_context=answers), no_input=True))


@pytest.mark.parametrize(("option", "choice"), CHOICES)
def test_exactly_the_chosen_files_stay(option: str, choice: str, bake: Bake, bake_into: Callable[..., Path], tmp_path: Path) -> None:
    """Compared with a bake without hooks, where all choices still stand side by side."""
    everything = files_of(bake_into(tmp_path, hooks=False, **{option: choice}))
    answers = {name: values[0] for name, values in OPTIONS.items()} | {option: choice}
    expected: dict[str, bytes] = {}
    for name, content in everything.items():
        mine = [(found, rest, where) for pattern, where in PLACES.items() if (found := re.fullmatch(pattern, name)) for rest in [found[2]]]
        if not mine:
            expected[name] = content
        for found, rest, (owner, place) in mine:
            if found[1] == answers[owner]:
                expected[place.format(choice=found[1], rest=rest)] = content
    project = bake(**{option: choice})
    assert files_of(project) == expected
    assert not [name for name in expected if name.startswith(("systems/", "licenses/", "ci/", "deploy/to/", ".dvc/remotes/"))]


# Where the choices stand and where each belongs, said a second time, without the hook.
PLACES = {
    r"systems/(\w+)/(params\.yaml)": ("system", "{rest}"),
    r"systems/(\w+)/(features\.sql|simulator\.py)": ("system", "src/fraud_detection/step3_data/{rest}"),
    r"src/fraud_detection/step4_model/tracking/([a-z]\w*)(\.py)": ("tracking", "src/fraud_detection/step4_model/tracking/{choice}{rest}"),
    r"\.dvc/remotes/(\w+)()": ("data_remote", ".dvc/config"),
    r"orchestration/(\w+)/(.+)": ("orchestrator", "orchestration/{choice}/{rest}"),
    r"deploy/to/(\w+)/(.+)": ("deployment", "deploy/{choice}/{rest}"),
    r"ci/(\w+)/(.+)": ("ci", "{rest}"),
    r"licenses/([\w.-]+)()": ("license", "LICENSE"),
}


@pytest.mark.parametrize(("option", "choice"), CHOICES)
def test_every_choice_in_cookiecutter_json_has_its_label(option: str, choice: str) -> None:
    assert QUESTIONS["__prompts__"][option][choice]


def test_the_choices_on_disk_are_those_in_cookiecutter_json(template: Path, post_hook: SimpleNamespace) -> None:
    """So a choice is removed by its word and its file, and nothing is left over."""
    package = {"package_name": lint.PACKAGE}
    files = [name.removeprefix(f"{lint.PROJECT}/") for name, _ in lint.files(template, lint.PROJECT)]
    for option in post_hook.OPTIONS:
        of_choice = {choice: set(post_hook.places(option, {**package, option.answer: choice}, files)) for choice in QUESTIONS[option.answer]}
        assert post_hook.standing(option, package, files) == set().union(*of_choice.values())
        assert {choice for choice, kept in of_choice.items() if not kept} == {*option.without} & of_choice.keys()


def test_every_option_with_choices_has_one_row(post_hook: SimpleNamespace) -> None:
    assert [option.answer for option in post_hook.OPTIONS] == list(dict(CHOICES))


def test_a_second_run_changes_nothing(bake: Bake, bake_into: Callable[..., Path], template: Path, tmp_path: Path) -> None:
    project = bake_into(tmp_path)
    before = files_of(project)
    run_script_with_context(template / "hooks" / "post_gen_project.py", project, {"cookiecutter": answers_for(template)})
    assert files_of(project) == before
    assert before == files_of(bake())


def test_hooks_run_on_what_an_update_hands_over(template: Path, tmp_path: Path) -> None:
    """An update gives the answers alone, without cookiecutter's own _cookiecutter, _template and the like."""
    run_script_with_context(template / "hooks" / "pre_gen_project.py", tmp_path, {"cookiecutter": answers_for(template)})
    with pytest.raises(FailedHookException):
        run_script_with_context(template / "hooks" / "pre_gen_project.py", tmp_path, {"cookiecutter": answers_for(template, author=" ")})


def test_a_bake_opens_no_socket(bake_into: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python started below refuses sockets; the first assertion proves that it does."""
    guard = "import sys\ndef refuse(event, _):\n    if event.startswith('socket.'):\n        raise OSError(event)\nsys.addaudithook(refuse)\n"
    (tmp_path / "sitecustomize.py").write_text(guard)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], check=False, capture_output=True).returncode != 0
    assert (bake_into(tmp_path / "out") / "LICENSE").is_file()


def test_a_bake_says_what_to_do_next(bake_into: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bake_into(tmp_path, project_slug="my-fraud")
    printed = capfd.readouterr().out
    assert "cd my-fraud" in printed
    assert "make run" in printed
    assert "without make: README.md" in printed  # `python -m` would need what is not installed yet


def test_no_repository_is_started(bake: Bake) -> None:
    """A git repository made by the hook would make an update apply nothing."""
    assert not (bake() / ".git").exists()


ANSWERS = {
    "package_name": "p", "system": "a", "tracking": "t", "data_remote": "r", "orchestrator": "none", "deployment": "d", "ci": "c", "license": "MIT",
}  # fmt: skip
TRACKING = "src/p/step4_model/tracking/"
CHOSEN = ["systems/a/params.yaml", "systems/a/features.sql", "systems/a/simulator.py", TRACKING + "t.py", "licenses/MIT",
          ".dvc/remotes/r", "deploy/to/d/a/b.yaml", "ci/c/.ci/c.yml"]  # fmt: skip
OTHERS = ["systems/b/params.yaml", TRACKING + "u.py", "licenses/X-2.0", "ci/e/e.yml", "deploy/to/f/g", "orchestration/o/flow.py", ".dvc/remotes/q"]
WHOLE = {*CHOSEN, *OTHERS, TRACKING + "__init__.py", "README.md"}


def test_the_plan_moves_the_chosen_and_removes_the_others(post_hook: SimpleNamespace) -> None:
    moves, removals = post_hook.plan(ANSWERS, WHOLE)
    assert moves == {
        "systems/a/params.yaml": "params.yaml",
        "systems/a/features.sql": "src/p/step3_data/features.sql",
        "systems/a/simulator.py": "src/p/step3_data/simulator.py",
        "licenses/MIT": "LICENSE",
        ".dvc/remotes/r": ".dvc/config",
        "deploy/to/d/a/b.yaml": "deploy/d/a/b.yaml",
        "ci/c/.ci/c.yml": ".ci/c.yml",
    }
    assert removals == {*OTHERS}


def test_the_plan_takes_a_new_choice_without_a_new_row(post_hook: SimpleNamespace) -> None:
    moves, removals = post_hook.plan(ANSWERS | {"license": "X-2.0"}, WHOLE)
    assert moves["licenses/X-2.0"] == "LICENSE"
    assert "licenses/MIT" in removals


def test_the_plan_is_empty_once_it_is_done(post_hook: SimpleNamespace) -> None:
    moves, removals = post_hook.plan(ANSWERS, WHOLE)
    assert post_hook.plan(ANSWERS, (WHOLE - moves.keys() - removals) | {*moves.values()}) == ({}, set())


@pytest.mark.parametrize("lost", CHOSEN)
def test_the_plan_names_a_file_that_the_chosen_one_lacks(lost: str, post_hook: SimpleNamespace) -> None:
    named = "/".join(lost.split("/")[: 3 if lost.startswith("deploy") else 2]) if lost.startswith(("ci", "deploy")) else lost
    with pytest.raises(ValueError, match=f"no file {re.escape(named)} for .* = "):
        post_hook.plan(ANSWERS, WHOLE - {lost})


def test_the_plan_leaves_files_beside_the_options_alone(post_hook: SimpleNamespace) -> None:
    mine = {"docs/licenses/MIT", "src/p/step4_model/tracker.py", TRACKING + "_shared.py", "systems.md"}
    moves, removals = post_hook.plan(ANSWERS, WHOLE | mine)
    assert not (moves.keys() | removals) & mine


def test_baking_over_a_project_keeps_its_owners_files(bake_into: Callable[..., Path], tmp_path: Path, post_hook: SimpleNamespace) -> None:
    """`cookiecutter -f` runs the hook where files of one's own may stand beside the choices."""
    project = bake_into(tmp_path)
    places = [option.stand.replace("<package>", "fraud_detection").replace("*", "mine") for option in post_hook.OPTIONS]
    for place in places:
        (project / place).parent.mkdir(parents=True, exist_ok=True)
        (project / place).write_text("# mine\n")
    before = files_of(project)
    answers = {option.answer: QUESTIONS[option.answer][0] for option in post_hook.OPTIONS}
    bake_into(tmp_path, overwrite=True, **answers)
    assert files_of(project) == before


def test_a_broken_template_fails_with_a_sentence(
    template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], bake_into: Callable[..., Path]
) -> None:
    project = bake_into(tmp_path, hooks=False)
    first = OPTIONS["license"][0]
    (project / "licenses" / first).unlink()
    with pytest.raises(FailedHookException):
        run_script_with_context(template / "hooks" / "post_gen_project.py", project, {"cookiecutter": answers_for(template)})
    assert capfd.readouterr().err == f"The template has no file licenses/{first} for license = {first}; please report it to its authors.\n"


@pytest.mark.parametrize("choice", WORD_FOR_WORD)
def test_a_license_is_word_for_word(choice: str, template: Path) -> None:
    """Apache's as at apache.org, the others' as dozens of packages carry them; the copyright's line names the author and no year."""
    if choice not in OPTIONS["license"]:
        pytest.skip(f"license has no choice {choice} here")
    text = (template / lint.PROJECT / "licenses" / choice).read_text(encoding="utf-8")
    assert hashlib.sha256(text.replace("{{ cookiecutter.author }}", "<owner>").encode()).hexdigest() == WORD_FOR_WORD[choice]


@pytest.mark.parametrize("choice", [choice for choice in OPTIONS["license"] if choice != "Apache-2.0"])
def test_the_license_names_the_author_and_no_year(choice: str, bake_into: Callable[..., Path], tmp_path: Path) -> None:
    """A year would make the same answers give other bytes next January."""
    text = (bake_into(tmp_path, license=choice, author='Zoë "Z" O\'Hara & Söhne') / "LICENSE").read_text(encoding="utf-8")
    assert 'Copyright (c) Zoë "Z" O\'Hara & Söhne' in text
    assert "20" not in text


def test_the_same_answers_give_the_same_bytes(bake: Bake, bake_into: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert files_of(bake_into(tmp_path)) == files_of(bake())
