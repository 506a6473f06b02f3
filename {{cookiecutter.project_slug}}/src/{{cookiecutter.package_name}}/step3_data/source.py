"""Where rows come from: the simulator's sample, or your own file under data/raw."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

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


def write_tables(tables: Iterable[pa.Table], path: Path) -> int:
    """Write tables of one schema to a Parquet file, whole or not at all; returns the rows written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, rows, writer = path.with_name(path.name + ".partial"), 0, None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(partial, table.schema)
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
    connection = duckdb.connect()
    for setting in (f"memory_limit = '{memory_gb}GB'", f"temp_directory = {text(scratch)}", "preserve_insertion_order = false", "TimeZone = 'UTC'"):
        connection.execute(f"SET {setting}")
    return connection


def open_events(connection: duckdb.DuckDBPyConnection, data: Data, framing: Framing) -> None:
    """Make the views `events` and `all_events`: the raw columns plus `row_id`, a row's place in the file.

    Raises:
        StepFailed: when the file is missing or lacks a column of the contract.
    """
    path = Path(data.raw)
    if not path.exists():
        raise StepFailed(f"{path} is not here; make sample data with `sample`, fetch it with `dvc pull`, or bring your own")
    have = pq.read_schema(path).names
    missing = [c for c in raw_columns(framing) if c not in have]
    if missing:
        raise StepFailed(f"data: {path} has no column {missing[0]!r} (it has {', '.join(have)}); add it, or take it out of framing in params.yaml")
    connection.execute(
        f"CREATE OR REPLACE VIEW all_events AS SELECT file_row_number AS row_id, * EXCLUDE (file_row_number) "
        f"FROM read_parquet({text(path)}, file_row_number = true)"
    )
    connection.execute("CREATE OR REPLACE VIEW events AS SELECT * FROM all_events")


def name(identifier: str) -> str:
    """A column's name, quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: object) -> str:
    """A value as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"
