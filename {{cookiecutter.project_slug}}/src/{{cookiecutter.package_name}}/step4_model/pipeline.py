"""The scikit-learn pipelines, built from the problem contract; every part of them exports to ONNX."""

from inspect import signature
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ..params import Framing, Model
from ..step2_framing.contract import of_kind
from ..step3_data.encode import Arrays, number_names, string_inputs

Estimator = Literal["boosting", "linear", "rule", "trivial"]
WORDS_OF_A_TREE = 200  # trees see the presence of this many words
SPACES = r"[^\s]+"  # words were cut in `encode`; the export must cut the same way


def frame_of(arrays: Arrays) -> pd.DataFrame:
    """The encoded arrays side by side, columns numbered as the export numbers them."""
    parts = [pd.DataFrame(arrays[key]) for key in ("numbers", "strings") if key in arrays]
    frame = pd.concat(parts, axis=1)
    return frame.set_axis(range(frame.shape[1]), axis=1)


def build_pipeline(framing: Framing, model: Model, kind: Estimator, frame: pd.DataFrame) -> Pipeline:
    """An untrained pipeline; `frame` says how many values each category has.

    boosting: numbers as they are, NaN included. linear: median-filled, never beyond what was learned, and scaled; TF-IDF words.
    rule: a shallow tree, which is a handful of rules. trivial: the same answer for everybody.
    """
    return Pipeline([("columns", _columns(framing, model, kind, frame)), ("estimator", _estimator(framing, model, kind))])


def _columns(framing: Framing, model: Model, kind: Estimator, frame: pd.DataFrame) -> ColumnTransformer:
    numbers, strings = len(number_names(framing)), len(string_inputs(framing))
    categories = list(range(numbers, numbers + len(of_kind(framing.inputs, "category"))))
    few = [c for c in categories if kind == "linear" or frame[c].nunique() <= model.one_hot_up_to]
    many = [c for c in categories if c not in few]
    parts: list[tuple[str, Any, Any]] = []
    if numbers:
        filled = SimpleImputer(strategy="median", keep_empty_features=True)
        bounded = MinMaxScaler(clip=True)  # a line drawn through two months would go on for ever; January after December is no news
        how = {"boosting": "passthrough", "linear": make_pipeline(filled, bounded, StandardScaler())}.get(kind, filled)
        parts.append(("numbers", how, list(range(numbers))))
    if few:
        parts.append(("few", OneHotEncoder(handle_unknown="ignore", sparse_output=kind == "linear", dtype=np.float32), few))
    if many:
        parts.append(("many", _many_values(framing, model), many))
    for column in range(categories[-1] + 1 if categories else numbers, numbers + strings):
        parts.append((f"words{column}", _words(model, kind), column))
    return ColumnTransformer(parts, sparse_threshold=1.0 if kind == "linear" else 0.0)


def _many_values(framing: Framing, model: Model) -> Any:
    """Mean target per value; its export knows no multiclass targets, so there each value gets a number."""
    if framing.task == "multiclass":
        return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    folds: dict[str, Any] = {"random_state": model.seed}
    if signature(TargetEncoder).parameters["shuffle"].default == "deprecated":  # from scikit-learn 1.9 on
        folds = {"cv": KFold(5, shuffle=True, random_state=model.seed)}
    return TargetEncoder(target_type="binary" if framing.task == "binary" else "continuous", **folds)


def _words(model: Model, kind: Estimator) -> Any:
    if kind == "linear":
        return TfidfVectorizer(lowercase=False, token_pattern=SPACES, max_features=model.max_words)
    return CountVectorizer(lowercase=False, token_pattern=SPACES, binary=True, max_features=min(WORDS_OF_A_TREE, model.max_words))


def _estimator(framing: Framing, model: Model, kind: Estimator) -> Any:
    regression, seed = framing.task == "regression", model.seed
    if kind == "boosting":
        boosting = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return boosting(loss=framing.objective, **model.boosting.model_dump(), early_stopping=False, random_state=seed)
    if kind == "linear":
        return Ridge(alpha=1 / model.linear.c) if regression else LogisticRegression(C=model.linear.c, max_iter=2000)
    if kind == "rule":
        tree = DecisionTreeRegressor if regression else DecisionTreeClassifier
        return tree(max_depth=model.rule_depth, min_samples_leaf=0.005, random_state=seed)
    if regression:
        return DummyRegressor(strategy="mean" if framing.metric in ("rmse", "r2") else "median")
    return DummyClassifier(strategy="prior")


def in_single_precision(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, the thresholds of its boosted trees rounded down to float32.

    Numbers are float32, so every one of them stays on its side. The export holds thresholds as float32, too, but rounds to the nearest:
    one halfway between 0.122 and 0.124 becomes 0.123, and a row that has 0.123 would change sides.
    """
    for tree in (tree for trees in getattr(pipeline[-1], "_predictors", ()) for tree in trees):
        exact = tree.nodes["num_threshold"]
        nearest = exact.astype(np.float32)
        tree.nodes["num_threshold"] = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return pipeline


def predict(framing: Framing, pipeline: Pipeline, frame: pd.DataFrame) -> NDArray[Any]:
    """Probabilities (rows, classes), or predicted numbers (rows,) in regression."""
    result: NDArray[Any] = pipeline.predict(frame) if framing.task == "regression" else pipeline.predict_proba(frame)
    return result
