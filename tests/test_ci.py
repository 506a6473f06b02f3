"""Each choice of CI does all its work, and its report reaches the pull request."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from conftest import OPTIONS, Bake

TABLE = "| requirement | proof |\n|---|---|\n| recall | `$(id)` 'pass' \u00e4 |\n"
#: What CI is there for, by the commands that do it.
ON_EVERY_CHANGE = ("make check", "make test", "make run", "docker build")
BY_HAND = ("make run", "docker build", "docker push")
AT_NIGHT = ("make run", "make monitor")


def only(choice: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(choice not in OPTIONS["ci"], reason=f"ci has no choice {choice} here")


def workflow(bake: Bake, name: str) -> Any:
    text = (bake(ci="github") / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    return yaml.load(text, yaml.BaseLoader)


def commands(job: Mapping[str, Any]) -> str:
    return "\n".join([*(step.get("run", "") for step in job.get("steps", [])), *job.get("script", [])])


# ---- GitHub


@only("github")
@pytest.mark.parametrize(
    ("name", "starts", "does"),
    [("check", {"push", "pull_request"}, ON_EVERY_CHANGE), ("promote", {"workflow_dispatch"}, BY_HAND), ("monitor", {"schedule"}, AT_NIGHT)],
)
def test_github_does_all_its_work_with_the_least_permission(name: str, starts: set[str], does: tuple[str, ...], bake: Bake) -> None:
    found = workflow(bake, name)
    assert found["on"].keys() - {"workflow_dispatch"} == starts - {"workflow_dispatch"}
    said = "\n".join(commands(job) for job in found["jobs"].values())
    assert [command for command in does if command not in said] == []
    assert found["permissions"] == {}
    given = {(part, level) for job in found["jobs"].values() for part, level in job["permissions"].items()}
    assert given - {("contents", "read")} == {"check": {("pull-requests", "write")}, "promote": {("packages", "write")}}.get(name, set())


@only("github")
def test_github_asks_reviewers_before_a_promotion_and_nobody_at_night(bake: Bake) -> None:
    """Reviewers belong to an environment, so the two may not share one."""
    (promote,), (monitor,) = workflow(bake, "promote")["jobs"].values(), workflow(bake, "monitor")["jobs"].values()
    assert promote["environment"] == "production"
    assert monitor["environment"] != promote["environment"]


@only("github")
@pytest.mark.parametrize("before", [["fine"], ["fine", "<!-- the seven steps -->\n\nold"]], ids=["its first run", "a later one"])
def test_github_keeps_one_comment_with_the_table(before: list[str], bake: Bake, tmp_path: Path) -> None:
    """The script of the workflow, with a stand-in for GitHub that tells what it was asked."""
    if not which("node"):
        pytest.skip("node is not installed: the script that posts the report was not run")
    (script,) = [step["with"]["script"] for step in workflow(bake, "check")["jobs"]["gates"]["steps"] if "script" in step.get("with", {})]
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "traceability.md").write_text(TABLE, encoding="utf-8")
    comments = [{"id": number, "body": body} for number, body in enumerate(before)]
    stand_in = f"""
const told = [], say = name => async given => {{ told.push([name, given]) }}
const issues = {{ listComments: 0, updateComment: say('update'), createComment: say('create') }}
const github = {{ rest: {{ issues }}, paginate: async () => {json.dumps(comments)} }}
const context = {{ issue: {{ number: 3 }}, repo: {{ owner: 'o', repo: 'r' }} }}
const run = async () => {{ {script} }}
run().then(() => console.log(JSON.stringify(told)))
"""
    done = subprocess.run(["node", "-"], input=stand_in, cwd=tmp_path, capture_output=True, text=True, check=True)
    ((what, given),) = json.loads(done.stdout)
    assert given["body"].endswith(TABLE)
    assert (what, given.get("comment_id", given.get("issue_number"))) == (("update", 1) if len(before) == 2 else ("create", 3))


# ---- GitLab


@pytest.fixture
def gitlab(bake: Bake) -> Any:
    return yaml.safe_load((bake(ci="gitlab") / ".gitlab-ci.yml").read_text(encoding="utf-8"))


@only("gitlab")
def test_gitlab_does_all_its_work(gitlab: Any) -> None:
    jobs = {name: job for name, job in gitlab.items() if isinstance(job, dict) and "script" in job}
    by_hand = [name for name, job in jobs.items() if any(rule.get("when") == "manual" for rule in job["rules"])]
    at_night = [name for name, job in jobs.items() if any('== "schedule"' in rule["if"] for rule in job["rules"])]
    always = [name for name in jobs if name not in (*by_hand, *at_night)]
    assert [jobs[name]["environment"] for name in by_hand] == ["production"]
    assert all(rule == {"if": '$CI_PIPELINE_SOURCE != "schedule"'} for name in always for rule in jobs[name]["rules"])
    for names, does in ((always, ON_EVERY_CHANGE), (by_hand, BY_HAND[1:]), (at_night, AT_NIGHT)):
        said = "\n".join(commands(jobs[name]) for name in names)
        assert [command for command in does if command not in said] == []


@only("gitlab")
def test_gitlabs_scripts_pass_shellcheck(gitlab: Any, tmp_path: Path) -> None:
    for name, job in gitlab.items():
        if isinstance(job, dict) and "script" in job:
            lines = [*job["script"], *job.get("after_script", [])]
            (tmp_path / f"{name}.sh").write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    beside = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(beside), *map(str, tmp_path.glob("*.sh"))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@contextmanager
def listener() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """An address, and the path, token and body of what is posted there."""
    posted: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.headers["private-token"], self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()


@only("gitlab")
@pytest.mark.parametrize(("given", "notes"), [({"REPORT_TOKEN": "t", "CI_MERGE_REQUEST_IID": "5"}, 1), ({"REPORT_TOKEN": "t"}, 0), ({}, 0)])
def test_gitlab_posts_the_table_to_the_merge_request(given: dict[str, str], notes: int, gitlab: Any, tmp_path: Path) -> None:
    """The job's own command, with a server that listens; where there is no token or no merge request it does nothing, and does not fail."""
    if not which("curl"):
        pytest.skip("curl is not installed: the command that posts the report was not run")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "traceability.md").write_text(TABLE, encoding="utf-8")
    with listener() as (address, posted):
        env = {"PATH": os.environ["PATH"], "CI_API_V4_URL": f"{address}/api/v4", "CI_PROJECT_ID": "2", "NO_PROXY": "127.0.0.1", **given}
        for command in gitlab["gates"]["after_script"]:
            subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=env, check=True)
    assert len(posted) == notes
    for path, token, body in posted:
        assert (path, token) == ("/api/v4/projects/2/merge_requests/5/notes", "t")
        assert b'name="body"\r\n\r\n' + TABLE.encode() in body
