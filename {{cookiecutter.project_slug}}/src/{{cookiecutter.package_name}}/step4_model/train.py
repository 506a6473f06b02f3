"""Training: the model and its two baselines, on the same rows."""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import get_scorer, log_loss, make_scorer, top_k_accuracy_score
from sklearn.pipeline import Pipeline

from ..params import Framing, Model
from ..step1_requirements.checks import StepFailed
from ..step3_data.encode import Arrays, classes_of, columns_of, columns_read, encode, encode_labels
from .pipeline import Estimator, build_pipeline, frame_of, in_single_precision

#: The scikit-learn scorer behind each metric of params.yaml that has one; higher is better for all.
SCORERS = {
    "roc_auc": "roc_auc", "average_precision": "average_precision", "precision": "precision", "recall": "recall", "f1": "f1",
    "brier": "neg_brier_score", "log_loss": "neg_log_loss", "accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1_macro", "top2_accuracy": "top_k_accuracy", "mae": "neg_mean_absolute_error", "rmse": "neg_root_mean_squared_error",
    "median_absolute_error": "neg_median_absolute_error", "mape": "neg_mean_absolute_percentage_error", "r2": "r2",
}  # fmt: skip
#: Those that must be told the labels, since the rows may lack one.
OF_ALL_LABELS: dict[str, dict[str, Any]] = {
    "log_loss": {"score_func": log_loss, "greater_is_better": False},
    "top2_accuracy": {"score_func": top_k_accuracy_score},
}


@dataclass(frozen=True)
class Part:
    """A part of the split, ready for a pipeline."""

    rows: pd.DataFrame
    arrays: Arrays
    frame: pd.DataFrame
    labels: NDArray[Any]


@dataclass(frozen=True)
class Trained:
    """What the model step leaves behind."""

    model: Pipeline
    rule: Pipeline
    trivial: Pipeline
    classes: list[str]


def read_part(framing: Framing, path: Path, classes: list[str]) -> Part:
    """A prepared Parquet file, encoded."""
    table = pq.read_table(path)
    arrays = encode(framing, columns_of(table, columns_read(framing)))
    labels = encode_labels(framing, classes, table.column(framing.target).to_pylist())
    return Part(table.to_pandas(), arrays, frame_of(arrays), labels)


def classes_in(framing: Framing, path: Path) -> list[str]:
    """The labels of the training part; see `classes_of`.

    Raises:
        StepFailed: when there are fewer than two.
    """
    found = classes_of(framing, pq.read_table(path, columns=[framing.target]).column(0).to_pylist())
    if framing.task == "multiclass" and len(found) < 2:
        raise StepFailed(f"model: {path} holds one label only ({found}); give more rows, or another split in data.split")
    return found


def fit(framing: Framing, model: Model, part: Part, classes: list[str]) -> Trained:
    """Train the model, the rule-like and the trivial baseline.

    Raises:
        StepFailed: when a binary part holds one class only.
    """
    if framing.task == "binary" and len(set(part.labels.tolist())) < 2:
        raise StepFailed("model: the training part holds one class only; give more rows, or check framing.positive in params.yaml")

    def trained(kind: Estimator) -> Pipeline:
        return in_single_precision(build_pipeline(framing, model, kind, part.frame).fit(part.frame, part.labels))

    return Trained(trained(model.kind), trained("rule"), trained("trivial"), classes)


def scorer_of(framing: Framing) -> Any:
    """The scikit-learn scorer of framing.metric, higher is better.

    Raises:
        StepFailed: when scikit-learn has none.
    """
    if framing.metric not in SCORERS:
        raise StepFailed(f"framing.metric is {framing.metric}, which models cannot be ranked by; give one of {', '.join(SCORERS)}")
    if framing.metric not in OF_ALL_LABELS:
        return get_scorer(SCORERS[framing.metric])
    how = {**OF_ALL_LABELS[framing.metric], "response_method": "predict_proba"}
    return lambda pipeline, frame, labels: make_scorer(**how, labels=pipeline.classes_)(pipeline, frame, labels)


def save(trained: Trained, path: Path) -> None:
    """Write the trained pipelines for the next steps; the serving path never reads this file."""
    joblib.dump(trained, path, compress=3)


def read(path: Path) -> Trained:
    """The trained pipelines."""
    trained: Trained = joblib.load(path)
    return trained


def data_version(folder: Path) -> str:
    """Twelve digits of the SHA-256 over the prepared files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def code_version() -> str:
    """The git commit, with a + when its files were changed since; "none" before the first commit and outside git."""
    try:
        described = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
