"""Step 1 at work: the requirements document, the table that traces every requirement to its proof, and what `run` says at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple

from ..params import REPORTS, Params, Requirements, Target
from .checks import STEPS, Check, check_that, checks_section, load_verdict, not_measured, save_report
from .page import Link, markdown_table, page, paragraph, plain, section, table, write_text

INDEX = REPORTS / "index.html"
COLOURS = {"pass": "green", "fail": "bold red", "not run": "dim"}

#: Requirements that need production to be measured, and what watches them there.
WATCHED = {
    "availability": "needs real traffic; the error-budget alert rules watch it in production",
    "kpi": "needs real users; the experiment design of step 5 says how to measure it online",
    "layers": "proved by the tests, not by a run: `make test` checks the layer rule",
    "retraining": "needs time to pass; `monitor` decides on drift, age and performance",
}


def run(params: Params) -> None:
    """Write reports/1-requirements. Contradictions were refused when params.yaml was read."""
    checks = [check_that("requirements", "typed, complete and free of contradictions", True, "consistent", "consistent")]
    save_report("requirements", checks, requirements_document(params.requirements))


def requirements_document(r: Requirements) -> str:
    """The requirements as a page, for people who do not read YAML."""
    kpi, scale, limits = r.kpi, r.scale, r.constraints
    success = (f"{kpi.name}, in {kpi.unit}: from {plain(kpi.baseline)} to {plain(kpi.target)} ({kpi.better} is better). Moved by "
               f"{kpi.moved_by.metric}, today {kpi.moved_by.today:g}, each whole unit above it by {plain(kpi.moved_by.effect_per_unit)}: "
               f"{kpi.moved_by.because}")  # fmt: skip
    bounds = [
        *((f"quality.{t.metric}", _words(t), t.unit, "evaluation gate, with a bootstrap interval") for t in r.quality),
        *((f"guard_rails.{t.metric}", _words(t), t.unit, "evaluation gate") for t in r.guard_rails),
        ("lift_over_baseline", f"at least {plain(r.lift_over_baseline)}", "the main metric", "evaluation gate, against the better of two baselines"),
        ("latency_ms.p50", f"at most {r.latency_ms.p50:g}", "ms", "load-test gate, alert rules"),
        ("latency_ms.p99", f"at most {r.latency_ms.p99:g}", "ms", "load-test gate, alert rules"),
        ("throughput_per_second", f"at least {plain(r.throughput_per_second)}", "requests/s", "load-test gate, replicas"),
        ("availability", f"at least {r.availability:g}", "share of requests", "error-budget alert rules"),
        ("cost_per_prediction_usd", f"at most {r.cost_per_prediction_usd:g}", "USD", "load-test gate"),
    ]
    sizes = (f"{scale.requests_per_day_now:,} requests a day now, {scale.requests_per_day_in_a_year:,} in a year; {scale.models} model(s); "
             f"about {scale.training_rows:,} rows to learn from. Labels arrive after about {r.label_delay_days:g} days.")  # fmt: skip
    fallback = "the rule-like baseline answers, and says so" if limits.fallback_allowed else "the service says that it is not ready"
    constraints = [
        ("privacy", f"{limits.privacy} Columns the model may not read: {', '.join(limits.personal_columns) or 'none'}."),
        ("interpretability", limits.interpretability),
        ("human in the loop", limits.human_in_the_loop),
        ("when no model can be loaded", fallback),
    ]
    qualities = [(name, quality.means, ", ".join(quality.proven_by)) for name, quality in r.qualities.items()]
    people = [("owner", r.owner), ("users", ", ".join(r.users)), ("stakeholders", ", ".join(r.stakeholders) or "none named")]
    return page(
        "Step 1: requirements",
        r.goal,
        section("For whom", table(("who", "is"), people)),
        section("What success is", paragraph(success), table(("requirement", "limit", "unit", "proven by"), bounds)),
        section("Scale", paragraph(sizes)),
        section("Constraints", table(("what", "is"), constraints)),
        section("The four qualities", table(("quality", "means", "proven by"), qualities)),
    )


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
        traced += found or [not_measured(name, "", reason)]
    return traced + [c for c in checks if c.requirement not in requirements.ids()]


def summarize(params: Params) -> None:
    """Print the table of steps and write reports/index.html and reports/traceability.md."""
    verdicts = _up_to_the_first_failure()
    from rich.console import Console
    from rich.table import Table

    traced = traceability(params.requirements, verdicts)
    steps = [(STEPS[step][0], step, _verdict(checks), f"{STEPS[step]}/index.html" if checks else "") for step, checks in verdicts.items()]
    found = sorted(path.parent.name for path in REPORTS.glob("*/index.html"))
    others = [(name, Link(f"{name}/index.html")) for name in found if name not in STEPS.values()]
    body = page(
        params.requirements.goal,
        "The seven steps of this system, and what each requirement rests on.",
        table(("step", "what", "verdict", "report"), [(n, s, v, Link(r)) for n, s, v, r in steps]),
        checks_section(traced, "Requirements and their proof"),
        section("Besides the run", table(("command", "its newest report"), others)) if others else "",
        home="",
    )
    write_text(INDEX, body)
    header, rows = ("requirement", "check", "measured", "limit", "verdict", "why"), map(astuple, traced)
    write_text(REPORTS / "traceability.md", markdown_table(header, rows) + "\n")
    shown = Table("step", "what", "verdict", "report", box=None)
    for number, step, verdict, path in steps:
        shown.add_row(number, step, f"[{COLOURS[verdict]}]{verdict}[/]", str(REPORTS / path) if path else "")
    Console().print(shown)
    Console().print(f"\nAll of it as a page: {INDEX}", highlight=False)


def _words(target: Target) -> str:
    return f"{'at least' if target.at_least is not None else 'at most'} {plain(target.bound)}"


def _up_to_the_first_failure() -> dict[str, list[Check] | None]:
    """Each step's checks; those after a step that failed or did not run are from an earlier run, so they do not count."""
    verdicts: dict[str, list[Check] | None] = {}
    closed = False
    for step in STEPS:
        verdicts[step] = None if closed else load_verdict(step)
        closed = closed or _verdict(verdicts[step]) != "pass"
    return verdicts


def _verdict(checks: list[Check] | None) -> str:
    if checks is None:
        return "not run"
    return "fail" if any(c.outcome == "fail" for c in checks) else "pass"
