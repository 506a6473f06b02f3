"""Machine learning or rules? Five questions decide before any model is trained."""

from dataclasses import dataclass
from typing import Literal

from ..params import Questions


@dataclass(frozen=True)
class Decision:
    """What to build, and why."""

    build: Literal["ml", "rules"]
    reasons: tuple[str, ...]


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
