"""The gate: one function over the requirements and the measured values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..params import Evaluation, Framing, Requirements
from ..step1_requirements.checks import Check, check_bound, check_that, not_measured
from ..step1_requirements.page import plain
from .metrics import Estimate
from .slices import Slice, protected_gap, worst_drop


@dataclass(frozen=True)
class Champion:
    """How the challenger compares with the model in production; `lead` above 0 is better."""

    version: str | None = None
    lead: Estimate | None = None
    identical: bool = False
    itself: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Measured:
    """Everything the gate looks at."""

    metrics: Mapping[str, Estimate]
    lift: Estimate
    baseline: str
    slices: Sequence[Slice]
    champion: Champion
    threshold: float | None = None


def gate(requirements: Requirements, framing: Framing, evaluation: Evaluation, measured: Measured) -> list[Check]:
    """Hold every requirement of this step against what was measured."""
    checks, slices = [], evaluation.slices
    for group, targets in (("quality", requirements.quality), ("guard_rails", requirements.guard_rails)):
        for target in targets:
            found = measured.metrics[target.metric]
            name, what = f"{group}.{target.metric}", f"{target.metric} on the test part"
            mend = f"With its interval: {found}. Improve the model, or change requirements.{group} openly."
            checks.append(check_bound(name, what, found.value, at_least=target.at_least, at_most=target.at_most, mend=mend))
    checks.append(_lift(requirements, framing, measured))
    mend = "Give that slice more data or features, or judge it openly in evaluation.slices."
    checks.append(_part("worst_slice", f"drop of {slices.metric} on the worst slice", worst_drop(slices, measured.slices), slices.max_drop, mend))
    mend = "The model serves one group worse: look at its data before anything else."
    gap = protected_gap(slices, measured.slices)
    checks.append(_part("protected_gap", f"gap of {slices.metric} between protected groups", gap, slices.max_gap, mend))
    checks.append(_champion(evaluation, framing, measured.champion))
    kpi, moved_by = requirements.kpi, requirements.kpi.moved_by
    expected = plain(kpi.expected(measured.metrics[moved_by.metric].value))
    reason = f"estimate: {expected} {kpi.unit}, from {moved_by.metric}; only the online test measures it"
    checks.append(not_measured("kpi", f"{kpi.name}, target {plain(kpi.target)}", reason))
    return checks


def _part(requirement: str, what: str, found: tuple[float, str] | None, most: float, mend: str) -> Check:
    """How far one part of the test data falls behind, and where; None when there is no part to judge."""
    if found is None:
        return not_measured(requirement, what, "nothing that evaluation.slices names for it is large enough (min_rows)")
    return check_bound(requirement, f"{what} ({found[1]})", found[0], at_most=most, mend=mend)


def _lift(requirements: Requirements, framing: Framing, measured: Measured) -> Check:
    """What the model adds over the better baseline, judged by the low end of its interval against 0 and by its value against the requirement."""
    name = f"{framing.metric} over the {measured.baseline} baseline, {measured.lift}"
    mend = "The model adds too little: check labels and features, or use the rules."
    if not (measured.lift.low or 0) > 0:  # NaN is not above 0 either
        return check_that("lift_over_baseline", name, False, plain(measured.lift.value), "above 0 beyond noise", mend)
    return check_bound("lift_over_baseline", name, measured.lift.value, at_least=requirements.lift_over_baseline, mend=mend)


def _champion(evaluation: Evaluation, framing: Framing, champion: Champion) -> Check:
    what = f"{framing.metric} against champion {champion.version}"
    limit = "whatever it is" if evaluation.promote == "any" else f"{evaluation.promote.replace('_', ' ')}, beyond noise"
    keep = f"Champion {champion.version} stays in service."
    if champion.version is None:
        return check_that("champion", "challenger against champion", True, "there is no champion yet", limit)
    if champion.itself:
        return check_that("champion", what, True, "this is the champion", limit)
    if champion.lead is None:
        return not_measured("champion", what, f"{champion.why_not}; the requirements above decide alone")
    mend = f"{keep} Improve the challenger; while you develop, evaluation.promote may be any."
    if champion.identical and evaluation.promote != "any":
        return check_that("champion", what, False, "identical predictions", limit, f"There is nothing to promote. {mend}")
    reached = {"better": (champion.lead.low or 0) > 0, "not_worse": (champion.lead.high or 0) >= 0, "any": True}
    return check_that("champion", what, reached[evaluation.promote], f"lead {champion.lead}", limit, mend)
