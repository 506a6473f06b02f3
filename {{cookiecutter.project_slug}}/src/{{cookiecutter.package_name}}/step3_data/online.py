"""The online table: each entity's latest history, for the API to look up by id."""

import json
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

import duckdb

from ..params import ONLINE, SCRATCH, Framing, Params
from ..step2_framing.contract import inputs_of
from .features import QUERY, as_known_at, run_query
from .source import connect, in_sql, name, open_events, text


def refresh_online(params: Params, as_of: datetime | None = None, path: Path = ONLINE) -> int:
    """Write the online table from the raw events as they are now; returns the number of entities."""
    connection = connect(params.data.memory_gb, SCRATCH)
    open_events(connection, params.data, params.framing)
    return materialize(connection, in_sql(params.framing), QUERY.read_text(encoding="utf-8"), path, as_of)


def materialize(connection: duckdb.DuckDBPyConnection, framing: Framing, query: str, path: Path, as_of: datetime | None = None) -> int:
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
    with as_known_at(connection, framing, as_of):
        now = f"{text(as_of)}::TIMESTAMP AS {time}"
        connection.execute(
            f"CREATE OR REPLACE TABLE entities AS SELECT min(row_id) AS row_id, {entity}, {now} FROM events "
            f"WHERE {entity} IS NOT NULL GROUP BY {entity} UNION ALL SELECT -1, NULL, {now}"
        )
        connection.execute("CREATE OR REPLACE VIEW moments AS SELECT * FROM entities")
        run_query(connection, query, "online")
        chosen = ", ".join(f"online.{name(c)}" for c in columns)
        rows = connection.execute(f"SELECT coalesce(entities.{entity}::VARCHAR, ''), {chosen} FROM online JOIN entities USING (row_id)")
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
            states = [(row[0], as_of, json.dumps(dict(zip(columns, row[1:], strict=True)), default=float)) for row in rows]
            store.executemany("INSERT INTO online VALUES (?, ?, ?)", states)
            count += len(rows)
        store.commit()
    partial.replace(path)
    return count
