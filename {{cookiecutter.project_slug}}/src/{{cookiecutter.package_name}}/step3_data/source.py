"""Where rows come from: the simulator's sample, or your own file under data/raw."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ..params import Data, Framing, Sample
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import raw_columns

PROGRESS_ROWS = 1_000_000  # a line about progress every so many rows
log = logging.getLogger(__name__)


def write_sample(sample: Sample, path: Path) -> int:
    """Stream the simulator's rows to a Parquet file, whole or not at all; returns how many."""
    from .simulator import simulate

    return write_tables(simulate(sample), path)


def write_tables(tables: Iterable[pa.Table], path: Path, open_writer: Callable[..., Any] = pq.ParquetWriter) -> int:
    """Write tables of one schema to a file of Parquet, or of another writer, whole or not at all; returns the rows written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, rows, writer = path.with_name(path.name + ".partial"), 0, None
    try:
        for table in tables:
            writer = writer or open_writer(partial, table.schema)
            writer.write_table(table)
            rows += table.num_rows
            if rows // PROGRESS_ROWS > (rows - table.num_rows) // PROGRESS_ROWS:
                log.info("%s: %s rows so far", path, f"{rows:,}")
        if writer:
            writer.close()
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return rows


def connect(memory_gb: float, scratch: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB in memory, spilling to `scratch` above `memory_gb`."""
    scratch.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(config={"memory_limit": f"{memory_gb}GB", "temp_directory": str(scratch), "preserve_insertion_order": False})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def open_events(connection: duckdb.DuckDBPyConnection, data: Data, framing: Framing) -> None:
    """Make the views `events` and `all_events`: the raw columns plus `row_id`, a row's place in the file.

    A target that is NaN or infinite is none.

    Raises:
        StepFailed: when the file is missing or lacks a column of the contract.
    """
    path = Path(data.raw)
    if not path.exists():
        raise StepFailed(f"{path} is not here; make sample data with `sample`, fetch it with `dvc pull`, or bring your own")
    schema = pq.read_schema(path)
    have = schema.names
    missing = [c for c in raw_columns(framing) if c not in have]
    if missing:
        raise StepFailed(f"data: {path} has no column {missing[0]!r} (it has {', '.join(have)}); add it, or take it out of framing in params.yaml")
    columns = ", ".join(name(n) for n in (*sql_names(framing, have), "row_id"))
    rows, target, chosen = f"read_parquet({text(path)}, file_row_number = true) AS t({columns})", name(in_sql(framing).target), "*"
    if pa.types.is_floating(schema.field(framing.target).type):
        chosen = f"* REPLACE (CASE WHEN isfinite({target}) THEN {target} END AS {target})"
    connection.execute(f"CREATE OR REPLACE VIEW all_events AS SELECT {chosen} FROM {rows}")
    connection.execute("CREATE OR REPLACE VIEW events AS SELECT * FROM all_events")


def open_part(connection: duckdb.DuckDBPyConnection, part: str, path: Path, framing: Framing) -> None:
    """Make the view `part` of a prepared file."""
    columns = ", ".join(map(name, ("row_id", *sql_names(framing, pq.read_schema(path).names[1:]))))
    connection.execute(f"CREATE OR REPLACE VIEW {part} AS SELECT * FROM read_parquet({text(path)}) AS t({columns})")


def sql_names(framing: Framing, columns: Sequence[str]) -> list[str]:
    """What SQL calls columns: their own names, but for those that it cannot tell apart because they differ in case only."""
    first = [framing.time, framing.entity, framing.target, framing.label_time, *(i.name for i in framing.inputs if i.origin == "history")]
    called: dict[str, str] = {}
    taken = {"row_id", "part", "t"}
    for column in dict.fromkeys([*(c for c in first if c), *(i.name for i in framing.inputs), *columns]):
        tries = chain([column], (f"{column} ({n})" for n in count(2)))
        called[column] = next(t for t in tries if t.lower() not in taken)
        taken.add(called[column].lower())
    return [called[column] for column in columns]


def in_sql(framing: Framing) -> Framing:
    """The contract with its columns called as SQL calls them; the same object in all but the oddest tables."""
    names = [i.name for i in framing.inputs]
    keys = {k: c for k in ("time", "entity", "target", "label_time") if (c := getattr(framing, k))}
    called = sql_names(framing, [*keys.values(), *names])
    inputs = tuple(i.model_copy(update={"name": n}) for i, n in zip(framing.inputs, called[len(keys) :], strict=True))
    return framing.model_copy(update={**dict(zip(keys, called, strict=False)), "inputs": inputs})


def write_query(connection: duckdb.DuckDBPyConnection, select: str, names: Sequence[str], path: Path) -> None:
    """Write a query's rows to a Parquet file whose columns are called `names`, which may differ in case only."""
    columns = [f"{n}" for n in names] if len({n.lower() for n in names}) == len(names) else [f"c{i}" for i in range(len(names))]
    connection.execute(f"COPY (SELECT * FROM ({select}) AS t({', '.join(map(name, columns))})) TO {text(path)} (FORMAT parquet)")
    if columns != list(names):
        plain = path.rename(path.with_suffix(".plain"))
        write_tables((pa.Table.from_batches([b]).rename_columns(list(names)) for b in pq.ParquetFile(plain).iter_batches()), path)
        plain.unlink()


def name(identifier: str) -> str:
    """A column's name, quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def interval(days: float) -> str:
    """So many days, for SQL."""
    return f"INTERVAL ({round(days * 86_400)}) SECOND"


def text(value: object) -> str:
    """A value as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"
