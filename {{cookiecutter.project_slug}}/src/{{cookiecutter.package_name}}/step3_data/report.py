"""The data report: what is in the table, what is missing, and how the target moves."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from matplotlib.dates import AutoDateLocator

from ..params import Framing, Input
from ..step1_requirements.checks import Check, checks_section
from ..step1_requirements.page import BLUE, GREEN, RED, axes, figure, page, plain, section, table
from ..step2_framing.contract import as_text
from .source import in_sql, name, text
from .split import LEFT_OUT, PARTS, Counts

SAMPLE_ROWS = 20_000  # behind the pictures of single columns
LEAST_ROWS = 20  # behind one point of the target's curve
COLUMNS_DRAWN, ACROSS = 24, 4


def data_page(connection: duckdb.DuckDBPyConnection, framing: Framing, counts: Counts, checks: Sequence[Check], alone: Mapping[str, float]) -> str:
    """The report as HTML, from the view `prepared` (all rows with their part)."""
    called = {inside.name: field.name for inside, field in zip(in_sql(framing).inputs, framing.inputs, strict=True)}
    some = f"SELECT * EXCLUDE (row_id, part) FROM prepared USING SAMPLE reservoir({SAMPLE_ROWS} ROWS) REPEATABLE (0)"
    sample = connection.sql(some).df().rename(columns=called)
    figures = "SELECT column_name, min, max, approx_unique, null_percentage FROM (SUMMARIZE prepared)"
    summary = {called.get(row[0]): row for row in connection.sql(figures).fetchall()}
    columns = [(f.name, f.kind, f.origin, float(summary[f.name][4]) / 100, summary[f.name][3], _range(f, sample[f.name], summary[f.name]),
                alone.get(f.name)) for f in framing.inputs]  # fmt: skip
    parts = [(LEFT_OUT.get(part, part), rows) for part, rows in counts.items()]
    return page(
        "Step 3: data",
        f"{sum(counts[part] for part in PARTS):,} rows ready to learn from and to test on.",
        checks_section(checks),
        section("Rows", table(("part", "rows"), parts)),
        section("The target", _target_figure(connection, framing)),
        section("Columns", table(("column", "kind", "from", "missing share", "distinct", "range or most frequent", "score alone"), columns)),
        section("Distributions", _distributions(framing.inputs[:COLUMNS_DRAWN], sample)),
    )


def _range(field: Input, values: "pd.Series[Any]", summary: Sequence[Any]) -> str:
    if field.kind == "number":
        return f"{plain(float(summary[1]))} to {plain(float(summary[2]))}" if summary[1] is not None else ""
    if field.kind == "date":
        return f"{str(summary[1])[:16]} to {str(summary[2])[:16]}"
    return ", ".join(str(as_text(v))[:30] for v in values.value_counts().index[:3])


def _distributions(fields: Sequence[Input], sample: pd.DataFrame) -> str:
    drawing, grid = axes(9.5, 1.75 * -(-len(fields) // ACROSS), columns=ACROSS, rows=-(-len(fields) // ACROSS))
    panels = np.atleast_1d(grid).ravel()
    for panel, field in zip(panels, fields, strict=False):
        values, kind, title = sample[field.name].dropna(), field.kind, field.name[:28]
        if kind == "text":
            values, kind, title = values.str.len(), "number", f"{title[:15]}, characters"
        panel.set_title(title, fontsize=8.5, loc="left")
        panel.tick_params(labelsize=7, axis="both")
        if kind in ("number", "date") and len(values):
            panel.hist(values[values.between(values.quantile(0.01), values.quantile(0.99))], bins=20, color=BLUE)
            if kind == "date":
                panel.tick_params(axis="x", rotation=30)
                panel.xaxis.set_major_locator(AutoDateLocator(maxticks=4))  # type: ignore[no-untyped-call]
        elif len(values):
            counts = values.value_counts().head(8)[::-1]
            panel.barh([str(as_text(v))[:16] for v in counts.index], counts, color=BLUE)
            panel.grid(visible=False)
    for panel in panels[len(fields) :]:
        panel.set_axis_off()
    shown = "numbers within their 1st and 99th percentile; the 8 most frequent other values"
    return figure(drawing, f"Rows per bar in a sample of {len(sample):,}, {shown}.")


def _target_figure(connection: duckdb.DuckDBPyConnection, framing: Framing) -> str:
    target, time = (name(column or "") for column in (in_sql(framing).target, in_sql(framing).time))
    if framing.task == "multiclass":
        rows = connection.execute(f"SELECT left({target}::VARCHAR, 40), count(*) FROM prepared GROUP BY 1 ORDER BY 2 LIMIT 30").fetchall()
        return _bars(rows, "rows", "Rows per label.")
    if framing.task == "binary":
        value, unit = f"({target}::VARCHAR = {text(as_text(framing.positive))})::INTEGER", f"share of {framing.target} = {framing.positive}"
    else:
        value, unit = target, f"mean {framing.target} {framing.unit}".rstrip()
    if framing.time is None:
        rows = connection.execute(f"SELECT part, avg({value}) FROM prepared GROUP BY part ORDER BY part DESC").fetchall()
        return _bars(rows, unit, "The target in each part of the split.")
    return _over_time(connection, time, value, unit)


def _over_time(connection: duckdb.DuckDBPyConnection, time: str, value: str, unit: str) -> str:
    low, high = connection.execute(f"SELECT min({time})::TIMESTAMP, max({time})::TIMESTAMP FROM prepared").fetchall()[0]
    width = max(1, round((high - low).total_seconds() / 30))
    bucket = f"time_bucket(INTERVAL ({width}) SECOND, {time}::TIMESTAMP, {text(low)}::TIMESTAMP)"
    grouped = f"SELECT {bucket} AS t, part, avg({value}) FROM prepared GROUP BY t, part HAVING count(*) >= {LEAST_ROWS} ORDER BY t"
    rows = connection.execute(grouped).fetchall()
    drawing, panel = axes()
    for part, colour in zip(PARTS, (BLUE, GREEN, RED), strict=True):
        points = [(r[0], r[2]) for r in rows if r[1] == part]
        panel.plot([p[0] for p in points], [p[1] for p in points], color=colour, marker="o", markersize=3, label=part)
    panel.set_ylabel(unit)
    panel.set_ylim(bottom=min([0, *(r[2] for r in rows)]))
    panel.legend(fontsize=8, ncols=3)
    return figure(drawing, "The target over time, in each part of the split; between the parts, rows whose label came too late.")


def _bars(rows: Sequence[tuple[Any, ...]], unit: str, caption: str) -> str:
    drawing, panel = axes(7, 0.6 + 0.24 * len(rows))
    panel.barh([str(r[0]) for r in rows], [r[1] for r in rows], color=BLUE)
    panel.set_xlabel(unit)
    return figure(drawing, caption)
