"""Keeps the files of the chosen options, removes the others, and says what to do next.

Adding an option is one row in OPTIONS; adding or removing a choice needs no change here, because the choices are
the files that stand side by side. Standard library only, no network, and a second run changes nothing.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ANSWERS = r"""{{ cookiecutter | jsonify }}"""
# Before anybody answered, so with every choice; an update does not hand them over.
QUESTIONS = r"""{{ _cookiecutter | default({}) | jsonify }}"""


class Option(NamedTuple):
    """One row: where an option's choices stand, and where the files of the chosen one go."""

    answer: str  # its name in cookiecutter.json
    stand: str  # the choices' paths; * is the choice's name, which never begins with an underscore
    go: dict[str, str]  # from a path inside the choice ("" is all of it) to its place, where * is the choice; none: it stays
    without: tuple[str, ...] = ()  # choices that have no file


OPTIONS = (
    Option(
        "system",
        "systems/*",
        {
            "params.yaml": "params.yaml",
            "features.sql": "src/<package>/step3_data/features.sql",
            "simulator.py": "src/<package>/step3_data/simulator.py",
        },
    ),
    Option("tracking", "src/<package>/step4_model/tracking/*.py", {}),
    Option("data_remote", ".dvc/remotes/*", {"": ".dvc/config"}),
    Option("orchestrator", "orchestration/*", {}, without=("none",)),
    Option("deployment", "deploy/to/*", {"": "deploy/*"}),
    Option("ci", "ci/*", {"": "."}, without=("none",)),
    Option("license", "licenses/*", {"": "LICENSE"}),
)


def plan(answers: Mapping[str, str], files: Iterable[str], questions: Mapping[str, object] | None = None) -> tuple[dict[str, str], set[str]]:
    """Which files move where, and which are removed; raises ValueError when the chosen one's file is missing.

    Where the questions are known, only what is named like a choice counts: `cookiecutter -f` bakes over a project
    whose owner may have files of their own beside the choices.
    """
    present = set(files)
    moves: dict[str, str] = {}
    removals: set[str] = set()
    for option in OPTIONS:
        choices = standing(option, answers, present, (questions or {}).get(option.answer))
        kept = places(option, answers, present)
        if lost := lacking(option, answers, present, kept, done=not choices):
            raise ValueError(f"The template has no file {lost} for {option.answer} = {answers[option.answer]}; please report it to its authors.")
        moves |= kept
        removals |= choices - kept.keys()
    return {source: target for source, target in moves.items() if source != target}, removals


def standing(option: Option, answers: Mapping[str, str], files: Iterable[str], words: object = None) -> set[str]:
    """The files of all the option's choices, which are these words when it is a list, and else whatever stands there."""
    head, tail = (re.escape(part) for part in option.stand.replace("<package>", answers["package_name"]).split("*"))
    names = "|".join(map(re.escape, words)) if isinstance(words, list) else "[^/_][^/]*"
    choice = re.compile(rf"{head}({names}){tail}(/.*)?")
    return {file for file in files if choice.fullmatch(file)}


def places(option: Option, answers: Mapping[str, str], files: Iterable[str]) -> dict[str, str]:
    """From the files of the chosen one to their places."""
    root = chosen(option, answers)
    found: dict[str, str] = {}
    for inside, target in named(option, answers).items():
        source = str(PurePosixPath(root, inside))
        for file in files:
            if file == source:
                found[file] = target
            elif file.startswith(f"{source}/"):
                found[file] = str(PurePosixPath(target, file.removeprefix(f"{source}/")))
    return found


def chosen(option: Option, answers: Mapping[str, str]) -> str:
    return option.stand.replace("*", answers[option.answer]).replace("<package>", answers["package_name"])


def named(option: Option, answers: Mapping[str, str]) -> dict[str, str]:
    """The row's own table, with the answers filled in."""
    go = option.go or {"": option.stand}
    return {inside: target.replace("*", answers[option.answer]).replace("<package>", answers["package_name"]) for inside, target in go.items()}


def lacking(option: Option, answers: Mapping[str, str], files: set[str], kept: Mapping[str, str], *, done: bool) -> str:
    """A file that the chosen one should have and has not; when an earlier run is `done`, it may be in its place already."""
    if answers[option.answer] in option.without:
        return ""
    for inside, target in named(option, answers).items():
        source = str(PurePosixPath(chosen(option, answers), inside))
        there = any(file == source or file.startswith(f"{source}/") for file in kept)
        moved = done and any(file == target or file.startswith(f"{target}/") or target == "." for file in files)
        if not there and not moved:
            return source
    return ""


def apply(root: Path, moves: Mapping[str, str], removals: Iterable[str]) -> None:
    """Does what the plan says, and removes the folders that it empties."""
    for source, target in moves.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).replace(root / target)
    for file in removals:
        (root / file).unlink()
    for file in (*moves, *removals):
        remove_empty_parents(root, file)


def remove_empty_parents(root: Path, file: str) -> None:
    for parent in list(PurePosixPath(file).parents)[:-1]:
        folder = root / parent
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def main() -> int:
    answers = json.loads(ANSWERS)
    root = Path.cwd()
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        apply(root, *plan(answers, files, json.loads(QUESTIONS)))
    except ValueError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    slug = answers["project_slug"]
    print(f"{slug} is ready. Next:\n  cd {slug}\n  make run        (without make: README.md says what to type)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
