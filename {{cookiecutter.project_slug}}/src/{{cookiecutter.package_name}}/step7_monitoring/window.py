"""The prediction log as columns: which predictions, with which labels; late, doubled, unknown and contradictory ones counted."""

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..params import Framing
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import label_text
from ..step3_data.encode import columns_read
from ..step3_data.source import name, text
from ..step3_data.table import open_table
from ..step6_deployment.prediction_log import PredictionLog, ask_log
from .drift import SCORE

MOST_ROWS = 20_000  # of one window; more are thinned evenly
TYPES = {"number": "DOUBLE", "boolean": "BOOLEAN", "date": "TIMESTAMP", "category": "VARCHAR", "text": "VARCHAR"}
#: Answered predictions with the newest label known by a moment, and when it came first: told again, it is no younger. A label dated
#: before its prediction counts from the prediction on.
#: Needs that moment three times. Labels are looked up one by one: a condition on `at` then costs what it selects, however long the log.
JOINED = """(SELECT known.*, CASE WHEN came < at THEN at ELSE came END AS label_at FROM (SELECT told.*,
    (SELECT min(at) FROM labels WHERE prediction_id = told.prediction_id AND label = told.label AND at <= ?) AS came FROM
    (SELECT p.prediction_id, p.at, p.model_version, p.role, p.inputs, p.score, p.decision,
    (SELECT label FROM labels WHERE prediction_id = p.prediction_id AND at <= ? ORDER BY at DESC LIMIT 1) AS label
    FROM predictions AS p WHERE p.at <= ? AND p.role <> 'shadow') AS told) AS known) AS joined"""
KINDS = {  # of labels since a moment, and how many of each
    "received": "SELECT count(*) FROM labels WHERE at > ?",
    "duplicate": "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM labels WHERE at > ? GROUP BY prediction_id, label) AS d",
    "contradictory": "SELECT count(*) FROM (SELECT 1 FROM labels WHERE at > ? GROUP BY prediction_id HAVING count(DISTINCT label) > 1) AS d",
    "unknown": "SELECT count(*) FROM labels AS l WHERE at > ? AND NOT EXISTS (SELECT 1 FROM predictions WHERE prediction_id = l.prediction_id)",
}


@dataclass(frozen=True)
class Window:
    """Predictions as columns, oldest first; `of` is how many there were before thinning."""

    columns: dict[str, Any]
    at: list[str]
    decision: list[str | None]
    label: list[str | None]
    of: int

    def __len__(self) -> int:
        return len(self.at)


def read_window(log: str, framing: Framing, now: datetime, where: str, *values: Any, newest: int | None = None) -> Window:
    """The predictions up to now for which an SQL condition on JOINED holds (with ? for values), or the newest few of them.

    Raises:
        StepFailed: when the log is missing, locked or damaged.
    """
    given, names = (*[iso(now)] * 3, *values), columns_read(framing)
    wanted, order = "inputs, score, at, decision, label", "ORDER BY at DESC, prediction_id DESC"
    if newest:
        found = ask_log(log, f"SELECT {wanted} FROM {JOINED} WHERE {where} {order} LIMIT {newest}", given)[::-1]
        of = len(found)
    else:
        of = ask_log(log, f"SELECT count(*) FROM {JOINED} WHERE {where}", given)[0][0]
        rows = f"SELECT {wanted}, row_number() OVER ({order}) AS n FROM {JOINED} WHERE {where}"
        found = ask_log(log, f"SELECT * FROM ({rows}) AS numbered WHERE n % {max(1, -(-of // MOST_ROWS))} = 0 ORDER BY n DESC", given)
    inputs, scores, at, decisions, labels = ([row[k] for row in found] for k in range(5))
    kinds = {i.name: "number" if _coded(i.values) else i.kind for i in framing.inputs}
    logged = pa.table({"inputs": pa.array(inputs, pa.string())})  # noqa: F841 - DuckDB finds it by its name
    chosen = ", ".join(f"TRY_CAST({logged_value(n)} AS {TYPES[kinds.get(n, 'date')]}) AS c{k}" for k, n in enumerate(names))
    with closing(duckdb.connect()) as connection:
        connection.execute("SET threads = 1")
        table = connection.sql(f"SELECT {chosen} FROM logged").to_arrow_table()
    columns = {n: table.column(k).to_numpy(zero_copy_only=False) if kinds.get(n, "date") in ("number", "date") else table.column(k).to_pylist()
               for k, n in enumerate(names)}  # fmt: skip
    return Window(columns | {SCORE: scores}, at, decisions, labels, of)


def logged_value(column: str) -> str:
    """SQL for one value of a record in the column `inputs`, as text."""
    return f"json_extract_string(inputs, {text('/' + column.replace('~', '~0').replace('/', '~1'))})"


def count_labels(log: str, now: datetime, since: datetime, delay_days: float) -> dict[str, int]:
    """How many labels since a moment are of each of KINDS, and how many of them came late, before their prediction, or from the future."""
    counted: dict[str, int] = {kind: int(ask_log(log, query, (iso(since),))[0][0]) for kind, query in KINDS.items()}
    both = "SELECT l.at, p.at FROM labels AS l JOIN predictions AS p ON p.prediction_id = l.prediction_id WHERE l.at > ? AND p.role <> 'shadow'"
    came = ask_log(log, both, (iso(since),))
    took = [(datetime.fromisoformat(label), datetime.fromisoformat(label) - datetime.fromisoformat(asked)) for label, asked in came]
    late, past = sum(t > timedelta(days=delay_days) for at, t in took if at <= now), sum(t < timedelta(0) for _, t in took)
    return counted | {"late": late, "before_prediction": past, "in_future": sum(at > now for at, _ in took)}


def add_labels(source: Path, framing: Framing, log: str, scratch: Path) -> dict[str, int]:
    """Take labels from a table with the columns prediction_id, label and perhaps at (UTC); the same file twice adds nothing.

    Returns the labels added, those that were there before, and those whose prediction is not in the log (kept all the same).

    Raises:
        StepFailed: when the table or the log cannot be read.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with closing(duckdb.connect()) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        table = open_table(connection, source, scratch)
        missing = [c for c in ("prediction_id", "label") if c not in table.names]
        if missing:
            raise StepFailed(f"labels: {source} has no column {missing[0]!r}; it needs prediction_id and label, and may have at")
        columns = [name(f"c{table.names.index(c)}") if c in table.names else "NULL" for c in ("prediction_id", "label", "at")]
        when = f"TRY_CAST({columns[2]} AS TIMESTAMP)"
        rows = connection.execute(f"SELECT {columns[0]}::VARCHAR, {columns[1]}, {when} FROM {table.relation}").fetchall()
    now = datetime.now(UTC).replace(tzinfo=None)
    labels = [(key, iso(at or now), label) for key, value, at in rows if key and (label := label_text(framing, value))]
    asked = {row[0] for row in ask_log(log, "SELECT prediction_id FROM predictions")}
    there = ask_log(log, "SELECT prediction_id, at, label FROM labels ORDER BY at")
    exact, newest = set(there), {key: label for key, _, label in there}  # a correction may be taken back by another one
    new = list(dict.fromkeys(one for one in labels if one not in exact and newest.get(one[0]) != one[2]))
    failed: list[int] = []
    writer = PredictionLog(log, 3600, len(new), failed.append)
    writer.add_labels(new)
    writer.close(None)
    if failed:
        raise StepFailed(f"labels: the prediction log cannot be written; {sum(failed):,} of {len(new):,} labels were not added, run it again")
    unknown = sum(key not in asked for key, _, _ in labels)
    return {"added": len(new), "known before": len(labels) - len(new), "without a prediction": unknown, "empty": len(rows) - len(labels)}


def iso(moment: datetime) -> str:
    """A moment as the log holds it."""
    return moment.isoformat()


def _coded(values: tuple[Any, ...] | None) -> bool:
    return any(isinstance(v, int | float) and not isinstance(v, bool) for v in values or ())
