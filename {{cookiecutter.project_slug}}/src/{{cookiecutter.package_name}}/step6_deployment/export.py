"""Export to ONNX, and the proof that the export answers like the pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.pipeline import Pipeline

from ..params import Framing, Parity
from ..step1_requirements.checks import Check, check_bound
from ..step3_data.encode import Arrays, number_names, string_inputs

OPSET = {"": 18, "ai.onnx.ml": 3}  # what ONNX Runtime 1.16 and later reads


def export(framing: Framing, pipeline: Pipeline, path: Path) -> None:
    """Write the whole pipeline as one ONNX file with the inputs `numbers` and `strings`."""
    shapes = [("numbers", FloatTensorType, len(number_names(framing))), ("strings", StringTensorType, len(string_inputs(framing)))]
    types = [(name, kind([None, width])) for name, kind, width in shapes if width]
    options = None if framing.task == "regression" else {id(pipeline): {"zipmap": False}}
    path.write_bytes(to_onnx(pipeline, initial_types=types, options=options, target_opset=OPSET).SerializeToString())


def check_parity(settings: Parity, expected: NDArray[Any], exported: NDArray[Any], what: str) -> Check:
    """The largest difference between pipeline and export on held-back rows; numbers relative to their size."""
    scale = np.maximum(np.abs(expected), 1.0)
    difference = float(np.max(np.abs(expected - exported.reshape(expected.shape)) / scale)) if len(expected) else float("nan")
    mend = "The export computes something else: train another model.kind, or find the column with `tests/test_step6_deployment.py`."
    return check_bound(
        "parity", f"largest difference of the {what} export on {len(expected):,} rows", difference, at_most=settings.max_difference, mend=mend
    )


def first_rows(arrays: Arrays, rows: int) -> Arrays:
    """The first rows of encoded arrays."""
    return {name: array[:rows] for name, array in arrays.items()}
