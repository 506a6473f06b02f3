"""`adopt` at work: read, infer, measure, say it, and only then write."""

import logging
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from ..params import PATH, SCRATCH, Input, Params, line_numbers, load
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import write_text
from ..step2_framing.contract import as_text
from ..step3_data.features import QUERY
from ..step3_data.source import connect, write_query
from ..step3_data.table import Table, open_table
from .infer import Asked, Contract, infer, plain_entity, plain_time, resolve
from .measure import Measured, best_kind, measure
from .profile import Column, per_column, profile
from .write import Document, change, features_sql, least_per_leaf, metric_of, split_by

log = logging.getLogger(__name__)
SUSPICIOUS = {"binary": 0.9, "multiclass": 0.9, "regression": 0.8}  # score of one column alone that is worth a question
ALIKE = 8  # findings of one sort that get a line each
EXACT = 2**53  # from here on, a double skips whole numbers
MEMORY_GB = 1.0  # of DuckDB
NO_FEATURES = "SELECT row_id FROM moments"


def adopt(path: Path, asked: Asked, *, day_first: bool = False, encoding: str = "", dry_run: bool = False) -> None:
    """Turn a table into this project's data and problem contract, and say what was found.

    Raises:
        StepFailed: when the table cannot be used; nothing is changed then.
    """
    params, before = load(), PATH.read_text(encoding="utf-8")
    demo, sql = params.data.sample is not None, QUERY.read_text(encoding="utf-8")
    with _scratch(path) as folder:
        connection = connect(MEMORY_GB, folder / "spill")
        connection.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")  # of queries that take more than two seconds
        log.info("adopt: reading %s", path)
        table = open_table(connection, path, folder, encoding)
        asked = resolve(asked, table.names)
        log.info("adopt: finding out what its %s columns are", len(table.names))
        source, (table, columns) = table, profile(connection, table, asked.target, day_first, folder)
        who = asked.entity or plain_entity(columns, asked)
        if any(c.name == who and c.kind == "number" and (c.high or 0) >= EXACT for c in columns):  # a number would make one of several
            table, columns = profile(connection, source, asked.target, day_first, folder, who)
        contract = infer(columns, asked, *_relations(connection, table, columns, asked))
        contract.keeps_history = not demo and _statements(sql) != NO_FEATURES
        log.info("adopt: writing %s rows as Parquet, then trying models on some of them", f"{columns[0].rows:,}")
        _write_raw(connection, table, columns, contract, raw := folder / "raw.parquet")
        measured = _measure(connection, params, contract, raw)
        _judge(contract, measured, asked, params.data.leak_limit)
        document = Document(before)
        change(document, contract, measured, demo)
        write_text(folder / PATH.name, after := document.text())
        load(folder / PATH.name)
        _show(contract, table, columns[0].rows, after)
        if dry_run:
            Console().print("Nothing was written: this was --dry-run; lines are those that params.yaml would have.")
            return
        _install(params, raw, {QUERY: sql if contract.keeps_history else features_sql(contract), PATH: after})


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder of its own that leaves no trace, in which DuckDB's refusals become sentences."""
    made = [p for p in (SCRATCH, *SCRATCH.parents) if not p.exists()]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="adopt-", dir=SCRATCH, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except duckdb.Error as error:
        raise StepFailed(f"{path}: DuckDB cannot go on ({str(error).splitlines()[0]})") from None
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


def _relations(
    connection: duckdb.DuckDBPyConnection, table: Table, columns: Sequence[Column], asked: Asked
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """How columns go missing with the target, and how often dates are later than the event."""
    target, time = next(c for c in columns if c.name == asked.target), plain_time(columns, asked)
    holes = [c for c in columns if c is not target and c.missing and target.missing]
    moment = next((c.sql for c in columns if c.name == time), "")
    dates = [c for c in columns if time and c.kind == "date" and c.name not in (time, asked.target)]
    wanted = [[f"count(*) FILTER ({c.sql} IS NULL AND {target.sql} IS NULL)"] for c in holes]
    wanted += [[f"coalesce(avg(({c.sql} > {moment})::INTEGER), 0)"] for c in dates]
    found = [found for (found,) in per_column(connection, table.relation, wanted)]
    unknown, known = max(1, target.rows - target.present), max(1, target.present)
    pairs = {c.name: (n / unknown, (c.rows - c.present - n) / known) for c, n in zip(holes, found, strict=False)}
    return pairs, {c.name: share for c, share in zip(dates, found[len(holes) :], strict=True)}


def _write_raw(connection: duckdb.DuckDBPyConnection, table: Table, columns: Sequence[Column], contract: Contract, path: Path) -> None:
    """All columns with their own names and kinds, all rows that have an event time; whole numbers as integers, others that are labels as text."""
    chosen = []
    for c in columns:
        whole = c.kind == "number" and c.whole and max(abs(c.low), abs(c.high)) < EXACT
        label = c.kind == "number" and contract.counts and c.name == contract.target.name
        chosen.append(f"({c.sql})::BIGINT" if whole else f"regexp_replace(({c.sql})::VARCHAR, '[.]0$', '')" if label else c.sql)
    where = "".join(f" WHERE {c.sql} IS NOT NULL" for c in columns if c.name == contract.time)
    write_query(connection, f"SELECT {', '.join(chosen)} FROM {table.relation}{where}", table.names, path)


def _measure(connection: duckdb.DuckDBPyConnection, params: Params, contract: Contract, raw: Path) -> Measured:
    known = {"task": contract.task, "target": contract.target.name, "positive": contract.positive, "labels": None, "metric": metric_of(contract)}
    keys = {"entity": contract.entity, "time": contract.time, "label_time": None, "inputs": tuple(map(Input.model_validate, contract.inputs))}
    data = params.data.model_copy(update={"raw": str(raw), "split": params.data.split.model_copy(update={"by": split_by(contract)})})
    leaf = least_per_leaf(contract, params.model.boosting.min_samples_leaf)  # as it will be trained, or the second adopt would choose otherwise
    model = params.model.model_copy(update={"boosting": params.model.boosting.model_copy(update={"min_samples_leaf": leaf})})
    counts = {as_text(v) or "": n for v, n in contract.counts.items()}
    return measure(connection, params.framing.model_copy(update=known | keys), data, model, counts)


def _judge(contract: Contract, measured: Measured, asked: Asked, limit: float) -> None:
    """Say what the rows told."""
    target = contract.target.name
    alone = [(name, score) for name, score in measured.alone.items() if name != contract.time]
    for name, score in sorted(alone, key=lambda item: -item[1]):
        if score > limit:
            contract.trusts_leaks = contract.trusts_leaks or name in asked.keep
            did = "kept, as --keep said" if name in asked.keep else "kept, AND THE DATA STEP WILL STOP ON IT"
            contract.say(name, did, f"alone it scores {score:.3f}: it nearly gives {target} away", f'--drop "{name}", or --keep "{name}"')
        elif score > SUSPICIOUS[contract.task]:
            contract.say(name, "kept: known beforehand?", f"alone it scores {score:.3f}; if it is known only afterwards, drop it", f'--drop "{name}"')
    if measured.rare:
        rows, s = ", ".join(f"{label} ({n:,})" for label, n in list(measured.rare.items())[:8]), "s" * (len(measured.rare) > 1)
        numbers = "--task regression" if contract.target.kind == "number" else "framing.labels"
        contract.say(target, f"{len(measured.rare)} label{s} left out", f"too few rows, or none in a part of the split: {rows}", numbers)
    if measured.duplicates:
        repeat = "rows repeat" if measured.duplicates > 1 else "row repeats"
        patterns = "patterns come" if measured.conflicts > 1 else "pattern comes"
        several = f"; {measured.conflicts:,} {patterns} with several labels, and no model can be right about those" if measured.conflicts else ""
        contract.say("(rows)", "kept", f"{measured.duplicates:,} {repeat} the inputs of another{several}", "data.split")
    if any(i["kind"] == "text" for i in contract.inputs) and measured.kinds:
        kind, tried = best_kind(measured.kinds), ", ".join(f"{k} {abs(v):.3f}" for k, v in measured.kinds.items())
        why = "many words weigh together" if kind == "linear" else "a few words or the other columns decide"
        why += "; so well that a text may hold the answer" * (max(measured.kinds.values()) > limit)
        contract.say("(text)", f"model.kind is {kind}", f"{why}: {tried}", "model.kind")


def _show(contract: Contract, table: Table, rows: int, text: str) -> None:
    """What was found, as a table, with the line or the flag that changes it."""
    lines, console = line_numbers(text), Console()
    console.print(f"{rows:,} rows, {len(table.names)} columns ({table.described}); inputs: {len(contract.inputs)}.", highlight=False)
    shown, alike = Shown("column", "adopt", "because", "to change it", box=None), defaultdict(list)
    for column, did, why, mend in contract.findings:
        alike[did].append(column)
        if len(alike[did]) <= ALIKE:
            shown.add_row(*map(escape, (column, did, why, _place(mend, lines, contract))))
    for did, names in alike.items():
        if more := names[ALIKE:]:
            shown.add_row(*map(escape, (f"{len(more)} more", did, f"as those above: {', '.join(more)}")))
    console.print(shown)


def _place(change: str, lines: Mapping[tuple[str, ...], int], contract: Contract) -> str:
    """A path in params.yaml as its line; flags as they are."""
    head, _, tail = change.partition("framing.inputs.")
    names = [i["name"] for i in contract.inputs]
    path = ("framing", "inputs", str(names.index(tail))) if tail in names else tuple(change.split("."))
    return f"params.yaml line {lines[path]}" if path in lines else head


def _install(params: Params, raw: Path, texts: Mapping[Path, str]) -> None:
    """Put everything in place; what was there and is not under DVC stays beside it as .bak."""
    target = Path(params.data.raw)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.parent.with_suffix(".dvc").exists():
        target.replace(kept := target.parent.with_suffix(".bak"))
        Console().print(f"{target} was not under DVC; it is {kept} now", highlight=False)
    shutil.move(raw, target)
    for path, text in texts.items():
        if (old := path.read_text(encoding="utf-8")) != text:
            write_text(backup := path.with_name(path.name + ".bak"), old)
            write_text(path, text)
            Console().print(f"{path.name} is rewritten, the old one is {backup.name}", highlight=False)


def _statements(sql: str) -> str:
    """SQL without comment lines."""
    return "\n".join(line for line in sql.splitlines() if line.strip() and not line.lstrip().startswith("--")).strip().rstrip(";")
