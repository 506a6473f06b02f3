"""From values to model inputs: the one transform that training, batch scoring and the API share.

Two arrays come out: ``numbers`` (float32; numbers, booleans and the parts of dates; NaN for
missing) and ``strings`` (categories, then texts; ``(missing)`` for missing). Everything else,
such as encoding and scaling, is inside the trained pipeline and travels with its export.
No pandas here: the serving path imports this module.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..params import Framing, Input
from ..step2_framing.contract import as_text, of_kind

MISSING = "(missing)"
DATE_PARTS = ("hour", "weekday", "day", "month")
LARGEST = np.float32(1e18)  # numbers beyond are taken for this one: scaling squares them
WORD = re.compile(r"\w\w+")
WHOLE = re.compile(r"^(-?\d+)\.0$")  # a code as a CSV spells it whose column has gaps: 2.0 is 2
Arrays = dict[str, NDArray[Any]]


def number_names(framing: Framing) -> list[str]:
    """What each column of ``numbers`` is; a date gives its parts, and its age in days where there is an event time."""
    names: list[str] = []
    for field in of_kind(framing.inputs, "number", "boolean", "date"):
        names += [f"{field.name} {part}" for part in _parts(framing, field)] if field.kind == "date" else [field.name]
    return names


def string_inputs(framing: Framing) -> tuple[Input, ...]:
    """The inputs behind the columns of ``strings``: categories first, then texts."""
    return of_kind(framing.inputs, "category") + of_kind(framing.inputs, "text")


def columns_read(framing: Framing) -> list[str]:
    """The columns that `encode` reads: the inputs, and the event time where a date's age rests on it."""
    names = [i.name for i in framing.inputs]
    aged = framing.time is not None and framing.time not in names and bool(of_kind(framing.inputs, "date"))
    return [*names, str(framing.time)] if aged else names


class Encoder:
    """The transform of one contract; what each column is, is found out once and not for every request."""

    def __init__(self, framing: Framing) -> None:
        self.framing, self.strings = framing, string_inputs(framing)
        self.numbers = of_kind(framing.inputs, "number", "boolean", "date")

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> Arrays:
        """Encode rows given as columns of Python values or numpy arrays, None or NaN for missing.

        Returns:
            numbers (rows, len(number_names)) float32 and strings (rows, len(string_inputs)) object;
            an array without columns is left out.
        """
        parts: list[Sequence[Any] | NDArray[Any]] = []
        arrays: Arrays = {}
        for field in self.numbers:
            parts += _date_parts(self.framing, field, columns) if field.kind == "date" else [columns[field.name]]
        if parts:
            with np.errstate(over="ignore"):
                numbers = arrays["numbers"] = np.array(parts, dtype=np.float32).T.copy()
            np.minimum(np.maximum(numbers, -LARGEST, out=numbers), LARGEST, out=numbers)
        if self.strings:
            arrays["strings"] = np.array([_texts(field, columns[field.name]) for field in self.strings], dtype=object).T.copy()
        return arrays


def encode(framing: Framing, columns: Mapping[str, Sequence[Any]]) -> Arrays:
    """The arrays of one table; see `Encoder`."""
    return Encoder(framing)(columns)


def columns_of(table: Any, names: Sequence[str]) -> dict[str, Any]:
    """A pyarrow table's columns for `encode`: numpy arrays where nothing is lost by it, lists with None elsewhere."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in names:
        column = table.column(name)
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, pa.types.is_string, pa.types.is_large_string)
        columns[name] = column.to_numpy() if any(is_kind(column.type) for is_kind in kinds) else column.to_pylist()
    return columns


def words_of(text: str) -> str:
    """Lower-cased words of two letters and more, one space between them.

    Done here and not in the export: its tokenizer splits non-ASCII words differently, and
    its lower-casing needs a locale that slim containers lack.
    """
    return " ".join(WORD.findall(text.lower())) or MISSING


def _texts(field: Input, values: Sequence[Any]) -> list[str]:
    return [_category(v) for v in values] if field.kind == "category" else [words_of(as_text(v) or "") for v in values]


@lru_cache(maxsize=1_000, typed=True)  # the same few come again with every request; few, since strangers send them; typed, since 1 equals True
def _category(value: Any) -> str:
    text = as_text(value)
    return MISSING if text is None else WHOLE.sub(r"\1", text) if text.endswith(".0") else text


def _parts(framing: Framing, field: Input) -> tuple[str, ...]:
    return DATE_PARTS if field.name == framing.time else (*DATE_PARTS, "days")


def _date_parts(framing: Framing, field: Input, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Hour, weekday (Monday 0), day, month; and the days from the date to the event, or since 2000 without one."""
    moment = np.asarray(columns[field.name], dtype="datetime64[us]")
    months, missing = moment.astype("datetime64[M]"), np.isnat(moment)
    day, first = (days.astype("datetime64[D]").view(np.int64) for days in (moment, months))
    parts = [(moment.view(np.int64) - day * 86_400_000_000) / 3.6e9, (day + 3) % 7, day - first + 1, months.view(np.int64) % 12 + 1]
    if field.name != framing.time:
        event = np.datetime64("2000-01-01", "us") if framing.time is None else np.asarray(columns[framing.time], dtype="datetime64[us]")
        age = (event - moment) if framing.time else (moment - event)
        parts.append(np.where(np.isnat(age), np.nan, age.astype(np.int64) / 8.64e10))
    return [np.where(missing, np.nan, part) for part in parts] if missing.any() else parts


def classes_of(framing: Framing, values: Sequence[Any]) -> list[str]:
    """The labels in column order: negative then positive, or all of them sorted; none for regression."""
    if framing.task == "regression":
        return []
    found = sorted({text for v in values if (text := as_text(v)) is not None})
    if framing.task == "multiclass":
        return found
    positive = as_text(framing.positive) or ""
    return [next((c for c in found if c != positive), f"not {positive}"), positive]


def encode_labels(framing: Framing, classes: Sequence[str], values: Sequence[Any]) -> NDArray[Any]:
    """Labels as int64 positions in `classes` (any label but the positive one is 0 in a binary task), or float64 numbers."""
    if framing.task == "regression":
        return np.asarray(values, dtype=np.float64)
    if framing.task == "binary":
        return np.asarray([as_text(v) == classes[1] for v in values], dtype=np.int64)
    position = {name: index for index, name in enumerate(classes)}
    return np.asarray([position[as_text(v) or ""] for v in values], dtype=np.int64)
