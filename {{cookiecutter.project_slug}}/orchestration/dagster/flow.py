"""The stages of dvc.yaml as a job for Dagster, with the same edges; what is up to date is skipped.

A closed gate fails its op, and what comes after it does not start. README.md beside this file says how to run it.
"""

import os
import subprocess
from pathlib import Path

import yaml
from dagster import (
    DefaultScheduleStatus,
    Definitions,
    DependencyDefinition,
    GraphDefinition,
    In,
    MultiDependencyDefinition,
    Nothing,
    OpDefinition,
    Out,
    RetryPolicy,
    ScheduleDefinition,
    op,
)

ROOT = Path(__file__).parents[2]
# The project keeps its own environment; the scheduler has another one.
PYTHON = os.environ.get("PROJECT_PYTHON", str(ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"))
RETRY_SECONDS = int(os.environ.get("RETRY_SECONDS", "60"))


def edges() -> dict[str, list[str]]:
    """Each stage of dvc.yaml, in order, with the stages whose outputs it reads."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    made = {stage: [out if isinstance(out, str) else next(iter(out)) for out in parts.get("outs", [])] for stage, parts in stages.items()}
    return {stage: [before for before, outs in made.items() if reads(parts.get("deps", []), outs)] for stage, parts in stages.items()}


def reads(deps: list[str], outs: list[str]) -> bool:
    """Whether one of the files is, or is inside, one of the outputs."""
    return any(dep == out or dep.startswith(f"{out}/") for dep in deps for out in outs)


def op_of(stage: str) -> OpDefinition:
    """One stage, as DVC runs it."""

    @op(name=stage, ins={"before": In(Nothing)}, out=Out(Nothing), retry_policy=RetryPolicy(max_retries=2, delay=RETRY_SECONDS))
    def run_stage() -> None:
        path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
        subprocess.run([PYTHON, "-m", "dvc", "repro", "--single-item", stage], cwd=ROOT, env=os.environ | {"PATH": path}, check=True)

    return run_stage


seven_steps = GraphDefinition(
    name="{{ cookiecutter.package_name }}",
    node_defs=[op_of(stage) for stage in edges()],
    dependencies={
        stage: {"before": MultiDependencyDefinition([DependencyDefinition(name) for name in before])} for stage, before in edges().items() if before
    },
).to_job()

daily = ScheduleDefinition(job=seven_steps, cron_schedule="0 3 * * *", default_status=DefaultScheduleStatus.RUNNING)
defs = Definitions(jobs=[seven_steps], schedules=[daily])
