"""Batch scoring on the serving bundle: a file in, the same rows with their scores out, in bounded memory."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter

from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import write_text
from ..step3_data.encode import columns_of
from ..step3_data.source import write_tables
from ..step3_data.table import read_as_contract
from .predictor import Predictor

BATCH = 50_000
SAY_EVERY_SECONDS = 2
log = logging.getLogger(__name__)


def score_file(predictor: Predictor, source: Path, target: Path) -> int:
    """Score a Parquet, CSV or JSON Lines file into a Parquet or CSV file, whole or not at all; returns the rows scored.

    The columns score, decision and model_version are added. History features that the file
    lacks are looked up by entity, as the API does. Scored parts are kept beside the target until
    it is whole, so the same call goes on where an interrupted one stopped.

    Raises:
        StepFailed: when the file is missing, of another kind, or lacks a column.
    """
    parts = target.with_name(target.name + ".parts")
    try:
        _resume(parts, [str(source.absolute()), source.stat().st_size, source.stat().st_mtime_ns, predictor.stamp, BATCH])
        rows, scored = _score_parts(predictor, source, parts)
        write_tables(map(_read, scored), target, CSVWriter if target.suffix == ".csv" else pq.ParquetWriter)
        shutil.rmtree(parts)
    except (pa.ArrowException, OSError) as error:
        raise StepFailed(f"score: {source}: {error}") from None
    except StepFailed:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    if not rows:
        raise StepFailed(f"score: {source} holds no rows")
    return rows


def _resume(parts: Path, asked: list[Any]) -> None:
    """Keep the parts of the same file by the same model, and no others."""
    stamp = parts / "asked.json"
    if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8")) != asked:
        shutil.rmtree(parts, ignore_errors=True)
        write_text(stamp, json.dumps(asked))


def _score_parts(predictor: Predictor, source: Path, parts: Path) -> tuple[int, list[Path]]:
    """The rows scored, and where; columns are read as the contract says and not as they look: "007" stays a text, a duration is a number."""
    rows, said, found = 0, monotonic(), list[Path]()
    with tempfile.TemporaryDirectory() as folder:
        for table, total in read_as_contract(predictor.framing, source, Path(folder), BATCH):
            found.append(part := parts / f"{rows}-{rows + table.num_rows}.arrow")  # so a part of an earlier call holds these very rows
            if not part.exists():
                scored = _score(predictor, table, source)
                with pa.OSFile(str(part.with_suffix(".new")), "wb") as sink, pa.ipc.new_file(sink, scored.schema) as writer:
                    writer.write_table(scored)
                os.replace(part.with_suffix(".new"), part)
            rows += table.num_rows
            if monotonic() - said > SAY_EVERY_SECONDS or rows == total:
                log.info("score: %s of %s rows", f"{rows:,}", f"{total:,}")
                said = monotonic()
    return rows, found


def _read(part: Path) -> pa.Table:
    with pa.OSFile(str(part)) as file:
        return pa.ipc.open_file(file).read_all()


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
    raw = predictor.scores(columns)
    added = {"score": predictor.main_scores(raw), "decision": predictor.decisions(raw), "model_version": [predictor.version] * table.num_rows}
    for plain, values in added.items():
        name = plain if plain not in have else f"predicted {plain}"
        table = table.append_column(name, pa.array(values, pa.float64() if plain == "score" else pa.string()))
    return table
