"""Step 2 at work: decide between ML and rules by five questions, before any model is trained, and write the problem contract."""

import json
from dataclasses import dataclass
from typing import Literal

from ..params import Framing, Params, Questions
from ..step1_requirements.checks import check_that, raise_if_failed, save_report
from ..step1_requirements.page import page, paragraph, plain, section, table
from .contract import OUTPUT, as_text, json_schema


@dataclass(frozen=True)
class Decision:
    """What to build, and why."""

    build: Literal["ml", "rules"]
    reasons: tuple[str, ...]


def run(params: Params) -> None:
    """Write reports/2-framing.

    Raises:
        StepFailed: when the five questions say that rules are the better tool.
    """
    framing = params.framing
    decision = decide(framing.questions)
    mend = "Write the rules instead, or correct framing.questions in params.yaml."
    checks = [check_that("ml_or_rules", f"the five questions: {decision.reasons[0]}", decision.build == "ml", decision.build, "ml", mend)]
    schema = json.dumps(json_schema(framing), indent=2, ensure_ascii=False)
    save_report("framing", checks, framing_page(framing, decision), {"input_schema.json": schema})
    raise_if_failed("framing", checks)


def decide(questions: Questions) -> Decision:
    """Decide from the answers.

    Without a pattern or data nothing can be learned. With both, learning pays when rules
    would be too complex or when unseen cases must be handled. When every decision must be
    explained, rules win unless they would be too complex.
    """
    q = questions
    if not q.is_there_a_pattern.answer:
        return Decision("rules", ("there is no pattern to learn", q.is_there_a_pattern.because))
    if not q.is_there_enough_data.answer:
        return Decision("rules", ("there is not enough data to learn from", q.is_there_enough_data.because))
    if q.would_rules_be_too_complex.answer:
        return Decision("ml", ("rules would be too complex to write and keep", q.would_rules_be_too_complex.because))
    if q.is_interpretability_critical.answer:
        return Decision("rules", ("rules are feasible and every decision must be explained", q.is_interpretability_critical.because))
    if q.must_it_generalize_to_unseen_cases.answer:
        return Decision("ml", ("it must handle cases that no rule foresaw", q.must_it_generalize_to_unseen_cases.because))
    return Decision("rules", ("rules are feasible, and nothing unseen must be handled", q.would_rules_be_too_complex.because))


def framing_page(framing: Framing, decision: Decision) -> str:
    """The problem contract and the decision for people."""
    questions = [(name.replace("_", " ") + "?", "yes" if a.answer else "no", a.because) for name, a in framing.questions]
    inputs = [(i.name, i.kind, i.origin, f"{i.max_missing:.0%}", _domain(i.min, i.max, i.values), i.unit, i.describes) for i in framing.inputs]
    facts = [
        ("task", framing.task),
        ("target", framing.target + (f" = {as_text(framing.positive)}" if framing.positive is not None else "") + f" {framing.unit}".rstrip()),
        ("output", OUTPUT[framing.task]),
        ("objective function", framing.objective),
        ("metric", framing.metric),
        ("why", framing.why),
        ("entity, time, label time", ", ".join(str(v or "none") for v in (framing.entity, framing.time, framing.label_time))),
    ]
    return page(
        "Step 2: framing",
        f"Build {'a model' if decision.build == 'ml' else 'rules'}: {decision.reasons[0]}.",
        section("ML or rules?", paragraph(decision.reasons[1]), table(("question", "answer", "because"), questions)),
        section("The problem", table(("what", "is"), facts)),
        section("What goes in", table(("input", "kind", "from", "may be missing", "range or values", "unit", "what it is"), inputs)),
    )


def _domain(low: float | None, high: float | None, values: tuple[object, ...] | None) -> str:
    if values:
        return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
    return " ".join(f"{word} {plain(bound)}" for word, bound in (("from", low), ("to", high)) if bound is not None)
