"""What `run` says at its end: a table of the seven steps, a page, and every requirement with its proof."""

from rich.console import Console
from rich.table import Table

from .params import REPORTS, Params
from .step1_requirements.checks import STEPS, Check, checks_section, load_verdict
from .step1_requirements.document import traceability, traceability_markdown
from .step1_requirements.page import Link, page, section, table, write_text

INDEX = REPORTS / "index.html"
COLOURS = {"pass": "green", "fail": "bold red", "not run": "dim"}


def summarize(params: Params) -> None:
    """Print the table of steps and write reports/index.html and reports/traceability.md."""
    verdicts = _up_to_the_first_failure()
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
