"""Every variant of the template, in memory: each distinct output of each file over all combinations of options.

Names, texts and computed answers are rendered by cookiecutter's own context and Jinja environment, and the hook's plan
says what stays and where it goes, so the result is what a bake leaves on disk (tests compare the two byte for byte).

    python tests/variants.py            shows which options change which file
    python tests/variants.py --write    puts that table into CONTRIBUTING.md
"""

import functools
import math
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lint
from conftest import ROOT, copy_committed
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from covertable import make
from jinja2 import TemplateSyntaxError

BEGIN, END = "<!-- which options change which file: begin -->", "<!-- which options change which file: end -->"


class Template:
    """A folder shaped like this repository, read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        context = generate_context(str(root / "cookiecutter.json"))
        self.questions: dict[str, Any] = context["cookiecutter"]
        self.options = {name: raw for name, raw in self.questions.items() if isinstance(raw, list) and not name.startswith("_")}
        self.hook = SimpleNamespace(**runpy.run_path(str(root / "hooks" / "post_gen_project.py")))
        self.compiled = functools.cache(create_env_with_context(context).from_string)
        self.sources = {name.removeprefix(f"{lint.PROJECT}/"): path.read_text(encoding="utf-8") for name, path in lint.files(root, lint.PROJECT)}

        for name, text in self.sources.items():
            try:
                self.compiled(text)
            except TemplateSyntaxError as error:
                error.add_note(f"{name}:{error.lineno}")
                raise

    def render(self, text: str, answers: Any) -> str:
        return str(self.compiled(text).render(cookiecutter=answers))

    def whole(self, **answers: str) -> dict[str, str]:
        """The whole project by path, exactly as a bake with these answers leaves it."""
        context = generate_context(str(self.root / "cookiecutter.json"), extra_context=answers)
        carried = prompt_for_config(context, no_input=True)
        files = {self.render(name, carried): self.render(text, carried) for name, text in self.sources.items()}
        moves, removals = self.hook.plan(carried, files)
        return {moves.get(name, name): text for name, text in files.items() if name not in removals}

    def combinations(self) -> int:
        return math.prod(map(len, self.options.values()))

    def covering_array(self, strength: int) -> list[dict[str, str]]:
        """Answers in which every `strength` options meet in all their combinations of choices."""
        rows: list[dict[str, str]] = make(self.options, strength=min(strength, len(self.options)))
        return rows


class Lazy:
    """Stands in for `cookiecutter`: an option takes its value when it is first read, and every reading is kept.

    Its own names begin with an underscore, because Jinja looks for attributes before items.
    """

    def __init__(self, template: Template, texts: Mapping[str, str], path: Mapping[str, str]) -> None:
        self._template, self._texts, self._path = template, texts, path
        self._read: dict[str, str] = {}
        self._computed: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if choices := self._template.options.get(name):
            return self._read.setdefault(name, self._path.get(name, choices[0]))
        if name not in self._computed:
            raw = self._texts.get(name, self._template.questions[name])
            if not isinstance(raw, str):
                raise TypeError(f"{name} is neither a text nor a list of choices, and a file of the template reads it")
            self._computed[name] = self._template.render(raw, self)
        return self._computed[name]


class Output(NamedTuple):
    """What a file of the template becomes, and which choices were looked at for that."""

    path: str
    text: str
    choices: dict[str, str]
    source: str = ""


def outputs(template: Template, only: str = "", **texts: str) -> Iterator[Output]:
    """Every output of every file (that has `only` in it) over all combinations of options; `texts` are the other answers."""
    for source, text in template.sources.items():
        if re.search(only, text):
            yield from outputs_of(template, source, texts)


def outputs_of(template: Template, source: str, texts: Mapping[str, str]) -> Iterator[Output]:
    """One file's outputs: each path through its readings of options is taken once."""
    path: dict[str, str] | None = {}
    while path is not None:
        answers = Lazy(template, texts, path)
        if place := place_of(template, source, answers):
            yield Output(place, template.render(template.sources[source], answers), answers._read, template.render(source, answers))
        path = next_path(template, answers._read)


def next_path(template: Template, read: Mapping[str, str]) -> dict[str, str] | None:
    """The last option that has another choice takes it, and what was read after it is open again."""
    path = dict(read)
    while path:
        option, choice = path.popitem()
        choices = template.options[option]
        if choice != choices[-1]:
            return path | {option: choices[choices.index(choice) + 1]}
    return None


def place_of(template: Template, source: str, answers: Lazy) -> str:
    """Where the hook leaves the file, or nothing when it removes it."""
    name = template.render(source, answers)
    place = name
    for option in template.hook.OPTIONS:
        if template.hook.standing(option, answers, [name]):
            place = template.hook.places(option, answers, [name]).get(name, "") if place else ""
    return place


def distinct(found: Iterator[Output]) -> dict[str, list[Output]]:
    """The outputs that differ, by path, each with the first choices that led to it."""
    by_path: dict[str, dict[str, Output]] = {}
    for output in found:
        by_path.setdefault(output.path, {}).setdefault(output.text, output)
    return {path: list(texts.values()) for path, texts in by_path.items()}


def options_by_file(template: Template) -> dict[str, list[str]]:
    """Which options each file of a generated project depends on; those that stand side by side share a row."""
    found: dict[str, set[str]] = {}
    for output in outputs(template, package_name="<package>"):
        found.setdefault(row_of(template, output), set()).update(output.choices)
    return {name: [option for option in template.options if option in read] for name, read in sorted(found.items()) if read}


def row_of(template: Template, output: Output) -> str:
    """One row for a choice's own files, unless every choice has the same ones."""
    for option in template.hook.OPTIONS:
        if output.choices.keys() == {option.answer} and is_choice(option, output.source, template) and differ(option):
            return str(option.stand)
    return output.path


def differ(option: Any) -> bool:
    """Whether the choices may have other files than one another."""
    return not option.go or any("*" in place or place == "." for place in option.go.values())


def is_choice(option: Any, path: str, template: Template) -> bool:
    return bool(template.hook.standing(option, {"package_name": "<package>"}, [path]))


def table(template: Template) -> str:
    rows = (f"| `{name}` | {', '.join(f'`{option}`' for option in read)} |" for name, read in options_by_file(template).items())
    return "\n".join(("| file | changes with |", "|---|---|", *rows))


def table_is_true(template: Template, page: str) -> list[str]:
    """Complaints about the table in `page`; a row may outlive its file only where somebody removed the choice it belongs to."""
    written = set(re.findall(r"^\| `.*", page.partition(BEGIN)[2].partition(END)[0], re.MULTILINE))
    true = set(table(template).splitlines()[2:])
    existing = {output.path for output in outputs(template, package_name="<package>")}
    extra = [row for row in written - true if not of_a_removed_choice(template, row.split("`")[1], existing)]
    again = "run python tests/variants.py --write"
    return [f"CONTRIBUTING.md lacks {row}; {again}" for row in sorted(true - written)] + [
        f"CONTRIBUTING.md has {row}, which is not true; {again}" for row in sorted(extra)
    ]


def of_a_removed_choice(template: Template, name: str, existing: set[str]) -> bool:
    return name not in existing and any(is_choice(option, name, template) for option in template.hook.OPTIONS)


def with_table(page: str, rows: str) -> str:
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{rows}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = table(Template(copy_committed(Path(folder))))
    print(rows)
    if "--write" in sys.argv:
        contributing = ROOT / "CONTRIBUTING.md"
        page = contributing.read_text(encoding="utf-8") if contributing.exists() else f"# Contributing\n\n{BEGIN}\n{END}\n"
        contributing.write_text(with_table(page, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
