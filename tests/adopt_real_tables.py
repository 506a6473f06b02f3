"""Real tables through adopt, run, the generated tests and one answer of the service; prints what came of each.

    python tests/adopt_real_tables.py FOLDER [NAME …]    (or REAL_TABLES=FOLDER)
    python tests/adopt_real_tables.py LIST [PATH …]      any tables: LIST has one a line, its path and the flags, as `adopt` takes them

FOLDER holds flights, birds, spamassassin and phishing as .csv.gz; none of them may be shipped, so no test runs this.
test_adopt.py tries scikit-learn's own tables. A reference is what a plain, untuned model reaches on one 80/20 split
without the leaks; a point or two is noise, and so is more where the test part is a hundred rows.
"""

import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adopting
import pandas as pd
from conftest import copy_committed
from cookiecutter.main import cookiecutter


@dataclass(frozen=True)
class Real:
    """A table, how it is adopted, what a plain model reaches, and what adopt must say about it."""

    words: tuple[str, ...]
    metric: str
    reference: float
    says: tuple[str, ...] = ()
    late_by: str = ""  # a column made into the label "late", more than 15


AFTER_DEPARTURE = tuple(rf"{c} +left out: known only afterwards" for c in ("dep_time", "dep_delay", "arr_time", "air_time"))
FLIGHTS = (*AFTER_DEPARTURE, r"rownames +left out: an index", r"year +left out: constant", r"2\.9% of 20,000", r"time_hour +the event time",
           r"tailnum +kept as a category +3,262")  # fmt: skip
TABLES = {
    "flights": Real(("--target", "late"), "roc_auc", 0.59, FLIGHTS, "arr_delay"),
    "flights arr_delay": Real(("--target", "arr_delay"), "r2", 0.0, FLIGHTS),
    "birds": Real(("--target", "phase_of_flt"), "accuracy", 0.67, (
        r"rownames +left out: an index", r"9\.5% of 8,000", r"Parked \(5\)", r"remarks +kept as free text", r"date +the event time",
        r"effect +kept +missing in 9\d%")),
    "spamassassin": Real(("--target", "label"), "accuracy", 0.97, (r"id +left out: an id", r"group +kept, AND THE DATA STEP WILL STOP")),
    "spamassassin -group": Real(("--target", "label", "--drop", "group"), "accuracy", 0.97, (r"text +kept as free text",)),
    "phishing": Real(("--target", "is_phishing"), "roc_auc", 0.98, (r"rows repeat the inputs", r"38 patterns come with several labels")),
}  # fmt: skip


def table_of(name: str, real: Real, given: Path, folder: Path) -> Path:
    """The file to adopt; what it takes to make one of it is done here."""
    if not real.metric:
        return given / name
    plain = name.split()[0]
    if not real.late_by:
        return given / f"{plain}.csv.gz"
    frame = pd.read_csv(given / f"{plain}.csv.gz")
    known = frame.pop(real.late_by)
    frame["late"] = (known > 15).map({True: "yes", False: "no"}).where(known.notna())
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def tried(name: str, real: Real, given: Path) -> dict[str, Any]:
    """One table through everything; a row of the report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        template, table = copy_committed(folder / "template"), table_of(name, real, given, folder)
        bake = lambda where, **answers: Path(cookiecutter(str(template), True, True, answers, output_dir=str(where), default_config=True))  # noqa: E731
        with adopting.imported(bake, folder, full=True) as project:
            project.command("git", "init", "--quiet")
            verb = (sys.executable, "-m", adopting.PACKAGE)
            adopted = project.command(*verb, "adopt", str(table), *real.words)
            run = adopted if adopted.returncode else project.command(*verb, "run")
            task, metric = "", real.metric
            if not adopted.returncode:
                framing = project.params.load().framing
                task, metric = framing.task, metric or framing.metric
            closed = re.findall(r"^(\w+): \d+ checks? failed.*?\n(\w+)", run.stderr, re.MULTILINE)
            reached = json.loads(Path("metrics.json").read_text()).get(metric) if Path("metrics.json").exists() else None
            served, scored = project.serve(table) if reached is not None else ([], None)
            red = project.red() if served else None
    unsaid = [s for s in real.says if not re.search(s, adopted.stdout)]
    return {
        "table": name, "task": task, "metric": metric, "reference": real.reference, "reached": "" if reached is None else f"{reached:.3f}",
        "run": ", ".join(map(" ".join, closed)) or ("green" if not run.returncode else run.stderr[-300:]),
        "served = scored": {True: "yes", False: "NO"}[served == scored] if served else "",
        "its tests": "" if red is None else " ".join(red) or "green",
        "said": f"{len(real.says) - len(unsaid)} of {len(real.says)}{' NOT ' * bool(unsaid)}{', '.join(unsaid)}",
    }  # fmt: skip


def main() -> None:
    """Print one line per table as it comes."""
    given, tables = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["REAL_TABLES"]).resolve(), TABLES
    if given.is_file():
        lines = [shlex.split(line, comments=True) for line in given.read_text(encoding="utf-8").splitlines()]
        given, tables = given.parent, {path: Real(tuple(words), "", 0.0) for path, *words in filter(None, lines)}
    for name in sys.argv[2:] or tables:
        print(" | ".join(f"{k}: {v}" for k, v in tried(name, tables[name], given).items()), flush=True)


if __name__ == "__main__":
    main()
