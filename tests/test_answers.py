"""Answers: bad ones are refused with a sentence and leave nothing on disk, all others are carried letter by letter."""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lint
import pytest
from conftest import OPTIONS, files_of
from cookiecutter.exceptions import FailedHookException, UndefinedVariableInTemplate
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import UndefinedError

BakeInto = Callable[..., Path]
TEXTS = ("project_name", "description", "author")
SENTENCE = re.compile(r"(project_name|project_slug|package_name|description|author) (is|has|must) [ -~]+; (type|put) [ -~]+")
OPENS_A_TAG = re.compile(r"\{[{%#]")

# Any of these may stand in a name; each has broken some format.
NASTY = [
    "plain", "null", "yes", "on", "~", "1e3", "0x1F", "2026-01-01", "- item", "key: value", "# comment", "*", "&a", "!tag",
    "@", "`x`", "|", ">", '"', "'", '"""', "'''", '\\"', "\\", "C:\\new\\table", "\\u0041", "a]b[c", "{", "}", "}}", "%}", "{ {",
    "$(id)", "${HOME}", "; exit 1", "%s %d", "</script>", "<!-- -->", "&amp;", "-->", "__import__", "...", "Zoë", "e\u0301",
    "日本\u3000語", "שלום", "مرحبا", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "🎉", "👩\u200d🔬", "ﬁ", "\u00a0x", "\U0001d510\U0001d50f",
]  # fmt: skip
NOT_TEXT = ["", "   ", "two\nlines", "tab\there", "bell\x07", "nul\x00", "\u202eabc", "\ufeffabc", "x" * 201, "x" * 300]
NOT_SLUGS = [
    "", ".", "..", "a/b", "../a", "/tmp/a", "a\\b", "a" * 61, "a" * 300, "A", "my project", "1a", "-a", "a-", "a.b", "é", "con", "lpt9",
    "pandas", "scikit-learn", "scikit--learn", "a\nb", "a\n", "'a'", '"a"', "{a}", "🎉",
]  # fmt: skip
NOT_PACKAGES = [
    "", "class", "match", "type", "none", "json", "sys", "pandas", "sklearn", "yaml", "tests", "data", "nul", "com1", "1a", "_a", "a-b",
    "a b", "a.b", "A", "é", "a" * 41, "a/b", "..", "a\n", "x'", 'x"', "{x}",
]  # fmt: skip
BAD = [
    *((name, text) for name in TEXTS for text in NOT_TEXT),
    *(("project_slug", slug) for slug in NOT_SLUGS),
    *(("package_name", package) for package in NOT_PACKAGES),
]


def refuse(bake_into: BakeInto, capfd: pytest.CaptureFixture[str], folder: Path, **answers: str) -> list[str]:
    """The sentences with which the answers are refused, after a look that nothing is left."""
    out = folder / "deep" / "out"
    out.mkdir(parents=True)
    capfd.readouterr()
    with pytest.raises((FailedHookException, UndefinedVariableInTemplate, UndefinedError)) as caught:
        bake_into(out, **answers)
    assert files_of(folder) == {}
    assert [path.name for path in folder.rglob("*")] == ["deep", "out"]
    if isinstance(caught.value, FailedHookException):
        return capfd.readouterr().err.splitlines()
    undefined = caught.value.error if isinstance(caught.value, UndefinedVariableInTemplate) else caught.value
    found = re.search(r"has no attribute '(.*)'", str(undefined.message))
    assert found
    return [found[1]]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: ascii(value)[:20])
def test_a_bad_answer_is_refused_with_one_sentence(
    name: str, value: str, bake_into: BakeInto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = {"project_slug": "a-system", "package_name": "a_system"}
    sentences = refuse(bake_into, capfd, tmp_path, **{**sound, name: value})
    assert len(sentences) == 1
    assert sentences[0].startswith(name)
    assert SENTENCE.fullmatch(sentences[0])


@pytest.mark.parametrize("slug", ["a/b", "../a/b", "..", "", "a" * 300])
def test_a_slug_that_is_no_folder_name_stops_before_a_folder_is_made(
    slug: str, bake_into: BakeInto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cookiecutter makes the folder before any hook runs, and would leave its parent behind."""
    sentences = refuse(bake_into, capfd, tmp_path, project_slug=slug)
    assert sentences[0].startswith("project_slug must be one folder name")


def test_all_mistakes_are_told_at_once(bake_into: BakeInto, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = {"project_name": " ", "project_slug": "Not Good", "package_name": "class", "description": "x" * 300, "author": "a\nb"}
    sentences = refuse(bake_into, capfd, tmp_path, **bad)
    assert [sentence.split()[0] for sentence in sentences] == ["project_name", "description", "author", "project_slug", "package_name"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["{{ 1 + 1 }}", "a {% raw %} b {% endraw %}", "a {# b #}"])
def test_a_text_that_jinja_would_evaluate_is_refused(
    name: str, text: str, bake_into: BakeInto, tmp_path: Path, capfd: pytest.CaptureFixture[str], pre_hook: SimpleNamespace
) -> None:
    """Without prompts cookiecutter evaluates answers itself, so the hook looks at what was typed, too."""
    assert len(list(pre_hook.text_mistakes(name, text))) == 1
    sentences = refuse(bake_into, capfd, tmp_path, project_slug="a-system", **{name: text})
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{name} has {{ followed by")


def test_an_existing_folder_is_left_as_it_was(bake_into: BakeInto, tmp_path: Path, template: Path) -> None:
    """Also when overwriting it was asked for and the answers are bad."""
    mine = tmp_path / "fraud-detection" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine\n")
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", "-f", "-o", str(tmp_path), "author= "]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert "author is empty; type some text" in result.stderr
    assert files_of(tmp_path) == {"fraud-detection/mine.txt": b"mine\n"}


@pytest.mark.parametrize("answer", ["package_name=class", "project_slug=a/b"])
def test_the_command_line_shows_the_sentence_and_fails(answer: str, template: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", "-o", str(tmp_path), answer]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"(package_name is 'class'|project_slug must be one folder name).*; type \w+", result.stdout + result.stderr)
    assert list(tmp_path.iterdir()) == []


def assert_carried(project: Path, project_name: str, description: str, author: str) -> None:
    assert lint.valid_in_its_language(project) == []
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about["description"] == description
    assert [person["name"] for person in about["authors"]] == [author]
    assert project_name in (project / "README.md").read_text(encoding="utf-8")
    if OPTIONS["license"][0] != "Apache-2.0":  # its text is word for word, and names nobody
        assert author in (project / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*NASTY, "x" * 200, " ".join(NASTY)[:200]], ids=lambda text: ascii(text)[:20])
def test_a_printable_text_is_carried(text: str, bake_into: BakeInto, tmp_path: Path) -> None:
    project = bake_into(tmp_path, project_slug="a-system", project_name=text, description=text, author=text)
    assert_carried(project, text, text, text)


def any_text() -> st.SearchStrategy[str]:
    pieces = st.lists(st.sampled_from([*NASTY, "\n", "\x00", "\u202e", "x" * 90]), max_size=5).map("".join)
    return st.one_of(st.text(max_size=210), pieces).filter(lambda text: not OPENS_A_TAG.search(text))


@settings(max_examples=40, deadline=None)
@given(project_name=any_text(), description=any_text(), author=any_text())
def test_any_text_is_carried_or_refused(bake_into: BakeInto, pre_hook: SimpleNamespace, project_name: str, description: str, author: str) -> None:
    answers = {"project_name": project_name, "description": description, "author": author, "project_slug": "a-system", "package_name": "a_system"}
    carried_or_refused(bake_into, pre_hook, answers)


def any_name() -> st.SearchStrategy[str]:
    pieces = ["a", "b2", "con", "data", "-", "_", ".", "..", "/", "\\", " ", "A", "7", "é", "\n", "'", '"', "}", "x" * 30]
    return st.lists(st.sampled_from(pieces), max_size=4).map("".join)


@settings(max_examples=40, deadline=None)
@given(slug=any_name(), package=any_name())
@example(slug="x" * 60, package="x" * 40)
@example(slug="a--b_c", package="a_")
def test_any_names_are_carried_or_refused(bake_into: BakeInto, pre_hook: SimpleNamespace, slug: str, package: str) -> None:
    texts = {"project_name": "A System", "description": "Does something", "author": "Us"}
    carried_or_refused(bake_into, pre_hook, {**texts, "project_slug": slug, "package_name": package})


def carried_or_refused(bake_into: BakeInto, pre_hook: SimpleNamespace, answers: dict[str, str]) -> None:
    mistakes = pre_hook.mistakes(answers, {})
    assert all(SENTENCE.fullmatch(mistake) for mistake in mistakes)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "deep", "out")
        out.mkdir(parents=True)
        try:
            project = bake_into(out, **answers)
        except (FailedHookException, UndefinedError):
            assert mistakes
            assert [path.name for path in Path(folder).rglob("*")] == ["deep", "out"]
        else:
            assert not mistakes
            assert project == out / answers["project_slug"]
            assert (project / "src" / answers["package_name"] / "__init__.py").is_file()
            assert_carried(project, *(answers[name] for name in TEXTS))


@given(project_name=any_text())
@example(project_name="🎉")
@example(project_name="x" * 59 + " y")
@example(project_name="x" * 39 + " y")
def test_the_names_made_from_any_project_name_are_well_formed(template: Path, project_name: str) -> None:
    """A digit in front and a name that is taken are left to the sentence that refuses them."""
    context = generate_context(str(template / "cookiecutter.json"), extra_context={"project_name": project_name})
    answers = prompt_for_config(context, no_input=True)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{,58}[a-z0-9])?", answers["project_slug"])
    assert re.fullmatch(r"[a-z0-9]([a-z0-9_]{,38}[a-z0-9])?", answers["package_name"])


@pytest.mark.parametrize("name", ["match", "json", "data", "numpy", "lpt1"])
def test_what_is_suggested_instead_is_accepted(name: str, pre_hook: SimpleNamespace) -> None:
    (sentence,) = pre_hook.package_mistakes(name)
    suggested = re.search(r"such as (\w+)\.", sentence)
    assert suggested
    assert list(pre_hook.package_mistakes(suggested[1])) == []


def test_no_package_may_hide_one_that_the_project_imports(template: Path, pre_hook: SimpleNamespace) -> None:
    """The hook's list grows with the imports, the tests' included."""
    paths = [path for name, path in lint.files(template, lint.PROJECT) if name.endswith(".py")]
    imports = {module for path in paths for module in lint.imported(path)} - {"__future__", "package"}
    assert imports
    assert {module for module in imports if not list(pre_hook.package_mistakes(module.lower()))} == set()


def test_no_project_may_be_named_like_its_own_dependency(bake_into: BakeInto, tmp_path: Path, pre_hook: SimpleNamespace) -> None:
    """Installers refuse a distribution that requires itself."""
    about = tomllib.loads((bake_into(tmp_path) / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = about["project"].get("optional-dependencies", {}), about.get("dependency-groups", {})
    lists = [about["project"]["dependencies"], *extras.values(), *groups.values()]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for one in lists for requirement in one if isinstance(requirement, str)}
    assert names
    assert {name for name in names if not list(pre_hook.slug_mistakes(name))} == set()
