"""How long things take, as ratios, because absolute times differ between machines. Run with `make bench`."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(times):
        start = perf_counter()
        work()
        taken.append(perf_counter() - start)
    return statistics.median(taken)


def shell(folder: Path, *command: str, source: Path | None = None) -> str:
    """Run a command quietly; it must succeed."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | ({"PYTHONPATH": str(source)} if source else {})
    return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def empty_template(folder: Path) -> Path:
    """The least a template can be: one question, one file."""
    project = folder / "empty" / "{{cookiecutter.project_slug}}"
    project.mkdir(parents=True)
    (folder / "empty" / "cookiecutter.json").write_text('{"project_slug": "empty"}')
    (project / "README.md").write_text("# {{ cookiecutter.project_slug }}\n")
    return folder / "empty"


def clean_copy(folder: Path) -> Path:
    """What git would commit."""
    for name in shell(ROOT, "git", "ls-files", "-co", "--exclude-standard").splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def bake_ratio(scratch: Path, template: Path) -> tuple[float, float]:
    """Seconds of a bake from the command line: ours, and an empty template's."""
    cookiecutter = str(BIN / "cookiecutter")
    empty = empty_template(scratch)
    ours = seconds(lambda: shell(scratch, cookiecutter, "--no-input", "-f", "-o", str(scratch / "ours"), str(template)), 5)
    theirs = seconds(lambda: shell(scratch, cookiecutter, "--no-input", "-f", "-o", str(scratch / "theirs"), str(empty)), 5)
    return ours, theirs


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        template = clean_copy(scratch / "template")
        ours, theirs = bake_ratio(scratch, template)
        project = scratch / "ours" / "fraud-detection"
        package, source = "fraud_detection", project / "src"
        shell(project, "git", "init", "--quiet")
        verbs = ("requirements", "framing", "data", "model", "evaluation", "deployment", "monitoring")
        imports = seconds(
            lambda: [shell(project, sys.executable, "-c", f"import {package}.step{i + 1}_{v}.stage", source=source) for i, v in enumerate(verbs)]
        )
        run = seconds(lambda: shell(project, sys.executable, "-m", package, "run", source=source))
        again = seconds(lambda: shell(project, sys.executable, "-m", package, "run", source=source), 3)
        steps = {
            v: seconds(lambda v=v: shell(project, sys.executable, "-m", package, v, source=source))
            for v in verbs
            if v not in ("evaluation", "deployment")
        }
        tests = seconds(lambda: shell(project, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", source=source))
        files = len(shell(project, "git", "ls-files", "-co", "--exclude-standard").splitlines())
        lines = sum(len(p.read_text().splitlines()) for p in source.rglob("*.py"))
        print(f"bake                     {ours:6.2f} s, {ours / theirs:.2f} x an empty template's ({theirs:.2f} s)")
        print(f"make run, first          {run:6.1f} s, of which imports of the seven steps {imports / run:.0%} ({imports:.1f} s)")
        print(f"make run, nothing to do  {again:6.1f} s, {again / run:.0%} of the first: DVC's own share")
        for verb, taken in steps.items():
            print(f"  {verb:<22} {taken:6.1f} s alone, {taken / run:.0%} of a run")
        print(f"its tests                {tests:6.1f} s, {tests / run:.2f} x a run")
        print(f"size                     {files} files, {lines} lines of Python in src, blank lines and docstrings included")


if __name__ == "__main__":
    main()
