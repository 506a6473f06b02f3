"""What only the rows can tell: labels too rare to split, columns that give the target away, the baseline, the kind of model."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import duckdb
import numpy as np

from ..params import HIGHER_IS_BETTER, Data, Framing, Model
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import as_text
from ..step3_data.encode import classes_of, columns_of, columns_read, encode, encode_labels
from ..step3_data.source import in_sql, name, open_events, text
from ..step3_data.split import HOW, PARTS, assign
from ..step3_data.validation import measure_alone
from .infer import LEAST_PER_LABEL

MOST_ROWS = 1_000_000  # a table with more is measured on a sample
KINDS: tuple[Literal["boosting", "linear"], ...] = ("boosting", "linear")
TRIED_ROWS, TRIED_COLUMNS = 5_000, 100  # rows to learn from, and columns that tell most alone, when kinds of model are compared


@dataclass(frozen=True)
class Measured:
    """What the rows told."""

    rare: dict[str, int]  # labels that cannot be split, with their rows
    alone: dict[str, float]  # score of each input alone
    baseline: float  # of framing.metric on the test part, by the best guess that reads no input
    kinds: dict[str, float]  # validation score of each kind of model, higher is better
    duplicates: int  # rows whose inputs another row has too
    conflicts: int  # patterns of inputs that have several labels


def measure(connection: duckdb.DuckDBPyConnection, framing: Framing, data: Data, model: Model, counts: Mapping[str, int]) -> Measured:
    """Measure on the raw file that `data` names; `counts` is rows per label, none in regression.

    Raises:
        StepFailed: when a part of the split would hold no rows or not both labels.
    """
    open_events(connection, data, framing)
    rows = connection.execute("SELECT count(*) FROM all_events").fetchall()[0][0]
    connection.execute(f"CREATE OR REPLACE VIEW events AS SELECT * FROM all_events WHERE hash(row_id) % {rows // MOST_ROWS + 1} = 0")
    framing, rare = _without_rare(connection, framing, data, counts)
    train = "(SELECT events.* FROM events JOIN parts USING (row_id) WHERE part = 'train')"
    alone = measure_alone(connection, framing, train)
    fair = tuple(i for i in framing.inputs if alone[i.name] <= data.leak_limit) or framing.inputs
    telling = sorted(fair, key=lambda i: (i.kind != "text", -alone[i.name]))[:TRIED_COLUMNS]
    kinds = _compare_kinds(connection, framing.model_copy(update={"inputs": tuple(telling)}), model)
    return Measured(rare, alone, _baseline(connection, framing), kinds, *_repeated(connection, framing))


def _without_rare(connection: duckdb.DuckDBPyConnection, framing: Framing, data: Data, counts: Mapping[str, int]) -> tuple[Framing, dict[str, int]]:
    """Split; labels with too few rows, or none in some part, are taken out and the rest is split again."""
    rare = {label: n for label, n in counts.items() if n < LEAST_PER_LABEL} if framing.task == "multiclass" else {}
    while True:
        kept = tuple(label for label in counts if label not in rare)
        if counts and len(kept) < 2:
            raise StepFailed(f"{framing.target!r} has no two labels with enough rows in each part of the split; give more rows")
        framing = framing.model_copy(update={"labels": kept if rare else None})
        assign(connection, in_sql(framing), data.split, 0.0)
        thin = _thin(connection, framing, kept) if counts else {}
        if not thin:
            return framing, rare
        if framing.task == "binary":
            label, part = next(iter(thin.items()))
            where = f"the {part} part has no row in which {framing.target!r} is {label}"
            mend = "another --time" if data.split.by == "time" else "more rows that differ"
            raise StepFailed(f"{where}: {HOW[data.split.by]}; give {mend}")
        rare |= {label: counts[label] for label in thin}


def _thin(connection: duckdb.DuckDBPyConnection, framing: Framing, labels: Sequence[str]) -> dict[str, str]:
    """Labels that some part lacks, with the part; of a binary target, the positive one and the others."""
    target = f"{name(in_sql(framing).target)}::VARCHAR"
    if framing.task == "binary":
        labels = (positive := as_text(framing.positive) or "", f"other than {positive}")
        target = f"CASE WHEN {target} = {text(positive)} THEN {text(positive)} ELSE {text(labels[1])} END"
    found = set(connection.execute(f"SELECT DISTINCT {target}, part FROM events JOIN parts USING (row_id)").fetchall())
    return {label: part for part in reversed(PARTS) for label in labels if (label, part) not in found}


def _baseline(connection: duckdb.DuckDBPyConnection, framing: Framing) -> float:
    """What the best guess without any input scores on the test part."""
    target, parts = name(in_sql(framing).target), "FROM events JOIN parts USING (row_id) WHERE part"
    if framing.task == "regression":
        guess = f"(SELECT avg({target}) {parts} = 'train')"
        return float(connection.execute(f"SELECT sqrt(avg(({target} - {guess}) ** 2)) {parts} = 'test'").fetchall()[0][0])
    if framing.metric == "roc_auc":
        return 0.5
    commonest = f"(SELECT mode({target}::VARCHAR) {parts} = 'train')" if framing.task == "multiclass" else text(as_text(framing.positive))
    share, labels = connection.execute(
        f"SELECT avg(({target}::VARCHAR = {commonest})::INTEGER), count(DISTINCT {target}) {parts} = 'test'").fetchall()[0]  # fmt: skip
    return float(2 * share / (1 + share) / labels if framing.metric == "f1_macro" else share)


def _compare_kinds(connection: duckdb.DuckDBPyConnection, framing: Framing, model: Model) -> dict[str, float]:
    """Both kinds of model, learned on some training rows and scored on validation rows."""
    from ..step4_model.pipeline import build_pipeline, frame_of
    from ..step4_model.train import scorer_of

    inside, names, parts = in_sql(framing), columns_read(framing), []
    for part in ("train", "validation"):
        chosen = ", ".join(f"events.{name(n)}" for n in (*columns_read(inside), inside.target))
        query = f"SELECT {chosen} FROM events JOIN parts USING (row_id) WHERE part = '{part}' ORDER BY hash(row_id) LIMIT {TRIED_ROWS}"
        table = connection.sql(query).to_arrow_table().rename_columns([*names, framing.target])
        frame, labels = frame_of(encode(framing, columns_of(table, names))), table.column(framing.target).to_pylist()
        parts.append((frame, labels))
    (train, known), (validation, wanted) = parts
    classes = classes_of(framing, known)
    usable = [i for i, v in enumerate(wanted) if framing.task != "multiclass" or as_text(v) in classes]
    y, truth = encode_labels(framing, classes, known), encode_labels(framing, classes, [wanted[i] for i in usable])
    if framing.task != "regression" and len(np.unique(y)) < 2:
        return {}
    scorer = scorer_of(framing)
    scores: dict[str, float] = {}
    for kind in KINDS:
        with suppress(ValueError):  # this kind cannot learn from these values
            scores[kind] = float(scorer(build_pipeline(framing, model, kind, train).fit(train, y), validation.iloc[usable], truth))
    if not scores:
        raise StepFailed("no kind of model can learn from this table; predict another column, or leave some out with --drop")
    return scores


def _repeated(connection: duckdb.DuckDBPyConnection, framing: Framing) -> tuple[int, int]:
    """Rows whose inputs another row has too, and patterns of inputs with several labels."""
    inside = in_sql(framing)
    pattern = f"hash({', '.join(name(i.name) for i in inside.inputs)})"
    labels = f"count(DISTINCT {name(inside.target)}::VARCHAR)" if framing.task != "regression" else "0"
    grouped = f"SELECT count(*) AS n, {labels} AS k FROM events WHERE {name(inside.target)} IS NOT NULL GROUP BY {pattern}"
    extra, several = connection.execute(f"SELECT sum(n) - count(*), count(*) FILTER (k > 1) FROM ({grouped})").fetchall()[0]
    return int(extra), int(several)


def best_kind(kinds: Mapping[str, float]) -> str:
    """The kind with the higher score; boosting, which needs no scaling and finds thresholds, where they tie."""
    boosting, linear = (kinds.get(kind, -math.inf) for kind in KINDS)
    return "linear" if linear > boosting + (0.005 * abs(boosting) if math.isfinite(boosting) else 0) else "boosting"


def better_than(baseline: float, metric: str) -> float:
    """A bound just better than the baseline."""
    if not HIGHER_IS_BETTER[metric]:
        return float(f"{baseline * 0.99:.3g}") if float(f"{baseline * 0.99:.3g}") < baseline else baseline * 0.99
    return float(f"{baseline + 0.02 * (1 - baseline):.3g}")
