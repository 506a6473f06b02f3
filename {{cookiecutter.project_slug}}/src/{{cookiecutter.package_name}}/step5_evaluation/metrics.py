"""The metrics of each task, intervals for them by the bootstrap (Efron and Tibshirani 1993), and the decision threshold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from ..params import HIGHER_IS_BETTER, Threshold
from ..step1_requirements.page import plain

Array = NDArray[Any]
BINS = 10
NEEDS_BOTH = ("roc_auc", "average_precision", "precision", "recall", "f1", "false_positive_rate")  # labels, to mean anything


@dataclass(frozen=True)
class Answers:
    """What a model said about rows with known labels.

    `scores` is (rows,) probability of the positive label, (rows, classes) probabilities,
    or (rows,) predicted numbers; `decisions` is what follows from it.
    """

    labels: Array
    scores: Array
    decisions: Array

    def at(self, rows: Array) -> "Answers":
        """The answers at some rows."""
        return Answers(self.labels[rows], self.scores[rows], self.decisions[rows])


@dataclass(frozen=True)
class Estimate:
    """A measured value, with its bootstrap interval where one was asked for."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return plain(self.value) + ("" if self.low is None or self.high is None else f" [{plain(self.low)}, {plain(self.high)}]")


def answers_of(task: str, labels: Array, predictions: Array, threshold: float | None) -> Answers:
    """Predictions of a pipeline as answers: scores and decisions."""
    if task == "binary":
        scores = predictions[:, 1]
        return Answers(labels, scores, (scores >= (0.5 if threshold is None else threshold)).astype(int))
    if task == "multiclass":
        return Answers(labels, predictions, predictions.argmax(axis=1))
    return Answers(labels, predictions, predictions)


def calibration_bins(a: Answers, weights: Array | None = None) -> tuple[Array, Array, Array]:
    """Mean predicted probability, observed share and weight of each of BINS equally filled bins.

    Several classes are judged by the probability of the chosen one.
    """
    chosen = a.scores if a.scores.ndim == 1 else a.scores.max(axis=1)
    hit = a.labels == 1 if a.scores.ndim == 1 else a.labels == a.decisions
    weights = np.ones(len(chosen)) if weights is None else weights
    edges = np.unique(np.quantile(chosen, np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, chosen, side="right")
    total = np.bincount(place, weights, BINS)
    used = total > 0
    means = [np.bincount(place, weights * v, BINS)[used] / total[used] for v in (chosen, hit)]
    return means[0], means[1], total[used]


def _calibration_error(a: Answers, w: Array) -> float:
    """Expected calibration error (Naeini et al. 2015), with equally filled bins."""
    predicted, observed, weight = calibration_bins(a, w)
    return float(np.average(np.abs(predicted - observed), weights=weight))


def _log_loss(a: Answers, w: Array) -> float:
    picked = np.where(a.labels == 1, a.scores, 1 - a.scores) if a.scores.ndim == 1 else a.scores[np.arange(len(a.labels)), a.labels]
    return float(np.average(-np.log(np.clip(picked, 1e-15, 1)), weights=w))


METRICS: dict[str, Callable[[Answers, Array], float]] = {
    "roc_auc": lambda a, w: float(sk.roc_auc_score(a.labels, a.scores, sample_weight=w)),
    "average_precision": lambda a, w: float(sk.average_precision_score(a.labels, a.scores, sample_weight=w)),
    "precision": lambda a, w: _share(w, (a.labels == 1) & (a.decisions == 1), a.decisions == 1),
    "recall": lambda a, w: _share(w, (a.labels == 1) & (a.decisions == 1), a.labels == 1),
    "f1": lambda a, w: float(sk.f1_score(a.labels, a.decisions, sample_weight=w, zero_division=0)),
    "false_positive_rate": lambda a, w: _share(w, (a.labels == 0) & (a.decisions == 1), a.labels == 0),
    "brier": lambda a, w: float(np.average((a.labels - a.scores) ** 2, weights=w)),
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
    "accuracy": lambda a, w: float(np.average(a.labels == a.decisions, weights=w)),
    "balanced_accuracy": lambda a, w: float(np.mean([_share(w, (a.labels == k) & (a.decisions == k), a.labels == k) for k in np.unique(a.labels)])),
    "f1_macro": lambda a, w: float(sk.f1_score(a.labels, a.decisions, sample_weight=w, average="macro", zero_division=0)),
    "top2_accuracy": lambda a, w: float(np.average((np.argsort(a.scores)[:, -2:] == a.labels[:, None]).any(axis=1), weights=w)),
    "mae": lambda a, w: float(np.average(np.abs(a.labels - a.scores), weights=w)),
    "rmse": lambda a, w: float(np.sqrt(np.average((a.labels - a.scores) ** 2, weights=w))),
    "median_absolute_error": lambda a, w: float(sk.median_absolute_error(a.labels, a.scores, sample_weight=w)),
    "mape": lambda a, w: float(sk.mean_absolute_percentage_error(a.labels, a.scores, sample_weight=w)),
    "r2": lambda a, w: float(sk.r2_score(a.labels, a.scores, sample_weight=w)),
}


def measure(metric: str, answers: Answers, weights: Array | None = None) -> float:
    """One metric; NaN where it is not defined, as ROC-AUC with one class."""
    w = np.ones(len(answers.labels)) if weights is None else weights
    if metric in NEEDS_BOTH and len(np.unique(answers.labels[w > 0])) < 2:
        return float("nan")
    return METRICS[metric](answers, w)


def bootstrap(metrics: Iterable[str], answers: Answers, resamples: Array) -> dict[str, Array]:
    """Each metric on each resample, given as row weights (resamples, rows)."""
    return {m: np.array([measure(m, answers, w) for w in resamples]) for m in metrics}


def resample(rows: int, count: int, seed: int) -> Array:
    """`count` bootstrap resamples of `rows` rows as weights (count, rows): how often each row was drawn."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, rows, rows), minlength=rows) for _ in range(count)]).astype(float)


def interval(value: float, samples: Array, confidence: float) -> Estimate:
    """Percentile interval around a value; resamples where the metric is not defined are left out."""
    tail = (1 - confidence) / 2 * 100
    known = samples[~np.isnan(samples)]
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def _share(w: Array, part: Array, whole: Array) -> float:
    total = float(w[whole].sum())
    return float(w[part].sum()) / total if total else 0.0


def lead(metric: str, ours: Answers, theirs: Answers, our_samples: Array, resamples: Array, confidence: float) -> Estimate:
    """How much better `ours` is than `theirs` in `metric`, above 0 is better, with a paired bootstrap interval.

    `our_samples` is the metric of `ours` on each of the resamples.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    samples = sign * (our_samples - bootstrap([metric], theirs, resamples)[metric])
    return interval(sign * (measure(metric, ours) - measure(metric, theirs)), samples, confidence)


def choose_threshold(rule: Threshold, labels: Array, scores: Array, most_false_positives: float = 1.0) -> float:
    """The score at and above which the answer is yes.

    cost: the cheapest threshold whose false positive rate, and two of its standard errors, stay within a guard rail.
    precision: the lowest that keeps it, so recall is highest. recall: the highest that keeps it, so precision is highest. When a promise cannot be
    kept, the threshold that comes closest.
    """
    order = np.argsort(-scores, kind="stable")
    caught, flagged = np.cumsum(labels[order] == 1), np.arange(1, len(labels) + 1)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # a threshold cannot part equal scores
    caught, flagged, candidates = caught[last], flagged[last], scores[order][last]
    positives = max(1, int((labels == 1).sum()))
    precision, recall = caught / flagged, caught / positives
    if rule.by == "cost":
        negatives = max(1, len(labels) - positives)
        rate = (flagged - caught) / negatives
        within = (rate + 2 * np.sqrt(rate * (1 - rate) / negatives) <= most_false_positives) | (most_false_positives >= 1)
        cost = (flagged - caught) * rule.false_positive_usd + (positives - caught) * rule.false_negative_usd
        best = int(np.argmin(np.where(within, cost, np.inf)))
        if positives * rule.false_negative_usd < cost[best]:  # never to say yes is cheaper
            return float(max((candidates[0] + 1) / 2, np.nextafter(candidates[0], 2)))
    elif rule.by == "precision":
        kept = np.flatnonzero(precision >= rule.at_least)
        best = int(kept[-1]) if len(kept) else int(np.argmax(precision))
    else:
        best = int(np.argmax(recall >= rule.at_least)) if recall[-1] >= rule.at_least else len(recall) - 1
    below = candidates[best + 1] if best + 1 < len(candidates) else 0.0
    return float((candidates[best] + below) / 2)  # half way to the next score, so that rounding decides nothing
