"""Step 1: contradictions are refused, the document leaves nothing out, and every requirement is traced."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from {{ cookiecutter.package_name }}.params import Params, ParamsError, Target, load
from {{ cookiecutter.package_name }}.step1_requirements.checks import Check, check_bound, load_verdict
from {{ cookiecutter.package_name }}.step1_requirements.page import plain, whole_folder, write_text
from {{ cookiecutter.package_name }}.step1_requirements.stage import requirements_document, traceability

Changed = Callable[[dict[str, Any]], Params]


def wrong_way(target: Target) -> dict[str, Any]:
    """The same target, bounded on the wrong side."""
    given, other = ("at_least", "at_most") if target.at_least is not None else ("at_most", "at_least")
    return {"metric": target.metric, other: getattr(target, given), "unit": target.unit}


Change = Callable[[Params], dict[str, Any]]
#: What is changed, a word of the line that must be named, and what must be said.
CONTRADICTIONS: dict[str, tuple[Change, str, str]] = {
    "p50 above p99": (lambda p: {"requirements.latency_ms.p50": p.requirements.latency_ms.p99 * 2}, "latency_ms", "is above p99"),
    "a negative p99": (lambda p: {"requirements.latency_ms.p99": -5}, "p99", "is -5: Input should be greater than 0"),
    "a KPI target that is no gain": (lambda p: {"requirements.kpi.target": p.requirements.kpi.baseline}, "kpi", "no better than baseline"),
    "a target that is no gain": (lambda p: {"requirements.quality.0.baseline": p.requirements.quality[0].bound}, "metric", "no better than baseline"),
    "an unknown metric": (lambda p: {"requirements.quality.0.metric": p.requirements.quality[0].metric + "x"}, "metric", "did you mean"),
    "a bound on the wrong side": (lambda p: {"requirements.quality.0": wrong_way(p.requirements.quality[0])}, "metric", "give at_"),
    "an unknown key": (lambda p: {"model.sead": 1}, "sead", "did you mean seed?"),
    "an objective that nothing minimises": (lambda p: {"framing.objective": "clicks"}, "framing", "can minimise"),
    "a section that is no section": (lambda p: {"evaluation.slices": 3}, "slices", "slices is 3"),
    "scale above throughput": (lambda p: {"requirements.scale.requests_per_day_in_a_year": 10**12}, "requirements", "raise the throughput"),
    "a proof that no check gives": (lambda p: {"requirements.qualities.reliability.proven_by": ["bundel"]}, "requirements", "did you mean bundle?"),
    "a target among the inputs": (lambda p: {"framing.inputs.0.name": p.framing.target}, "framing", "take it out"),
    "a personal column among the inputs": (
        lambda p: {"requirements.constraints.personal_columns": [p.framing.inputs[0].name]}, "personal_columns", "the model may not read it"),
    "a metric of another task": (
        lambda p: {"evaluation.slices.metric": "accuracy" if p.framing.task == "regression" else "mae"}, "metric", "does not measure"),
    "a slice by what is no input": (lambda p: {"evaluation.slices.columns": ["nowhere"]}, "slices", "not an input"),
    "history of nobody": (lambda p: {"framing.inputs.0.from": "history", "framing.entity": None}, "framing", "names no column; name it"),
    "history without a time": (
        lambda p: {"framing.inputs.0.from": "history", "framing.time": None, "framing.label_time": None}, "framing", "names no column; name it"),
    "a moment that is none": (lambda p: {"data.since": "yesterday"}, "since", "Invalid isoformat"),
    "raw data where DVC does not look": (lambda p: {"data.raw": "events.parquet"}, "data", "put it into"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_its_line_and_the_mend(fault: str, changed: Changed, params: Params, tmp_path: Path) -> None:
    change, word, mend = CONTRADICTIONS[fault]
    said = refusal(changed, change(params))
    assert mend in said
    line = re.search(r"params\.yaml line (\d+): ", said)
    assert line and word in (tmp_path / "params.yaml").read_text(encoding="utf-8").splitlines()[int(line[1]) - 1]


def refusal(changed: Changed, changes: dict[str, Any]) -> str:
    """What is said about params.yaml with these changes."""
    try:
        changed(changes)
    except ParamsError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("text", ["a: [", "model: &it {kind: *it}", "- " * 5000, "\x00"])
def test_a_file_that_is_no_tree_of_values_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match="is not valid YAML: "):
        load(tmp_path / "params.yaml")


def test_the_environment_overrides_single_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMS__MODEL__SEED", "12345")
    assert load().model.seed == 12345


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("MODEL__SEAD", "1", "did you mean seed"), ("MODEL__SEED__X", "1", "single value"), ("MODEL__SEED", "[", "not valid YAML")],
)
def test_an_override_that_cannot_be_is_refused(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PARAMS__{name}", value)
    with pytest.raises(ParamsError, match=said):
        load()


def test_params_are_frozen(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.model.seed = 1  # type: ignore[misc]


def leaves(value: Any) -> Iterator[Any]:
    """Every text and number in a tree."""
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield value


def test_the_document_mentions_every_requirement(params: Params) -> None:
    """Every number and every sentence of the section is in the text for people."""
    document = html.unescape(requirements_document(params.requirements))
    said = [v for v in leaves(params.requirements.model_dump()) if v not in ("lower", "higher")]
    missing = [v for v in said if not any(form in document for form in ([v] if isinstance(v, str) else [f"{v:g}", f"{v:,}", plain(v)]))]
    assert not missing


def test_every_requirement_is_traced_to_pass_fail_or_not_measured_with_why(params: Params) -> None:
    good, bad = Check("parity", "difference", "0", "1", "pass"), check_bound("latency_ms.p99", "p99", 9, at_most=1, unit="ms", mend="Profile it.")
    extra = Check("something else", "x", "1", "1", "pass")
    traced = traceability(params.requirements, {"deployment": [good, bad, extra], "monitoring": None})
    assert [c.requirement for c in traced] == [*params.requirements.ids(), "something else"]
    assert (good in traced, bad in traced, bad.outcome, bad.measured, bad.limit) == (True, True, "fail", "9 ms", "at most 1 ms")
    assert all(c.outcome == "not measured" and c.reason for c in traced if c not in (good, bad, extra))


def test_nothing_that_is_not_a_number_passes_a_bound() -> None:
    assert check_bound("x", "y", float("nan"), at_most=1).outcome == check_bound("x", "y", float("nan"), at_least=1).outcome == "fail"


def test_the_step_leaves_its_document_and_its_verdict(run_step: Callable[[str], None]) -> None:
    run_step("requirements")
    assert [c.outcome for c in load_verdict("requirements") or []] == ["pass"]
    assert "The four qualities" in Path("reports/1-requirements/index.html").read_text(encoding="utf-8")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report"
    with whole_folder(target) as folder:
        write_text(folder / "page", "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        write_text(folder / "page", "half")
        raise KeyboardInterrupt
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["report", "report/page"]
    assert (target / "page").read_text(encoding="utf-8") == "old"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "half \ud800")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
