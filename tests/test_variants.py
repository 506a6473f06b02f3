"""Every variant: each distinct output passes its language's tools, and in whole projects the files agree."""

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import agreement
import languages
import lint
import pytest
from conftest import OPTIONS, files_of
from languages import Tool, name_of, shelve, write
from narrow import take_out
from test_answers import NASTY
from variants import Output, Template, distinct, outputs, table, table_is_true, with_table

BakeInto = Callable[..., Path]
Found = dict[str, list[Output]]
STRENGTH = 3  # any three options meet in all their combinations
TEXTS = ("project_name", "description", "author")


@pytest.fixture(scope="session")
def sources(template: Path) -> Template:
    return Template(template)


@pytest.fixture(scope="session")
def found(sources: Template) -> Found:
    return distinct(outputs(sources))


@pytest.fixture(scope="session")
def shelf(found: Found, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shelve(tmp_path_factory.mktemp("shelf"), found)


@pytest.fixture(scope="session")
def projects(sources: Template, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return put_down(sources, tmp_path_factory.mktemp("projects"))


def put_down(sources: Template, folder: Path) -> list[Path]:
    """Whole projects in which any three options meet in all their combinations."""
    return [put(sources.whole(**answers), folder / "-".join(answers[option] for option in sources.options)) for answers in rows(sources)]


def rows(sources: Template) -> list[dict[str, str]]:
    return sources.covering_array(STRENGTH)


def put(project: dict[str, str], folder: Path) -> Path:
    for name, text in project.items():
        write(folder / name, text)
    return folder


# ---- each distinct output ------------------------------------------------------------------


@pytest.mark.parametrize("check", languages.CHECKS, ids=name_of)
def test_every_output_is_sound_in_its_language(
    check: languages.Check, found: Found, shelf: Path, record_property: Callable[[str, object], None]
) -> None:
    if isinstance(check, Tool) and not check.program():
        record_property("summary", f"NOT CHECKED: {check.files}, because {check.command.split()[0]} is not installed")
        pytest.skip(f"{check.command.split()[0]} is not installed")
    assert languages.explained(check(shelf), found) == []


def test_the_same_answers_give_the_same_outputs(template: Path, found: Found, record_property: Callable[[str, object], None]) -> None:
    start = time.perf_counter()
    again = Template(template)
    every = list(outputs(again))
    assert distinct(iter(every)) == found
    count = f"{len(every):,} renders, {sum(map(len, found.values())):,} distinct outputs of {len(found):,} files"
    record_property("summary", f"{again.combinations():,} combinations of options: {count}, {time.perf_counter() - start:.1f} s")


def test_every_output_is_what_the_whole_project_has(sources: Template, found: Found) -> None:
    """Seen from both sides: an output turns up in the project with its choices, and projects hold nothing else."""
    for path, each in found.items():
        for output in each:
            assert sources.whole(**output.choices)[path] == output.text
    for answers in rows(sources):
        for path, text in sources.whole(**answers).items():
            assert text in [output.text for output in found[path]]


def test_no_text_breaks_a_language(sources: Template, tmp_path: Path) -> None:
    """Names that each have broken some format, in every variant of every file that shows them."""
    assert lint.valid_in_its_language(shelve(tmp_path, with_texts(sources, NASTY))) == []


def with_texts(sources: Template, texts: Sequence[str]) -> Found:
    shows_one = "|".join(TEXTS)
    return distinct(output for text in texts for output in outputs(sources, shows_one, project_slug="a-system", **dict.fromkeys(TEXTS, text)))


# ---- whole projects ------------------------------------------------------------------------


@pytest.mark.parametrize("check", agreement.CHECKS, ids=lambda check: check.__name__)
def test_the_files_of_a_project_agree(check: agreement.Check, projects: list[Path]) -> None:
    assert complaints_of(check, projects) == {}


def complaints_of(check: agreement.Check, projects: Sequence[Path]) -> dict[str, str]:
    """Each complaint with the first project that has it; its name is its choices."""
    found: dict[str, str] = {}
    for project in projects:
        for complaint in check(project):
            found.setdefault(complaint, project.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", [agreement.layers_hold, agreement.types_hold], ids=lambda check: check.__name__)
def test_every_distinct_package_holds(check: agreement.Check, projects: list[Path]) -> None:
    assert complaints_of(check, distinct_packages(projects)) == {}


def distinct_packages(projects: Sequence[Path]) -> list[Path]:
    packages = {frozenset(files_of(project / "src").items()): project for project in projects}
    return list(packages.values())


# ---- the fast renderer against cookiecutter ------------------------------------------------


def some_answers() -> list[dict[str, str]]:
    """Random combinations of options, and texts that each have broken some format."""
    dice = random.Random(6)
    texts = [{}, {}, {}, *(dict.fromkeys(TEXTS, text) for text in ("C:\\new\\table", '"""', "'''", " ".join(NASTY)[:200]))]
    slug = {"project_slug": "a-system", "package_name": "other_name"}
    return [{name: dice.choice(choices) for name, choices in OPTIONS.items()} | (text and text | slug) for text in texts]


@pytest.mark.parametrize("answers", some_answers(), ids=lambda answers: "-".join(answers[option] for option in OPTIONS))
def test_rendering_in_memory_equals_a_bake(answers: dict[str, str], sources: Template, bake_into: BakeInto, tmp_path: Path) -> None:
    expected = {name: text.encode() for name, text in sources.whole(**answers).items()}
    assert files_of(bake_into(tmp_path, **answers)) == expected


# ---- which options change which file -------------------------------------------------------


def test_the_table_in_contributing_is_true(sources: Template) -> None:
    assert table_is_true(sources, (sources.root / "CONTRIBUTING.md").read_text(encoding="utf-8")) == []


def test_a_table_that_is_not_true_is_caught(sources: Template) -> None:
    page = (sources.root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    row = re.findall(r"^\| `.*", page, re.MULTILINE)[0]
    assert table_is_true(sources, page.replace(f"{row}\n", ""))
    assert table_is_true(sources, page.replace(row, f"{row}\n| `README.md` | `{next(iter(OPTIONS))}` |"))
    assert table_is_true(sources, with_table(page, "")) != []


# ---- planted faults: every check catches what it is for ------------------------------------


def short(name: str) -> str:
    """A tool's name; of those that know several schemas, the schema's."""
    return name.split()[2 if name.startswith("check-jsonschema") else 0]


LANGUAGE_FAULTS = [
    ("valid_in_its_language", "a.json", "{'a': 1}\n"),
    ("no_trailing_blanks", "README.md", "two blanks  \n"),
    ("final_newline", "README.md", "no newline"),
    ("no_tag_left", "README.md", "For {{ cookiecutter.project_name }}\n"),
    ("no_tag_left", "Makefile", "{% if mlflow %}\n"),
    ("no_key_twice", "a.yaml", "a: {b: 1, b: 2}\n"),
    ("dvc_reads_its_stages", "dvc.yaml", "stages: {data: {command: python -m sound data}}\n"),
    ("dvc_reads_its_stages", "dvc.yaml", "stages: {data: {cmd: python -m other data}}\n"),
    ("make_reads_its_targets", "Makefile", "run: missing\n\techo\n"),
    ("ruff", "src/sound/a.py", "import os\n"),
    ("validate-pyproject", "pyproject.toml", '[project]\nname = "a b"\nversion = "1"\n'),
    ("hadolint", "deploy/Dockerfile", "FROM python\n"),
    ("vendor.compose-spec", "deploy/compose.yaml", "services: {a: {port: 1}}\n"),
    ("pre-commit", ".pre-commit-config.yaml", "repos: [{hooks: []}]\n"),
    ("promtool", "deploy/prometheus.yml", "scrape_configs: [{name: a}]\n"),
    ("amtool", "deploy/alertmanager.yml", "route: {receiver: nobody}\n"),
    ("actionlint", ".github/workflows/a.yml", "on: push\njobs: {a: {runs-on: ubuntu-24.04, if: github.nobody, steps: [{run: ls}]}}\n"),
    ("actionlint", ".github/workflows/a.yml", "on: push\njobs: {a: {runs-on: ubuntu-24.04, steps: [{run: cat $GITHUB_SHA}]}}\n"),
    ("zizmor", ".github/workflows/a.yml", "on: pull_request_target\njobs: {a: {runs-on: ubuntu-24.04, steps: [{uses: actions/checkout@v4}]}}\n"),
    ("vendor.github-workflows", ".github/workflows/a.yml", "on: push\njobs: {a: {run-on: ubuntu-24.04}}\n"),
    ("vendor.gitlab-ci", ".gitlab-ci.yml", "a: {scripts: [ls]}\n"),
    ("kubernetes-validate", "deploy/kubernetes/base/service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {port: 1}\n"),
    ("rumdl", "README.md", "# Title\n\n[there](#nowhere)\n"),
]
LANGUAGE_CHECKS = {short(name_of(check)): check for check in languages.CHECKS}


@pytest.mark.parametrize(("check", "name", "text"), LANGUAGE_FAULTS)
def test_the_language_check_catches_a_planted_fault(check: str, name: str, text: str, tmp_path: Path) -> None:
    sound = {"pyproject.toml": "[tool.ruff]\n", "src/sound/__init__.py": ""}
    shelf = shelve(tmp_path, {path: [Output(path, content, {})] for path, content in (sound | {name: text}).items()})
    found = LANGUAGE_CHECKS[check]
    if isinstance(found, Tool) and not found.program():
        pytest.skip(f"{check} is not installed")
    assert found(shelf)


def test_every_language_check_has_a_planted_fault() -> None:
    assert {check for check, _, _ in LANGUAGE_FAULTS} == LANGUAGE_CHECKS.keys()


END = r"\Z"
AGREEMENT_FAULTS = [
    ("imports_resolve", "src/*/__main__.py", r"^from \.params import ", "from .params import Nothing, "),
    ("imports_resolve", "src/*/params.py", "^import yaml", "import yaml\nfrom . import nowhere"),
    ("imports_are_declared", "src/*/params.py", "^import yaml", "import requests\nimport yaml"),
    ("serving_needs_only_its_own", "src/*/params.py", "^import yaml", "import pandas\nimport yaml"),
    ("serving_needs_only_its_own", "pyproject.toml", '^    "numpy.*\n', ""),
    ("nothing_declared_is_unused", "pyproject.toml", r"^dependencies = \[", 'dependencies = [\n    "requests>=2",'),
    ("nothing_declared_is_unused", "pyproject.toml", r"^dependencies = \[", 'dependencies = [\n    "pandas>=2",'),
    ("nothing_declared_is_unused", "pyproject.toml", r"^train = \[", 'train = [\n    "requests>=2",'),
    ("nothing_declared_is_unused", "pyproject.toml", r"^dev = \[", 'dev = [\n    "types-requests>=2",'),
    ("targets_exist", "README.md", END, "Type `make fly`.\n"),
    ("targets_exist", "README.md", END, "```\nmake fly\n```\n"),
    ("targets_exist", ".devcontainer/devcontainer.json", "make setup", "make fly"),
    ("verbs_exist", "README.md", END, "`python -m PACKAGE fly`\n"),
    ("verbs_exist", "README.md", END, "`python -m PACKAGE serve --fast`\n"),
    ("stages_agree", "dvc.yaml", r"params\.py$", "settings.py"),
    ("stages_agree", "dvc.yaml", r"^      - framing$", "      - frame"),
    ("stages_agree", "dvc.yaml", r"^  framing:$", "  frame:"),
    ("stages_agree", "dvc.yaml", r"^    outs:\n      - reports/1-requirements", "    outs:\n      - reports/1"),
    ("paths_exist", "README.md", END, "See `reports/5-eval/index.html`.\n"),
    ("paths_exist", "README.md", END, "See `deploy/nowhere.yml`.\n"),
    ("links_are_alive", "README.md", END, "\n[there](missing.md)\n"),
    ("links_are_alive", "README.md", END, "\n[there](#missing)\n"),
    ("ports_agree", "params.yaml", r"^  port: \d+", "  port: 9999"),
    ("ports_agree", ".devcontainer/devcontainer.json", r'"forwardPorts": \[\d+', '"forwardPorts": [9999'),
    ("ports_agree", "README.md", END, "Open http://localhost:9999\n"),
    ("metrics_agree", "src/*/step6_deployment/service.py", r'"predict_requests"', '"predict_calls"'),
    ("metrics_agree", "src/*/step7_monitoring/alerts.yml", r"\bup\{", "alive{"),
    ("metrics_agree", "src/*/step7_monitoring/dashboard.json", r"predict_latency_seconds_bucket", "predict_latency_bucket"),
]
AGREEMENT_CHECKS = {check.__name__: check for check in agreement.CHECKS}


@pytest.fixture
def plant(sources: Template, projects: list[Path], tmp_path: Path) -> Callable[[str, str, str], Path]:
    """The default project with one change; beside the others, so that type checking is quick."""

    def planted(pattern: str, old: str, new: str) -> Path:
        project = sources.whole()
        name = next(name for name in project if Path(name).match(pattern))
        project[name], changes = re.subn(old, lambda _: new, project[name], count=1, flags=re.MULTILINE)
        assert changes, f"{name} has nothing like {old}"
        return put(project, projects[0].parent / tmp_path.name)

    return planted


@pytest.mark.parametrize(("check", "pattern", "old", "new"), AGREEMENT_FAULTS)
def test_the_agreement_check_catches_a_planted_fault(
    check: str, pattern: str, old: str, new: str, plant: Callable[[str, str, str], Path], sources: Template, tmp_path: Path
) -> None:
    found = AGREEMENT_CHECKS[check]
    before = found(put(sources.whole(), tmp_path / "before"))
    assert set(found(plant(pattern, old, new))) - set(before)


def test_every_agreement_check_has_a_planted_fault() -> None:
    assert {check for check, *_ in AGREEMENT_FAULTS} == AGREEMENT_CHECKS.keys()


@pytest.mark.slow
def test_an_upward_import_is_caught(plant: Callable[[str, str, str], Path]) -> None:
    assert agreement.layers_hold(plant("src/*/params.py", "^import yaml", "import yaml\nfrom .step7_monitoring import alerts"))


@pytest.mark.slow
def test_a_wrong_type_is_caught(plant: Callable[[str, str, str], Path]) -> None:
    complaints = agreement.types_hold(plant("src/*/params.py", END, 'planted: int = "text"\n'))
    assert any(re.search(r"params\.py:\d+: error: Incompatible types in assignment", complaint) for complaint in complaints)


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    """A template to change."""
    return Path(shutil.copytree(template, tmp_path / "template"))


def add(copy: Path, name: str, text: str) -> Template:
    """The template with one more file, or with a longer one."""
    path = copy / lint.PROJECT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + text, encoding="utf-8")
    return Template(copy)


def files_of_choices(sources: Template) -> Iterator[tuple[str, str, str]]:
    """Each option's last choice with the files that only this choice has."""
    for option in sources.hook.OPTIONS:
        choice = sources.options[option.answer][-1]
        for name in sources.hook.places(option, {"package_name": lint.PACKAGE, option.answer: choice}, sources.sources):
            yield option.answer, choice, name


def test_an_undeclared_import_in_one_options_file_is_caught(copy: Path, sources: Template, tmp_path: Path) -> None:
    """In the file of a choice that is not the default."""
    modules = [name for option, _, name in files_of_choices(sources) if name.endswith(".py") and len(OPTIONS[option]) > 1]
    if not modules:
        pytest.skip("no option has a second choice with a module of its own here")
    name = modules[0]
    changed = add(copy, name, "import requests\n")
    complaints = complaints_of(AGREEMENT_CHECKS["imports_are_declared"], put_down(changed, tmp_path / "projects"))
    assert len(complaints) == 1
    assert "imports requests" in next(iter(complaints))
    assert AGREEMENT_CHECKS["imports_are_declared"](put(changed.whole(), tmp_path / "default")) == []


def test_one_wrong_combination_of_all_options_is_caught(copy: Path, tmp_path: Path) -> None:
    """However many options must meet for it: here each has its last choice."""
    meet = " and ".join(f"cookiecutter.{option} == '{OPTIONS[option][-1]}'" for option in OPTIONS)
    changed = add(copy, "odd.json", '{"a": "{{ \'"\' if ' + meet + " else '' }}\"}\n")
    found = distinct(outputs(changed))
    complaints = languages.explained(lint.valid_in_its_language(shelve(tmp_path / "shelf", found)), found)
    assert [complaint.split(":")[0] for complaint in complaints] == [f"odd.json ({', '.join(f'{o}={OPTIONS[o][-1]}' for o in OPTIONS)})"]


def test_a_name_that_breaks_yaml_is_caught(copy: Path, tmp_path: Path) -> None:
    changed = add(copy, "odd.yaml", "name: {{ cookiecutter.project_name }}\n")
    complaints = lint.valid_in_its_language(shelve(tmp_path / "shelf", with_texts(changed, NASTY)))
    assert any("/odd.yaml" in complaint for complaint in complaints)


def test_a_leftover_tag_is_caught(copy: Path, tmp_path: Path) -> None:
    changed = add(copy, "README.md", "{{ '{{ cookiecutter.system }}' }}\n")
    complaints = languages.no_tag_left(shelve(tmp_path / "shelf", distinct(outputs(changed))))
    assert {complaint.split("/")[1].split(":")[0] for complaint in complaints} == {"README.md"}


# ---- narrowing the template ----------------------------------------------------------------


def several(option: str) -> Any:
    """An option, for tests that take out one of its choices and leave another."""
    few = pytest.mark.skipif(len(OPTIONS[option]) == 1, reason=f"{option} has a single choice here, so none can go")
    return pytest.param(option, marks=few)


@pytest.mark.parametrize("option", [several(option) for option in OPTIONS])
def test_removing_a_choice_needs_no_other_edit(option: str, copy: Path, sources: Template, tmp_path: Path) -> None:
    """The default one, which more depends on: its word and its files go, and every static check stays green."""
    take_out(copy, [(option, OPTIONS[option][0])])
    narrowed = Template(copy)
    assert OPTIONS[option][0] not in narrowed.options[option]
    assert [complaint for rule in lint.RULES for complaint in rule(copy)] == []
    assert files_made_by(narrowed) <= files_made_by(sources), "it makes a file that its language's tools have not seen"
    projects = put_down(narrowed, tmp_path / "projects")
    assert {complaint: at for check in agreement.CHECKS for complaint, at in complaints_of(check, projects).items()} == {}
    assert table_is_true(narrowed, (copy / "CONTRIBUTING.md").read_text(encoding="utf-8")) == []


def files_made_by(template: Template) -> set[tuple[str, str]]:
    return {(output.path, output.text) for output in outputs(template)}


def test_a_row_may_outlive_the_choice_it_belongs_to_and_no_other(copy: Path, sources: Template) -> None:
    modules = [found for found in files_of_choices(sources) if found[2].startswith("src/") and len(OPTIONS[found[0]]) > 1]
    if not modules:
        pytest.skip("no option has a second choice with a module in the package here")
    option, choice, name = modules[0]
    other = next(each for each in OPTIONS if each != option)
    page = with_table("", table(add(copy, name, f"# {{{{ cookiecutter.{other} }}}}\n")))
    assert table_is_true(sources, page)
    take_out(copy, [(option, choice)])
    assert table_is_true(Template(copy), page) == []
