"""The template as a platform group narrows it: a choice's files go and its word in cookiecutter.json, and nothing else.

python tests/narrow.py tracking=wandb ci=gitlab ci=none     takes these choices out of this repository
"""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from conftest import ROOT, copy_committed
from lint import PACKAGE, PROJECT, files

Choice = tuple[str, str]  # an option and one of its choices


def take_out(root: Path, choices: Iterable[Choice]) -> None:
    """Removes the choices from the template in `root`; raises ValueError for one that it has not, or that is the option's last."""
    questions = root / "cookiecutter.json"
    for option, choice in choices:
        text = questions.read_text(encoding="utf-8")
        words = json.loads(text).get(option)
        if option.startswith("_") or not isinstance(words, list) or choice not in words or len(words) == 1:
            raise ValueError(f"{option}={choice} cannot go: name one of several choices of an option; cookiecutter.json has {option}: {words}")
        left = json.dumps([word for word in words if word != choice], ensure_ascii=False)
        head, _, tail = re.split(rf'(?<="{option}": )(\[.*?\])', text, maxsplit=1, flags=re.DOTALL)
        questions.write_text(head + left + tail, encoding="utf-8")
        for path in [root / PROJECT / file for file in files_of_choice(root, option, choice)]:
            path.unlink()
            for folder in takewhile(lambda folder: not any(folder.iterdir()), path.parents):  # cookiecutter would bake empty ones
                folder.rmdir()


def files_of_choice(root: Path, option: str, choice: str) -> list[str]:
    """The files that only this choice has, as the hook's table says."""
    hook = runpy.run_path(str(root / "hooks" / "post_gen_project.py"))
    row = next(row for row in hook["OPTIONS"] if row.answer == option)
    found = [name.removeprefix(f"{PROJECT}/") for name, _ in files(root, PROJECT)]
    return list(hook["places"](row, {"package_name": PACKAGE, option: choice}, found))


def narrowed(folder: Path, choices: Iterable[Choice]) -> Path:
    """A copy of this repository without the choices, in a git repository of its own."""
    copy_committed(folder)
    take_out(folder, choices)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    return folder


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    try:
        take_out(ROOT, [(option, choice) for option, _, choice in (word.partition("=") for word in sys.argv[1:])])
    except ValueError as mistake:
        sys.exit(str(mistake))
