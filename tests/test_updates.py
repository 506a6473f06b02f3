"""A platform group's side: updates with cruft that keep what people wrote, options switched later, defaults, replay, a fleet."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lint
import pytest
from conftest import OPTIONS, ROOT, Bake, copy_committed, files_of
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter
from environments import environment, run
from narrow import take_out

OTHER = {option: choices[len(choices) // 2] for option, choices in OPTIONS.items()} | {"project_name": "Other", "author": 'Zoë "Z" O\'Hara'}
LAST = {option: choices[-1] for option, choices in OPTIONS.items()}
SOURCE = f"{lint.PROJECT}/src/{lint.PACKAGE}"
GIT = ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
CONFLICT = "The template changes what you changed. Mend these by hand, git add them and commit:"


class Versions(NamedTuple):
    """A repository with two commits of the template."""

    template: Path
    old: str
    new: str


class Ended(NamedTuple):
    code: int
    said: str


def git(folder: Path, *args: str) -> str:
    return run([*GIT, *args], folder)


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "As it stands")
    return git(folder, "rev-parse", "HEAD").strip()


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def age(template: Path) -> None:
    """Makes the template an older one: texts differ, one file is not there yet, one is still there."""
    for name in ("params.py", "__main__.py", "step1_requirements/README.md"):
        edit(template / SOURCE / name, lambda text: text.replace("\n", " It was so once.\n", 1).replace('""" It', "It", 1))
    for system in OPTIONS["system"]:
        edit(template / lint.PROJECT / "systems" / system / "params.yaml", "# It was so once.\n".__add__)
        edit(template / lint.PROJECT / "systems" / system / "features.sql", "-- It was so once.\n".__add__)
    (template / SOURCE / "step7_monitoring" / "README.md").unlink()
    (template / SOURCE / "step3_data" / "dropped.md").write_text("It was here once.\n")


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    template = tmp_path_factory.mktemp("versions") / "template"
    copy_committed(template)
    git(template, "init", "--quiet")
    age(template)
    old = commit(template)
    for path in template.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy_committed(template)
    return Versions(template, old, commit(template))


@pytest.fixture(scope="session")
def cruft() -> Path:
    return environment("cruft", "cruft>=2.16") / "cruft"


@pytest.fixture(scope="session")
def created(cruft: Path, versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A project by `cruft create`, in its first commit: a copy of one's own each time."""
    made: dict[str, Path] = {}

    def create(folder: Path, checkout: str, **answers: str) -> Path:
        key = json.dumps([checkout, answers])
        if key not in made:
            out = tmp_path_factory.mktemp("created")
            said = [str(cruft), "create", "--no-input", "--checkout", checkout, "--output-dir", str(out), "--extra-context", json.dumps(answers)]
            run([*said, str(versions.template)])
            made[key] = next(out.iterdir())
            first_commit(made[key])
        return shutil.copytree(made[key], folder / made[key].name)

    return create


def first_commit(project: Path) -> None:
    git(project, "init", "--quiet")
    commit(project)


def update(project: Path, cruft: Path, **answers: str) -> Ended:
    """`make update`, with cruft from the tests' environment instead of from the network."""
    given = [f"ANSWERS={json.dumps(answers)}"] if answers else []
    command = ["make", "--silent", "update", f"UV={sys.executable}", f"CRUFT={cruft}", *given]
    done = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
    return Ended(done.returncode, done.stdout)


def contents(project: Path) -> dict[str, bytes]:
    """Every file that the project's owner sees, without what git and cruft write down for themselves."""
    return {name: content for name, content in files_of(project).items() if not name.startswith(".git/") and name != ".cruft.json"}


def package(project: Path) -> Path:
    return next((project / "src").iterdir())


def own_files(project: Path) -> dict[str, bytes]:
    """Writes what the project's owner adds, also in folders that an option fills."""
    inside = package(project).relative_to(project).as_posix()
    names = (
        "notes.md",
        "tests/test_mine.py",
        f"{inside}/step4_model/mine.py",
        f"{inside}/step4_model/tracking/mine.py",
        ".github/workflows/mine.yml",
    )
    own = dict.fromkeys((*names, "deploy/compose/mine.yml", "licenses/mine", "systems/mine/params.yaml"), b"# mine\n")
    for name, content in own.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    return own


# ---- from an older commit to this one


@pytest.mark.slow
@pytest.mark.parametrize("answers", [{}, OTHER], ids=["default", "other"])
def test_an_update_keeps_edits_and_own_files(
    answers: dict[str, str], versions: Versions, created: Callable[..., Path], cruft: Path, bake: Bake, tmp_path: Path
) -> None:
    """All that is left of the old version is params.yaml, which is the project's own."""
    project = created(tmp_path, versions.old, **answers)
    inside = package(project).relative_to(project)
    own = own_files(project)
    edit(project / "params.yaml", lambda text: text + "# mine\n")
    edit(project / inside / "params.py", lambda text: text + "\nMINE = 1\n")
    deleted = (inside / "step1_requirements" / "README.md").as_posix()
    (project / deleted).unlink()
    commit(project)

    expected = contents(bake(**answers)) | own
    expected["params.yaml"] = (project / "params.yaml").read_bytes()
    expected[f"{inside.as_posix()}/params.py"] += b"\nMINE = 1\n"
    del expected[deleted]
    done = update(project, cruft)
    assert done.code == 0, done.said
    assert contents(project) == expected
    assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["commit"] == versions.new
    assert b"It was so once." in expected["params.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("answers", [{}, OTHER], ids=["default", "other"])
def test_a_conflict_is_reported_and_nothing_is_lost(
    answers: dict[str, str], versions: Versions, created: Callable[..., Path], cruft: Path, tmp_path: Path
) -> None:
    """Both texts stand between git's markers; mended and committed, there is nothing more to do."""
    project = created(tmp_path, versions.old, **answers)
    name = f"{package(project).relative_to(project).as_posix()}/__main__.py"
    own = own_files(project)
    edit(project / name, lambda text: '"""Mine."""\n' + text.split("\n", 1)[1])
    commit(project)

    done = update(project, cruft)
    assert done.code != 0
    assert f"{CONFLICT}\n{name}\n" in done.said
    text = (project / name).read_text(encoding="utf-8")
    assert "<<<<<<< " in text and '"""Mine."""\n' in text
    assert own.items() <= contents(project).items()
    again = update(project, cruft)
    assert again.code != 0 and "unclean git project" in again.said

    git(project, "checkout", "--quiet", "--ours", name)
    commit(project)
    done = update(project, cruft)
    assert (done.code, done.said) == (0, "Nothing to do, project's cruft is already up to date!\n")


@pytest.mark.slow
@pytest.mark.parametrize("in_the_way", ["", "edited before the first commit", "ignored by git"])
def test_a_project_made_by_cookiecutter_is_linked_and_updated(in_the_way: str, versions: Versions, cruft: Path, bake: Bake, tmp_path: Path) -> None:
    """git then lacks the text that the template wrote and leaves *.rej files, or only says that a file stands in the way."""
    git(versions.template, "checkout", "--quiet", versions.old)
    project = Path(cookiecutter(str(versions.template), no_input=True, output_dir=str(tmp_path)))
    git(versions.template, "checkout", "--quiet", versions.new)
    name = f"{package(project).relative_to(project).as_posix()}/__main__.py"
    new = f"{package(project).relative_to(project).as_posix()}/step7_monitoring/README.md"
    if in_the_way == "edited before the first commit":
        edit(project / name, lambda text: '"""Mine."""\n' + text.split("\n", 1)[1])
    first_commit(project)
    not_yet = update(project, cruft)
    assert not_yet.code != 0
    assert not_yet.said.startswith("This project is not linked to its template: README.md says how, under Updates.\n")

    run([str(cruft), "link", "--no-input", "--checkout", versions.old, str(versions.template)], project)
    if in_the_way == "ignored by git":
        (project / ".git" / "info" / "exclude").write_text(f"{new}\n")
        (project / new).write_text("mine\n")
    commit(project)
    done = update(project, cruft)
    if not in_the_way:
        assert done.code == 0, done.said
        assert {**contents(project), "params.yaml": b""} == {**contents(bake()), "params.yaml": b""}
    elif in_the_way == "ignored by git":
        assert done.code != 0
        assert f"{CONFLICT}\n{new}\n" in done.said
        assert (project / new).read_text() == "mine\n"
    else:
        assert done.code != 0
        assert f"{CONFLICT}\n{name}\n{name}.rej\n" in done.said
        assert (project / name).read_text(encoding="utf-8").startswith('"""Mine."""\n')
        assert (project / new).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({next(iter(OPTIONS)): "nothing like it"}, "nothing like it provided for choice variable"),
        ({"author": " "}, "author is empty; type some text"),
    ],
)
def test_an_update_to_a_bad_answer_changes_nothing(
    answers: dict[str, str], sentence: str, versions: Versions, created: Callable[..., Path], cruft: Path, tmp_path: Path
) -> None:
    project = created(tmp_path, versions.new)
    before = files_of(project)
    done = update(project, cruft, **answers)
    assert done.code != 0
    assert sentence in done.said
    assert "  File " not in done.said
    unchanged = {name: content for name, content in files_of(project).items() if not name.startswith(".git/")}
    assert unchanged == {name: content for name, content in before.items() if not name.startswith(".git/")}


@pytest.mark.all
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_switched_and_switched_back(
    option: str, versions: Versions, created: Callable[..., Path], cruft: Path, bake: Bake, tmp_path: Path
) -> None:
    """As if baked with the other choice: its files come, the old one's go, own files stay."""
    project = created(tmp_path, versions.new)
    own = own_files(project)
    if option == "system":  # its params.yaml is merged only if the README's line is followed: taken off the list of what is skipped
        edit(project / "pyproject.toml", lambda text: text.replace('"params.yaml", ', ""))
    mine = (project / "pyproject.toml").read_bytes()
    commit(project)
    for choice in (OPTIONS[option][-1], OPTIONS[option][0]):
        done = update(project, cruft, **{option: choice})
        assert done.code == 0, done.said
        expected = contents(bake(**{option: choice})) | own
        if option == "system":
            expected["pyproject.toml"] = mine
        assert contents(project) == expected
        assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["context"]["cookiecutter"][option] == choice
        commit(project)


@pytest.mark.slow
def test_a_project_whose_choice_was_taken_out_is_switched_as_it_is_updated(cruft: Path, bake: Bake, tmp_path: Path) -> None:
    """Without another answer its update is refused and changes nothing."""
    options = [option for option, choices in OPTIONS.items() if len(choices) > 1 and option != "system"]
    if not options:
        pytest.skip("no option has a second choice here, so none can go")
    option = options[0]
    gone, other = OPTIONS[option][:2]
    template = copy_committed(tmp_path / "template")
    first_commit(template)
    run([str(cruft), "create", "--no-input", "--output-dir", str(tmp_path / "out"), str(template)])
    (project,) = (tmp_path / "out").iterdir()
    first_commit(project)
    take_out(template, [(option, gone)])
    commit(template)
    before = contents(project)
    refused = update(project, cruft)
    assert refused.code != 0
    assert f"{gone} provided for choice variable {option}" in refused.said
    assert contents(project) == before
    done = update(project, cruft, **{option: other})
    assert done.code == 0, done.said
    assert contents(project) == contents(bake(**{option: other}))


# ---- an organisation's defaults, answers replayed, CI


def settings(folder: Path, **defaults: str) -> str:
    """A settings file as CONTRIBUTING shows it; JSON is YAML."""
    file = folder / "org.yaml"
    kept = {"cookiecutters_dir": str(folder / "templates"), "replay_dir": str(folder / "replay")}
    file.write_text(json.dumps(kept | {"default_context": defaults}), encoding="utf-8")
    return str(file)


def cli(folder: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cookiecutter", *args]
    return subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False, timeout=60)


def test_an_organisations_defaults_come_from_one_file(template: Path, bake: Bake, tmp_path: Path) -> None:
    """Choices and texts; what is typed still wins."""
    org = settings(tmp_path, author="Platform group", **LAST)
    project = Path(cookiecutter(str(template), no_input=True, config_file=org, output_dir=str(tmp_path / "a")))
    assert files_of(project) == files_of(bake(author="Platform group", **LAST))
    typed = {next(iter(OPTIONS)): next(iter(OPTIONS.values()))[0]}
    project = Path(cookiecutter(str(template), no_input=True, config_file=org, extra_context=typed, output_dir=str(tmp_path / "b")))
    assert files_of(project) == files_of(bake(author="Platform group", **{**LAST, **typed}))


def test_a_bad_default_text_is_refused(template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FailedHookException):
        cookiecutter(str(template), no_input=True, config_file=settings(tmp_path, author=" "), output_dir=str(tmp_path / "out"))
    assert capfd.readouterr().err.startswith("author is empty; type some text")
    assert not [*(tmp_path / "out").iterdir()]


def test_a_bad_default_choice_is_refused_where_warnings_are_errors(template: Path, tmp_path: Path) -> None:
    """Else cookiecutter warns, and takes none of the defaults that follow."""
    option = next(iter(OPTIONS))
    org = settings(tmp_path, **{option: "nothing-like-it", "author": "Platform group"})
    done = cli(tmp_path, "--no-input", "--config-file", org, "--output-dir", "out", str(template), PYTHONWARNINGS="error::UserWarning")
    assert done.returncode == 1
    assert f"nothing-like-it provided for choice variable {option}, but the choices are " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_answers_are_replayed(template: Path, bake: Bake, tmp_path: Path) -> None:
    """From where cookiecutter keeps them, and from a file that was put under version control."""
    org = settings(tmp_path)
    answers = {**LAST, "author": 'Zoë "Z" O\'Hara'}
    cookiecutter(str(template), no_input=True, config_file=org, extra_context=answers, output_dir=str(tmp_path / "a"))
    again = Path(cookiecutter(str(template), replay=True, config_file=org, output_dir=str(tmp_path / "b")))
    kept = shutil.copy(tmp_path / "replay" / f"{template.name}.json", tmp_path / "answers.json")
    shutil.rmtree(tmp_path / "replay")
    from_file = Path(cookiecutter(str(template), replay=str(kept), config_file=org, output_dir=str(tmp_path / "c")))
    assert files_of(again) == files_of(from_file) == files_of(bake(**answers))


@pytest.mark.parametrize(
    ("answers", "code", "sentence"),
    [((), 0, "is ready. Next:"), (("author= ",), 1, "author is empty; type some text"), ((f"{next(iter(OPTIONS))}=x",), 1, "but the choices are")],
)
def test_exit_codes_for_ci(answers: tuple[str, ...], code: int, sentence: str, template: Path, tmp_path: Path) -> None:
    done = cli(tmp_path, "--no-input", "--output-dir", "out", str(template), *answers)
    assert done.returncode == code
    assert sentence in done.stdout + done.stderr
    assert (tmp_path / "out").exists() is (code == 0) or not [*(tmp_path / "out").iterdir()]


# ---- a fleet


def test_the_fleets_table_names_who_is_behind(tmp_path: Path) -> None:
    """The program that CONTRIBUTING prints, on 100 projects."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    program = tmp_path / "behind.py"
    program.write_text(found[1], encoding="utf-8")
    template = tmp_path / "template"
    template.mkdir()
    first_commit(template)
    commits = [commit(template) for _ in range(3)]
    for number in range(100):
        project = tmp_path / "fleet" / f"p{number:02}"
        project.mkdir(parents=True)
        state = {"commit": [*commits, "0" * 40][number % 4], "context": {"cookiecutter": {"system": "churn"}}}
        (project / ".cruft.json").write_text(json.dumps(state))
    (tmp_path / "fleet" / "unlinked").mkdir()
    started = time.perf_counter()
    said = run([sys.executable, str(program), str(template), *map(str, sorted((tmp_path / "fleet").iterdir()))])
    print(f"{time.perf_counter() - started:.2f} s")
    rows = dict(line.rsplit(maxsplit=1) for line in said.splitlines())
    fleet = tmp_path / "fleet"
    assert [rows[str(fleet / name)] for name in ("p00", "p01", "p02")] == ["2", "1", "0"]
    assert rows[str(fleet / "p03")] == "unknown"
    assert rows[str(fleet / "unlinked")] == "unlinked"
    assert len(rows) == 101
