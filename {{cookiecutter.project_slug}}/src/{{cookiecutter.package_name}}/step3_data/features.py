"""History features: the same SQL for training rows and for the online table, never reading ahead."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from ..params import Framing
from ..step1_requirements.checks import Check, StepFailed, check_bound
from ..step2_framing.contract import inputs_of
from .source import name, text

QUERY = Path(__file__).with_name("features.sql")
CUTS = 12  # moments at which the future is hidden
ROWS_PER_CUT = 40


def run_query(connection: duckdb.DuckDBPyConnection, query: str, table: str) -> None:
    """Fill `table` with the features of every row of `moments`.

    Raises:
        StepFailed: when the SQL is wrong, does not give one row per moment, or lacks a history column of the contract.
    """
    try:
        connection.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")
    except duckdb.Error as error:
        raise StepFailed(f"features.sql: {error}") from None
    rows, ids, wanted = connection.execute(
        f"SELECT count(*), count(DISTINCT row_id), (SELECT count(*) FROM moments) FROM {table}").fetchall()[0]  # fmt: skip
    if not rows == ids == wanted:
        raise StepFailed(f"features.sql gives {rows} rows for {wanted} moments; it must give exactly one per row_id (GROUP BY moments.row_id)")
    for column, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall():
        if kind == "DOUBLE":  # a parallel sum's last digits differ from run to run; as the model reads it, they do not
            connection.execute(f"ALTER TABLE {table} ALTER {name(column)} TYPE FLOAT")


def build(connection: duckdb.DuckDBPyConnection, framing: Framing, query: str) -> None:
    """Make the table `features`: one row per event, its history as of the event."""
    keys = ", ".join(name(k) for k in (framing.entity, framing.time) if k)
    connection.execute(f"CREATE OR REPLACE VIEW moments AS SELECT row_id{', ' + keys if keys else ''} FROM events")
    run_query(connection, query, "features")
    have = {row[0] for row in connection.execute("DESCRIBE features").fetchall()}
    for field in inputs_of(framing, "history"):
        if field.name not in have:
            raise StepFailed(f"features.sql gives no column {field.name!r}, which framing.inputs takes from history; add it, or take it out there")


def check_point_in_time(connection: duckdb.DuckDBPyConnection, framing: Framing, query: str) -> Check:
    """Hide the future and compute again: features that change were reading ahead.

    At some event times, events from then on and labels not yet arrived are hidden; the features
    of the latest rows up to then must stay as they were.
    """
    what = "rows whose features change when the future is hidden"
    if framing.time is None or not inputs_of(framing, "history"):
        return check_bound("no_leak", what, 0, at_most=0)
    time, columns = name(framing.time), ", ".join(name(i.name) for i in inputs_of(framing, "history"))
    cuts = connection.execute(f"SELECT unnest(quantile_disc({time}, [q / {CUTS + 1}.0 FOR q IN range(1, {CUTS + 1})])) FROM events").fetchall()
    changed = 0
    for (cut,) in cuts:
        keys = "".join(name(k) + ", " for k in (framing.entity, framing.time) if k)
        connection.execute(
            f"CREATE OR REPLACE TABLE kept AS SELECT row_id, {keys} FROM all_events WHERE {time} <= {text(cut)} "
            f"ORDER BY {time} DESC, row_id LIMIT {ROWS_PER_CUT}"
        )
        with as_known_at(connection, framing, cut):
            connection.execute("CREATE OR REPLACE VIEW moments AS SELECT * FROM kept")
            run_query(connection, query, "again")
        before = connection.execute(f"SELECT {columns} FROM features SEMI JOIN kept USING (row_id) ORDER BY row_id").fetchall()
        after = connection.execute(f"SELECT {columns} FROM again ORDER BY row_id").fetchall()
        changed += sum(not all(map(_same, old, new)) for old, new in zip(before, after, strict=True))
    mend = "features.sql reads ahead: join only events earlier than the moment, and labels with a label time before it."
    return check_bound("no_leak", what, changed, at_most=0, mend=mend)


def _same(old: Any, new: Any) -> bool:
    """Equal but for the order in which floats were summed."""
    return old == new or (isinstance(old, float) and isinstance(new, float) and math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12))


@contextmanager
def as_known_at(connection: duckdb.DuckDBPyConnection, framing: Framing, when: datetime) -> Iterator[None]:
    """Inside the block, `events` holds what was known just before `when`: earlier rows, and only labels that had arrived."""
    blank, moment = "", text(when)
    if framing.label_time:
        label_time, target = name(framing.label_time), name(framing.target)
        late = f"CASE WHEN {label_time} < {moment} THEN"
        blank = f" REPLACE ({late} {target} END AS {target}, {late} {label_time} END AS {label_time})"
    connection.execute(f"CREATE OR REPLACE VIEW events AS SELECT *{blank} FROM all_events WHERE {name(framing.time or '')} < {moment}")
    try:
        yield
    finally:
        connection.execute("CREATE OR REPLACE VIEW events AS SELECT * FROM all_events")
