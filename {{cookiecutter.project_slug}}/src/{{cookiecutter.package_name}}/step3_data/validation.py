"""Is the data sound? pandera says which rows break the contract, one-column models which column gives the target away."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..params import Framing, Input
from ..step1_requirements.checks import Check, check_bound, check_that
from ..step2_framing.contract import as_text
from .encode import classes_of, columns_of, encode_labels
from .source import in_sql

BATCH = 100_000
SAMPLE_ROWS = 50_000  # behind the score of single columns
BINS = 100
DTYPES = {"number": "float64", "date": "datetime64[us]"}


def check_rows(paths: Sequence[Path], raw: Path, fields: Sequence[Input], rows_listed: int, what: str) -> list[Check]:
    """Validate the columns `fields` of Parquet files in batches; one check for values, one for missing shares.

    The first `rows_listed` offending rows are named with their place in `raw` (from 0), which prepared files hold in their first column.
    """
    if not fields:
        return []
    schema, names = schema_of(fields), [f.name for f in fields]
    bad: list[str] = []
    missing = dict.fromkeys(names, 0)
    total = failures = 0
    for frame in (f for p in paths for f in _batches(p, names, p != raw)):
        total += len(frame)
        for name in names:
            missing[name] += int(frame[name].isna().sum())
        cases = _failures(schema, frame)
        failures += len(cases)
        bad += [f"{raw} row {c.index}: {c.column} is {c.failure_case!r}, {c.check}" for c in cases.head(rows_listed - len(bad)).itertuples()]
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


def _batches(path: Path, names: list[str], prepared: bool) -> Iterator[pd.DataFrame]:
    """Some columns, some rows at a time; the index is a row's place in the raw file."""
    file, first = pq.ParquetFile(path), 0
    place = file.schema_arrow.names[0]
    for batch in file.iter_batches(BATCH, columns=[place, *names] if prepared else names):
        frame: Any = batch.to_pandas()
        frame.index = pd.Index(frame[place] if prepared else range(first, first + len(frame)), name="row_id")
        first += len(frame)
        yield frame[names]


def measure_alone(connection: duckdb.DuckDBPyConnection, framing: Framing, rows: str) -> dict[str, float]:
    """The score of every input alone, by name, on SAMPLE_ROWS of the rows of a view or of a query in brackets."""
    inside, names = in_sql(framing), [i.name for i in framing.inputs]
    sample = connection.sql(f"SELECT * FROM {rows} ORDER BY hash(row_id) LIMIT {SAMPLE_ROWS}").to_arrow_table()
    scores = scores_alone(inside, columns_of(sample, [i.name for i in inside.inputs]), sample.column(inside.target).to_pylist())
    return dict(zip(names, scores.values(), strict=True))


def scores_alone(framing: Framing, columns: dict[str, Sequence[Any]], target: Sequence[Any]) -> dict[str, float]:
    """The score each input reaches alone, learned on one half of the rows and measured on the other.

    Classes: ROC-AUC, one class against the rest, averaged over classes. Regression: R squared of the
    target's ranks, so that a few large values do not hide a copy of it.
    """
    labels = encode_labels(framing, classes := classes_of(framing, target), target)
    ranks = np.unique(labels, return_inverse=True)[1]
    targets = [ranks] if framing.task == "regression" else [labels == k for k in range(len(classes))]
    targets = [t.astype(float) for t in (targets[1:] if framing.task == "binary" else targets)]
    half = np.arange(len(labels)) % 2 == 0
    scores = {}
    for field in framing.inputs:
        bins = _bins(field, columns[field.name], half)
        measure = _r_squared if framing.task == "regression" else _auc
        values = [measure(t[~half], _bin_means(bins, t, half)[~half]) for t in targets]
        if framing.task == "regression" and len(np.unique(bins)) > 1:  # few rows a bin say little: a straight line through all of them says more
            values = [max(*values, float(np.corrcoef(bins, ranks)[0, 1] ** 2))]
        scores[field.name] = float(np.nanmean(values)) if not np.all(np.isnan(values)) else 0.5
    return scores


def check_alone(scores: dict[str, float], limit: float) -> Check:
    """No column may reach `limit` alone."""
    column, score = max(scores.items(), key=lambda item: item[1], default=("there is none", 0.0))
    mend = f"{column!r} nearly gives the target away: take it out of framing.inputs if it is known only afterwards, or raise data.leak_limit."
    return check_bound("no_leak", f"score of the best single column ({column})", score, at_most=limit, mend=mend)


def _bins(field: Input, values: Sequence[Any], half: NDArray[Any]) -> NDArray[Any]:
    """An integer per row: quantile bins of numbers and dates, one bin per value of everything else, bin 0 for missing."""
    if field.kind in ("number", "date"):
        given = np.asarray(values, dtype=np.float64 if field.kind == "number" else "datetime64[us]")
        numbers, missing = given.astype(np.float64), np.isnan(given)
        known = numbers[half & ~missing]
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS))) if len(known) else np.zeros(1)
        return np.where(missing, 0, np.searchsorted(edges, numbers, side="right") + 1)
    positions: dict[Any, int] = {None: 0}
    return np.asarray([positions.setdefault(as_text(v), len(positions)) for v in values])


def _bin_means(bins: NDArray[Any], target: NDArray[Any], half: NDArray[Any]) -> NDArray[Any]:
    size = int(bins.max()) + 1
    count = np.bincount(bins[half], minlength=size)
    total = np.bincount(bins[half], weights=target[half], minlength=size)
    means: NDArray[Any] = ((total + target[half].mean()) / (count + 1))[bins]  # one prior row, so that rare bins do not shout
    return means


def _auc(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Area under the ROC curve by ranks, ties counted half; NaN with one class."""
    positives = truth.sum()
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = pd.Series(score).rank().to_numpy()
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _r_squared(truth: NDArray[Any], guess: NDArray[Any]) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - guess) ** 2).sum()) / spread if spread else float("nan")
