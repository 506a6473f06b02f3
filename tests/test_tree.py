"""The template's files before rendering: they keep the rules of lint.py, and every rule catches what it is for."""

import re
from pathlib import Path

import lint
import pytest

PROJECT = lint.PROJECT
BLOCK = "{" + "% if cookiecutter.tracking == 'mlflow' %" + "}"


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_the_template_keeps_the_rule(rule: lint.Rule, template: Path) -> None:
    assert rule(template) == []


FAULTS = [
    (lint.valid_in_its_language, "src/a.py", "x = {{ cookiecutter.tracking \n"),
    (lint.valid_in_its_language, "src/a.py", "from .tracking import {{ cookiecutter.tracking }}\n"),
    (lint.valid_in_its_language, "src/a.py", "from {{ cookiecutter.package_name }} import params\n"),
    (lint.valid_in_its_language, "tests/a.py", "from {{ cookiecutter.tracking }} import x\n"),
    (lint.valid_in_its_language, "params.yaml", "a: [1\n"),
    (lint.valid_in_its_language, "params.yaml", "a: {{ cookiecutter.tracking }}\n"),
    (lint.valid_in_its_language, "a.toml", "a = {{ cookiecutter.tracking }}\n"),
    (lint.valid_in_its_language, "a.json", "{'a': 1}\n"),
    (lint.valid_in_its_language, "README.md", b"caf\xe9\n"),
    (lint.tags_only_in_strings, "src/a.py", "x = 1  # {{ cookiecutter.tracking }}\n"),
    (lint.tags_only_in_strings, "src/a.py", "x = {{1: 2}}\n"),
    (lint.tags_only_in_strings, "a.toml", "a = 1  # {{ cookiecutter.tracking }}\n"),
    (lint.tags_only_in_strings, "a.yaml", "a: The {{ cookiecutter.__project_name }}\n"),
    (lint.tags_only_in_strings, "a.yaml", "a: 'The {{ cookiecutter.__project_name }}'\n"),
    (lint.tags_only_in_strings, "a.yaml", "a: 1  # {{ cookiecutter.tracking }}\n"),
    (lint.no_blocks, "a.toml", f"# {BLOCK}\n"),
    (lint.no_blocks, "README.md", f"{BLOCK}MLflow\n"),
    (lint.no_blocks, "README.md", "# Title {" + "#anchor}\n"),
    (lint.only_our_tags, "src/a.py", 'x = f"body {{ color: {INK} }}"\n'),
    (lint.only_our_tags, "deploy/dashboard.json", '{"legend": "{{instance}}"}\n'),
    (lint.only_our_tags, "ci.yaml", 'a: "${{ secrets.TOKEN }}"\n'),
    (lint.free_text_is_escaped, "pyproject.toml", 'description = "{{ cookiecutter.description }}"\n'),
    (lint.free_text_is_escaped, "Makefile", "\techo {{ cookiecutter.project_name }}\n"),
    (lint.no_conditional_names, "{{ cookiecutter.tracking }}.py", "x = 1\n"),
    (lint.no_conditional_names, BLOCK + "a/b.py", "x = 1\n"),
    (lint.names_that_windows_takes, "aux.py", "x = 1\n"),
    (lint.names_that_windows_takes, "com1", "x\n"),
    (lint.names_that_windows_takes, "a:b.md", "x\n"),
    (lint.names_that_windows_takes, "notes.", "x\n"),
    (lint.no_trailing_blanks, "README.md", "two blanks  \n"),
    (lint.no_trailing_blanks, "a.py", "x = 1\r\n"),
    (lint.final_newline, "README.md", "no newline"),
    (lint.final_newline, "README.md", "two newlines\n\n"),
    (lint.nothing_binary, "logo.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00"),
    (lint.hooks_need_only_python, "../hooks/post_gen_project.py", "import yaml\n"),
    (lint.hooks_need_only_python, "../hooks/post_gen_project.py", "def main():\n    from urllib.request import urlopen\n"),
    (lint.no_package_hosts, "uv.lock", "version = 1\n"),
    (lint.no_package_hosts, "pyproject.toml", '[tool.uv]\nindex-url = "https://example.org"\n'),
]


@pytest.mark.parametrize(("rule", "name", "content"), FAULTS)
def test_the_rule_catches_a_planted_fault(rule: lint.Rule, name: str, content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / PROJECT / name
    path.parent.mkdir(parents=True)
    (tmp_path / "hooks").mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert rule(tmp_path), f"{rule.__name__} did not see it"


def test_two_names_that_differ_only_in_case_are_caught(tmp_path: Path) -> None:
    for name in ("Report.md", "report.md"):
        (tmp_path / name).write_text("x\n")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this disk does not tell them apart")
    assert len(lint.names_that_windows_takes(tmp_path)) == len(list(tmp_path.iterdir()))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(lint.RULES)


def test_a_sound_tree_has_no_complaints(tmp_path: Path) -> None:
    """The rules do not cry wolf: tags in strings of every language pass."""
    sound = {
        "src/{{cookiecutter.package_name}}/a.py": 'NAME = "{{ cookiecutter.__project_name }}"\n',
        "pyproject.toml": 'name = "{{ cookiecutter.project_slug }}"\n',
        "dvc.yaml": 'cmd: "python -m {{ cookiecutter.package_name }}"\ndeps:\n  - src/{{ cookiecutter.package_name }}\n',
        "a.yaml": 'author: "{{ cookiecutter.__author }}"\n',
        "a.json": '{"{{ cookiecutter.project_slug }}": ["{{ cookiecutter.__author }}"]}\n',
        "README.md": "# {{ cookiecutter.project_name }}\n",
        "src/{{cookiecutter.package_name}}/__init__.py": "",
        "tests/test_a.py": "from {{ cookiecutter.package_name }}.params import load\nimport {{ cookiecutter.package_name }}\n",
    }
    for name, content in sound.items():
        path = tmp_path / PROJECT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert [complaint for rule in lint.RULES for complaint in rule(tmp_path)] == []


def test_the_exceptions_are_listed_in_contributing(template: Path) -> None:
    """Each names a file that exists and still needs its exception."""
    contributing = (template / "CONTRIBUTING.md").read_text(encoding="utf-8") if lint.BLOCKS_ALLOWED else ""
    for name in lint.BLOCKS_ALLOWED:
        assert re.search(r"\{[%#]", (template / name).read_text(encoding="utf-8"))
        assert name.removeprefix(f"{PROJECT}/") in contributing
