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


class Option(NamedTuple):
    """One row: where an option's choices stand, and where the files of the chosen one go."""

    answer: str  # its name in cookiecutter.json
    stand: str  # the choices' paths; * is the choice's name, which never begins with an underscore
    go: dict[str, str]  # from a file inside the chosen folder ("" is the choice itself) to its place; none: it stays


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
    Option("license", "licenses/*", {"": "LICENSE"}),
)


def plan(answers: Mapping[str, str], files: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Which files move where, and which are removed; raises ValueError when the chosen one's file is missing."""
    present = set(files)
    moves: dict[str, str] = {}
    removals: set[str] = set()
    for option in OPTIONS:
        choices = standing(option, answers, present)
        kept = places(option, answers)
        for source, target in kept.items():
            if source in present:
                moves[source] = target
            elif choices - kept.keys() or target not in present:
                chosen = answers[option.answer]
                raise ValueError(f"The template has no file {source} for {option.answer} = {chosen}; please report it to its authors.")
        removals |= choices - kept.keys()
    return {source: target for source, target in moves.items() if source != target}, removals


def standing(option: Option, answers: Mapping[str, str], files: Iterable[str]) -> set[str]:
    """The files of all the option's choices."""
    head, tail = (re.escape(part) for part in option.stand.replace("<package>", answers["package_name"]).split("*"))
    choice = re.compile(rf"{head}[^/_][^/]*{tail}(/.*)?")
    return {file for file in files if choice.fullmatch(file)}


def places(option: Option, answers: Mapping[str, str]) -> dict[str, str]:
    """From the files of the chosen one to their places."""
    chosen = option.stand.replace("*", answers[option.answer])
    go = {str(PurePosixPath(chosen, file)): target for file, target in option.go.items()} or {chosen: chosen}
    package = answers["package_name"]
    return {source.replace("<package>", package): target.replace("<package>", package) for source, target in go.items()}


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
        apply(root, *plan(answers, files))
    except ValueError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    slug, package = answers["project_slug"], answers["package_name"]
    print(f"{slug} is ready. Next:\n  cd {slug}\n  make run        (or: python -m {package} run)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
