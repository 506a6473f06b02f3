"""What the API takes and gives, made from the problem contract with the data's own field names."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from ..params import Framing
from ..step2_framing.contract import STRICT, record_type, typed_dict
from .guard import TITLES


def request_adapter(framing: Framing, most: int, example: dict[str, Any] | None = None) -> TypeAdapter[Any]:
    """Validates a whole request body: `records`, at least one and at most `most`."""
    record: Any = record_type(framing, example)
    fields: dict[str, Any] = {"records": Annotated[list[record], Field(min_length=1, max_length=most)]}
    return TypeAdapter(typed_dict("Request", fields, STRICT))


def naive_utc(moment: datetime) -> datetime:
    """A moment as the data holds it: UTC, without a zone; at the ends of time, where UTC would be beyond them, as it is."""
    try:
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        return moment.replace(tzinfo=None)


class Prediction(BaseModel):
    """The answer to one record."""

    prediction_id: str
    model_version: str
    score: float = Field(description="probability of the positive or of the chosen label, or the predicted number")
    decision: str | None = Field(description="the label the score leads to, or `review` where a person decides; null in regression")
    threshold: float | None = Field(description="the score from which the answer is the positive label")
    scores: dict[str, float] | None = Field(None, description="one probability per label, with several labels")
    warnings: list[str] = Field(default=[], description="values outside the range or the categories of the training data")


class PredictAnswer(BaseModel):
    """The answer to a request, predictions in the order of its records."""

    model_version: str = Field(description="the champion's; each prediction has its own")
    fallback: bool = Field(description="whether the rule-like baseline answered because no model could be loaded")
    predictions: list[Prediction]


class MovedBy(BaseModel):
    """How far one input moves the score."""

    input: str
    value: Any
    reference: Any
    effect: float


class ExplainAnswer(BaseModel):
    """The inputs of one record, the one that moves its score most first."""

    model_version: str
    method: str
    moved_by: list[MovedBy]


class Label(BaseModel):
    """A label that became known later."""

    model_config = STRICT

    prediction_id: str = Field(pattern="^[0-9A-Za-z_.:-]{1,64}$")
    label: bool | Annotated[int, Field(ge=-(2**53), le=2**53)] | float | Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    at: datetime | None = Field(None, description="when it became known; now when left out")


class Feedback(BaseModel):
    """Labels for earlier predictions."""

    model_config = STRICT

    labels: list[Label] = Field(min_length=1, max_length=10_000)


class FeedbackAnswer(BaseModel):
    """How many labels were taken."""

    accepted: int


class Problem(BaseModel):
    """A refusal in the shape of RFC 9457; `errors` names the fields."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]]


def describe(document: dict[str, Any], many: TypeAdapter[Any], one: TypeAdapter[Any], example: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """The framework's OpenAPI description of the other routes, with those that take a body."""
    others, document = document["paths"], {**document, "paths": {}, "components": {"schemas": {}}}

    def put(name: str, adapter: TypeAdapter[Any]) -> dict[str, Any]:
        made = adapter.json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= made.pop("$defs", {}) | {name: made}
        return {"$ref": f"#/components/schemas/{name}"}

    problem = {"content": {"application/problem+json": {"schema": put("Problem", TypeAdapter(Problem))}}}
    label = {"labels": [{"prediction_id": "0123456789abcdef0000000000", "label": True}]}
    for name, summary, status, taken, given, shown in (
        ("predict", "Predictions for one record or many, in their order", 200, put("Request", many), PredictAnswer, {"records": [example]}),
        ("explain", "The inputs that move one record's score most", 200, put("OneRecord", one), ExplainAnswer, {"records": [example]}),
        ("feedback", "Labels that became known later, by prediction id", 202, put("Feedback", TypeAdapter(Feedback)), FeedbackAnswer, label),
    ):
        answer = put(given.__name__, TypeAdapter(given))
        document["paths"][f"/v1/{name}"] = {"post": {
            "summary": summary, "operationId": name,
            "requestBody": {"required": True, "content": {"application/json": {"schema": taken, "example": shown}}},
            "responses": {str(status): {"description": "Answered", "content": {"application/json": {"schema": answer}}},
                          **{str(code): {"description": TITLES[code], **problem} for code in (408, 413, 415, 422, 500, 503)}},
        }}  # fmt: skip
    document["paths"] |= others
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, item in document["paths"].items():
            if path.startswith("/v1/"):
                for operation in item.values():
                    operation |= {"security": [{"key": []}], "responses": operation["responses"] | {"401": {"description": TITLES[401], **problem}}}
    return document
