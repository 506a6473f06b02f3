"""Validation derived from the problem contract: pandera says which rows break it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pyarrow.parquet as pq

from ..params import Input
from ..step1_requirements.checks import Check, check_that

BATCH = 100_000
DTYPES = {"number": "float64", "date": "datetime64[us]"}


def check_rows(paths: Sequence[Path], fields: Sequence[Input], rows_listed: int, what: str) -> list[Check]:
    """Validate the columns `fields` of Parquet files in batches; one check for values, one for missing shares.

    The first `rows_listed` offending rows are named with their place in the file (from 0).
    """
    if not fields:
        return []
    schema, names = schema_of(fields), [f.name for f in fields]
    bad: list[str] = []
    missing = dict.fromkeys(names, 0)
    total = failures = 0
    for path, frame in ((p, f) for p in paths for f in _batches(p, names)):
        total += len(frame)
        for name in names:
            missing[name] += int(frame[name].isna().sum())
        cases = _failures(schema, frame)
        failures += len(cases)
        bad += [f"{path} row {c.index}: {c.column} is {c.failure_case!r}, {c.check}" for c in cases.head(rows_listed - len(bad)).itertuples()]
    listed = "; ".join(bad) + (f"; and {failures - len(bad)} more" if failures > len(bad) else "")
    over = [(f, missing[f.name] / max(total, 1)) for f in fields if missing[f.name] / max(total, 1) > f.max_missing]
    shares = "; ".join(f"{f.name} is missing in {share:.1%} of rows, at most {f.max_missing:.1%} may be" for f, share in over)
    return [
        check_that("data_contract", f"{what} outside the contract", not failures, f"{failures} values in {total:,} rows", "none",
                   f"{listed}. Mend the rows, or framing.inputs in params.yaml."),
        check_that("data_contract", f"{what} missing too often", not over, f"{len(over)} of {len(fields)} columns", "none",
                   f"{shares}. Mend the source, or max_missing in framing.inputs."),
    ]  # fmt: skip


def schema_of(fields: Sequence[Input]) -> pa.DataFrameSchema:
    """The pandera schema of some inputs; how much may be missing is judged over the whole file, not here."""
    return pa.DataFrameSchema({f.name: pa.Column(DTYPES.get(f.kind), _checks(f), nullable=True, coerce=f.kind in DTYPES) for f in fields})


def _checks(field: Input) -> list[pa.Check]:
    checks = []
    if field.min is not None:
        checks.append(pa.Check.ge(field.min, error=f"must be at least {field.min:g}"))
    if field.max is not None:
        checks.append(pa.Check.le(field.max, error=f"must be at most {field.max:g}"))
    if field.values:
        checks.append(pa.Check.isin(list(field.values), error=f"must be one of {', '.join(map(str, field.values[:20]))}"))
    if field.kind == "boolean":
        checks.append(pa.Check.isin([True, False], error="must be true or false"))
    return checks


def _failures(schema: pa.DataFrameSchema, frame: pd.DataFrame) -> pd.DataFrame:
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases: pd.DataFrame = error.failure_cases
        located = cases.dropna(subset=["index"])  # a value of the wrong kind fails its other checks too, without a row
        cases = (located if len(located) else cases).drop_duplicates(["index", "column"])
        kind = cases["check"].astype(str).str.replace(r"^(coerce_)?dtype\(.*", "not of its kind", regex=True)
        return cases.assign(check=kind).sort_values(["index", "column"])
    return pd.DataFrame()


def _batches(path: Path, names: list[str]) -> Iterator[pd.DataFrame]:
    first = 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=names):
        frame: Any = batch.to_pandas()
        frame.index = pd.RangeIndex(first, first + len(frame), name="row_id")
        first += len(frame)
        yield frame
