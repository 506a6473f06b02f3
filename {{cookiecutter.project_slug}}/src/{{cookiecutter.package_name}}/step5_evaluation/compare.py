"""Comparisons with baselines and champion, paired: the same resamples for both."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ..params import HIGHER_IS_BETTER, Framing
from ..step3_data.encode import columns_of, columns_read, encode
from ..step4_model.pipeline import frame_of, predict
from ..step4_model.tracking import Tracker
from ..step4_model.train import read
from .gate import Champion
from .metrics import Answers, Array, Estimate, answers_of, bootstrap, interval, measure


def lead(metric: str, ours: Answers, theirs: Answers, our_samples: Array, resamples: Array, confidence: float) -> Estimate:
    """How much better `ours` is than `theirs` in `metric`, above 0 is better, with a paired bootstrap interval.

    `our_samples` is the metric of `ours` on each of the resamples.
    """
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    samples = sign * (our_samples - bootstrap([metric], theirs, resamples)[metric])
    return interval(sign * (measure(metric, ours) - measure(metric, theirs)), samples, confidence)


def compare_champion(framing: Framing, tracker: Tracker, version: str | None, challenger: str, test: Path,
                     classes: list[str], ours: Answers, threshold: float | None, our_samples: Array, resamples: Array,
                     confidence: float) -> Champion:  # fmt: skip
    """The challenger against the registry's champion on the same test rows."""
    if version is None or version == challenger:
        return Champion(version, itself=version is not None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = tracker.fetch(version, Path(folder))
            their_framing = Framing.model_validate_json((files / "framing.json").read_text(encoding="utf-8"))
            trained = read(files / "model.joblib")
        except Exception as error:  # an old champion may fail to load in any way
            return Champion(version, why_not=f"champion {version} cannot be loaded here ({error})")
    table = pq.read_table(test)
    unlike = [i.name for i in their_framing.inputs if i.name not in table.column_names]
    if unlike or (their_framing.task, their_framing.target) != (framing.task, framing.target):
        return Champion(version, why_not=f"champion {version} was made for another contract ({', '.join(unlike) or their_framing.target})")
    if trained.classes != classes:
        return Champion(version, why_not=f"champion {version} knows other labels ({', '.join(trained.classes)})")
    frame = frame_of(encode(their_framing, columns_of(table, columns_read(their_framing)), table.num_rows))
    predictions = predict(framing, trained.model, frame)
    theirs = answers_of(framing.task, ours.labels, predictions, threshold)
    identical = bool(np.allclose(theirs.scores, ours.scores, rtol=0, atol=1e-9))
    return Champion(version, lead(framing.metric, ours, theirs, our_samples, resamples, confidence), identical)
