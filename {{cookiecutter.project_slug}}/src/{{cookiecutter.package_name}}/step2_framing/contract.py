"""The problem contract as a type and as a JSON Schema, and a value's canonical form.

Validation, the API's request model, the drift monitor and the documents all derive from
`framing.inputs` of params.yaml; this module is what they share.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from ..params import Framing, Input

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
OUTPUT = {
    "binary": "score: probability of the positive label, 0 to 1",
    "multiclass": "score: probability of the most likely label; scores: one per label",
    "regression": "score: the predicted number",
}


def inputs_of(framing: Framing, origin: str) -> tuple[Input, ...]:
    """The inputs a request carries ("request") or the online table supplies ("history")."""
    return tuple(i for i in framing.inputs if i.origin == origin)


def of_kind(inputs: Sequence[Input], *kinds: str) -> tuple[Input, ...]:
    """The inputs of the given kinds, in contract order."""
    return tuple(i for i in inputs if i.kind in kinds)


def raw_columns(framing: Framing) -> list[str]:
    """The columns that raw data must have, in a stable order, each once."""
    keys = [framing.entity, framing.time, framing.label_time, framing.target]
    names = [i.name for i in inputs_of(framing, "request")] + [k for k in keys if k]
    return list(dict.fromkeys(names))


def as_text(value: Any) -> str | None:
    """One text for one category, whichever type carried it: 3, 3.0 and "3" are the same; None for missing."""
    if isinstance(value, str):
        return value
    if value is None or value != value:  # noqa: PLR0124 - NaN, of Python or numpy
        return None
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "true" if value else "false"
    whole = getattr(value, "is_integer", None)  # numpy's floats have it too
    return str(int(value)) if whole and whole() else str(value)


def label_text(framing: Framing, value: Any) -> str | None:
    """A label as the contract writes it, however it came: True, TRUE, 1 and 1.0 are `true` where that is the positive one."""
    positive = framing.positive
    known = framing.labels or ([positive] if isinstance(positive, str | None) else [positive, type(positive)(not positive)])
    given = _plain(as_text(value))
    return next((text for k in known if (text := as_text(k)) and _plain(text) == given), as_text(value))


def _plain(text: str | None) -> str | None:
    lower = (text or "").lower().removesuffix(".0")
    return {"true": "1", "false": "0"}.get(lower, lower)


def record_type(framing: Framing, example: dict[str, Any] | None = None) -> Any:
    """One record as a TypedDict: request inputs required (null where they may be missing), history and time not.

    A TypedDict and not a model, because it takes any field name: spaces, dots, keywords.
    """
    fields: dict[str, Any] = {}
    if framing.entity:
        fields[framing.entity] = NotRequired[Annotated[str | int | None, Field(description="entity whose history is looked up")]]
    if framing.time:
        fields[framing.time] = NotRequired[Annotated[datetime | None, Field(description="event time; now when left out")]]
    for field in framing.inputs:
        kind = _type(field)
        kind = kind | None if field.nullable or field.origin == "history" else kind
        looked_up = "looked up by entity when left out" if field.origin == "history" else ""
        note = ", ".join(filter(None, (field.describes, field.unit, looked_up)))
        seen = list(field.values) if field.values else None
        kind = Annotated[kind, Field(description=note or None, examples=seen)] if note or seen else kind
        fields[field.name] = NotRequired[kind] if field.origin == "history" or field.name == framing.time else kind
    extra: dict[str, Any] = {"json_schema_extra": {"example": example}} if example else {}
    return typed_dict("Record", fields, {**STRICT, **extra})


def typed_dict(name: str, fields: dict[str, Any], config: Any) -> Any:
    """A TypedDict whose fields are known only here."""
    make: Any = TypedDict  # a type checker wants the fields written out
    made = make(name, fields)
    made.__pydantic_config__ = config
    return made


def json_schema(framing: Framing) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one record that asks for a prediction: what the API takes, with the range of each number."""
    schema = TypeAdapter(record_type(framing)).json_schema()
    for field in framing.inputs:
        bounds = {"minimum": field.min, "maximum": field.max}
        schema["properties"][field.name] |= {key: bound for key, bound in bounds.items() if bound is not None}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"What predicts {framing.target}"}


def _type(field: Input) -> Any:
    if field.kind == "category":
        kinds = {type(v) for v in field.values or ("",)}
        return bool if kinds == {bool} else int if kinds == {int} else float if kinds <= {int, float} else str
    return {"number": float, "boolean": bool, "text": str, "date": datetime}[field.kind]
