"""A check holds a requirement against a measured value; a step's verdict is the list of its checks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ..params import REPORTS
from .page import page, plain, section, table, whole_folder, write_text

STEPS = {
    "requirements": "1-requirements",
    "framing": "2-framing",
    "data": "3-data",
    "model": "4-model",
    "evaluation": "5-evaluation",
    "deployment": "6-deployment",
    "monitoring": "7-monitoring",
}
VERDICT = "verdict.json"
Outcome = Literal["pass", "fail", "not measured"]


class StepFailed(Exception):
    """A step cannot go on; the message says what is wrong, where, and what to do, and `checks` are those that said so."""

    def __init__(self, message: str, checks: Sequence["Check"] = ()) -> None:
        super().__init__(message)
        self.checks = list(checks)


@dataclass(frozen=True)
class Check:
    """One requirement, the check that proves it, what was measured and what came of it."""

    requirement: str
    check: str
    measured: str
    limit: str
    outcome: Outcome
    reason: str = ""


def check_bound(
    requirement: str,
    check: str,
    measured: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    mend: str = "",
) -> Check:
    """Compare a number with one bound; NaN fails. `mend` is said when it does."""
    bound, ok = (at_least, measured >= at_least) if at_least is not None else (at_most, measured <= (at_most or 0.0))
    words = "at least" if at_least is not None else "at most"
    return check_that(requirement, check, ok, f"{plain(measured)} {unit}".rstrip(), f"{words} {plain(bound or 0.0)} {unit}".rstrip(), mend)


def check_that(requirement: str, check: str, ok: bool, measured: str, limit: str, mend: str = "") -> Check:
    """A yes-or-no check."""
    return Check(requirement, check, measured, limit, "pass" if ok else "fail", "" if ok else mend)


def not_measured(requirement: str, check: str, reason: str) -> Check:
    """A requirement that this step cannot prove here, and why."""
    return Check(requirement, check, "–", "–", "not measured", reason)


def save_report(step: str, checks: Sequence[Check], html: str, others: Mapping[str, str] | None = None) -> None:
    """Write the step's report: its page, its checks as JSON, and other files by name; whole or not at all."""
    verdict = json.dumps({"step": step, "checks": [asdict(c) for c in checks]}, indent=2, ensure_ascii=False)
    with whole_folder(REPORTS / STEPS[step]) as folder:
        for name, text in {"index.html": html, **(others or {}), VERDICT: verdict}.items():
            write_text(folder / name, text)


def load_verdict(step: str) -> list[Check] | None:
    """The step's checks, or None when it has not run."""
    path = REPORTS / STEPS[step] / VERDICT
    return [Check(**c) for c in json.loads(path.read_text(encoding="utf-8"))["checks"]] if path.exists() else None


def require_passed(step: str) -> None:
    """Refuse to go on when the step before left a failed check, or nothing.

    Raises:
        StepFailed: naming the step to run or to mend.
    """
    checks = load_verdict(step)
    if checks is None:
        raise StepFailed(f"{step} has not passed: {REPORTS / STEPS[step] / VERDICT} is not here; run `{step}` first")
    raise_if_failed(step, checks)


def raise_if_failed(step: str, checks: Sequence[Check]) -> None:
    """Stop the pipeline when a check failed, naming the requirement, the value and the mend.

    Raises:
        StepFailed: with one line per failed check.
    """
    failed = [c for c in checks if c.outcome == "fail"]
    if failed:
        lines = [f"{c.requirement}: {c.check}: {c.measured}, must be {c.limit}. {c.reason}".rstrip() for c in failed]
        head = f"{step}: {len(failed)} check{'s' * (len(failed) > 1)} failed, nothing goes further; see {REPORTS / STEPS[step] / 'index.html'}"
        raise StepFailed("\n".join([head, *lines]), checks)


def close_gate(step: str, error: StepFailed) -> None:
    """When a step stopped before it wrote its report, leave one that says so: nothing may go on from the verdict of an earlier run."""
    checks = error.checks or [check_that(step, "whether it ran to its end", False, "stopped", "done", str(error))]
    if load_verdict(step) != checks:
        save_report(step, checks, page(f"Step {STEPS[step][0]}: {step}", "It stopped; nothing goes further.", checks_section(checks)))


def checks_section(checks: Sequence[Check], heading: str = "Checks") -> str:
    """The checks as a part of a page, reasons below what was checked."""
    rows = [(c.requirement, f"{c.check}\n{c.reason}".strip(), c.measured, c.limit, c.outcome) for c in checks]
    return section(heading, table(("requirement", "check", "measured", "limit", "verdict"), rows))
