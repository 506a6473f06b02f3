"""Step 5 at work: measure on the test part, hold it against the requirements, and close the gate when it must be."""

import json
import logging
import tempfile
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from ..params import CANDIDATE, HIGHER_IS_BETTER, METRICS, METRICS_OF, PREPARED, SCRATCH, Framing, Params
from ..step1_requirements.checks import Check, StepFailed, raise_if_failed, save_report
from ..step1_requirements.page import write_text
from ..step3_data.source import connect
from ..step3_data.split import check_split
from ..step4_model.pipeline import predict
from ..step4_model.tracking import CHAMPION, Tracker, open_tracker
from ..step4_model.train import Part, Trained, data_version, read, read_part
from .experiment import design
from .gate import Champion, Measured, gate
from .metrics import Answers, Estimate, answers_of, bootstrap, choose_threshold, interval, lead, measure, resample
from .report import evaluation_page, model_card
from .slices import measure_slices

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write reports/5-evaluation and metrics.json.

    Raises:
        StepFailed: when a requirement is not met, and the report says which and is complete; when the candidate was trained on other data.
    """
    framing, evaluation = params.framing, params.evaluation
    trained, version = read(CANDIDATE / "model.joblib"), json.loads((CANDIDATE / "version.json").read_text(encoding="utf-8"))
    validation, test = (read_part(framing, PREPARED / f"{part}.parquet", trained.classes) for part in ("validation", "test"))
    if version["data"] != data_version(PREPARED):
        raise StepFailed(f"evaluation: {CANDIDATE} was trained on other data than {PREPARED} holds now, test rows among it maybe; run `model` first")
    log.info("evaluation: measuring on %s rows, with %s resamples", f"{len(test.labels):,}", evaluation.bootstrap)
    answers, threshold = _answers(params, framing, trained.model, validation, test)
    measured = _measure(params, trained, validation, test, answers, threshold, version["version"])
    connection = connect(params.data.memory_gb, SCRATCH)
    again = check_split(connection, framing, params.data.split, PREPARED)
    checks = [replace(c, check=f"{c.check}, before testing") for c in again] + gate(params.requirements, framing, evaluation, measured)
    plan = design(evaluation.experiment, params.requirements.scale.requests_per_day_now)
    result = json.dumps(_result(framing, measured, trained, version, checks), indent=2, ensure_ascii=False)
    others = {"model_card.md": model_card(params, measured, checks, version), "evaluation.json": result}
    save_report("evaluation", checks, evaluation_page(params, measured, checks, answers, trained.classes, plan), others)
    write_text(METRICS, json.dumps({name: e.value for name, e in measured.metrics.items()}, indent=2))
    raise_if_failed("evaluation", checks)


def _answers(params: Params, framing: Framing, pipeline: Pipeline, validation: Part, test: Part) -> tuple[Answers, float | None]:
    """What a pipeline says about the test rows at its own threshold, which its validation scores choose: another's would misjudge it."""
    threshold = None
    if params.evaluation.threshold:
        scores = predict(framing, pipeline, validation.frame)[:, 1]
        most = [t.bound for t in params.requirements.guard_rails if t.metric == "false_positive_rate"]
        threshold = choose_threshold(params.evaluation.threshold, validation.labels, scores, min(most, default=1.0))
    return answers_of(framing.task, test.labels, predict(framing, pipeline, test.frame), threshold), threshold


def _measure(params: Params, trained: Trained, validation: Part, test: Part, answers: Answers, threshold: float | None, version: str) -> Measured:
    """Everything the gate looks at; intervals for what requirements name, values for the rest."""
    framing, evaluation = params.framing, params.evaluation
    resamples = resample(len(test.labels), evaluation.bootstrap, params.model.seed)
    named = dict.fromkeys([framing.metric, *(t.metric for t in (*params.requirements.quality, *params.requirements.guard_rails))])
    samples = bootstrap(named, answers, resamples)
    metrics = {m: interval(measure(m, answers), s, evaluation.confidence) for m, s in samples.items()}
    for metric in METRICS_OF[framing.task]:
        metrics.setdefault(metric, Estimate(measure(metric, answers)))
    baselines = {name: _answers(params, framing, getattr(trained, name), validation, test)[0] for name in ("rule", "trivial")}
    sign = 1 if HIGHER_IS_BETTER[framing.metric] else -1
    nearest = max(baselines, key=lambda name: sign * measure(framing.metric, baselines[name]))

    def lead_over(other: Answers) -> Estimate:
        return lead(framing.metric, answers, other, samples[framing.metric], resamples, evaluation.confidence)

    tracker = open_tracker()
    former = tracker.version_of(CHAMPION)
    champion = Champion(former, itself=former == version)
    if former not in (None, version):
        theirs = _answers_of_champion(params, tracker, str(former), test.rows.columns, trained.classes)
        if isinstance(theirs, str):
            champion = Champion(former, why_not=f"champion {former} {theirs}")
        else:
            identical = bool(np.allclose(theirs.scores, answers.scores, rtol=0, atol=1e-9))
            champion = Champion(former, lead_over(theirs), identical)
    lift = lead_over(baselines[nearest])
    return Measured(metrics, lift, nearest, measure_slices(evaluation.slices, framing.inputs, test.rows, answers), champion, threshold)


def _result(framing: Framing, measured: Measured, trained: Trained, version: dict[str, str], checks: list[Check]) -> dict[str, Any]:
    """What deployment puts into the manifest."""
    return {
        "task": framing.task,
        "threshold": measured.threshold,
        "classes": trained.classes,
        "version": version,
        "metrics": {name: asdict(e) for name, e in measured.metrics.items()},
        "checks": [asdict(c) for c in checks],
    }


def _answers_of_champion(params: Params, tracker: Tracker, version: str, columns: Collection[str], classes: list[str]) -> Answers | str:
    """What the registry's champion says about the same test rows; a text where it cannot be compared, and why."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = tracker.fetch(version, Path(folder))
            theirs = Framing.model_validate_json((files / "framing.json").read_text(encoding="utf-8"))
            trained = read(files / "model.joblib")
        except Exception as error:  # an old champion may fail to load in any way
            return f"cannot be loaded here ({error})"
    unlike = [i.name for i in theirs.inputs if i.name not in columns]
    if unlike or (theirs.task, theirs.target) != (params.framing.task, params.framing.target):
        return f"was made for another contract ({', '.join(unlike) or theirs.target})"
    if trained.classes != classes:
        return f"knows other labels ({', '.join(trained.classes)})"
    try:
        validation, test = (read_part(theirs, PREPARED / f"{part}.parquet", classes) for part in ("validation", "test"))
        return _answers(params, theirs, trained.model, validation, test)[0]
    except Exception as error:  # an input that changed its kind may hold anything
        return f"was made for another contract ({error})"
