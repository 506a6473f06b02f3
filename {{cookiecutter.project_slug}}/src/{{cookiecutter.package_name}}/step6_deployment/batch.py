"""Batch scoring on the serving bundle: a file in, the same rows with their scores out, in bounded memory."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from ..params import Framing
from ..step1_requirements.checks import StepFailed
from ..step3_data.encode import columns_of
from ..step3_data.table import read_as_contract
from .predictor import Predictor

BATCH = 50_000
log = logging.getLogger(__name__)


def score_file(predictor: Predictor, source: Path, target: Path) -> int:
    """Score a Parquet, CSV or JSON Lines file into a Parquet or CSV file, whole or not at all; returns the rows scored.

    The columns score, decision and model_version are added. History features that the file
    lacks are looked up by entity, as the API does.

    Raises:
        StepFailed: when the file is missing, of another kind, or lacks a column.
    """
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = _score_into(predictor, source, partial, target.suffix)
        if rows:
            os.replace(partial, target)
    except (pa.ArrowException, OSError) as error:
        raise StepFailed(f"score: {source}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    if not rows:
        raise StepFailed(f"score: {source} holds no rows")
    return rows


def _score_into(predictor: Predictor, source: Path, partial: Path, kind: str) -> int:
    writer, rows = None, 0
    try:
        for table in _tables(source, predictor.framing):
            scored = _score(predictor, table, source)
            writer = writer or _writer(kind, partial, scored.schema)
            writer.write_table(scored)
            rows += table.num_rows
            log.info("score: %s rows", f"{rows:,}")
    finally:
        if writer:
            writer.close()
    return rows


def _tables(source: Path, framing: Framing) -> Iterator[pa.Table]:
    """The table in batches, read as the contract says and not as it looks, so that "007" stays a text and a duration is a number."""
    with tempfile.TemporaryDirectory() as folder:
        for batch in pq.ParquetFile(read_as_contract(framing, source, Path(folder))).iter_batches(BATCH):
            yield pa.Table.from_batches([batch])


def _writer(kind: str, partial: Path, schema: pa.Schema) -> Any:
    return pc_csv.CSVWriter(partial, schema) if kind == ".csv" else pq.ParquetWriter(partial, schema)


def _score(predictor: Predictor, table: pa.Table, source: Path) -> pa.Table:
    have = table.column_names
    missing = [n for n in predictor.names if n not in have and n not in predictor.history]
    if missing:
        raise StepFailed(f"score: {source} has no column {missing[0]!r}; the contract needs it (reports/2-framing/input_schema.json)")
    columns = columns_of(table, [n for n in predictor.names if n in have])
    lacking = [n for n in predictor.history if n not in have]
    if lacking:
        entities = table.column(predictor.framing.entity).to_pylist() if predictor.framing.entity in have else [None] * table.num_rows
        known = [predictor.online.features(None if e is None else str(e)) for e in entities]
        columns |= {name: [state.get(name) for state in known] for name in lacking}
    raw = predictor.scores(columns, table.num_rows)
    added = {"score": predictor.main_scores(raw), "decision": predictor.decisions(raw), "model_version": [predictor.version] * table.num_rows}
    for plain, values in added.items():
        name = plain if plain not in have else f"predicted {plain}"
        table = table.append_column(name, pa.array(values, pa.float64() if plain == "score" else pa.string()))
    return table
