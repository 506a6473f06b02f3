"""Has the world moved? Two samples of each column, compared by the field's usual statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..params import Drift, Framing
from ..step2_framing.contract import as_text
from ..step3_data.encode import words_of

SCORE = "(score)"
BINS = 10
FLOOR = 1e-4  # share of an empty bin, so that the index stays finite
RARE = 0.01  # categories below this share of the reference are counted as one
MOST_TEXTS = 2_000  # of each side
Picture = tuple[list[str], NDArray[Any], NDArray[Any]]  # bins and the shares of reference and window


@dataclass(frozen=True)
class Moved:
    """How one column moved between reference and window.

    `distance` is the Kolmogorov-Smirnov statistic, or Cramér's V of categories; `wasserstein` is in
    standard deviations of the reference, for orientation, and None where values have no order.
    """

    column: str
    psi: float
    test: str
    distance: float
    p_value: float
    wasserstein: float | None
    missing_before: float
    missing_now: float
    rows: int
    drifted: bool
    picture: Picture


def compare(framing: Framing, settings: Drift, reference: Mapping[str, Sequence[Any]], window: Mapping[str, Sequence[Any]]) -> list[Moved]:
    """Compare every input and the score; a column drifted when its PSI is large and the difference is not chance.

    The population stability index over deciles of the reference says how far; Kolmogorov-Smirnov (numbers) or
    chi-squared (the rest) says whether by chance, with Bonferroni's correction over the columns, and never on
    fewer than min_rows rows. The event time always moves and is left out, other dates count as days before it. A
    text is compared by a domain classifier (Rabanser et al. 2019): how new its words sound, out of fold.
    """
    kinds = {i.name: i.kind for i in framing.inputs if i.name != framing.time} | {SCORE: "number"}
    names = [n for n in kinds if n in reference and n in window]
    level = settings.significance / max(1, len(names))
    found = []
    for name in names:
        old, new = (_values(kinds[name], side[name], side.get(framing.time or "")) for side in (reference, window))
        missing = [1 - len(v) / max(1, len(side[name])) for v, side in ((old, reference), (new, window))]
        if kinds[name] == "text":
            old, new = _how_new(old, new)
        how = _categories(old, new) if kinds[name] in ("category", "boolean") else _numbers(old, new)
        picture, test, distance, p_value, wasserstein = how
        psi = stability_index(*picture[1:])
        drifted = psi > settings.psi and p_value < level and len(new) >= settings.min_rows
        found.append(Moved(name, psi, test, distance, p_value, wasserstein, missing[0], missing[1], len(window[name]), drifted, picture))
    return found


def stability_index(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Population stability index of two lists of shares; below 0.1 is calm, above 0.2 is a large shift."""
    e, a = np.maximum(expected, FLOOR), np.maximum(actual, FLOOR)
    return float(np.sum((a - e) * np.log(a / e)))


def _numbers(old: NDArray[Any], new: NDArray[Any]) -> tuple[Picture, str, float, float, float | None]:
    if not len(old) or not len(new):
        return ([], np.zeros(0), np.zeros(0)), "Kolmogorov-Smirnov", 0.0, 1.0, None
    lowest = old.min()  # with a bin below it: where many values are the smallest one, quantiles alone see nothing move downwards
    edges = np.unique([np.nextafter(lowest, -np.inf), *np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1])])
    shares = [np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) / len(v) for v in (old, new)]
    bins = [f"below {lowest:.4g}", *(f"to {e:.4g}" for e in edges[1:]), f"above {edges[-1]:.4g}"]
    test, spread = stats.ks_2samp(old, new, method="asymp"), float(np.std(old))
    apart = float(stats.wasserstein_distance(old, new)) / spread if spread else None
    return (bins, shares[0], shares[1]), "Kolmogorov-Smirnov", float(test.statistic), float(test.pvalue), apart


def _categories(old: NDArray[Any], new: NDArray[Any]) -> tuple[Picture, str, float, float, float | None]:
    values, sizes = np.unique(old, return_counts=True)
    common = values[sizes >= RARE * len(old)]
    counts = np.array([[np.count_nonzero(side == v) for v in common] for side in (old, new)], dtype=float).reshape(2, -1)
    totals = np.array([len(old), len(new)], dtype=float)
    counts = np.column_stack([counts, totals - counts.sum(axis=1)])
    shares = counts / np.maximum(totals, 1)[:, None]
    picture = ([*map(str, common), "(others)"], shares[0], shares[1])
    seen = counts[:, counts.sum(axis=0) > 0]
    if seen.shape[1] < 2 or not totals.all():
        return (picture[0], shares[0], shares[0]), "chi-squared", 0.0, 1.0, None
    test = stats.chi2_contingency(seen)
    return picture, "chi-squared", float(np.sqrt(test.statistic / totals.sum())), float(test.pvalue), None


def _how_new(old: NDArray[Any], new: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Log odds that a text is of the window, from a classifier of words that did not see it."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(0)
    old, new = (side[rng.permutation(len(side))[:MOST_TEXTS]] for side in (old, new))
    if min(len(old), len(new)) < BINS:
        return np.zeros(len(old)), np.zeros(len(new))
    words = HashingVectorizer(n_features=2**14, lowercase=False, tokenizer=str.split, token_pattern=None).transform([*old, *new])
    side = np.repeat([0, 1], [len(old), len(new)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    odds = cross_val_predict(LogisticRegression(max_iter=500, class_weight="balanced"), words, side, cv=folds, method="decision_function")
    newer = float(np.median(odds[side == 1])) > float(np.median(odds[side == 0]))  # texts that stand in both sound older than they are
    return (odds[side == 0], odds[side == 1]) if newer else (np.zeros(len(old)), np.zeros(len(new)))


def _values(kind: str, values: Sequence[Any], moments: Sequence[Any] | None) -> NDArray[Any]:
    """The values that are there, as numbers or texts."""
    if kind == "date":
        dates = np.asarray(values, dtype="datetime64[s]")
        days = (dates - np.datetime64(0, "s") if moments is None else np.asarray(moments, dtype="datetime64[s]") - dates) / np.timedelta64(1, "D")
        return np.asarray(days[~np.isnan(days)])
    if kind == "number":
        numbers = np.asarray(values, dtype=float)
        return np.asarray(numbers[np.isfinite(numbers)])
    present = [text for v in values if (text := as_text(v)) is not None]
    return np.array([words_of(t) for t in present] if kind == "text" else present, dtype=object if kind == "text" else str)
