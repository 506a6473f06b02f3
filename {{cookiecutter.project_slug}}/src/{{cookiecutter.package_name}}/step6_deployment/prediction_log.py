"""The prediction log: what was asked and answered, and the labels that came later.

SQLite in WAL mode, or PostgreSQL where the path is a URL. A thread of its own writes in batches: requests
never wait for the disk, `kill -9` loses at most the last flush interval, and the file is never corrupt.
"""

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..step1_requirements.checks import StepFailed


class Logged(NamedTuple):
    """One prediction, and the columns of its table; more may come, at the end: readers name the columns that they want."""

    prediction_id: str
    at: str  # ISO 8601, UTC
    model_version: str
    fallback: bool
    inputs: str  # JSON
    score: float
    decision: str | None  # the label that the score leads to, also where `review` was answered
    threshold: float | None = None
    role: str = "champion"  # or canary, fallback; a shadow was computed and not answered
    review: bool = False  # answered `review`: a person decides
    entity: str | None = None  # hashed where it is personal


SQL = {str: "TEXT NOT NULL", bool: "BOOLEAN NOT NULL", float: "DOUBLE PRECISION NOT NULL", str | None: "TEXT", float | None: "DOUBLE PRECISION"}
GIVEN = {name: f" DEFAULT {value!r}" for name, value in Logged._field_defaults.items() if value is not None}
COLUMNS = {name: SQL[kind] + GIVEN.get(name, "") for name, kind in Logged.__annotations__.items()}
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS predictions ({", ".join(f"{n} {k}" for n, k in COLUMNS.items())}, PRIMARY KEY (prediction_id, role));
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS labels (prediction_id TEXT NOT NULL, at TEXT NOT NULL, label TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS labels_id ON labels (prediction_id)
"""
# What waits for a person: verdicts come back as labels, through the same feedback as all others.
QUEUE = "review_queue AS SELECT * FROM predictions WHERE review AND role <> 'shadow' AND prediction_id NOT IN (SELECT prediction_id FROM labels)"
INSERT_PREDICTION = f"INSERT INTO predictions ({', '.join(COLUMNS)}) VALUES ({', '.join('?' for _ in COLUMNS)}) ON CONFLICT DO NOTHING"
INSERT_LABEL = "INSERT INTO labels VALUES (?, ?, ?)"
ITS_OWN_FAULT = {"IntegrityError", "DataError"}  # of one row, and not of disk or server
log = logging.getLogger(__name__)


class PredictionLog:
    """Takes predictions and labels from requests and writes them in the background."""

    def __init__(self, path: Path | str, flush_seconds: float, most: int, on_drop: Callable[[int], None] = lambda _: None) -> None:
        """Open or create the log; `on_drop` hears of entries that found the queue full or could not be written at the end."""
        self.path, self.flush_seconds, self.most, self.on_drop = str(path), flush_seconds, most, on_drop
        self.waiting: deque[tuple[str, Sequence[Any]]] = deque()
        self.stopping, self.failing, self.writing = threading.Event(), False, 0
        self.writer = threading.Thread(target=self._write_until_stopped, name="prediction-log", daemon=True)
        self.writer.start()

    def add(self, predictions: Sequence[Logged]) -> None:
        """Queue predictions; never blocks."""
        self._queue([(INSERT_PREDICTION, p) for p in predictions])

    def add_labels(self, labels: Sequence[tuple[str, str, str]]) -> None:
        """Queue labels as (prediction id, ISO time, label)."""
        self._queue([(INSERT_LABEL, label) for label in labels])

    def close(self, seconds: float | None = 10) -> None:
        """Write what is waiting and stop; wait so long for it, or None: until it is done."""
        self.stopping.set()
        self.writer.join(seconds)
        if self.writer.is_alive():
            log.error("prediction log: %s is still being written after %g s; what was waiting may be lost", _shown(self.path), seconds)

    def _queue(self, entries: list[tuple[str, Sequence[Any]]]) -> None:
        room = max(0, self.most - len(self.waiting) - self.writing)  # what is being written may come back
        self.waiting.extend(entries[:room])
        if len(entries) > room:
            self.on_drop(len(entries) - room)

    def _write_until_stopped(self) -> None:
        connection: Any = None
        last = False
        while not last:
            last = self.stopping.wait(self.flush_seconds)
            self.writing = len(self.waiting)
            batch = [self.waiting.popleft() for _ in range(self.writing)]
            try:
                connection = connection or open_log(self.path)
                self._write(connection, batch)
                if self.failing:
                    log.warning("prediction log: %s can be written again", _shown(self.path))
                self.failing = False
            except Exception as error:  # a full or read-only disk, a server that is away: whatever it is, answers go on
                self.waiting.extendleft(reversed(batch))
                if not self.failing:
                    log.error("prediction log: %s cannot be written (%s); serving goes on without it", _shown(self.path), error)
                self.failing = True
                with suppress(Exception):
                    connection.close()
                connection = None
            self.writing = 0
        if connection:
            connection.close()
        if self.waiting:
            self.on_drop(len(self.waiting))

    def _write(self, connection: Any, batch: list[tuple[str, Sequence[Any]]]) -> None:
        """One transaction; a row that no table takes is left out and counted, and holds up no other."""
        try:
            with closing(connection.cursor()) as cursor:
                for statement in (INSERT_PREDICTION, INSERT_LABEL):
                    if rows := [values for what, values in batch if what == statement]:
                        cursor.executemany(_in(self.path, statement), rows)
            connection.commit()
        except Exception as error:
            connection.rollback()
            if not ITS_OWN_FAULT & {kind.__name__ for kind in type(error).__mro__}:
                raise
            if len(batch) > 1:
                for entry in batch:
                    self._write(connection, [entry])
            else:
                log.error("prediction log: an entry was refused (%s)", type(error).__name__)
                self.on_drop(1)


def open_log(path: Path | str) -> Any:
    """A DB-API connection to the log, made if it is not there, with columns that an older one lacks."""
    if server := _is_url(path):
        connection = _psycopg().connect(str(path), connect_timeout=5)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    with closing(connection.cursor()) as cursor:
        for statement in SCHEMA.split(";"):
            cursor.execute(statement)
        there = {column[0] for column in cursor.execute("SELECT * FROM predictions LIMIT 0").description}
        for name in COLUMNS.keys() - there:
            cursor.execute(f"ALTER TABLE predictions ADD COLUMN {name} {COLUMNS[name]}")
        cursor.execute(f"CREATE OR REPLACE VIEW {QUEUE}" if server else f"CREATE VIEW IF NOT EXISTS {QUEUE}")
    connection.commit()
    return connection


def ask_log(path: Path | str, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """The rows of a query (with ? for values) on the log, wherever it is.

    Raises:
        StepFailed: when there is no log, or it cannot be read.
    """
    try:
        if not _is_url(path) and not Path(path).exists():
            raise StepFailed(f"there is no prediction log at {path}; `serve` writes it once it is asked")
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        with closing(_psycopg().connect(str(path)) if _is_url(path) else sqlite3.connect(uri, uri=True, timeout=5)) as connection:
            rows: list[tuple[Any, ...]] = connection.cursor().execute(_in(path, query), tuple(values)).fetchall()
            return rows
    except StepFailed:
        raise
    except Exception as error:
        raise StepFailed(f"the prediction log {_shown(path)} cannot be read: {error}") from None


def results_of_canary(path: Path | str) -> tuple[dict[str, list[float]], str]:
    """One value per unit (the entity, else the prediction) and arm, since the newest canary began, and which value is better.

    The value is the share of decisions that labels confirmed, or the mean absolute error of predicted numbers.

    Raises:
        StepFailed: when there is no log.
    """
    rows = ask_log(path, """
        SELECT role, coalesce(entity, prediction_id), prediction_id, decision, score, label
        FROM predictions JOIN labels USING (prediction_id)
        WHERE role IN ('champion', 'canary') AND predictions.at >= (
            SELECT min(at) FROM predictions WHERE role = 'canary' AND model_version = (
                SELECT model_version FROM predictions WHERE role = 'canary' ORDER BY at DESC LIMIT 1))
        ORDER BY labels.at""")  # fmt: skip
    units: dict[tuple[str, str], dict[str, float]] = {}
    for role, unit, prediction_id, decision, score, label in rows:  # a later label of the same prediction wins
        value = float(decision == label) if decision is not None else abs(score - _number(label))
        if value == value:  # noqa: PLR0124 - NaN: a label that is no number
            units.setdefault(("challenger" if role == "canary" else role, unit), {})[prediction_id] = value
    values: dict[str, list[float]] = {"champion": [], "challenger": []}
    for (arm, _), unit_values in units.items():
        values[arm].append(sum(unit_values.values()) / len(unit_values))
    return values, "lower" if rows and rows[0][3] is None else "higher"


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return float("nan")


def _is_url(path: Path | str) -> bool:
    return str(path).startswith(("postgresql://", "postgres://"))


def _in(path: Path | str, statement: str) -> str:
    return statement.replace("%", "%%").replace("?", "%s") if _is_url(path) else statement


def _shown(path: Path | str) -> str:
    """The path without a password."""
    return str(path).rpartition("@")[2] if _is_url(path) else str(path)


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError:
        raise StepFailed("a prediction log on PostgreSQL needs psycopg: install this project with its extra `postgres`") from None
    return psycopg
