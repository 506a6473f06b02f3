"""What the API takes and gives, made from the problem contract with the data's own field names."""

from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from ..params import Framing, Input

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


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
        note = ", ".join(t for t in (field.describes, field.unit) if t)
        kind = Annotated[kind, Field(description=note)] if note else kind
        fields[field.name] = NotRequired[kind] if field.origin == "history" or field.name == framing.time else kind
    extra: dict[str, Any] = {"json_schema_extra": {"example": example}} if example else {}
    return _typed_dict("Record", fields, {**STRICT, **extra})


def request_adapter(framing: Framing, most: int, example: dict[str, Any] | None = None) -> TypeAdapter[Any]:
    """Validates a whole request body: `records`, at least one and at most `most`."""
    record: Any = record_type(framing, example)
    fields: dict[str, Any] = {"records": Annotated[list[record], Field(min_length=1, max_length=most)]}
    return TypeAdapter(_typed_dict("Request", fields, STRICT))


def _typed_dict(name: str, fields: dict[str, Any], config: Any) -> Any:
    make: Any = TypedDict  # a type checker wants the fields written out, but they are known only here
    made = make(name, fields)
    made.__pydantic_config__ = config
    return made


def _type(field: Input) -> Any:
    if field.kind == "category":
        kinds = {type(v) for v in field.values or ("",)}
        return bool if kinds == {bool} else int if kinds == {int} else float if kinds <= {int, float} else str
    return {"number": float, "boolean": bool, "text": str, "date": datetime}[field.kind]


def naive_utc(moment: datetime) -> datetime:
    """A moment as the data holds it: UTC, without a zone."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


class Prediction(BaseModel):
    """The answer to one record."""

    prediction_id: str
    score: float = Field(description="probability of the positive or of the chosen label, or the predicted number")
    decision: str | None = Field(description="the label the score leads to; null in regression")
    threshold: float | None = Field(description="the score from which the answer is the positive label")
    scores: dict[str, float] | None = Field(None, description="one probability per label, with several labels")
    warnings: list[str] = Field(default=[], description="values outside the range or the categories of the training data")


class Response(BaseModel):
    """The answer to a request, predictions in the order of its records."""

    model_version: str
    fallback: bool = Field(description="whether the rule-like baseline answered because no model could be loaded")
    predictions: list[Prediction]


class Label(BaseModel):
    """A label that became known later."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(max_length=64)
    label: bool | int | float | str
    at: datetime | None = Field(None, description="when it became known; now when left out")


class Feedback(BaseModel):
    """Labels for earlier predictions."""

    model_config = ConfigDict(extra="forbid")

    labels: list[Label] = Field(min_length=1, max_length=10_000)


class Problem(BaseModel):
    """An error in the shape of RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []
