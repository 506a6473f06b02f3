"""How long things take, as ratios, because absolute times differ between machines. Run with `make bench`.

`python tests/bench.py adopt 1000000 10000000` instead adopts tables of so many rows and 20 columns, as CSV and as Parquet, and takes
them to data/prepared; it prints seconds and the most memory of each command. Ten million rows need 12 GB of disk on the way.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import duckdb

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


LARGE = """SELECT i AS transaction, TIMESTAMP '2024-01-01' + INTERVAL (i * 3) SECOND AS happened, 'c' || hash(i) % 100000 AS customer,
    CASE hash(i, 1) % 4 WHEN 0 THEN 'north' WHEN 1 THEN 'east' WHEN 2 THEN 'south' ELSE 'west' END AS region, hash(i, 2) % 900 + 100 AS shop,
    hash(i, 3) % 2 = 0 AS online, round(random() * 500, 2) AS amount, hash(i, 4) % 80 + 18 AS age, {}, CASE WHEN random() < 0.02 + 0.1 *
    (hash(i, 1) % 4 = 0)::INT + 0.1 * (hash(i, 4) % 80 > 60)::INT THEN 'yes' ELSE 'no' END AS churned FROM range({}) AS r(i)"""


def large_table(path: Path, rows: int) -> None:
    """Twenty columns: a key, a time, an entity, categories, a boolean, numbers with gaps, and a target that some of them tell."""
    others = ", ".join(f"CASE WHEN random() < 0.95 THEN round(random() * {10 ** (n % 5)}, {n % 4}) END AS measure_{n}" for n in range(11))
    connection = duckdb.connect(config={"memory_limit": "1GB", "temp_directory": str(path.parent / "spill"), "preserve_insertion_order": False})
    connection.execute(f"COPY ({LARGE.format(others, rows)}) TO '{path}' (FORMAT {path.suffix[1:]}{', HEADER' * (path.suffix == '.csv')})")


def measured(folder: Path, *command: str) -> tuple[float, float]:
    """Seconds of a command, and the most memory it held, in GB."""
    start = perf_counter()
    child = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder / "src")}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed in {folder}")
    return perf_counter() - start, usage.ru_maxrss / 1e6


def adopt_large(sizes: list[int]) -> None:
    """Print what adopting large tables takes."""
    for kind in ("parquet", "csv"):
        for rows in sizes:
            with tempfile.TemporaryDirectory() as folder:
                scratch = Path(folder)
                large_table(scratch / f"large.{kind}", rows)
                shell(scratch, str(BIN / "cookiecutter"), "--no-input", "-o", folder, str(clean_copy(scratch / "template")), "tracking=files")
                project = scratch / "fraud-detection"
                shell(project, "git", "init", "--quiet")
                verb = (sys.executable, "-m", "fraud_detection")
                figures = [measured(project, *verb, "adopt", str(scratch / f"large.{kind}"), "--target", "churned")]
                (scratch / f"large.{kind}").unlink()
                figures += [measured(project, *verb, step) for step in ("requirements", "framing", "data")][-1:]
                said = ", ".join(f"{name} {s:6.1f} s, {gb:.2f} GB" for name, (s, gb) in zip(("adopt", "data"), figures, strict=True))
                print(f"{kind:<8} {rows:>10,} rows: {said}", flush=True)


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["adopt"]:
        adopt_large([int(n) for n in sys.argv[2:]])
        return
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
            v: seconds(partial(shell, project, sys.executable, "-m", package, v, source=source))
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
