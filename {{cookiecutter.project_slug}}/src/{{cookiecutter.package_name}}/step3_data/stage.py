"""Step 3 at work: validate, add history, split, prove that nothing leaks, and report."""

import logging
from collections.abc import Iterator
from pathlib import Path

import duckdb

from ..params import PREPARED, SCRATCH, Framing, Input, Params
from ..step1_requirements.checks import StepFailed, checks_section, raise_if_failed, save_report
from ..step1_requirements.page import page, whole_folder
from ..step2_framing.contract import inputs_of
from .features import QUERY, build, check_point_in_time
from .report import data_page
from .source import connect, in_sql, name, open_events, text, write_query
from .split import PARTS, assign, check_split
from .validation import check_alone, check_rows, measure_alone

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write data/prepared and reports/3-data.

    Raises:
        StepFailed: when a row breaks the contract, a feature reads ahead or a column gives the target away.
    """
    framing, data = params.framing, params.data
    connection, inside = connect(data.memory_gb, SCRATCH), in_sql(framing)
    open_events(connection, data, framing)
    log.info("data: validating %s", data.raw)
    checks = check_rows([raw := Path(data.raw)], raw, _raw_fields(framing), data.rows_listed, "raw values")
    if any(c.outcome == "fail" for c in checks):
        save_report("data", checks, page("Step 3: data", "The raw rows break the contract; nothing was prepared.", checks_section(checks)))
        raise_if_failed("data", checks)
    query = QUERY.read_text(encoding="utf-8")
    log.info("data: computing history as of each event, then again with the future hidden")
    build(connection, inside, query)
    delay = params.requirements.label_delay_days
    checks.append(check_point_in_time(connection, inside, query, delay))
    counts = assign(connection, inside, data.split, delay, data.since)
    log.info("data: %s rows to train on, %s to validate, %s to test", *(f"{counts[part]:,}" for part in PARTS))
    with whole_folder(PREPARED) as folder:
        _write_parts(connection, framing, folder)
        files = [folder / f"{part}.parquet" for part in PARTS]
        checks += check_rows(files, raw, inputs_of(framing, "history"), data.rows_listed, "history values")
        checks += check_split(connection, framing, data.split, folder)
        alone = measure_alone(connection, framing, "train")
        checks.append(check_alone({n: s for n, s in alone.items() if n != framing.time}, data.leak_limit))  # when it happens is known when it happens
        union = " UNION ALL ".join(f"SELECT *, {text(part)} AS part FROM {part}" for part in PARTS)
        connection.execute(f"CREATE OR REPLACE VIEW prepared AS {union}")
        save_report("data", checks, data_page(connection, framing, counts, checks, alone))
        raise_if_failed("data", checks)


def _raw_fields(framing: Framing) -> list[Input]:
    """What raw rows must hold: the inputs of a request, and an event time in every row."""
    fields = list(inputs_of(framing, "request"))
    if framing.time and framing.time not in [f.name for f in fields]:
        fields.append(Input.model_validate({"name": framing.time, "kind": "date"}))
    return fields


def _write_parts(connection: duckdb.DuckDBPyConnection, framing: Framing, folder: Path) -> None:
    """Copy each part of the split to a Parquet file of row_id, keys, inputs and target."""
    names, columns = (list(_columns(f)) for f in (framing, in_sql(framing)))
    names[0] = "row_id" if "row_id" not in names[1:] else "row_id of this table"
    history = [i.name for i in inputs_of(in_sql(framing), "history")]
    chosen = ", ".join(f"{'features' if c in history else 'events'}.{name(c)}" for c in columns)
    for part in PARTS:
        select = f"SELECT {chosen} FROM events JOIN features USING (row_id) JOIN parts USING (row_id) WHERE part = {text(part)} ORDER BY row_id"
        try:
            write_query(connection, select, names, folder / f"{part}.parquet")
        except duckdb.Error as error:
            raise StepFailed(f"data: could not write {folder / part}.parquet: {error}") from None


def _columns(framing: Framing) -> Iterator[str]:
    """The columns of a prepared file: row_id, keys, what a request holds, history, target."""
    request = [i.name for i in inputs_of(framing, "request")]
    yield from ("row_id", *(k for k in (framing.entity, framing.time) if k and k not in request), *request)
    yield from (*(i.name for i in inputs_of(framing, "history")), framing.target)
