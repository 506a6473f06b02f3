"""History features: the same SQL for training rows and for the table that the API looks entities up in, never reading ahead."""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb

from ..params import ONLINE, SCRATCH, Framing, Params
from ..step1_requirements.checks import Check, StepFailed, check_bound
from ..step2_framing.contract import inputs_of
from .source import connect, in_sql, interval, name, open_events, text

QUERY = Path(__file__).with_name("features.sql")
CUTS = 12  # moments at which the future is hidden
ROWS_PER_CUT = 40


def run_query(connection: duckdb.DuckDBPyConnection, query: str, table: str) -> None:
    """Fill `table` with the features of every row of `moments`.

    Raises:
        StepFailed: when the SQL is wrong or does not give one row per moment.
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
    """Make the table `features`: one row per event, its history as of the event.

    Raises:
        StepFailed: as `run_query`, and when the SQL lacks a history column of the contract.
    """
    connection.execute(f"CREATE OR REPLACE VIEW moments AS SELECT {_moment_columns(framing)} FROM events")
    run_query(connection, query, "features")
    have = {row[0] for row in connection.execute("DESCRIBE features").fetchall()}
    for field in inputs_of(framing, "history"):
        if field.name not in have:
            raise StepFailed(f"features.sql gives no column {field.name!r}, which framing.inputs takes from history; add it, or take it out there")


def _moment_columns(framing: Framing) -> str:
    return ", ".join(["row_id", *(name(k) for k in (framing.entity, framing.time) if k)])


def check_point_in_time(connection: duckdb.DuckDBPyConnection, framing: Framing, query: str, label_delay_days: float) -> Check:
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
        latest = f"WHERE {time} <= {text(cut)} ORDER BY {time} DESC, row_id LIMIT {ROWS_PER_CUT}"
        connection.execute(f"CREATE OR REPLACE TABLE kept AS SELECT {_moment_columns(framing)} FROM all_events {latest}")
        with as_known_at(connection, framing, cut, label_delay_days):
            connection.execute("CREATE OR REPLACE VIEW moments AS SELECT * FROM kept")
            run_query(connection, query, "again")
        before = connection.execute(f"SELECT {columns} FROM features SEMI JOIN kept USING (row_id) ORDER BY row_id").fetchall()
        after = connection.execute(f"SELECT {columns} FROM again ORDER BY row_id").fetchall()
        changed += sum(not all(map(_same, old, new)) for old, new in zip(before, after, strict=True))
    mend = "features.sql reads ahead: join only events earlier than the moment, and labels that had arrived before it."
    return check_bound("no_leak", what, changed, at_most=0, mend=mend)


def _same(old: Any, new: Any) -> bool:
    """Equal but for the order in which floats were summed; NaN equals NaN here."""
    if not (isinstance(old, float) and isinstance(new, float)):
        return bool(old == new)
    return math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12) or (math.isnan(old) and math.isnan(new))


@contextmanager
def as_known_at(connection: duckdb.DuckDBPyConnection, framing: Framing, when: datetime, label_delay_days: float) -> Iterator[None]:
    """Inside the block, `events` holds what was known just before `when`: earlier rows, and only labels that had arrived.

    A label arrives at framing.label_time or, without one, `label_delay_days` after its event.
    """
    time, moment = f"{name(framing.time or '')}::TIMESTAMP", text(when)  # a DATE would make a date of the moment, and hide that day's rows
    arrived = f"{name(framing.label_time)}::TIMESTAMP" if framing.label_time else f"{time} + {interval(label_delay_days)}"
    labels = [name(c) for c in (framing.target, framing.label_time) if c]
    known = ", ".join(f"CASE WHEN {arrived} < {moment} THEN {c} END AS {c}" for c in labels)
    connection.execute(f"CREATE OR REPLACE VIEW events AS SELECT * REPLACE ({known}) FROM all_events WHERE {time} < {moment}")
    try:
        yield
    finally:
        connection.execute("CREATE OR REPLACE VIEW events AS SELECT * FROM all_events")


def refresh_online(params: Params, as_of: datetime | None = None, path: Path = ONLINE) -> int:
    """Write the online table from the raw events as they are now; returns the number of entities."""
    connection = connect(params.data.memory_gb, SCRATCH)
    open_events(connection, params.data, params.framing)
    return materialize(connection, in_sql(params.framing), QUERY.read_text(encoding="utf-8"), params.requirements.label_delay_days, path, as_of)


def materialize(
    connection: duckdb.DuckDBPyConnection, framing: Framing, query: str, label_delay_days: float, path: Path, as_of: datetime | None = None
) -> int:
    """Write the online table: each entity's features as of now (or `as_of`), for the API to look up by id.

    Without `as_of`, now is just after the last event. The entity "" holds what an unknown entity
    gets: the features of no history. Returns the number of entities.
    """
    if framing.entity is None or framing.time is None or not inputs_of(framing, "history"):
        return 0
    entity, time = name(framing.entity), name(framing.time)
    if as_of is None:
        as_of = connection.execute(f"SELECT max({time})::TIMESTAMP + INTERVAL 1 MICROSECOND FROM events").fetchall()[0][0]
    columns = [i.name for i in inputs_of(framing, "history")]
    with as_known_at(connection, framing, as_of, label_delay_days):
        now = f"{text(as_of)}::TIMESTAMP AS {time}"
        who = f"{entity} IS NOT NULL AND {entity}::VARCHAR <> ''"
        known = f"SELECT min(row_id) AS row_id, {entity}, {now} FROM events WHERE {who} GROUP BY {entity}"
        connection.execute(f"CREATE OR REPLACE TABLE entities AS {known} UNION ALL SELECT -1, NULL, {now}")
        connection.execute("CREATE OR REPLACE VIEW moments AS SELECT * FROM entities")
        run_query(connection, query, "online")
        chosen = ", ".join(f"online.{name(c)}" for c in columns)
        broken = f"typeof({entity}) SIMILAR TO 'FLOAT|DOUBLE|DECIMAL.*'"  # 42.0, which a request calls 42
        key = f"CASE WHEN {broken} THEN regexp_replace({entity}::VARCHAR, '[.]0+$', '') ELSE {entity}::VARCHAR END"
        named = f"(SELECT row_id, {key} AS key FROM entities) AS named"
        rows = connection.execute(f"SELECT coalesce(named.key, ''), {chosen} FROM online JOIN {named} USING (row_id)")
        return _write_online(path, columns, rows, str(as_of)) - 1


def _write_online(path: Path, columns: list[str], result: duckdb.DuckDBPyConnection, as_of: str) -> int:
    """Fill a new SQLite file and put it in the old one's place, so readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    count = 0
    with closing(sqlite3.connect(partial)) as store:
        store.execute("CREATE TABLE online (entity TEXT PRIMARY KEY, as_of TEXT NOT NULL, features TEXT NOT NULL) WITHOUT ROWID")
        while rows := result.fetchmany(10_000):
            states = [(row[0], as_of, json.dumps(dict(zip(columns, row[1:], strict=True)), default=_plain)) for row in rows]
            store.executemany("INSERT INTO online VALUES (?, ?, ?)", states)
            count += len(rows)
        store.commit()
    partial.replace(path)
    return count


def _plain(value: Any) -> Any:
    """What JSON has no word for: DuckDB's decimals as numbers, dates as the API's clients write them."""
    return value.isoformat() if isinstance(value, date) else float(value)
