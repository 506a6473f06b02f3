"""The requirements document, and the table that traces every requirement to its proof."""

from collections.abc import Mapping, Sequence

from ..params import Requirements, Target
from .checks import Check

#: Requirements that need production to be measured, and what watches them there.
WATCHED = {
    "availability": "needs real traffic; the error-budget alert rules watch it in production",
    "kpi": "needs real users; the experiment design of step 5 says how to measure it online",
    "layers": "proved by the tests, not by a run: `make test` checks the layer rule",
    "retraining": "needs time to pass; `monitor` decides on drift, age and performance",
}


def requirements_document(requirements: Requirements) -> str:
    """The requirements as Markdown, for people who do not read YAML."""
    r, kpi = requirements, requirements.kpi
    fallback = "answers and says so" if r.constraints.fallback_allowed else "may not answer; the service says it is not ready"
    lines = [
        "# Requirements",
        "",
        f"**Goal.** {r.goal}",
        "",
        f"**Owner.** {r.owner}. **Users.** {', '.join(r.users)}. **Stakeholders.** {', '.join(r.stakeholders) or 'none named'}.",
        "",
        "## What success is",
        "",
        f"{kpi.name}, in {kpi.unit}: from {kpi.baseline:g} to {kpi.target:g} ({kpi.better} is better). "
        f"Moved by {kpi.moved_by.metric}, today {kpi.moved_by.today:g}, each whole unit above it by "
        f"{kpi.moved_by.effect_per_unit:g}: {kpi.moved_by.because}",
        "",
        "| requirement | limit | unit | proven by |",
        "|---|---|---|---|",
        *(_row(f"quality.{t.metric}", t, "evaluation gate, with a bootstrap interval") for t in r.quality),
        *(_row(f"guard_rails.{t.metric}", t, "evaluation gate") for t in r.guard_rails),
        f"| lift_over_baseline | at least {r.lift_over_baseline:g} | the main metric | evaluation gate, against the better of two baselines |",
        f"| latency_ms.p50 | at most {r.latency_ms.p50:g} | ms | load-test gate, alert rules |",
        f"| latency_ms.p99 | at most {r.latency_ms.p99:g} | ms | load-test gate, alert rules |",
        f"| throughput_per_second | at least {r.throughput_per_second:g} | requests/s | load-test gate, replicas |",
        f"| availability | at least {r.availability:g} | share of requests | error-budget alert rules |",
        f"| cost_per_prediction_usd | at most {r.cost_per_prediction_usd:g} | USD | load-test gate |",
        "",
        "## Scale",
        "",
        f"{r.scale.requests_per_day_now:,} requests a day now, {r.scale.requests_per_day_in_a_year:,} in a year; "
        f"{r.scale.models} model(s); about {r.scale.training_rows:,} rows to learn from. Labels arrive after about {r.label_delay_days:g} days.",
        "",
        "## Constraints",
        "",
        f"* Privacy: {r.constraints.privacy} Columns the model may not read: {', '.join(r.constraints.personal_columns) or 'none'}.",
        f"* Interpretability: {r.constraints.interpretability}",
        f"* Human in the loop: {r.constraints.human_in_the_loop}",
        f"* When no model can be loaded, the rule-like baseline {fallback}.",
        "",
        "## The four qualities",
        "",
        *(f"* **{name.capitalize()}**: {q.means} Proven by: {', '.join(q.proven_by)}." for name, q in r.qualities.items()),
        "",
    ]
    return "\n".join(lines)


def traceability(requirements: Requirements, verdicts: Mapping[str, Sequence[Check] | None]) -> list[Check]:
    """Every requirement with the check that proved it, in the order of the requirements.

    A requirement without a check is `not measured`, with the reason; checks beyond the
    requirements come last.
    """
    checks = [c for step in verdicts.values() for c in step or ()]
    traced: list[Check] = []
    for name in requirements.ids():
        found = [c for c in checks if c.requirement == name]
        reason = WATCHED.get(name, "the step that measures it has not run")
        traced += found or [Check(name, "–", "–", "–", "not measured", reason)]
    return traced + [c for c in checks if c.requirement not in requirements.ids()]


def traceability_markdown(checks: Sequence[Check]) -> str:
    """The traceability table as Markdown."""
    rows = [f"| {c.requirement} | {c.check} | {c.measured} | {c.limit} | {c.outcome} | {c.reason} |" for c in checks]
    return "\n".join(["| requirement | check | measured | limit | verdict | why |", "|---|---|---|---|---|---|", *rows, ""])


def _row(name: str, target: Target, proof: str) -> str:
    words = "at least" if target.at_least is not None else "at most"
    return f"| {name} | {words} {target.bound:g} | {target.unit} | {proof} |"
