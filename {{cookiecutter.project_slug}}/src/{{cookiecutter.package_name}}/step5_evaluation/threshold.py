"""The decision threshold of a binary task: chosen by what errors cost, or by a promise, never 0.5 by habit."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..params import Threshold


def choose_threshold(rule: Threshold, labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """The score at and above which the answer is yes.

    cost: the cheapest threshold. precision: the lowest that keeps it, so recall is highest.
    recall: the highest that keeps it, so precision is highest. When a promise cannot be
    kept, the threshold that comes closest.
    """
    order = np.argsort(-scores, kind="stable")
    caught, flagged = np.cumsum(labels[order] == 1), np.arange(1, len(labels) + 1)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # a threshold cannot part equal scores
    caught, flagged, candidates = caught[last], flagged[last], scores[order][last]
    positives = max(1, int((labels == 1).sum()))
    precision, recall = caught / flagged, caught / positives
    if rule.by == "cost":
        cost = (flagged - caught) * rule.false_positive_usd + (positives - caught) * rule.false_negative_usd
        best = int(np.argmin(cost))
        if positives * rule.false_negative_usd < cost[best]:  # never to say yes is cheaper
            return float(max((candidates[0] + 1) / 2, np.nextafter(candidates[0], 2)))
    elif rule.by == "precision":
        kept = np.flatnonzero(precision >= rule.at_least)
        best = int(kept[-1]) if len(kept) else int(np.argmax(precision))
    else:
        best = int(np.argmax(recall >= rule.at_least)) if recall[-1] >= rule.at_least else len(recall) - 1
    below = candidates[best + 1] if best + 1 < len(candidates) else 0.0
    return float((candidates[best] + below) / 2)  # half way to the next score, so that rounding decides nothing
