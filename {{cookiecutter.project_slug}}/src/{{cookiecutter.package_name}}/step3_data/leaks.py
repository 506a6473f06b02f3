"""Does one column alone give the target away? A one-column model says so before a big one hides it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..params import Framing, Input
from ..step1_requirements.checks import Check, check_bound
from ..step2_framing.contract import as_text
from .encode import classes_of, encode_labels

BINS = 100


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
        scores[field.name] = float(np.nanmean(values)) if not np.all(np.isnan(values)) else 0.5
    return scores


def check_alone(scores: dict[str, float], limit: float) -> Check:
    """No column may reach `limit` alone."""
    column, score = max(scores.items(), key=lambda item: item[1])
    mend = f"{column!r} nearly gives the target away: take it out of framing.inputs if it is known only afterwards, or raise data.leak_limit."
    return check_bound("no_leak", f"score of the best single column ({column})", score, at_most=limit, mend=mend)


def _bins(field: Input, values: Sequence[Any], half: NDArray[Any]) -> NDArray[Any]:
    """An integer per row: quantile bins of numbers and dates, one bin per value of everything else, bin 0 for missing."""
    if field.kind in ("number", "date"):
        kind = np.float64 if field.kind == "number" else "datetime64[us]"
        numbers = np.asarray(values, dtype=kind).astype(np.float64)
        missing = np.isnan(numbers) | (np.asarray(values, dtype=kind) != np.asarray(values, dtype=kind))
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
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _r_squared(truth: NDArray[Any], guess: NDArray[Any]) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - guess) ** 2).sum()) / spread if spread else float("nan")
