"""Parts of the test data that must not collapse while the average looks well."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..params import HIGHER_IS_BETTER, Input, Slices
from ..step2_framing.contract import as_text
from .metrics import Answers, measure

MANY = 12  # different numbers
QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@dataclass(frozen=True)
class Slice:
    """One part of the test data: `drop` is how much worse than the whole it is, relative to the whole."""

    column: str
    value: str
    rows: int
    metric: float
    drop: float
    judged: bool


def measure_slices(settings: Slices, inputs: Sequence[Input], rows: pd.DataFrame, answers: Answers) -> list[Slice]:
    """The metric on every slice of the named columns; small slices, and those with one class, are shown but not judged."""
    whole = measure(settings.metric, answers)
    sign = 1 if HIGHER_IS_BETTER[settings.metric] else -1
    found, kinds = [], {i.name: i.kind for i in inputs}
    for column in dict.fromkeys((*settings.columns, *settings.protected)):
        for value, members in _groups(rows[column], kinds.get(column, "number")):
            metric = measure(settings.metric, answers.at(members))
            judged = len(members) >= settings.min_rows and not np.isnan(metric)
            found.append(Slice(column, value, len(members), metric, sign * (whole - metric) / max(abs(whole), 1e-12), judged))
    return found


def worst_drop(settings: Slices, slices: Sequence[Slice]) -> tuple[float, str] | None:
    """The largest drop among the judged slices, relative to the whole, and where it is; None when none is judged."""
    return max(((s.drop, f"{s.column} = {s.value}") for s in slices if s.judged and s.column in settings.columns), default=None)


def protected_gap(settings: Slices, slices: Sequence[Slice]) -> tuple[float, str] | None:
    """The largest gap between two groups of one protected column, relative to the whole, and where it is; None without two judged groups."""
    gaps = []
    for column in settings.protected:
        judged = sorted((s for s in slices if s.judged and s.column == column), key=lambda s: s.drop)
        if len(judged) > 1:
            gaps.append((judged[-1].drop - judged[0].drop, f"{column}: {judged[-1].value} against {judged[0].value}"))
    return max(gaps, default=None)


def _groups(column: pd.Series, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """Row positions by value; numbers and dates by quarter where there are many, but not a category whose codes are numbers."""
    measured = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)
    if kind in ("number", "date") and measured and column.nunique() > MANY:
        edges = np.unique(column.quantile([0.25, 0.5, 0.75]))
        quarter = np.where(column.isna(), -1, np.searchsorted(edges, column, side="left"))
        column = pd.Series([None if q < 0 else QUARTERS[q] for q in quarter])
    values = np.array([as_text(v if pd.notna(v) else None) or "(missing)" for v in column])
    for value in np.unique(values):
        yield str(value), np.flatnonzero(values == value)
