"""The fault matrix: each fault, planted into a project that was green, is stopped by its gate and by no later one.

Every test gets a copy of one clean project and runs only the steps that its fault touches. What a gate
stopped must be as it was before: the bundle in service, the champion, and what later steps wrote.
"""

import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ON_FRAUD, files_of
from filelock import FileLock
from forked import Done, package_of, verb

STEPS = {
    "requirements": "1-requirements",
    "framing": "2-framing",
    "data": "3-data",
    "model": "4-model",
    "evaluation": "5-evaluation",
    "deployment": "6-deployment",
    "monitoring": "7-monitoring",
}
pytestmark = [pytest.mark.slow, ON_FRAUD]
RAW, PREPARED, BUNDLE, SQL = Path("data/raw/events.parquet"), Path("data/prepared"), Path("models/bundle"), "step3_data/features.sql"

#: The matrix's columns, in the order in which a fault meets them: the step and its check; "" is the reading of params.yaml.
GATES = {
    "params": ("", "params"),
    "rules": ("framing", "ml_or_rules"),
    "contract": ("data", "data_contract data"),
    "leak": ("data", "no_leak"),
    "trained": ("evaluation", "evaluation"),
    "split": ("evaluation", "no_leak"),
    "quality": ("evaluation", "quality"),
    "guards": ("evaluation", "guard_rails"),
    "lift": ("evaluation", "lift_over_baseline"),
    "slice": ("evaluation", "worst_slice"),
    "groups": ("evaluation", "protected_gap"),
    "champion": ("evaluation", "champion"),
    "evaluated": ("deployment", "deployment"),
    "parity": ("deployment", "parity"),
    "p99": ("deployment", "latency_ms.p99"),
    "load": ("deployment", "latency_ms.p50 throughput_per_second cost_per_prediction_usd"),
    "bundle": ("deployment", "bundle"),
}
STOPPED, TOO, PASSED, NOT_REACHED = "STOP", "too", "ok", ""


# ---- planting ----------------------------------------------------------------------------


def set_params(project: Path, **values: Any) -> None:
    """Change values of params.yaml; a key's dots are written as two underscores."""
    path = project / "params.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *above, last = name.split("__")
        section = tree
        for key in above:
            section = section[key]
        assert last in section, f"{name} is not in params.yaml"
        section[last] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def params_of(project: Path) -> Any:
    return yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))


def source(project: Path, name: str) -> Path:
    return project / "src" / package_of(project) / name


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} holds {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def override(path: Path, name: str, code: str) -> None:
    """Define `name` of a module again, at its end; the first one is `original`."""
    text = path.read_text(encoding="utf-8")
    assert name.partition(".")[0] in text, f"{path.name} no longer knows {name}"
    path.write_text(f"{text}\n\noriginal = {name}\n{code}", encoding="utf-8")


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with a column of the same type, replaced."""
    index = table.column_names.index(name)
    return table.set_column(index, name, pa.array(list(values), table.schema.field(name).type))


def a_column_that_leaks(project: Path) -> None:
    """Written by the fraud team when it closes a case, right in 99 of 100 rows."""

    def change(table: pa.Table) -> pa.Table:
        fraud = np.array(table.column("is_fraud").to_pylist()) == np.array(True)
        wrong = np.random.default_rng(0).random(len(fraud)) < 0.01
        return table.append_column("case_code", pa.array(np.where(fraud ^ wrong, "closed: fraud", "none")))

    rewrite(project / RAW, change)
    inputs = params_of(project)["framing"]["inputs"]
    set_params(project, framing__inputs=[*inputs, {"name": "case_code", "kind": "category"}])


def shuffled_labels(project: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        labels = np.array(table.column("is_fraud").to_pylist(), dtype=object)
        known = np.flatnonzero([label is not None for label in labels])
        labels[known] = labels[np.random.default_rng(0).permutation(known)]
        return with_column(table, "is_fraud", labels)

    rewrite(project / RAW, change)


def rows_of_the_test_part(project: Path) -> None:
    """Some rows were prepared twice, into training too."""
    tests = pq.read_table(project / PREPARED / "test.parquet")
    rewrite(project / PREPARED / "train.parquet", lambda table: pa.concat_tables([table, tests.slice(100, 30)]))


def history_with_the_present(project: Path) -> None:
    replace(source(project, SQL), "AND past.paid_at < moments.paid_at\n", "AND past.paid_at <= moments.paid_at\n")


def history_with_the_future(project: Path) -> None:
    replace(source(project, SQL), "AND past.paid_at < moments.paid_at\n", "")


def labels_before_they_arrive(project: Path) -> None:
    replace(source(project, SQL), " AND past.label_known_at < moments.paid_at", "")


def a_model_worse_than_rules(project: Path) -> None:
    set_params(project, model__boosting__max_iter=1, model__boosting__max_leaf_nodes=2)


def other_shares(project: Path) -> None:
    """Rows that the model learned from are tested on now."""
    set_params(project, data__split={"by": "time", "train": 0.2, "validation": 0.2})


def nothing(_: Path) -> None:
    """Training again on the same data."""


def misjudged(**where: str) -> Callable[[Path], None]:
    """In one slice of the test part, the frauds were others: the model is wrong there and nowhere else."""

    def plant(project: Path) -> None:
        def change(table: pa.Table) -> pa.Table:
            labels = np.array(table.column("is_fraud").to_pylist())
            inside = np.all([np.array(table.column(c).to_pylist()) == v for c, v in where.items()], axis=0)
            frauds, honest = np.flatnonzero(inside & labels), np.flatnonzero(inside & ~labels)
            assert len(frauds) >= 3, f"too few frauds where {where}"
            labels[frauds] = False
            labels[np.random.default_rng(0).choice(honest, len(frauds), replace=False)] = True
            return with_column(table, "is_fraud", labels)

        rewrite(project / PREPARED / "test.parquet", change)

    return plant


def a_stricter_requirement(project: Path) -> None:
    first, *others = params_of(project)["requirements"]["quality"]
    set_params(project, requirements__quality=[first | {"at_least": 0.99}, *others])


def a_missing_column(project: Path) -> None:
    rewrite(project / RAW, lambda table: table.drop_columns(["channel"]))


def values_out_of_range(project: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        amount, country = table.column("amount").to_pylist(), table.column("country").to_pylist()
        amount[17], country[4711] = -5.0, "Atlantis"
        return with_column(with_column(table, "amount", amount), "country", country)

    rewrite(project / RAW, change)


def a_flood_of_missing_values(project: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        bands = table.column("age_band").to_pylist()
        return with_column(table, "age_band", [None if i % 2 else band for i, band in enumerate(bands)])

    rewrite(project / RAW, change)


def a_model_nobody_evaluated(project: Path) -> None:
    """Another model is trained, and its evaluation left out."""
    set_params(project, model__seed=1, model__boosting__max_iter=60)


def an_export_that_differs(project: Path) -> None:
    """The last tree gets lost. A new history comes with it, which the online table must not take over yet."""
    replace(source(project, SQL), "INTERVAL 30 DAY", "INTERVAL 20 DAY")
    code = """
def export(framing, pipeline, path):
    from copy import deepcopy
    pipeline = deepcopy(pipeline)
    getattr(pipeline[-1], "_predictors", [None]).pop()
    original(framing, pipeline, path)
"""
    override(source(project, "step6_deployment/stage.py"), "export", code)


def a_slow_handler(project: Path) -> None:
    """One request in forty waits for something; the others are as fast as ever."""
    seconds = params_of(project)["requirements"]["latency_ms"]["p99"] / 1000 * 1.5
    code = f"""
async def slowed(self, *given, turn=count()):
    import asyncio
    if next(turn) % 40 == 20:
        await asyncio.sleep({seconds})
    return await original(self, *given)
Service._post = slowed
"""
    override(source(project, "step6_deployment/service.py"), "Service._post", code)


def a_handler_that_exits(project: Path) -> None:
    code = "async def dying(self, *given):\n    os._exit(3)\nService._post = dying\n"
    override(source(project, "step6_deployment/service.py"), "Service._post", code)


def answers_that_ask_for_rules(project: Path) -> None:
    set_params(project, framing__questions__is_there_a_pattern__answer=False)


# ---- the matrix --------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault, the steps that meet it, the check of the last of them that stops it, and what the message says."""

    plant: Callable[[Path], None]
    steps: tuple[str, ...]
    gate: str
    says: tuple[str, ...]
    too: frozenset[str] = frozenset()  # gates of the same step that such a fault may close as well


OF_A_BAD_MODEL = frozenset({"quality", "guards", "lift", "slice", "groups", "champion"})
FAULTS = {
    "a column that leaks the target": Fault(a_column_that_leaks, ("data",), "leak", ("no_leak", "'case_code'")),
    "shuffled labels": Fault(shuffled_labels, ("data", "model", "evaluation"), "lift", ("lift_over_baseline", "quality.recall"), OF_A_BAD_MODEL),
    "test rows in the training set": Fault(
        rows_of_the_test_part, ("model", "evaluation"), "split", ("no_leak: rows in two parts of the split",), frozenset({"champion"})
    ),
    "data prepared anew and no model of it": Fault(other_shares, ("data", "evaluation"), "trained", ("was trained on other data", "run `model`")),
    "history that counts the present": Fault(history_with_the_present, ("data",), "leak", ("no_leak", "features.sql reads ahead")),
    "history that counts the future": Fault(
        history_with_the_future, ("data",), "leak", ("no_leak", "features.sql reads ahead"), frozenset({"contract"})
    ),
    "labels used before they arrived": Fault(labels_before_they_arrive, ("data",), "leak", ("no_leak", "features.sql reads ahead")),
    "a model worse than the baseline": Fault(a_model_worse_than_rules, ("model", "evaluation"), "lift", ("lift_over_baseline",), OF_A_BAD_MODEL),
    "a model identical to the champion": Fault(nothing, ("model", "evaluation"), "champion", ("identical predictions", "Champion 1 stays")),
    "one slice collapsing": Fault(
        misjudged(country="neighbour"), ("model", "evaluation"), "slice", ("worst_slice", "country = neighbour"), frozenset({"champion"})
    ),
    "a protected group treated worse": Fault(
        misjudged(age_band="66+", channel="online"), ("model", "evaluation"), "groups", ("protected_gap", "66+ against"), frozenset({"champion"})
    ),
    "a requirement made stricter": Fault(a_stricter_requirement, ("evaluation",), "quality", ("quality.average_precision", "at least 0.99")),
    "a missing column": Fault(a_missing_column, ("data",), "contract", ("no column 'channel'",)),
    "values out of range": Fault(
        values_out_of_range, ("data",), "contract", ("data_contract", "row 17: amount is -5.0, must be at least", "row 4711: country is 'Atlantis'")
    ),
    "a flood of missing values": Fault(a_flood_of_missing_values, ("data",), "contract", ("data_contract", "age_band is missing in 5")),
    "a model that nobody evaluated": Fault(
        a_model_nobody_evaluated, ("model", "deployment"), "evaluated", ("models/candidate is version 2, but 1 was evaluated; run `evaluation`",)
    ),
    "an export that differs": Fault(an_export_that_differs, ("deployment",), "parity", ("parity: largest difference of the model export",)),
    "a handler slowed beyond p99": Fault(
        a_slow_handler, ("deployment",), "p99", ("latency_ms.p99", "step6_deployment/service.py"), frozenset({"load"})
    ),
    "answers that ask for rules": Fault(answers_that_ask_for_rules, ("framing",), "rules", ("ml_or_rules", "there is no pattern to learn")),
}
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "p50 above p99": ({"requirements__latency_ms": {"p50": 900, "p99": 200}}, "requirements.latency_ms: p50 900 is above p99 200"),
    "a target worse than today": ({"requirements__kpi__target": 9000.0}, "requirements.kpi: target 9000 is no better than baseline 2500"),
    "a metric nobody knows": ({"framing__metric": "roc"}, "framing: metric 'roc' does not measure a binary task; give one of roc_auc"),
}
SEALED = ("model.onnx", "fallback.onnx", "manifest.json", "SHA256SUMS")
#: What the system promises to stop, whatever the table above holds.
PROMISED = {
    "a column that leaks the target",
    "shuffled labels",
    "test rows in the training set",
    "history that counts the present",
    "history that counts the future",
    "labels used before they arrived",
    "a model worse than the baseline",
    "a model identical to the champion",
    "one slice collapsing",
    "a protected group treated worse",
    "a requirement made stricter",
    "a missing column",
    "values out of range",
    "a flood of missing values",
    "an export that differs",
    "a handler slowed beyond p99",
    "an unknown key in params.yaml",
    *(f"a corrupted byte in {name}" for name in SEALED),
}
NEVER_ALONE = {"guards", "load"}  # bounds like quality and p99, by the same function
KILL = "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
DOES_NOT_READ_PARAMS = {"score"}  # it reads the bundle, which carries its own contract


@pytest.fixture(scope="session")
def clean(bake_into: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default project after its seven steps, known to DVC, made once for all workers; only read it.

    Its latency limits are wide, because the load test shares the cores with other tests.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "gates"
    with FileLock(f"{shared}.lock"):
        if not (shared / "made").exists():
            shutil.rmtree(shared, ignore_errors=True)
            project = bake_into(shared)
            set_params(project, requirements__latency_ms={"p50": 400, "p99": 1000})
            set_params(project, deployment__keys="none")
            load = {"seconds": 2, "rate_per_second": 100, "connections": 16}
            set_params(project, **{f"deployment__load_test__{key}": value for key, value in load.items()})
            subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
            for step in ("sample", *STEPS, "evaluation"):  # once more, now that the model is the champion
                done = verb(project, step)
                assert done.code == 0, done.said
            subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], cwd=project, check=True)
            (shared / "made").write_text(project.name, encoding="utf-8")
    return shared / (shared / "made").read_text(encoding="utf-8")


@pytest.fixture
def project(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean project to break, its registry included."""
    return Path(shutil.copytree(clean, tmp_path / clean.name, symlinks=True))


def begin(project: Path, word: str = "run") -> subprocess.Popen[str]:
    """`python -m <package> run`, the pipeline as its user runs it, or another word of it, in a process group of its own."""
    command = [sys.executable, "-m", package_of(project), word]
    env = os.environ | {"PYTHONPATH": str(project / "src"), "COLUMNS": "200"}
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests that run in a shell's background ignore Ctrl+C, and hand that on
    return subprocess.Popen(command, cwd=project, env=env, preexec_fn=hears, **how)


def run(project: Path, word: str = "run") -> Done:
    """The pipeline, or another word, to its end."""
    with begin(project, word) as started:
        said = started.communicate()[0]
    return Done(started.returncode, said)


def ran(done: Done) -> list[str]:
    """The steps that had something to say; DVC is silent about those that it skips or restores."""
    return [step for step in STEPS if re.search(rf"^{step}: ", done.said, re.MULTILINE)]


def verdict(project: Path, step: str) -> dict[str, set[str]]:
    """The outcomes of the step's checks, by requirement."""
    found: dict[str, set[str]] = {}
    for check in json.loads((project / "reports" / STEPS[step] / "verdict.json").read_text(encoding="utf-8"))["checks"]:
        found.setdefault(check["requirement"], set()).add(check["outcome"])
    return found


def row(project: Path, last: str) -> dict[str, str]:
    """What each gate said, up to the step `last`: ok, too for a closed one, nothing for one that was not reached."""
    reached = list(STEPS)[: list(STEPS).index(last) + 1]
    cells = dict.fromkeys(GATES, NOT_REACHED) | {"params": PASSED}
    for gate, (step, requirements) in GATES.items():
        if step in reached:
            wanted = requirements.split()
            outcomes = [found for name, found in verdict(project, step).items() if name in wanted or name.split(".")[0] in wanted]
            reached_it = outcomes or step in wanted  # a check named like its step is there only when the step stopped
            cells[gate] = TOO if any("fail" in found for found in outcomes) else PASSED if reached_it else NOT_REACHED
    return cells


def in_service(project: Path, after: str) -> dict[str, Any]:
    """What a closed gate must not change: the bundle, the champion, and all that later steps wrote."""
    later = list(STEPS)[list(STEPS).index(after) + 1 :]
    kept = {name: files_of(project / name) for name in (str(BUNDLE), "models/reference", "deploy", *(f"reports/{STEPS[s]}" for s in later))}
    return {"champion": champion(project), "online": (project / "data/online.sqlite").read_bytes(), **kept}


def champion(project: Path) -> str:
    """The registry's champion, without the project's own code: from MLflow's table, or from the small file of the other choices."""
    if (project / "mlflow.db").exists():
        with closing(sqlite3.connect(project / "mlflow.db")) as store:
            return str(store.execute("SELECT version FROM registered_model_aliases WHERE alias = 'champion'").fetchone()[0])
    if (project / "wandb").exists():
        return (project / "wandb/registry/champion.alias").read_text(encoding="utf-8")
    return str(json.loads((project / "runs/registry.json").read_text(encoding="utf-8"))["aliases"]["champion"])


Record = Callable[[str, object], None]


def test_a_clean_run_is_all_green(clean: Path, record_property: Record) -> None:
    cells = row(clean, "monitoring")
    record_property("gates", {"fault": "none", **cells})
    assert set(cells.values()) == {PASSED}
    for step in STEPS:
        assert all("fail" not in outcomes for outcomes in verdict(clean, step).values())
    assert in_service(clean, "monitoring")["champion"] == "1"


def test_a_service_that_dies_in_the_load_test_ends_in_a_sentence(project: Path) -> None:
    """It says where the service's own words are, in the step and in `loadtest`."""
    a_handler_that_exits(project)
    for word in ("deployment", "loadtest"):
        done = verb(project, word)
        assert done.code == 1
        assert "the service ended with code 3 while it was asked" in done.said
        assert "Traceback" not in done.said
        assert (project / done.said.rsplit("what it said is in ", 1)[1].split()[0]).exists()


def test_a_run_stops_at_a_gate_and_goes_on_after_the_mend(project: Path) -> None:
    """Through DVC: nothing after the gate runs, and after the mend only what the mend touches."""
    quality, kept = params_of(project)["requirements"]["quality"], in_service(project, "evaluation")
    a_stricter_requirement(project)
    stopped = run(project)
    assert stopped.code != 0
    assert ran(stopped) == ["requirements", "evaluation"]
    assert "quality.average_precision" in stopped.said
    assert re.search(r"evaluation +fail", stopped.said)
    assert re.search(r"deployment +not run", stopped.said)
    assert in_service(project, "evaluation") == kept
    set_params(project, requirements__quality=quality)
    mended = run(project)
    assert mended.code == 0, mended.said
    assert "evaluation" in ran(mended), "its verdict came out of DVC's cache, but the champion may be another by now"
    assert not {"data", "model", "deployment"} & set(ran(mended))
    assert mended.said.count(" pass ") == len(STEPS)


def test_a_run_killed_while_training_goes_on(project: Path) -> None:
    """Through DVC, kill -9 after the model was written, before it was registered."""
    path, kept = source(project, "step4_model/stage.py"), in_service(project, "monitoring")
    code = path.read_text(encoding="utf-8")
    override(path, "open_tracker", f"def open_tracker():\n{KILL}")
    killed = run(project)
    assert killed.code != 0
    assert ran(killed) == ["model"]
    assert not (project / "models/candidate").exists()
    assert re.search(r"model +not run", killed.said)
    assert in_service(project, "monitoring") == kept
    path.write_text(code, encoding="utf-8")
    again = run(project)
    assert again.code == 0, again.said
    assert set(ran(again)) <= {"model"}
    assert again.said.count(" pass ") == len(STEPS)
    assert {p.name for p in (project / "models/candidate").iterdir()} == {"model.joblib", "framing.json", "version.json"}


def test_a_retraining_killed_while_training_is_undone_by_the_next_look(project: Path) -> None:
    """kill -9 of `retrain`, DVC and the step at once, as when the power goes: the champion serves on, nothing is lost, the audit log says it."""
    log_samples(project)
    kept, rows = in_service(project, "monitoring"), files_of(project / "data/raw")
    path, settings = source(project, "step4_model/stage.py"), (project / "params.yaml").read_bytes()
    code = path.read_text(encoding="utf-8")
    override(path, "open_tracker", f"def open_tracker():\n{KILL.replace('os.kill(os.getpid()', 'os.killpg(os.getpgrp()')}")
    killed = run(project, "retrain")
    assert killed.code == -signal.SIGKILL, killed.said
    assert files_of(project / "data/raw") != rows, "killed before it had begun"
    assert in_service(project, "monitoring") == kept
    path.write_text(code, encoding="utf-8")
    looked = run(project, "monitor")
    assert looked.code == 0, looked.said
    assert (files_of(project / "data/raw"), (project / "params.yaml").read_bytes()) == (rows, settings)
    assert in_service(project, "monitoring")["champion"] == kept["champion"]
    assert decisions(project)[:2] == ["retraining", "interrupted"]
    again = run(project)
    assert again.code == 0, again.said
    assert again.said.count(" pass ") == len(STEPS)


def test_the_pipeline_of_a_retraining_that_was_killed_is_let_run_to_its_end(project: Path) -> None:
    """kill -9 of `retrain` alone: DVC goes on, so a look meanwhile takes nothing back, and the first one after it says what came of it."""
    log_samples(project)
    rows, path = files_of(project / "data/raw"), source(project, "step4_model/stage.py")
    look = f"subprocess.run([sys.executable, '-m', '{package_of(project)}', 'monitor'], check=True)"
    raw = "shutil.copytree('data/raw', 'seen')"
    body = (
        f"    import os, shutil, signal, subprocess, sys\n    os.kill(os.getpgrp(), signal.SIGKILL)\n    {look}\n    {raw}\n    return original()\n"
    )
    override(path, "open_tracker", f"def open_tracker():\n{body}")
    killed = run(project, "retrain")
    assert killed.code == -signal.SIGKILL, killed.said
    assert decisions(project)[:1] == ["retraining"]
    assert not {"promoted", "interrupted"} & set(decisions(project)), "it was ended while it ran"
    assert files_of(project / "seen") == files_of(project / "data/raw") != rows
    bundle = files_of(project / BUNDLE)
    looked = run(project, "monitor")
    assert looked.code == 0, looked.said
    came = next(word for word in decisions(project) if word in ("promoted", "interrupted"))
    assert files_of(project / BUNDLE) == bundle
    assert (files_of(project / "data/raw") == rows) == (came == "interrupted")


def decisions(project: Path) -> list[str]:
    """What the audit log says, oldest first."""
    lines = (project / "models/audit/decisions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["decision"] for line in lines]


def log_samples(project: Path) -> None:
    """A prediction log in which the bundle's samples were asked, and every label is known."""
    code = f"""
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from {package_of(project)}.params import load
from {package_of(project)}.step6_deployment.prediction_log import Logged, PredictionLog
params = load()
manifest = json.loads(Path("models/bundle/manifest.json").read_text(encoding="utf-8"))
log, at = PredictionLog(params.deployment.log.path, 60, 10_000), datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
records = [json.dumps(record | {{params.framing.time: at.isoformat()}}) for record in manifest["samples"]]
log.add([Logged(str(k), at.isoformat(), manifest["version"]["version"], False, record, 0.5, None) for k, record in enumerate(records)])
log.add_labels([(str(k), at.isoformat(), manifest["classes"][k % 2]) for k in range(len(records))])
log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=os.environ | {"PYTHONPATH": str(project / "src")}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_a_run_in_a_sentence_and_the_next_goes_on(project: Path) -> None:
    """The signal reaches `run`, DVC and the step at once, as from a terminal, while DuckDB is at work."""
    path = source(project, "step3_data/stage.py")
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    said = ""
    with begin(project) as started:
        for line in started.stdout or ():
            said += line
            if line.startswith("data: computing"):
                os.killpg(started.pid, signal.SIGINT)
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert "the next `run` goes on" in said
    again = run(project)
    assert again.code == 0, again.said
    assert again.said.count(" pass ") == len(STEPS)


def test_a_run_stops_at_bad_rows_and_goes_on_without_training(project: Path) -> None:
    raw, kept = (project / RAW).read_bytes(), in_service(project, "data")
    values_out_of_range(project)
    stopped = run(project)
    assert stopped.code != 0
    assert ran(stopped) == ["data"]
    assert "row 17: amount is -5.0" in stopped.said
    assert in_service(project, "data") == kept
    (project / RAW).write_bytes(raw)
    mended = run(project)
    assert mended.code == 0, mended.said
    assert set(ran(mended)) <= {"data"}
    assert mended.said.count(" pass ") == len(STEPS)
    assert in_service(project, "data") == kept


@pytest.mark.parametrize("name", FAULTS)
def test_its_gate_stops_it(name: str, project: Path, record_property: Record) -> None:
    fault = FAULTS[name]
    *before, last = fault.steps
    kept = in_service(project, last)
    fault.plant(project)
    for step in before:
        done = verb(project, step)
        assert done.code == 0, f"{step} comes before the gate\n{done.said}"
    done = verb(project, last)
    assert done.code == 1, f"{last} let it pass\n{done.said}"
    assert "Traceback" not in done.said, done.said
    for words in fault.says:
        assert words in done.said
    cells = row(project, last)
    closed = {gate for gate, cell in cells.items() if cell == TOO}
    assert fault.gate in closed
    assert closed - {fault.gate} <= fault.too, "a gate closed that has nothing to do with it"
    assert in_service(project, last) == kept
    refused = verb(project, list(STEPS)[list(STEPS).index(last) + 1])
    assert refused.code == 1, "the next step went on"
    assert f"{last}: " in refused.said
    assert in_service(project, last) == kept
    record_property("gates", {"fault": name, **cells, fault.gate: STOPPED})


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictory_requirements_are_refused(name: str, project: Path, record_property: Record) -> None:
    values, words = CONTRADICTIONS[name]
    kept = in_service(project, "requirements")
    set_params(project, **values)
    done = verb(project, "requirements")
    assert done.code == 1
    assert re.search(rf"params\.yaml line \d+: {re.escape(words)}", done.said), done.said
    assert in_service(project, "requirements") == kept
    record_property("gates", {"fault": name, **dict.fromkeys(GATES, NOT_REACHED), "params": STOPPED})


def test_every_verb_refuses_an_unknown_key(project: Path, record_property: Record) -> None:
    path = project / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines) if line.strip().startswith("learning_rate:"))
    lines.insert(number, lines[number].replace("learning_rate", "lerning_rate"))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = files_of(project)
    verbs = verbs_of(project)
    assert set(STEPS) | {"run", "serve", "monitor"} <= verbs.keys()
    for name, words in verbs.items():
        if name not in DOES_NOT_READ_PARAMS:
            done = verb(project, name, *words)
            assert done.code in (1, 2), f"{name}: {done.said}"
            sentence = f"params.yaml line {number + 1}: model.boosting.lerning_rate is not a known key; did you mean learning_rate?"
            assert sentence in done.said, f"{name}: {done.said}"
    assert files_of(project) == before
    record_property("gates", {"fault": "an unknown key in params.yaml", **dict.fromkeys(GATES, NOT_REACHED), "params": STOPPED})


def verbs_of(project: Path) -> dict[str, list[str]]:
    """Every verb, with a word for each argument and option that it asks for."""
    package = package_of(project)
    code = f"""
import json, typer.main
from {package}.__main__ import app
asked = {{n: [p for p in c.params if p.required] for n, c in typer.main.get_command(app).commands.items()}}
print(json.dumps({{n: [w for p in params for w in (["x"] if p.param_type_name == "argument" else [p.opts[0], "x"])] for n, params in asked.items()}}))
"""
    env = os.environ | {"PYTHONPATH": str(project / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    verbs: dict[str, list[str]] = json.loads(done.stdout)
    return verbs


@pytest.mark.parametrize("name", SEALED)
def test_a_corrupted_bundle_is_neither_served_nor_scored_with(name: str, project: Path, record_property: Record) -> None:
    path = project / BUNDLE / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for words in (("serve",), ("score", str(PREPARED / "test.parquet"), "scored.parquet")):
        done = verb(project, *words, timeout=30)
        assert done.code == 1, done.said
        assert "bundle: models/bundle" in done.said
        assert "Traceback" not in done.said
    assert not (project / "scored.parquet").exists()
    record_property("gates", {"fault": f"a corrupted byte in {name}", **dict.fromkeys(GATES, NOT_REACHED), "bundle": STOPPED})


def test_no_bit_of_a_bundle_may_change(project: Path) -> None:
    """Every bit of the checksums, and some hundred of each other file."""
    code = f"""
from pathlib import Path
from {package_of(project)}.step1_requirements.checks import StepFailed
from {package_of(project)}.step6_deployment.predictor import open_bundle
folder, tried, accepted = Path("models/bundle"), 0, []
open_bundle(folder)
for name in {SEALED}:
    good = (folder / name).read_bytes()
    bits = range(0, len(good) * 8, 1 if name == "SHA256SUMS" else max(1, len(good) * 8 // 199))
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(bad)
        tried += 1
        try:
            open_bundle(folder)
            accepted.append((name, bit))
        except StepFailed:
            pass
    (folder / name).write_bytes(good)
print(tried, accepted)
"""
    env = os.environ | {"PYTHONPATH": str(project / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, accepted = done.stdout.split(maxsplit=1)
    assert int(tried) > 2000
    assert accepted.strip() == "[]"


def test_data_killed_in_the_middle_leaves_nothing_half_written(project: Path) -> None:
    """kill -9 when the first of the three parts was written."""
    prepared, path = files_of(project / PREPARED), source(project, "step3_data/stage.py")
    code = path.read_text(encoding="utf-8")
    dying = f"class Dying(tuple):\n  def __iter__(self):\n    yield 'train'\n{KILL}\nPARTS = Dying(original)"
    override(path, "PARTS", dying)
    assert verb(project, "data").code == -signal.SIGKILL
    assert files_of(project / PREPARED) == prepared
    assert verdict(project, "data").keys() >= {"data_contract", "no_leak"}
    path.write_text(code, encoding="utf-8")
    shutil.rmtree(project / PREPARED)
    done = verb(project, "data")
    assert done.code == 0, done.said
    assert files_of(project / PREPARED).keys() == prepared.keys()
    for name in prepared:
        assert pq.read_table(project / PREPARED / name).equals(pq.read_table(io.BytesIO(prepared[name])))
    assert not list(project.rglob("*.partial"))


def test_the_matrix_is_complete() -> None:
    """Every fault that the system promises to stop has its row, and every gate stops something."""
    rows = {*FAULTS, *CONTRADICTIONS, "an unknown key in params.yaml", *(f"a corrupted byte in {name}" for name in SEALED)}
    assert rows >= PROMISED
    assert {fault.gate for fault in FAULTS.values()} | {"params", "bundle"} == GATES.keys() - NEVER_ALONE
