"""The problem contract as a JSON Schema, and a value's canonical form.

Validation, the API's request model, the drift monitor and the documents all derive from
`framing.inputs` of params.yaml; this module is what they share.
"""

from collections.abc import Sequence
from typing import Any

from ..params import Framing, Input

JSON_TYPES = {"number": "number", "boolean": "boolean", "text": "string", "date": "string"}
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


def json_schema(framing: Framing) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one record that asks for a prediction."""
    keys = {
        framing.entity: {"type": ["string", "integer", "null"], "description": "entity whose history is looked up"},
        framing.time: {"type": ["string", "null"], "format": "date-time", "description": "event time; now when left out"},
    }
    properties: dict[str, Any] = {str(k): v for k, v in keys.items() if k}
    properties |= {i.name: _property(i) for i in framing.inputs}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"What predicts {framing.target}",
        "type": "object",
        "properties": properties,
        "required": [i.name for i in inputs_of(framing, "request") if i.name != framing.time],
        "additionalProperties": False,
    }


def _property(field: Input) -> dict[str, Any]:
    names = sorted({_json_type(v) for v in field.values or ("",)}) if field.kind == "category" else [JSON_TYPES[field.kind]]
    names += ["null"] * (field.nullable or field.origin == "history")
    notes = (field.describes, field.unit, "looked up by entity when left out" * (field.origin == "history"))
    schema = {
        "type": names if len(names) > 1 else names[0],
        "format": "date-time" if field.kind == "date" else None,
        "minimum": field.min,
        "maximum": field.max,
        "examples": list(field.values[:3]) if field.values else None,
        "description": ", ".join(filter(None, notes)) or None,
    }
    return {key: value for key, value in schema.items() if value is not None}


def _json_type(value: Any) -> str:
    return {bool: "boolean", int: "integer", float: "number"}.get(type(value), "string")
