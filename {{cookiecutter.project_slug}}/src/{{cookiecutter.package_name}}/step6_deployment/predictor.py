"""The bundle at work: values in, scores and decisions out; the same for one request and for a file of millions."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from ..params import Framing
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import inputs_of
from ..step3_data.encode import Arrays, columns_read, encode
from .bundle import FALLBACK, MODEL, open_bundle

UNKNOWN = ""  # the entity whose features are those of no history


class Scorer:
    """One ONNX model. Nothing is unpickled."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.output = self.session.get_outputs()[-1].name

    def score(self, arrays: Arrays) -> NDArray[Any]:
        """Probabilities (rows, classes), or predicted numbers (rows,), as float32."""
        result: NDArray[Any] = self.session.run([self.output], {k: v for k, v in arrays.items() if k in self.inputs})[0]
        return result[:, 0] if result.ndim == 2 and result.shape[1] == 1 else result


class OnlineTable:
    """The latest history of each entity, looked up by id; read again when the file is replaced."""

    def __init__(self, path: Path) -> None:
        self.path, self.stamp, self.looked = path, 0, float("-inf")
        self.store: sqlite3.Connection | None = None
        self.refresh()

    def refresh(self) -> None:
        """Open the file again if it is another than before; looks at most once a second."""
        if monotonic() - self.looked < 1:
            return
        self.looked = monotonic()
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        if stamp != self.stamp:
            self.store = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self.stamp = stamp

    def features(self, entity: str | None) -> dict[str, Any]:
        """The entity's features; those of no history for an unknown one, and nothing without a table."""
        self.refresh()
        if self.store is None:
            return {}
        rows = self.store.execute(
            "SELECT entity, features FROM online WHERE entity IN (?, ?) ORDER BY entity DESC LIMIT 1", (entity or UNKNOWN, UNKNOWN)
        ).fetchall()
        found: dict[str, Any] = json.loads(rows[0][1]) if rows else {}
        return found


class Predictor:
    """A verified bundle, ready to answer."""

    def __init__(self, bundle: Path, online: Path, *, fallback: bool = False) -> None:
        """Load the model, or with `fallback` the rule-like baseline.

        Raises:
            StepFailed: when the bundle is not what was sealed.
        """
        self.manifest = open_bundle(bundle)
        self.framing = Framing.model_validate(self.manifest["framing"])
        self.history = [i.name for i in inputs_of(self.framing, "history")]
        self.names = columns_read(self.framing)
        self.classes: list[str] = self.manifest["classes"]
        self.threshold: float | None = self.manifest["threshold"]
        self.fallback = fallback
        self.version: str = self.manifest["version"]["version"]
        self.scorer = Scorer(bundle / (FALLBACK if fallback else MODEL))
        if self.history and not online.exists():
            raise StepFailed(f"{online} is not here, so no history could be looked up; make it with `materialize`")
        self.online = OnlineTable(online)

    def complete(self, records: Sequence[dict[str, Any]]) -> None:
        """Put history features into records that do not carry them."""
        for record in records:
            if any(name not in record for name in self.history):
                entity = record.get(self.framing.entity or "")
                known = self.online.features(None if entity is None else str(entity))
                for name in self.history:
                    record.setdefault(name, known.get(name))

    def scores(self, columns: Mapping[str, Sequence[Any]], rows: int) -> NDArray[Any]:
        """Scores of rows given as columns; see `Scorer.score`."""
        return self.scorer.score(encode(self.framing, columns, rows))

    def decisions(self, scores: NDArray[Any]) -> list[str | None]:
        """The label each score leads to; None in regression, where the score is the answer."""
        if self.framing.task == "regression":
            return [None] * len(scores)
        if self.framing.task == "multiclass":
            return [self.classes[k] for k in scores.argmax(axis=1)]
        cut = 0.5 if self.threshold is None else self.threshold
        return [self.classes[int(score >= cut)] for score in scores[:, 1]]

    def main_scores(self, scores: NDArray[Any]) -> list[float]:
        """One number per row: probability of the positive or of the chosen label, or the predicted number."""
        picked: NDArray[Any] = scores if scores.ndim == 1 else scores[:, 1] if self.framing.task == "binary" else scores.max(axis=1)
        return [float(v) for v in picked]


def columns_from(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Records turned into columns; what a record lacks is None."""
    return {name: [record.get(name) for record in records] for name in names}
