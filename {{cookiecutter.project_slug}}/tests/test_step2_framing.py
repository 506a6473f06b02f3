"""Step 2: the five questions decide, and one contract describes every input to everybody."""

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from {{ cookiecutter.package_name }}.params import Answer, Framing, Input, Questions
from {{ cookiecutter.package_name }}.step2_framing.contract import as_text, json_schema, label_text, raw_columns
from {{ cookiecutter.package_name }}.step2_framing.stage import decide
from {{ cookiecutter.package_name }}.step6_deployment.schema import request_adapter

NAMES = tuple(Questions.model_fields)
WRONG = {"number": "12", "category": 1.5, "text": 3, "date": "yesterday", "boolean": "true"}


@pytest.fixture(params=["yours", "odd"])
def contract(request: pytest.FixtureRequest, framing: Framing, odd: Framing) -> Framing:
    """Your contract, and one whose column names break careless code."""
    return framing if request.param == "yours" else odd


@pytest.fixture
def adapter(contract: Framing) -> TypeAdapter[Any]:
    """What the API checks a request with."""
    return request_adapter(contract, most=3)


def record_of(contract: Framing) -> dict[str, Any]:
    """A record that fits the contract, as JSON would carry it."""
    return {i.name: fitting(i) for i in contract.inputs}


def fitting(field: Input) -> Any:
    """A value that fits."""
    low = field.min if field.min is not None else 0.0 if field.max is None else field.max
    return {"number": low, "category": (field.values or ("x",))[0], "text": "Grüße", "date": "2026-01-31T08:00:00", "boolean": True}[field.kind]


@pytest.mark.parametrize("answers", list(product([True, False], repeat=5)))
def test_the_five_questions_decide(answers: tuple[bool, ...]) -> None:
    """Learn only from a pattern and data, only when rules are too complex or cannot foresee; else write the rules."""
    given = dict(zip(NAMES, answers, strict=True))
    decision = decide(Questions(**{name: Answer(answer=a, because=f"because of {name}") for name, a in given.items()}))
    can = given["is_there_a_pattern"] and given["is_there_enough_data"]
    must = given["would_rules_be_too_complex"] or (given["must_it_generalize_to_unseen_cases"] and not given["is_interpretability_critical"])
    assert decision.build == ("ml" if can and must else "rules")
    assert decision.reasons[1].startswith("because of ")


def test_your_answers_say_machine_learning(framing: Framing) -> None:
    assert decide(framing.questions).build == "ml"


def test_the_schema_and_the_api_ask_for_the_same(contract: Framing, adapter: TypeAdapter[Any]) -> None:
    """The JSON Schema for people and the model that checks requests name the same fields, required ones and types."""
    schema, api = json_schema(contract), adapter.json_schema()["$defs"]["Record"]
    assert schema["properties"].keys() == api["properties"].keys()
    assert sorted(schema["required"]) == sorted(api.get("required", []))
    assert schema["additionalProperties"] is api["additionalProperties"] is False
    for name, described in schema["properties"].items():
        assert types(described) == types(api["properties"][name]), name


def types(described: dict[str, Any]) -> set[str]:
    """The JSON types of one property."""
    found = described.get("type", [t["type"] for t in described.get("anyOf", ())])
    return {found} if isinstance(found, str) else set(found)


def test_a_fitting_record_is_accepted(contract: Framing, adapter: TypeAdapter[Any]) -> None:
    record = record_of(contract)
    assert adapter.validate_json(json.dumps({"records": [record]}))["records"][0].keys() == record.keys()


def test_a_wrong_kind_is_refused_by_name(contract: Framing, adapter: TypeAdapter[Any]) -> None:
    for field in contract.inputs:
        body = json.dumps({"records": [record_of(contract) | {field.name: WRONG[field.kind]}]})
        with pytest.raises(ValidationError) as refused:
            adapter.validate_json(body)
        assert {error["loc"][2] for error in refused.value.errors()} == {field.name}


def test_an_unknown_field_is_refused_by_name(contract: Framing, adapter: TypeAdapter[Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"records": [record_of(contract) | {"unheard of": 1}]})


def test_null_is_accepted_exactly_where_values_may_be_missing(contract: Framing, adapter: TypeAdapter[Any]) -> None:
    for field in contract.inputs:
        body = json.dumps({"records": [record_of(contract) | {field.name: None}]})
        if field.nullable or field.origin == "history":
            adapter.validate_json(body)
        else:
            with pytest.raises(ValidationError):
                adapter.validate_json(body)


def test_raw_columns_name_each_column_once(contract: Framing) -> None:
    columns = raw_columns(contract)
    assert len(columns) == len(set(columns))
    assert {contract.target, *(i.name for i in contract.inputs if i.origin == "request")} <= set(columns)


@pytest.mark.parametrize(("values", "text"), [
    ((3, 3.0, "3", np.int64(3), np.float32(3), np.float64(3)), "3"),
    ((True, np.True_, "true"), "true"),
    ((None, float("nan"), np.float32("nan")), None),
    ((2.5, np.float64(2.5), np.float32(2.5)), "2.5"),
    (("", ), ""),
    (("Größe 日本",), "Größe 日本"),
])  # fmt: skip
def test_a_category_has_one_text_whichever_type_carried_it(values: tuple[Any, ...], text: str | None) -> None:
    assert {as_text(v) for v in values} == {text}


@pytest.mark.parametrize(("positive", "labels", "given", "text"), [
    (True, None, [True, "true", "True", "TRUE", 1, 1.0, "1", "1.0"], "true"),
    (True, None, [False, "False", 0, "0.0"], "false"),
    (1, None, [True, "true", 1.0, "1"], "1"),
    ("Yes", None, ["yes", "YES"], "Yes"),
    ("Yes", None, ["no"], "no"),
    (None, ["Billing", "3"], ["billing"], "Billing"),
    (None, ["Billing", "3"], [3, 3.0, "3.0"], "3"),
    (None, None, ["17.50"], "17.50"),
    (None, None, [None, float("nan")], None),
])  # fmt: skip
def test_a_label_is_kept_as_the_contract_writes_it(positive: Any, labels: Any, given: list[Any], text: str | None, framing: Framing) -> None:
    """pandas writes True, a spreadsheet TRUE, a database 1: whoever hands in labels means the same."""
    contract = framing.model_copy(update={"positive": positive, "labels": labels})
    assert {label_text(contract, value) for value in given} == {text}
