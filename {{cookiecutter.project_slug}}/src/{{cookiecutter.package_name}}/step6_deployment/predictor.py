"""The serving bundle, and the bundle at work: values in, scores and decisions out; the same for one request and for a file of millions.

A bundle holds ONNX models, a manifest, and a checksum for every byte; nothing in it is unpickled.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..params import Framing
from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import write_text
from ..step2_framing.contract import inputs_of, of_kind
from ..step3_data.encode import Arrays, Encoder, columns_read

MODEL, FALLBACK, MANIFEST, SUMS = "model.onnx", "fallback.onnx", "manifest.json", "SHA256SUMS"
FORMAT = 1
UNKNOWN = ""  # the entity whose features are those of no history


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and the checksums of all files in the folder (readable by ``sha256sum -c``)."""
    write_text(folder / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False))
    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def open_bundle(folder: Path) -> dict[str, Any]:
    """Verify every byte and return the manifest; see `read_bundle`."""
    return read_bundle(folder)[0]


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read every file once, so that what was verified is what is used; returns the manifest and the files.

    Raises:
        StepFailed: when a file is missing, changed or not listed, or the format is another.
    """
    try:
        lines = (folder / SUMS).read_bytes().decode().removesuffix("\n").split("\n")  # splitlines would take other breaks too
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        files = {name: (folder / name).read_bytes() for name in ({p.name for p in folder.iterdir()} - {SUMS}) | set(sums) | {MODEL, MANIFEST}}
        for name in sorted(files):
            if sums.get(name) != hashlib.sha256(files[name]).hexdigest():
                raise StepFailed(f"bundle: {folder / name} is not what was sealed; build it again with `deployment`, and keep serving the old one")
        manifest: dict[str, Any] = json.loads(files[MANIFEST])
    except (OSError, ValueError) as error:
        raise StepFailed(f"bundle: {folder} cannot be read ({error}); build it with `run`") from None
    if manifest.get("format") != FORMAT:
        raise StepFailed(f"bundle: {folder} has format {manifest.get('format')}, this code reads {FORMAT}; build it again with `deployment`")
    return manifest, files


class Scorer:
    """One ONNX model, from its bytes. Nothing is unpickled."""

    def __init__(self, model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.output = self.session.get_outputs()[-1].name
        self.lone_differs = False

    def score(self, arrays: Arrays) -> NDArray[Any]:
        """Probabilities (rows, classes), or predicted numbers (rows,), as float32.

        A row's answer does not depend on the rows beside it: a linear model multiplies a lone row in another
        order, so there a lone row goes in twice.
        """
        given = {k: v for k, v in arrays.items() if k in self.inputs}
        lone = self.lone_differs and len(next(iter(given.values()))) == 1
        result: NDArray[Any] = self.session.run([self.output], {k: np.repeat(v, 2, axis=0) for k, v in given.items()} if lone else given)[0]
        result = result[:1] if lone else result
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
            self.store = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
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
        """Load the model, or with `fallback` the rule-like baseline, and let it answer the bundle's samples.

        Raises:
            StepFailed: when the bundle is not what was sealed, or answers its samples otherwise than when it was built.
        """
        self.manifest, files = read_bundle(bundle)
        self.stamp = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
        self.framing = Framing.model_validate(self.manifest["framing"])
        self.history = [i.name for i in inputs_of(self.framing, "history")]
        self.names, self.encode = columns_read(self.framing), Encoder(self.framing)
        self.lacking: dict[str, Any] = dict.fromkeys(self.names)
        self.dates = [n for n in self.names if n == self.framing.time or n in {i.name for i in of_kind(self.framing.inputs, "date")}]
        self.classes: list[str] = self.manifest["classes"]
        self.threshold: float | None = self.manifest["threshold"]
        self.fallback = fallback
        self.version: str = self.manifest["version"]["version"]
        self.scorer = Scorer(files[FALLBACK if fallback else MODEL])
        if self.history and not online.exists():
            raise StepFailed(f"{online} is not here, so no history could be looked up; make it with `materialize`")
        self.online = OnlineTable(online)
        self._prove(bundle)

    def _prove(self, bundle: Path) -> None:
        samples: list[dict[str, Any]] = self.manifest.get("samples", [])
        if not samples:
            return
        found = self.scores(self.columns_from(samples))
        alone = np.concatenate([self.scores(self.columns_from([s])) for s in samples])  # warms up, too
        self.scorer.lone_differs = bool((alone != found).any())
        expected, most = np.asarray(self.manifest.get("sample_scores", self.main_scores(found))), self.manifest.get("max_difference", 0.0)
        apart = float(np.max(np.abs(np.asarray(self.main_scores(found)) - expected) / np.maximum(np.abs(expected), 1)))
        if not self.fallback and not apart <= most:
            raise StepFailed(
                f"bundle: {bundle} answers its own samples {apart:.2g} apart from what it was built with; build it again with `deployment`"
            )

    def complete(self, records: Sequence[dict[str, Any]]) -> None:
        """Put history features into records that do not carry them."""
        for record in records:
            if any(name not in record for name in self.history):
                entity = record.get(self.framing.entity or "")
                known = self.online.features(None if entity is None else str(entity))
                for name in self.history:
                    record.setdefault(name, known.get(name))

    def columns_from(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
        """Records turned into the columns that the model reads; what a record lacks is None, and dates may be ISO text."""
        rows = [{**self.lacking, **record}.values() for record in records]  # in the order of the names, and what else a record holds after them
        columns: dict[str, Sequence[Any]] = dict(zip(self.names, zip(*rows, strict=False), strict=False))
        for name in self.dates:
            columns[name] = [datetime.fromisoformat(v) if isinstance(v, str) else v for v in columns[name]]
        return columns

    def scores(self, columns: Mapping[str, Sequence[Any]]) -> NDArray[Any]:
        """Scores of rows given as columns; see `Scorer.score`."""
        return self.scorer.score(self.encode(columns))

    def decisions(self, scores: NDArray[Any]) -> list[str | None]:
        """The label each score leads to; None in regression, where the score is the answer."""
        if self.framing.task == "regression":
            return [None] * len(scores)
        if self.framing.task == "multiclass":
            return [self.classes[k] for k in scores.argmax(axis=1)]
        cut = 0.5 if self.threshold is None else self.threshold
        return [self.classes[above] for above in (scores[:, 1] >= cut).tolist()]

    def main_scores(self, scores: NDArray[Any]) -> list[float]:
        """One number per row: probability of the positive or of the chosen label, or the predicted number."""
        picked: NDArray[Any] = scores if scores.ndim == 1 else scores[:, 1] if self.framing.task == "binary" else scores.max(axis=1)
        return list(picked.tolist())

    def moved_by(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """How far each input moves the score, largest first: the score minus that of the same record with this input's reference value.

        One-at-a-time occlusion (Zeiler & Fergus 2014): it sees no interactions, and says nothing about causes.
        """
        reference: dict[str, Any] = self.manifest.get("reference", {})
        names = [i.name for i in self.framing.inputs]
        rows = [dict(record), *(dict(record) | {name: reference.get(name)} for name in names)]
        raw = self.scores(self.columns_from(rows))
        picked = raw if raw.ndim == 1 else raw[:, 1 if self.framing.task == "binary" else int(raw[0].argmax())]
        moved = [
            {"input": n, "value": record.get(n), "reference": reference.get(n), "effect": float(picked[0] - p)}
            for n, p in zip(names, picked[1:], strict=True)
        ]
        return sorted(moved, key=lambda m: -abs(m["effect"]))
