"""The stages of dvc.yaml as a flow for Prefect 3, with the same edges; what is up to date is skipped.

A closed gate fails its task, and what comes after it does not start. README.md beside this file says how to run it.
"""

import os
import subprocess
from pathlib import Path

import yaml
from prefect import flow, task
from prefect.futures import PrefectFuture

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


@task(task_run_name="{stage}", retries=2, retry_delay_seconds=RETRY_SECONDS)
def run_stage(stage: str) -> None:
    """One stage, as DVC runs it."""
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
    subprocess.run([PYTHON, "-m", "dvc", "repro", "--single-item", stage], cwd=ROOT, env=os.environ | {"PATH": path}, check=True)


@flow(name="{{ cookiecutter.package_name }}")
def seven_steps() -> None:
    """All stages, each after those whose outputs it reads."""
    running: dict[str, PrefectFuture[None]] = {}
    for stage, before in edges().items():
        running[stage] = run_stage.submit(stage, wait_for=[running[name] for name in before])
    for future in running.values():
        future.result()


if __name__ == "__main__":
    seven_steps.serve(name="daily", cron="0 3 * * *", limit=1)  # two runs would write the same files
