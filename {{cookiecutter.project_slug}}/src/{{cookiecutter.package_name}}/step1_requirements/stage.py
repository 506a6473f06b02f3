"""Step 1 at work: the requirements document, the table that traces every requirement to its proof, and what `run` says at its end."""

from collections.abc import Mapping, Sequence

from ..params import REPORTS, Params, Requirements, Target
from .checks import STEPS, Check, check_that, checks_section, load_verdict, save_verdict
from .page import Link, page, preformatted, section, table, whole_folder, write_text

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
    requirements = params.requirements
    document = requirements_document(requirements)
    checks = [check_that("requirements", "typed, complete and free of contradictions", True, "consistent", "consistent")]
    with whole_folder(REPORTS / STEPS["requirements"]) as folder:
        write_text(folder / "requirements.md", document)
        write_text(folder / "index.html", page("Step 1: requirements", requirements.goal, preformatted(document)))
        save_verdict("requirements", checks, folder)


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


def summarize(params: Params) -> None:
    """Print the table of steps and write reports/index.html and reports/traceability.md."""
    verdicts = _up_to_the_first_failure()
    from rich.console import Console
    from rich.table import Table

    traced = traceability(params.requirements, verdicts)
    steps = [(STEPS[step][0], step, _verdict(checks), f"{STEPS[step]}/index.html" if checks else "") for step, checks in verdicts.items()]
    others = [Link("monitor/index.html")] if (REPORTS / "monitor/index.html").exists() else []
    body = page(
        params.requirements.goal,
        "The seven steps of this system, and what each requirement rests on.",
        table(("step", "what", "verdict", "report"), [(n, s, v, Link(r)) for n, s, v, r in steps]),
        checks_section(traced, "Requirements and their proof"),
        *(section("Monitor", str(table(("newest look",), [(o,)]))) for o in others),
        home="",
    )
    write_text(INDEX, body)
    write_text(REPORTS / "traceability.md", traceability_markdown(traced))
    shown = Table("step", "what", "verdict", "report", box=None)
    for number, step, verdict, path in steps:
        shown.add_row(number, step, f"[{COLOURS[verdict]}]{verdict}[/]", str(REPORTS / path) if path else "")
    Console().print(shown)
    Console().print(f"\nAll of it as a page: {INDEX}", highlight=False)


def _row(name: str, target: Target, proof: str) -> str:
    words = "at least" if target.at_least is not None else "at most"
    return f"| {name} | {words} {target.bound:g} | {target.unit} | {proof} |"


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
