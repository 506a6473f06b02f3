"""Has the world moved? Two samples of each column, compared by the field's usual statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..params import Drift, Framing
from ..step2_framing.contract import as_text

SCORE = "(score)"
BINS = 10
FLOOR = 1e-4  # share of an empty bin, so that the index stays finite


@dataclass(frozen=True)
class Moved:
    """How one column moved between reference and window."""

    column: str
    psi: float
    test: str
    p_value: float
    missing_before: float
    missing_now: float
    rows: int
    drifted: bool


def compare(framing: Framing, settings: Drift, reference: Mapping[str, Sequence[Any]], window: Mapping[str, Sequence[Any]]) -> list[Moved]:
    """Compare every input and the score; a column drifted when its PSI is large and the difference is not chance.

    PSI is the population stability index over deciles of the reference; chance is judged by
    Kolmogorov-Smirnov (numbers) or chi-squared (the rest), with Bonferroni's correction over
    the columns. The event time always moves and is left out; a text is compared by its number of words.
    """
    kinds = {i.name: i.kind for i in framing.inputs if i.name != framing.time} | {SCORE: "number"}
    names = [n for n in kinds if n in reference and n in window]
    level = settings.significance / max(1, len(names))
    found = []
    for name in names:
        old, new = (_values(kinds[name], side[name]) for side in (reference, window))
        missing = [1 - len(v) / max(1, len(side[name])) for v, side in ((old, reference), (new, window))]
        psi, test, p_value = _numbers(old, new) if kinds[name] in ("number", "date", "text") else _categories(old, new)
        drifted = psi > settings.psi and p_value < level and len(new) >= settings.min_rows
        found.append(Moved(name, psi, test, p_value, missing[0], missing[1], len(new), drifted))
    return found


def stability_index(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Population stability index of two lists of shares; below 0.1 is calm, above 0.2 is a large shift."""
    e, a = np.maximum(expected, FLOOR), np.maximum(actual, FLOOR)
    return float(np.sum((a - e) * np.log(a / e)))


def _numbers(old: NDArray[Any], new: NDArray[Any]) -> tuple[float, str, float]:
    if not len(old) or not len(new):
        return 0.0, "Kolmogorov-Smirnov", 1.0
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = [np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) / len(v) for v in (old, new)]
    return stability_index(*shares), "Kolmogorov-Smirnov", float(stats.ks_2samp(old, new, method="asymp").pvalue)


def _categories(old: NDArray[Any], new: NDArray[Any]) -> tuple[float, str, float]:
    values = np.unique(np.concatenate([old, new]))
    counts = np.array([[np.count_nonzero(side == v) for v in values] for side in (old, new)], dtype=float)
    if len(values) < 2 or not counts.sum(axis=1).all():
        return 0.0, "chi-squared", 1.0
    shares = counts / counts.sum(axis=1, keepdims=True)
    return stability_index(*shares), "chi-squared", float(stats.chi2_contingency(counts).pvalue)


def _values(kind: str, values: Sequence[Any]) -> NDArray[Any]:
    """The values that are there, as numbers or texts."""
    present = [v for v in values if as_text(v) is not None]
    if kind == "text":
        return np.array([len(str(v).split()) for v in present], dtype=float)
    if kind == "date":
        return np.array(present, dtype="datetime64[s]").astype(float)
    return np.array(present, dtype=float) if kind == "number" else np.array([as_text(v) for v in present], dtype=str)
