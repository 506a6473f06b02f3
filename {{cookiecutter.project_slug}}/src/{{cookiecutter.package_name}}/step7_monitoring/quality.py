"""How good is the model in service? Measured once labels have matured, estimated before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..params import HIGHER_IS_BETTER, Framing, Params, Target
from ..step3_data.encode import encode_labels
from ..step5_evaluation.metrics import Answers, answers_of, bootstrap, interval, measure, resample
from ..step6_deployment.predictor import Predictor
from .drift import SCORE
from .window import Window

DRAWS = 20  # of labels, behind an estimate


@dataclass(frozen=True)
class Judged:
    """A metric on matured labels, with its interval, against a bound; `group` is quality, guard_rails or champion."""

    group: str
    metric: str
    value: float
    low: float
    high: float
    bound: float
    breached: bool

    @property
    def to_bound(self) -> float:
        """Above 1 is better than the bound, as a share of it."""
        better, worse = (self.value, self.bound) if HIGHER_IS_BETTER[self.metric] else (self.bound, self.value)
        return better / worse if worse else float("inf")


def answers_in(predictor: Predictor, window: Window) -> tuple[Answers, dict[str, Any], list[str]]:
    """What was answered to the labelled predictions of a window, their inputs and moments; labels that the model cannot give are left out."""
    task, classes = predictor.framing.task, predictor.classes
    rows = [k for k, label in enumerate(window.label) if label is not None
            and (_number(label) is not None if not classes else task == "binary" or label in classes)]  # fmt: skip
    labels = encode_labels(predictor.framing, classes, [window.label[k] for k in rows])
    columns, at = {n: [window.columns[n][k] for k in rows] for n in predictor.names}, [window.at[k] for k in rows]
    if task == "multiclass" and rows:  # the log holds one score a row; the same model gives all of them again
        return answers_of(task, labels, predictor.scores(columns), None), columns, at
    scores = np.array([window.columns[SCORE][k] for k in rows], dtype=float)
    decisions = np.array([int(window.decision[k] == classes[1]) for k in rows]) if classes else scores
    return Answers(labels, scores, decisions), columns, at


def turned_bad(then: Answers, now: Answers, newest: int) -> int:
    """The row with which the bad time began that the newest rows are of; `then` is of a good time.

    Errors above the middle between the two times' means push a sum up, others down: it is lowest where the bad time
    begins (the cumulative sum of Page 1954), and what follows is then a better mean of it. Labels that come in a burst,
    or rarely, do not move that row.
    """
    good, errors, row = _errors(then).mean(), _errors(now), max(0, len(now.labels) - newest)
    for _ in range(3):
        if (bad := errors[row:].mean()) > good:
            row = int(np.argmin(np.concatenate([[0.0], np.cumsum(errors - (good + bad) / 2)[:-1]])))
    return row


def _errors(a: Answers) -> Any:
    """How far each answer was from its label: in the label's unit, or what its probability lacks of certainty."""
    return np.abs(a.labels - a.scores) if a.scores.ndim == 1 else 1 - a.scores[np.arange(len(a.labels)), a.labels]


def judge(params: Params, predictor: Predictor, answers: Answers) -> list[Judged]:
    """Every target of the requirements, and the champion's own quality at its evaluation less monitoring.performance.max_drop.

    A bound is breached when the whole interval lies on its wrong side.
    """
    metric = params.framing.metric
    then = float(predictor.manifest["metrics"][metric]["value"])
    slack = abs(then) * params.monitoring.performance.max_drop
    own = {"at_least": then - slack} if HIGHER_IS_BETTER[metric] else {"at_most": then + slack}
    asked = [("quality", t) for t in params.requirements.quality] + [("guard_rails", t) for t in params.requirements.guard_rails]
    asked.append(("champion", Target(metric=metric, unit="", **own)))
    resamples = resample(len(answers.labels), params.evaluation.bootstrap, params.model.seed)
    samples = bootstrap(dict.fromkeys(t.metric for _, t in asked), answers, resamples)
    found = []
    for group, target in asked:
        e = interval(measure(target.metric, answers), samples[target.metric], 1 - params.monitoring.drift.significance)
        low, high = float(e.low or 0), float(e.high or 0)
        breached = high < target.bound if HIGHER_IS_BETTER[target.metric] else low > target.bound
        found.append(Judged(group, target.metric, e.value, low, high, target.bound, breached))
    return found


def estimate(framing: Framing, classes: Sequence[str], window: Window) -> tuple[str, float] | None:
    """What the scores themselves promise before labels arrive: a metric and its expected value if the scores are calibrated.

    Confidence-based performance estimation (NannyML documentation): labels are drawn as the scores say. A regression
    says nothing about its own errors, so there is none.
    """
    scores = np.asarray(window.columns[SCORE], dtype=float)
    if framing.task == "regression" or not len(scores):
        return None
    if framing.task == "multiclass":
        return "accuracy", float(scores.mean())
    rng, decisions = np.random.default_rng(0), np.array([int(d == classes[1]) for d in window.decision])
    drawn = [measure(framing.metric, Answers((rng.random(len(scores)) < scores).astype(int), scores, decisions)) for _ in range(DRAWS)]
    return framing.metric, float(np.mean(drawn))


def confidence(framing: Framing, window: Window) -> float:
    """Mean probability of what was answered; NaN in regression, or without predictions."""
    scores = np.asarray(window.columns[SCORE], dtype=float)
    sure = np.maximum(scores, 1 - scores) if framing.task == "binary" else scores
    return float(sure.mean()) if len(scores) and framing.task != "regression" else float("nan")


def importances(predictor: Predictor, columns: dict[str, Any], answers: Answers) -> dict[str, float]:
    """Each input's share of what shuffling costs in framing.metric (permutation importance, Breiman 2001)."""
    rng, rows, framing = np.random.default_rng(0), len(answers.labels), predictor.framing
    sign, whole = 1 if HIGHER_IS_BETTER[framing.metric] else -1, measure(framing.metric, answers)
    costs = {}
    for field in framing.inputs:
        order = rng.permutation(rows)
        shuffled = columns | {field.name: [columns[field.name][k] for k in order]}
        said = answers_of(framing.task, answers.labels, predictor.scores(shuffled), predictor.threshold)
        costs[field.name] = max(0.0, sign * (whole - measure(framing.metric, said)))
    total = sum(costs.values()) or 1.0
    return {column: cost / total for column, cost in costs.items()}


def _number(label: str) -> float | None:
    try:
        return float(label) if np.isfinite(float(label)) else None
    except ValueError:
        return None
