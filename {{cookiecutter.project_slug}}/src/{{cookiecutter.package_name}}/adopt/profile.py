"""What the columns of a table are like, measured by DuckDB over all rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb

from ..step3_data.table import DATES, NUMBERS, Table, is_known, natural_kind, value

SAMPLE_ROWS = 500  # rows that rule kinds out; what they leave is proved on all rows
EXACT_ROWS = 200_000  # the first rows, in which distinct values are counted exactly
AT_ONCE = 40  # columns measured in one scan
FEW = 100  # distinct values that are listed
UNIT = r"^[+-]?\d[\d.,]*(\s?[^\d\s.,+-][^\d.,]{0,11})$"  # behind a number: kg, sq ft
Candidates = dict[int, list[tuple[str, str]]]  # by column: kind and style
KINDS = [("boolean", ""), ("date", "yearmonthday"), ("number", ""), ("date", ""), *(("number", s) for s in NUMBERS), *(("date", s) for s in DATES)]


@dataclass(frozen=True)
class Column:
    """One column: `sql` gives its values, of `kind` number, boolean, date or text; `style` is how text held them."""

    name: str
    sql: str
    kind: str
    style: str
    ambiguous: bool  # dates in which day and month could change places
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


def profile(connection: duckdb.DuckDBPyConnection, table: Table, day_first: bool) -> list[Column]:
    """Every column's kind and figures."""
    kinds = _kinds(connection, table, day_first)
    columns = [f"c{i}" for i in range(len(table.names))]
    found = [value(c, kind, style, t) for c, (kind, style, _), t in zip(columns, kinds, table.types, strict=True)]
    rows = connection.execute(f"SELECT count(*) FROM {table.relation}").fetchall()[0][0]
    figures = _per_column(connection, table.relation, [_figures(sql, kind) for sql, (kind, *_) in zip(found, kinds, strict=True)])
    exact = [[f"count(DISTINCT {sql})", f"count({sql})"] for sql in found]
    counted = _per_column(connection, f"(SELECT * FROM {table.relation} LIMIT {EXACT_ROWS})", exact)
    profiles = []
    for name, sql, kind, (present, about, *rest), (some, of) in zip(table.names, found, kinds, figures, counted, strict=True):
        distinct, unique = some if rows <= EXACT_ROWS else max(about, some), some / max(1, of)
        counts = _counts(connection, table, sql) if distinct <= FEW else {}
        increasing = bool(rest[2]) and unique == 1 and _increasing(connection, table, sql)
        low, high, whole, words = rest
        profiles.append(Column(name, sql, *kind, rows, present, distinct, unique, low, high, whole, words, counts, increasing))
    return profiles


def _kinds(connection: duckdb.DuckDBPyConnection, table: Table, day_first: bool) -> list[tuple[str, str, bool]]:
    """The likeliest kind and style of each column, proved on all rows, and whether day and month could change places."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE some_rows AS SELECT * FROM {table.relation} USING SAMPLE {SAMPLE_ROWS} ROWS")
    texts = [i for i, t in enumerate(table.types) if natural_kind(t) == "text"]
    looks = [[f"mode(regexp_extract(trim(c{i}::VARCHAR), '{UNIT}', 1))", f"bool_or(c{i}::VARCHAR SIMILAR TO '\\d+[.].*')"] for i in texts]
    found = dict(zip(texts, _per_column(connection, "some_rows", looks), strict=True))
    tried = {i: KINDS + [("number", style + unit) for style in list(NUMBERS)[:2] if unit] for i, (unit, _) in found.items()}
    proved = _fitting(connection, table.relation, _fitting(connection, "some_rows", tried))
    kinds = []
    for i, sql_type in enumerate(table.types):
        fits = proved.get(i, [(natural_kind(sql_type), "")]) or [("text", "")]
        either = [style for _, style in fits[:2]] == ["month/day/year", "day/month/year"]
        day = either and bool(day_first or found[i][1])
        kinds.append((*fits[day], either and not day))
    return kinds


def _fitting(connection: duckdb.DuckDBPyConnection, relation: str, candidates: Candidates) -> Candidates:
    """Those candidates that can read every known value of their column."""
    texts = {i: f"CAST(c{i} AS VARCHAR)" for i in candidates}
    wanted = [[f"count(*) FILTER ({is_known(texts[i])})", *(f"count({value(texts[i], *c)})" for c in fits)] for i, fits in candidates.items()]
    counted = zip(candidates.items(), _per_column(connection, relation, wanted), strict=True)
    return {i: [c for c, n in zip(fits, read, strict=True) if known and n == known] for (i, fits), (known, *read) in counted}


def _figures(sql: str, kind: str) -> list[str]:
    low, high = (f"min({sql})", f"max({sql})") if kind in ("number", "date") else ("NULL", "NULL")
    whole = f"bool_and({sql} = floor({sql}::DOUBLE))" if kind == "number" else "NULL"
    words = f"avg(len(string_split_regex(trim({sql}), '\\s+')))" if kind == "text" else "NULL"
    return [f"count({sql})", f"approx_count_distinct({sql})", low, high, whole, words]


def _per_column(connection: duckdb.DuckDBPyConnection, relation: str, wanted: Sequence[Sequence[str]]) -> list[tuple[Any, ...]]:
    """Aggregates of some columns per scan, so that wide tables stay in memory; handed back column by column."""
    found: list[tuple[Any, ...]] = []
    for some in (wanted[i : i + AT_ONCE] for i in range(0, len(wanted), AT_ONCE)):
        flat = iter(connection.execute(f"SELECT {', '.join(e for column in some for e in column)} FROM {relation}").fetchall()[0])
        found += [tuple(next(flat) for _ in column) for column in some]
    return found


def _counts(connection: duckdb.DuckDBPyConnection, table: Table, sql: str) -> dict[Any, int]:
    query = f"SELECT {sql} AS v, count(*) FROM {table.relation} WHERE v IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return {int(v) if isinstance(v, float) and v == int(v) else v: n for v, n in connection.execute(query).fetchall()}


def _increasing(connection: duckdb.DuckDBPyConnection, table: Table, sql: str) -> bool:
    values = [row[0] for row in connection.execute(f"SELECT {sql} FROM {table.relation} LIMIT 10000").fetchall()]
    return None not in values and all(a < b for a, b in pairwise(values))
