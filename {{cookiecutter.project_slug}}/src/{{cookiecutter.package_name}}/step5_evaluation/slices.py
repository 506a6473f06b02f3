"""Parts of the test data that must not collapse while the average looks well."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..params import HIGHER_IS_BETTER, Slices
from ..step2_framing.contract import as_text
from .metrics import Answers, measure

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


def measure_slices(settings: Slices, rows: pd.DataFrame, answers: Answers) -> list[Slice]:
    """The metric on every slice of the named columns; small slices, and those with one class, are shown but not judged."""
    whole = measure(settings.metric, answers)
    sign = 1 if HIGHER_IS_BETTER[settings.metric] else -1
    found = []
    for column in dict.fromkeys((*settings.columns, *settings.protected)):
        for value, members in _groups(rows[column]):
            metric = measure(settings.metric, answers.at(members))
            judged = len(members) >= settings.min_rows and not np.isnan(metric)
            found.append(Slice(column, value, len(members), metric, sign * (whole - metric) / max(abs(whole), 1e-12), judged))
    return found


def worst_drop(settings: Slices, slices: list[Slice]) -> tuple[float, str]:
    """The largest drop among the judged slices and where it is; 0 and "no slice" when none is judged."""
    judged = [s for s in slices if s.judged and s.column in settings.columns]
    worst = max(judged, key=lambda s: s.drop, default=None)
    return (worst.drop, f"{worst.column} = {worst.value}") if worst else (0.0, "no slice is large enough")


def protected_gap(settings: Slices, slices: list[Slice]) -> tuple[float, str]:
    """The largest gap between two groups of one protected column, relative to the whole, and where it is."""
    gaps = []
    for column in settings.protected:
        judged = sorted((s for s in slices if s.judged and s.column == column), key=lambda s: s.drop)
        if len(judged) > 1:
            gaps.append((judged[-1].drop - judged[0].drop, f"{column}: {judged[-1].value} against {judged[0].value}"))
    return max(gaps, default=(0.0, "no protected group is large enough"))


def _groups(column: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """Row positions by value; numbers and dates by quarter."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.nunique() > 12:
        edges = np.unique(column.quantile([0.25, 0.5, 0.75]))
        quarter = np.where(column.isna(), -1, np.searchsorted(edges, column, side="left"))
        column = pd.Series([None if q < 0 else QUARTERS[q] for q in quarter])
    values = np.array([as_text(v if pd.notna(v) else None) or "(missing)" for v in column])
    for value in np.unique(values):
        yield str(value), np.flatnonzero(values == value)
