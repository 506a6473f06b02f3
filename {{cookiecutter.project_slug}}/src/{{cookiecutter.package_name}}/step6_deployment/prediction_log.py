"""The prediction log: what was asked and answered, and the labels that came later.

SQLite in WAL mode, written in batches by a thread of its own: requests never wait for the disk,
a crash loses at most the last flush interval, and the file is never corrupt.
"""

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    prediction_id TEXT PRIMARY KEY, at TEXT NOT NULL, model_version TEXT NOT NULL, fallback INTEGER NOT NULL,
    inputs TEXT NOT NULL, score REAL NOT NULL, decision TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE TABLE IF NOT EXISTS labels (
    prediction_id TEXT NOT NULL, at TEXT NOT NULL, label TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS labels_id ON labels (prediction_id);
"""
INSERT_PREDICTION = "INSERT OR IGNORE INTO predictions VALUES (?, ?, ?, ?, ?, ?, ?)"
INSERT_LABEL = "INSERT INTO labels VALUES (?, ?, ?)"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Logged:
    """One answered prediction; `at` is ISO 8601 in UTC, `inputs` is JSON."""

    prediction_id: str
    at: str
    model_version: str
    fallback: bool
    inputs: str
    score: float
    decision: str | None


class PredictionLog:
    """Takes predictions and labels from requests and writes them to disk in the background."""

    def __init__(self, path: Path, flush_seconds: float, most: int, on_drop: Callable[[int], None] = lambda _: None) -> None:
        """Open or create the log; `on_drop` hears of entries that found the queue full or the disk failing."""
        self.path, self.flush_seconds, self.most, self.on_drop = path, flush_seconds, most, on_drop
        self.waiting: deque[tuple[str, tuple[object, ...]]] = deque()
        self.stopping, self.failing = threading.Event(), False
        self.writer = threading.Thread(target=self._write_until_stopped, name="prediction-log", daemon=True)
        self.writer.start()

    def add(self, predictions: Sequence[Logged]) -> None:
        """Queue predictions; never blocks."""
        self._queue([(INSERT_PREDICTION, (p.prediction_id, p.at, p.model_version, p.fallback, p.inputs, p.score, p.decision)) for p in predictions])

    def add_labels(self, labels: Sequence[tuple[str, str, str]]) -> None:
        """Queue labels as (prediction id, ISO time, label)."""
        self._queue([(INSERT_LABEL, label) for label in labels])

    def close(self) -> None:
        """Write what is waiting and stop."""
        self.stopping.set()
        self.writer.join(timeout=10)

    def _queue(self, entries: list[tuple[str, tuple[object, ...]]]) -> None:
        room = max(0, self.most - len(self.waiting))
        self.waiting.extend(entries[:room])
        if len(entries) > room:
            self.on_drop(len(entries) - room)

    def _write_until_stopped(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            last = self.stopping.wait(self.flush_seconds)
            try:
                connection = connection or open_log(self.path)
                self._flush(connection)
                if self.failing:
                    log.warning("prediction log: %s can be written again", self.path)
                self.failing = False
            except (sqlite3.Error, OSError) as error:
                if not self.failing:
                    log.error("prediction log: %s cannot be written (%s); serving goes on without it", self.path, error)
                self.failing = True
            if last:
                break
        if connection:
            connection.close()
        if self.waiting:
            self.on_drop(len(self.waiting))

    def _flush(self, connection: sqlite3.Connection) -> None:
        """Write what is waiting in one transaction; on failure it goes on waiting."""
        batch = [self.waiting[i] for i in range(len(self.waiting))]
        if not batch:
            return
        with connection:
            for statement in (INSERT_PREDICTION, INSERT_LABEL):
                connection.executemany(statement, [values for what, values in batch if what == statement])
        for _ in batch:
            self.waiting.popleft()


def open_log(path: Path) -> sqlite3.Connection:
    """A connection to the log, made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(SCHEMA)
    return connection
