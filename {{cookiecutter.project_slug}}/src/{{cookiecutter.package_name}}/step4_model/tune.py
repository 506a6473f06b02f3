"""The search for better settings: Optuna over cross-validation on the training part, resumable."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from ruamel.yaml import YAML
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, StratifiedKFold, TimeSeriesSplit, cross_val_score

from ..params import PREPARED, Framing, Model, Params, Split
from ..step1_requirements.page import write_text
from .pipeline import build_pipeline
from .train import Part, classes_in, data_version, read_part, scorer_of

STUDIES = Path("models/tune.db")


def search(params: Params) -> optuna.Study:
    """Run model.tune.trials trials on the training part; interrupted, and run on the same data again, it goes on where it stopped."""
    framing, model = params.framing, params.model
    train = PREPARED / "train.parquet"
    part = read_part(framing, train, classes_in(framing, train))
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Ctrl+C is no warning with a traceback
    STUDIES.parent.mkdir(parents=True, exist_ok=True)
    name, sampler = f"{model.kind}-{framing.metric}-{data_version(PREPARED)}", optuna.samplers.TPESampler(seed=model.seed)
    study = optuna.create_study(
        storage=f"sqlite:///{STUDIES.as_posix()}", study_name=name, direction="maximize", load_if_exists=True, sampler=sampler
    )
    done = sum(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    if not done:
        study.enqueue_trial(getattr(model, model.kind).model_dump())
    folds, groups = _folds(framing, params.data.split, model, part)
    how: dict[str, Any] = {"scoring": scorer_of(framing), "cv": folds, "groups": groups, "error_score": "raise"}

    def score(trial: optuna.Trial) -> float:
        settings = type(getattr(model, model.kind))(**_suggest(trial, model))
        tried = model.model_copy(update={model.kind: settings})
        return float(cross_val_score(build_pipeline(framing, tried, model.kind, part.frame), part.frame, part.labels, **how).mean())

    study.optimize(score, n_trials=max(0, model.tune.trials - done), show_progress_bar=True)
    return study


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Change values of params.yaml, given by their dotted names, keeping its comments and order."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(path)
    for name, value in values.items():
        *sections, last = name.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[last] = value
    text = io.StringIO()
    yaml.dump(document, text)
    write_text(path, text.getvalue())


def _suggest(trial: optuna.Trial, model: Model) -> dict[str, Any]:
    if model.kind == "linear":
        return {"c": trial.suggest_float("c", 1e-3, 1e2, log=True)}
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
        "max_iter": trial.suggest_int("max_iter", 20, 500, log=True),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 4, 63, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 5, 200, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 1e-3, 10.0, log=True),
    }


def _folds(framing: Framing, split: Split, model: Model, part: Part) -> tuple[BaseCrossValidator | list[Any], Iterable[Any] | None]:
    """Folds in the manner of the split: forward in time, by group, or at random."""
    if split.by == "time" and framing.time:
        order = part.rows[framing.time].to_numpy().argsort(kind="stable")  # the file's order may be any
        return [(order[learn], order[test]) for learn, test in TimeSeriesSplit(model.tune.folds).split(order)], None
    if split.by == "group" and framing.entity:
        return GroupKFold(model.tune.folds), part.rows[framing.entity].factorize()[0]  # gaps are a group: -1
    folds = KFold if framing.task == "regression" else StratifiedKFold
    return folds(model.tune.folds, shuffle=True, random_state=model.seed), None
