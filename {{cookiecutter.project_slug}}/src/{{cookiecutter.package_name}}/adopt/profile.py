"""What the columns of a table are like, measured by DuckDB over all rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from ..step3_data.source import text, write_query
from ..step3_data.table import DATES, NUMBERS, Table, is_known, natural_kind, value

SAMPLE_ROWS = 500  # rows that rule kinds out; what they leave is proved on all rows
EXACT_ROWS = 200_000  # the first rows, in which distinct values are counted exactly
AT_ONCE = 40  # columns measured in one scan
FEW = 100  # distinct values that are listed
MOST = 0.9  # share of values of a kind from which the others call for a word
NO_LABEL = ("NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")  # how tools write a missing value; "none" may be a label
UNIT = r"^[+-]?\d[\d.,]*(\s?[^\d\s.,+-][^\d.,]{0,11})$"  # behind a number: kg, sq ft
KINDS = [("boolean", ""), ("date", "yearmonthday"), ("number", ""), ("date", ""), *(("number", s) for s in NUMBERS), *(("date", s) for s in DATES)]


@dataclass(frozen=True)
class Column:
    """One column: `sql` gives its values, of `kind` number, boolean, date or text; `style` is how text held them."""

    name: str
    sql: str
    kind: str
    style: str
    ambiguous: bool  # dates in which day and month could change places
    nearly: str  # what a text would be, but for few of its values
    rows: int
    present: int
    distinct: int
    unique: float  # share of distinct values among the first rows
    low: Any
    high: Any
    whole: bool | None  # numbers without a fraction
    words: float | None  # of a text, on average
    counts: dict[Any, int]  # rows per value, most frequent first, where there are few values
    increasing: bool

    @property
    def missing(self) -> float:
        """The share of rows without a value."""
        return 1 - self.present / max(1, self.rows)


def profile(
    connection: duckdb.DuckDBPyConnection, table: Table, target: str, day_first: bool, folder: Path, code: str | None = None
) -> tuple[Table, list[Column]]:
    """Every column's kind and figures, and the table that gives their values; texts are parsed into `folder` once, and not for every figure.

    A target that is NA is missing; other columns may mean something by it, Namibia for one. The column `code` is read as text, digit by digit.
    """
    kinds = _kinds(connection, table, day_first)
    columns = [f"c{i}" for i in range(len(table.names))]
    found = [value(c, kind, style, t) for c, (kind, style, *_), t in zip(columns, kinds, table.types, strict=True)]
    if code:
        place = table.names.index(code)
        kinds[place], found[place] = ("text", "", False, ""), value(f"{columns[place]}::VARCHAR", "text")
    place = table.names.index(target)
    if kinds[place][0] == "text":
        found[place] = f"CASE WHEN trim({columns[place]}::VARCHAR) NOT IN ({', '.join(map(text, NO_LABEL))}) THEN {found[place]} END"
    if any(kind != "text" and natural_kind(t) == "text" for (kind, *_), t in zip(kinds, table.types, strict=True)):
        write_query(connection, f"SELECT {', '.join(found)} FROM {table.relation}", columns, folder / "typed.parquet")
        table, found = replace(table, relation=f"(SELECT * FROM read_parquet({text(folder / 'typed.parquet')}))"), columns
    rows = connection.execute(f"SELECT count(*) FROM {table.relation}").fetchall()[0][0]
    figures = per_column(connection, table.relation, [_figures(sql, kind) for sql, (kind, *_) in zip(found, kinds, strict=True)])
    exact = [[f"count(DISTINCT {sql})", f"count({sql})"] for sql in found]
    counted = per_column(connection, f"(SELECT * FROM {table.relation} LIMIT {EXACT_ROWS})", exact)
    distinct = [some if rows <= EXACT_ROWS else max(about, some) for (_, about, *_), (some, _) in zip(figures, counted, strict=True)]
    listed = [[f"histogram({sql})" if n <= FEW else "NULL"] for sql, n in zip(found, distinct, strict=True)]
    counts = per_column(connection, table.relation, listed)
    whole = [sql for sql, row, (some, of) in zip(found, figures, counted, strict=True) if row[4] and some == of]
    growing = _growing(connection, table, whole)
    profiles = []
    for i, (name, sql) in enumerate(zip(table.names, found, strict=True)):
        (present, _, low, high, is_whole, words), (some, of), (values,) = figures[i], counted[i], counts[i]
        often, unique = _often(values or {}), some / max(1, of)
        profiles.append(Column(name, sql, *kinds[i], rows, present, distinct[i], unique, low, high, is_whole, words, often, sql in growing))
    return table, profiles


def _kinds(connection: duckdb.DuckDBPyConnection, table: Table, day_first: bool) -> list[tuple[str, str, bool, str]]:
    """The likeliest kind and style of each column, proved on all rows, whether day and month could change places, and what it nearly is."""
    texts = {f"c{i}": f"c{i}::VARCHAR" for i, t in enumerate(table.types) if natural_kind(t) == "text"}
    looks = _looks(connection, table, texts) if texts else {}
    tried = {c: [k for k, n in zip(KINDS, reads, strict=True) if n == known] for c, (_, _, known, *reads) in looks.items()}
    tried |= {c: [*tried[c], *(("number", style + look[0]) for style in list(NUMBERS)[:2])] for c, look in looks.items() if look[0]}
    fits = {c: tried.get(c, KINDS) for c in texts}
    wanted = [[f"count(*) FILTER ({is_known(texts[c])})", *(f"count({value(texts[c], *k)})" for k in kinds)] for c, kinds in fits.items()]
    counted = zip(fits.items(), per_column(connection, table.relation, wanted), strict=True)
    proved = {c: [k for k, n in zip(kinds, reads, strict=True) if known and n == known] for (c, kinds), (known, *reads) in counted}
    found = []
    for i, sql_type in enumerate(table.types):
        best = proved.get(f"c{i}", [(natural_kind(sql_type), "")]) or [("text", "")]
        _, dotted, known, *reads = looks.get(f"c{i}", ("", False, 0, 0))
        either = [style for _, style in best[:2]] == ["month/day/year", "day/month/year"]
        day = either and bool(day_first or dotted)
        nearly = KINDS[reads.index(max(reads))][0] if best == [("text", "")] and max(reads) > MOST * known else ""
        found.append((*best[day], either and not day, nearly))
    return found


def _looks(connection: duckdb.DuckDBPyConnection, table: Table, texts: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """By column that some rows know: its unit, whether dates are dotted, the known values, how many each of KINDS reads; one query for all."""
    rows = f"SELECT {', '.join(f'{v} AS {c}' for c, v in texts.items())} FROM {table.relation} USING SAMPLE {SAMPLE_ROWS} ROWS"
    reads = ", ".join(f"count({value('v', *k)})" for k in KINDS)
    look = f"mode(regexp_extract(trim(v), '{UNIT}', 1)), bool_or(v SIMILAR TO '\\d+[.].*'), count(*) FILTER ({is_known('v')})"
    unpivoted = f"UNPIVOT ({rows}) ON COLUMNS(*) INTO NAME c VALUE v"
    return {c: tuple(look) for c, *look in connection.execute(f"SELECT c, {look}, {reads} FROM ({unpivoted}) GROUP BY c").fetchall()}


def _figures(sql: str, kind: str) -> list[str]:
    low, high = (f"min({sql})", f"max({sql})") if kind in ("number", "date") else ("NULL", "NULL")
    whole = f"bool_and({sql} = floor({sql}::DOUBLE))" if kind == "number" else "NULL"
    words = f"avg(len(string_split_regex(trim({sql}), '\\s+')))" if kind == "text" else "NULL"
    return [f"count({sql})", f"approx_count_distinct({sql})", low, high, whole, words]


def per_column(connection: duckdb.DuckDBPyConnection, relation: str, wanted: Sequence[Sequence[str]]) -> list[tuple[Any, ...]]:
    """Aggregates of some columns per scan, so that wide tables stay in memory; handed back column by column."""
    found: list[tuple[Any, ...]] = []
    for some in (wanted[i : i + AT_ONCE] for i in range(0, len(wanted), AT_ONCE)):
        flat = iter(connection.execute(f"SELECT {', '.join(e for column in some for e in column)} FROM {relation}").fetchall()[0])
        found += [tuple(next(flat) for _ in column) for column in some]
    return found


def _often(values: Mapping[Any, int]) -> dict[Any, int]:
    """Rows per value, most frequent first."""
    often = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return {int(v) if isinstance(v, float) and v == int(v) else v: n for v, n in often}


def _growing(connection: duckdb.DuckDBPyConnection, table: Table, columns: Sequence[str]) -> set[str]:
    """Those columns whose first values are known and grow from row to row."""
    if not columns:
        return set()
    first = connection.execute(f"SELECT {', '.join(columns)} FROM {table.relation} LIMIT 10000").fetchnumpy()
    return {c for c, v in zip(columns, first.values(), strict=True) if not np.ma.is_masked(v) and bool((v[1:] > v[:-1]).all())}
