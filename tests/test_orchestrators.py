"""Every orchestrator's own library, in its own environment, loads the flow and runs it: the edges of dvc.yaml, retries, a schedule, gates."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import OPTIONS, ROOT
from environments import environment
from lint import PROJECT
from test_combinations import SHRUNK

pytestmark = [pytest.mark.slow, pytest.mark.all]
CHOICES = [choice for choice in OPTIONS["orchestrator"] if choice != "none"]
STAGES = ["requirements", "framing", "data", "model", "evaluation", "deployment", "monitoring"]
# What each says about its flow, as JSON: edges, retries, schedule.
ASK = {
    "airflow": """
from flow import dag
edges = {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks}
assert dag.is_paused_upon_creation is False
print(json.dumps([edges, min(t.retries for t in dag.tasks), str(dag.schedule)]))""",
    "prefect": """
import flow
cron = re.search(r'cron="(.+?)"', open(flow.__file__).read())[1]
print(json.dumps([{k: sorted(v) for k, v in flow.edges().items()}, flow.run_stage.retries, cron]))""",
    "dagster": """
from flow import seven_steps, daily
assert daily.default_status.value == "RUNNING"
graph = seven_steps.graph
upstream = graph.dependency_structure.input_to_upstream_outputs_for_node
edges = {n.name: sorted(o.node_name for outs in upstream(n.name).values() for o in outs) for n in graph.nodes}
print(json.dumps([edges, min(n.definition.retry_policy.max_retries for n in graph.nodes), daily.cron_schedule]))""",
}
RUN = {
    "airflow": "airflow dags test PACKAGE",
    "prefect": "python orchestration/prefect/once.py",
    "dagster": "dagster job execute -f orchestration/dagster/flow.py -j PACKAGE",
}


@pytest.fixture
def project(bake_into: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project with its sample data, small, and not yet run."""
    folder = bake_into(tmp_path, orchestrator=request.param, tracking=OPTIONS["tracking"][-1], project_name="Flow Test")
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    for old, new in SHRUNK.items():
        text = re.sub(old, new, text)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "flow_test", "sample"], cwd=folder, env=os.environ | {"PYTHONPATH": "src"}, check=True)
    (folder / "orchestration" / "prefect").mkdir(exist_ok=True)
    (folder / "orchestration" / "prefect" / "once.py").write_text("import flow\n\nflow.seven_steps()\n", encoding="utf-8")
    return folder


def call(project: Path, choice: str, command: str) -> tuple[int, str]:
    """A program of the orchestrator's environment, in the project; what it said, too when it failed."""
    tools = environment(choice, str(ROOT / PROJECT / "orchestration" / choice / "requirements.txt"))
    own = {
        "PROJECT_PYTHON": sys.executable, "PYTHONPATH": "src", "RETRY_SECONDS": "0",
        "AIRFLOW_HOME": str(project / ".airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "orchestration" / "airflow"),
        "PREFECT_HOME": str(project / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    program, *words = command.replace("PACKAGE", "flow_test").split(" ", 1)
    arguments = words[0].split() if words and not words[0].startswith("-c ") else ["-c", words[0][3:]] if words else []
    done = subprocess.run([str(tools / program), *arguments], cwd=project, env=os.environ | own, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=900)  # fmt: skip
    return done.returncode, done.stdout


def edges_of(dvc: Any) -> dict[str, list[str]]:
    """Read from dvc.yaml a second way: by what a stage's folder of outputs begins with."""
    stages = dvc["stages"]
    made = {out if isinstance(out, str) else next(iter(out)): stage for stage, parts in stages.items() for out in parts["outs"]}
    return {
        stage: sorted({owner for out, owner in made.items() for dep in parts["deps"] if f"{dep}/".startswith(f"{out}/")})
        for stage, parts in stages.items()
    }


@pytest.mark.parametrize(("project", "choice"), [(c, c) for c in CHOICES], indirect=["project"], ids=CHOICES)
def test_the_flow_has_the_edges_of_dvc_retries_and_a_schedule_and_runs(project: Path, choice: str) -> None:
    if choice == "airflow":
        assert call(project, choice, "airflow db migrate")[0] == 0
    code, said = call(project, choice, f"python -c import json, re, sys; sys.path.insert(0, 'orchestration/{choice}'){ASK[choice]}")
    assert code == 0, said
    edges, retries, schedule = json.loads(said.strip().splitlines()[-1])
    assert edges == edges_of(yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8")))
    assert sorted(edges) == sorted(STAGES)
    assert retries >= 1
    assert schedule in ("@daily", "0 3 * * *")
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("is_there_a_pattern: {answer: true", "is_there_a_pattern: {answer: false"), encoding="utf-8")
    code, said = call(project, choice, RUN[choice])
    assert (project / "reports" / "2-framing").exists(), said[-6000:]
    assert not (project / "reports" / "3-data").exists(), "a step after the closed gate has run"
    assert code != 0 or choice == "airflow", "the run is green although a gate was closed"
    params.write_text(text, encoding="utf-8")
    code, said = call(project, choice, RUN[choice])
    assert code == 0, said[-6000:]
    verdicts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((project / "reports").glob("*/verdict.json"))]
    assert len(verdicts) == len(STAGES), said[-6000:]
