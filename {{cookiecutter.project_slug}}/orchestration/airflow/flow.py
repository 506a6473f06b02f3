"""The stages of dvc.yaml as a DAG for Apache Airflow 3, with the same edges; what is up to date is skipped.

A closed gate fails its task, and what comes after it does not start. README.md beside this file says how to run it.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

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


with DAG(
    "{{ cookiecutter.package_name }}",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,  # Airflow pauses what is new unless it is told otherwise
    max_active_runs=1,  # two runs would write the same files
    default_args={"retries": 2, "retry_delay": timedelta(seconds=RETRY_SECONDS)},
) as dag:
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
    tasks: dict[str, BashOperator] = {}
    for stage, before in edges().items():
        command = f'"{PYTHON}" -m dvc repro --single-item {stage}'
        tasks[stage] = BashOperator(task_id=stage, bash_command=command, cwd=str(ROOT), append_env=True, env={"PATH": path})
        tasks[stage].set_upstream([tasks[name] for name in before])
