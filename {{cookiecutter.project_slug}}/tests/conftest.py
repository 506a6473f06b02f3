"""A small copy of the project, made once in a temporary folder; your data, models and reports are never touched."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from {{ cookiecutter.package_name }}.params import BUNDLE, CANDIDATE, PREPARED, REFERENCE, REPORTS, Framing, Input, Params, Section, load
from {{ cookiecutter.package_name }}.step1_requirements.checks import STEPS, StepFailed
from {{ cookiecutter.package_name }}.step3_data.source import write_sample

ROOT = Path(__file__).parents[1]
PACKAGE = load.__module__.partition(".")[0]
ROWS = 4000
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for so few rows, threads cost more than they bring


def smaller(tree: dict[str, Any]) -> dict[str, Any]:
    """params.yaml for few rows, with bounds that any model meets: whether yours is good enough is for `run` to say, not for luck."""
    requirements, data, evaluation, deployment = (tree[section] for section in ("requirements", "data", "evaluation", "deployment"))
    for target in (*requirements["quality"], *requirements["guard_rails"]):
        target.pop("baseline", None)
        target.update({bound: limit for bound, limit in (("at_least", -1e9), ("at_most", 1e9)) if bound in target})
    requirements.update(lift_over_baseline=0.0, throughput_per_second=1e-3, cost_per_prediction_usd=1e3, latency_ms={"p50": 30_000, "p99": 60_000})
    requirements["scale"]["requests_per_day_in_a_year"] = 1
    data["raw"] = "data/raw/events.parquet"
    if data["sample"]:
        data["sample"].update(rows=min(ROWS, data["sample"]["rows"]), drift="none")
    for field in tree["framing"]["inputs"]:
        if field.get("max_missing"):  # shares wobble in few rows
            field["max_missing"] = min(1.0, 2 * field["max_missing"] + 0.05)
    tree["model"]["boosting"]["max_iter"], tree["model"]["max_words"] = 20, 80
    evaluation["bootstrap"] = 100
    evaluation["slices"].update(min_rows=50, max_drop=1e9, max_gap=1e9)
    deployment.update(keys="none", canary=None, review=None, reload_seconds=0.02, limits=deployment["limits"] | {"records": 25, "body_kb": 256},
                      log={"path": "data/predictions.sqlite", "flush_seconds": 0.02, "queue": 1000, "personal": "hashed"},
                      load_test={"seconds": 0.2, "rate_per_second": 20, "connections": 2, "sweep_seconds": 0.1})  # fmt: skip
    return tree


@pytest.fixture(scope="session", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The temporary project; every test runs inside it."""
    folder = tmp_path_factory.mktemp("project")
    tree = smaller(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PARAMS__")]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", str(Path(import_module(PACKAGE).__file__ or "").parents[1]))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="session")
def params(project: Path) -> Params:
    """The temporary project's params.yaml."""
    return load()


@pytest.fixture(scope="session")
def framing(params: Params) -> Framing:
    """Your problem contract."""
    return params.framing


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[dict[str, Any]], Params]:
    """Loads params.yaml with some values changed, by dotted name: changed({"model.seed": 3})."""

    def read(changes: dict[str, Any]) -> Params:
        tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        for name, value in changes.items():
            *parents, last = [int(key) if key.isdigit() else key for key in name.split(".")]
            place = tree
            for key in parents:
                place = place[key]
            place[last] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return load(tmp_path / "params.yaml")

    return read


# ---- the seven steps, each run once and only when a test asks for what it leaves ----------


@pytest.fixture(scope="session")
def raw(params: Params) -> Path:
    """Raw data: a sample from the simulator, or rows spread evenly over your own table."""
    path = Path(params.data.raw)
    if params.data.sample:
        write_sample(params.data.sample, path)
        return path
    own = ROOT / load(ROOT / "params.yaml").data.raw
    if not own.exists():
        pytest.skip(f"{own} is not here; fetch it with `dvc pull`")
    table = pq.read_table(own)
    path.parent.mkdir(parents=True)
    pq.write_table(table.take(np.unique(np.linspace(0, table.num_rows - 1, ROWS).astype(int))), path)
    return path


@pytest.fixture(scope="session")
def reads() -> dict[str, set[str]]:
    """Which values of params.yaml each step read, by dotted name."""
    return {}


@pytest.fixture(scope="session")
def run_step(params: Params, reads: dict[str, set[str]]) -> Iterator[Callable[[str], None]]:
    """Runs one step and notes what it reads of params.yaml. Pictures are composed but not rendered, which would take a third of the time."""
    names = {id(section): name for name, section in sections(params, "")}

    def run(step: str) -> None:
        module = import_module(f"{PACKAGE}.step{STEPS[step].replace('-', '_')}.stage")
        look, seen = Section.__getattribute__, reads.setdefault(step, set())

        def note(self: Section, name: str) -> Any:
            value = look(self, name)
            if id(self) in names and not isinstance(value, Section) and (name in type(self).model_fields or name.startswith("model_dump")):
                seen.add(f"{names[id(self)]}.{name}")
            return value

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Section, "__getattribute__", note)
            module.run(params)

    with pytest.MonkeyPatch.context() as unrendered:
        unrendered.setattr("matplotlib.figure.Figure.savefig", lambda _, file, **__: file.write("<svg/>"))
        yield run


def sections(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    """A section and those inside it, with their dotted names."""
    yield name, section
    for key, value in section:
        if isinstance(value, Section):
            yield from sections(value, f"{name}.{key}".lstrip("."))


@pytest.fixture(scope="session")
def prepared(raw: Path, run_step: Callable[[str], None]) -> Path:
    """What step 3 leaves: train, validation and test as Parquet."""
    run_step("data")
    return PREPARED


@pytest.fixture(scope="session")
def candidate(prepared: Path, run_step: Callable[[str], None]) -> Path:
    """What step 4 leaves: the trained pipelines."""
    run_step("model")
    return CANDIDATE


@pytest.fixture(scope="session")
def evaluated(candidate: Path, run_step: Callable[[str], None]) -> Path:
    """What step 5 leaves: the report, whole even when a model of so few rows does not beat the rules."""
    with suppress(StepFailed):
        run_step("evaluation")
    return REPORTS / STEPS["evaluation"]


@pytest.fixture(scope="session")
def bundle(evaluated: Path, run_step: Callable[[str], None]) -> Path:
    """What step 6 leaves: the serving bundle, made champion."""
    run_step("deployment")
    return BUNDLE


@pytest.fixture(scope="session")
def monitored(bundle: Path, run_step: Callable[[str], None]) -> Path:
    """What step 7 leaves: the reference that the monitor compares with."""
    run_step("monitoring")
    return REFERENCE


# ---- a made-up table with every kind of column and names that break careless code ---------


@pytest.fixture(scope="session")
def odd(framing: Framing) -> Framing:
    """Its problem contract."""
    inputs = (
        Input(name="living area (m²)", kind="number", min=0, max=500, max_missing=0.5),
        Input(name="class", kind="category", values=("a", "b"), max_missing=0.5),
        Input(name="1st.größe", kind="category", values=(1, 2, 3), max_missing=0.5),
        Input(name='say "hi"', kind="text", max_missing=0.5),
        Input(name="it's ok; --", kind="boolean", max_missing=0.5),
        Input(name="sold on", kind="date", max_missing=0.5),
    )
    keys = {
        "entity": "[group]",
        "time": None,
        "label_time": None,
        "target": "y?",
        "task": "binary",
        "positive": "yes",
        "labels": None,
        "metric": "roc_auc",
        "objective": "log_loss",
    }
    return framing.model_copy(update={"inputs": inputs, **keys})


@pytest.fixture(scope="session")
def odd_table() -> pa.Table:
    """300 rows of it, the last 100 equal to the first 100."""
    rng, days = np.random.default_rng(0), np.datetime64("2024-02-28T12:30", "us")
    words = np.array(["Straße ÇA va", "日本 語", "x", "", "two  words"])
    gone = rng.random(200) < 0.4  # where the class is missing, the answer is yes: gaps tell something
    columns = {
        "living area (m²)": pa.array(rng.uniform(0, 500, 200), mask=rng.random(200) < 0.1),
        "class": pa.array(rng.choice(["a", "b"], 200), mask=gone),
        "1st.größe": pa.array(rng.integers(1, 4, 200), mask=rng.random(200) < 0.1),
        'say "hi"': pa.array(rng.choice(words, 200), mask=rng.random(200) < 0.1),
        "it's ok; --": pa.array(rng.random(200) < 0.5, mask=rng.random(200) < 0.1),
        "sold on": pa.array(days + rng.integers(0, 10**14, 200).astype("timedelta64[us]"), mask=rng.random(200) < 0.1),
        "[group]": pa.array([f"g{k}" for k in rng.integers(0, 40, 200)]),
        "y?": pa.array(np.where(gone | (rng.random(200) < 0.3), "yes", "no")),
    }
    table = pa.table(columns)
    return pa.concat_tables([table, table.slice(0, 100)])
