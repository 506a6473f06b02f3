"""The data report: what is in the table, what is missing, and how the target moves."""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np

from ..params import Framing, Input
from ..step1_requirements.checks import Check, checks_section
from ..step1_requirements.page import BLUE, GREEN, RED, axes, figure, page, section, table
from ..step2_framing.contract import as_text
from .source import name, text
from .split import PARTS, Counts

BARS = 20
LEAST_ROWS = 20  # behind one point of the target's curve


def data_page(connection: duckdb.DuckDBPyConnection, framing: Framing, counts: Counts, checks: Sequence[Check], alone: Mapping[str, float]) -> str:
    """The report as HTML, from the view `prepared` (all rows with their part)."""
    rows = counts.train + counts.validation + counts.test
    columns = [_summary(connection, field, rows) for field in framing.inputs]
    table_rows = [(f.name, f.kind, f.origin, c["missing"] / max(rows, 1), c["distinct"], c["range"], alone.get(f.name, float("nan")))
                  for f, c in zip(framing.inputs, columns, strict=True)]  # fmt: skip
    parts = [("train", counts.train), ("validation", counts.validation), ("test", counts.test),
             ("left out: no label yet", counts.without_label), ("left out: label not in when the test begins", counts.embargoed)]  # fmt: skip
    return page(
        "Step 3: data",
        f"{rows:,} rows ready to learn from and to test on.",
        checks_section(checks),
        section("Rows", table(("part", "rows"), parts)),
        section("The target", _target_figure(connection, framing)),
        section("Columns", table(("column", "kind", "from", "missing share", "distinct", "range or most frequent", "score alone"), table_rows)),
        section("Distributions", _distributions(framing.inputs, columns)),
    )  # fmt: skip


def _summary(connection: duckdb.DuckDBPyConnection, field: Input, rows: int) -> dict[str, Any]:
    column = name(field.name)
    missing, distinct = connection.execute(f"SELECT count(*) - count({column}), approx_count_distinct({column}) FROM prepared").fetchall()[0]
    result: dict[str, Any] = {"missing": missing, "distinct": distinct}
    if field.kind in ("number", "date"):
        edges = f"min({column}), max({column}), quantile_cont({column}, 0.01), quantile_cont({column}, 0.99)"
        low, high, *inner = connection.execute(f"SELECT {edges} FROM prepared").fetchall()[0]
        result["range"] = "" if low is None else f"{_show(low)} to {_show(high)}"
        result["bars"] = _histogram(connection, field, *inner) if low is not None else ([], [])
    else:
        shown = f"left({column}::VARCHAR, 40)"
        top = connection.execute(
            f"SELECT {shown}, count(*) FROM prepared WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 8"
        ).fetchall()
        result["range"] = ", ".join(str(t[0]) for t in top[:3])
        result["bars"] = ([str(t[0]) for t in top], [t[1] / max(rows, 1) for t in top])
    return result


def _histogram(connection: duckdb.DuckDBPyConnection, field: Input, low: Any, high: Any) -> tuple[list[Any], list[float]]:
    """Shares between the 1st and 99th percentile in BARS bars."""
    column = name(field.name) if field.kind == "number" else f"epoch({name(field.name)}::TIMESTAMP)"
    first, last = (float(v) if field.kind == "number" else np.datetime64(v, "s").astype(float) for v in (low, high))
    width = (last - first) / BARS or 1.0
    place = f"least(greatest(floor(({column} - {first}) / {width}), 0), {BARS - 1})::INTEGER"
    found = dict(
        connection.execute(f"SELECT {place}, count(*) FROM prepared WHERE {column} IS NOT NULL AND NOT isnan({column}::DOUBLE) GROUP BY 1").fetchall()
    )
    total = sum(found.values()) or 1
    return [first + (i + 0.5) * width for i in range(BARS)], [found.get(i, 0) / total for i in range(BARS)]


def _distributions(fields: Sequence[Input], columns: Sequence[dict[str, Any]]) -> str:
    shown = [(f, c) for f, c in zip(fields, columns, strict=True) if c["bars"][0]][:24]
    if not shown:
        return ""
    across = 4
    drawing, grid = axes(9.5, 1.75 * -(-len(shown) // across), columns=across, rows=-(-len(shown) // across))
    panels = np.atleast_1d(grid).ravel()
    for panel, (field, column) in zip(panels, shown, strict=False):
        places, shares = column["bars"]
        panel.set_title(field.name[:28], fontsize=8.5, loc="left")
        panel.tick_params(labelsize=7)
        if field.kind == "number":
            panel.bar(places, shares, width=(places[1] - places[0]) * 0.92, color=BLUE)
        elif field.kind == "date":
            days = np.asarray(places).astype("int64").astype("datetime64[s]")
            panel.bar(days, shares, width=(days[1] - days[0]) * 0.92, color=BLUE)
            panel.tick_params(axis="x", rotation=30)
        else:
            panel.barh([p[:16] for p in places][::-1], shares[::-1], color=BLUE)
            panel.grid(visible=False)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    return figure(drawing, "Share of rows per bar, between the 1st and 99th percentile; the most frequent values of categories.")


def _target_figure(connection: duckdb.DuckDBPyConnection, framing: Framing) -> str:
    target = name(framing.target)
    if framing.task == "binary":
        target, unit = f"({target}::VARCHAR = {text(as_text(framing.positive))})::INTEGER", f"share of {framing.target} = {framing.positive}"
    elif framing.task == "regression":
        unit = f"mean {framing.target} ({framing.unit})" if framing.unit else f"mean {framing.target}"
    else:
        return _classes_figure(connection, target)
    if framing.time is None:
        return _parts_figure(connection, target, unit)
    low, high = connection.execute(f"SELECT min({name(framing.time)})::TIMESTAMP, max({name(framing.time)})::TIMESTAMP FROM prepared").fetchall()[0]
    bucket = (
        f"time_bucket(INTERVAL ({max(1, round((high - low).total_seconds() / 30))}) SECOND, {name(framing.time)}::TIMESTAMP, {text(low)}::TIMESTAMP)"
    )
    rows = connection.execute(
        f"SELECT {bucket} AS t, part, avg({target}) FROM prepared GROUP BY t, part HAVING count(*) >= {LEAST_ROWS} ORDER BY t"
    ).fetchall()
    drawing, panel = axes()
    for part, colour in zip(PARTS, (BLUE, GREEN, RED), strict=True):
        points = [(r[0], r[2]) for r in rows if r[1] == part]
        panel.plot([p[0] for p in points], [p[1] for p in points], color=colour, marker="o", markersize=3, label=part)
    panel.set_ylabel(unit)
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8, ncols=3)
    return figure(drawing, "The target over time, in each part of the split; between the parts, rows whose label came too late.")


def _classes_figure(connection: duckdb.DuckDBPyConnection, target: str) -> str:
    rows = connection.execute(f"SELECT {target}::VARCHAR, count(*) FROM prepared GROUP BY 1 ORDER BY 2 LIMIT 30").fetchall()
    drawing, panel = axes(7, 0.6 + 0.24 * len(rows))
    panel.barh([str(r[0])[:40] for r in rows], [r[1] for r in rows], color=BLUE)
    panel.set_xlabel("rows")
    return figure(drawing, "Rows per label.")


def _parts_figure(connection: duckdb.DuckDBPyConnection, target: str, unit: str) -> str:
    rows = connection.execute(f"SELECT part, avg({target}) FROM prepared GROUP BY part ORDER BY part DESC").fetchall()
    drawing, panel = axes(5, 1.6)
    panel.barh([r[0] for r in rows], [r[1] for r in rows], color=BLUE)
    panel.set_xlabel(unit)
    return figure(drawing, "The target in each part of the split.")


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)[:16]
