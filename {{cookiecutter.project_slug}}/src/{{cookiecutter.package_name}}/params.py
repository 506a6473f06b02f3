"""params.yaml, typed and frozen: the one place with numbers in it.

`load()` reads the file, lets environment variables override single values
(``PARAMS__MODEL__SEED=3``), refuses what it does not know, and says which line to change.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

PATH = Path("params.yaml")
REPORTS = Path("reports")
RAW = Path("data/raw")  # under DVC
PREPARED = Path("data/prepared")  # train, validation and test as Parquet
ONLINE = Path("data/online.sqlite")  # the latest history of each entity
SCRATCH = Path("data/.scratch")  # what may be deleted at any time
CANDIDATE = Path("models/candidate")  # the trained pipelines
BUNDLE = Path("models/bundle")  # what is served
FORMER = Path("models/former")  # the champion before, with its reference
REFERENCE = Path("models/reference/reference.parquet")  # what the monitor compares with
METRICS = Path("metrics.json")
RULES = Path("deploy/prometheus/alerts.yml")
DASHBOARD = Path("deploy/grafana/dashboard.json")
ENV_PREFIX = "PARAMS__"

Task = Literal["binary", "multiclass", "regression"]
Kind = Literal["number", "category", "text", "date", "boolean"]
Label = bool | int | float | str
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]

METRICS_OF: Mapping[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "precision", "recall", "f1", "false_positive_rate", "brier", "log_loss",
               "calibration_error", "accuracy", "balanced_accuracy"),
    "multiclass": ("accuracy", "balanced_accuracy", "f1_macro", "top2_accuracy", "log_loss", "calibration_error"),
    "regression": ("mae", "rmse", "median_absolute_error", "mape", "r2"),
}  # fmt: skip
OBJECTIVES: Mapping[Task, tuple[str, ...]] = {
    "binary": ("log_loss",), "multiclass": ("log_loss",), "regression": ("squared_error", "absolute_error"),
}  # fmt: skip
_ERRORS = ("false_positive_rate", "brier", "log_loss", "calibration_error", *METRICS_OF["regression"][:4])
#: Every metric the system can measure, and whether a higher value is the better one.
HIGHER_IS_BETTER: Mapping[str, bool] = {metric: metric not in _ERRORS for metrics in METRICS_OF.values() for metric in metrics}


class ParamsError(ValueError):
    """params.yaml says something that cannot be; the message names the line and the mend."""


class Section(BaseModel):
    """A frozen group of values that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def _contradictions(self) -> Iterator[str]:
        """What its values say that cannot be, with the mend; the first is told."""
        yield from ()

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        for said in self._contradictions():
            raise ValueError(said)
        return self


def _iso(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_iso)]

# ---- requirements ------------------------------------------------------------------------


class MovedBy(Section):
    """How an ML metric is expected to move the KPI: `effect_per_unit` for each whole unit above `today`."""

    metric: str
    today: float
    effect_per_unit: float
    because: Text


class Kpi(Section):
    """The business number the system is for."""

    name: str
    unit: str
    baseline: float
    target: float
    better: Literal["lower", "higher"]
    moved_by: MovedBy

    def expected(self, value: float) -> float:
        """What the KPI should become when the metric that moves it is `value`: an estimate, not a measurement."""
        return self.baseline + self.moved_by.effect_per_unit * (value - self.moved_by.today)

    def _contradictions(self) -> Iterator[str]:
        gain = self.target - self.baseline if self.better == "higher" else self.baseline - self.target
        if gain <= 0:
            yield f"target {self.target:g} is no better than baseline {self.baseline:g}; {self.better} is better here, so give a {self.better} target"


class Target(Section):
    """A bound on a metric: exactly one of `at_least` and `at_most`, in the metric's direction."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str
    baseline: float | None = None

    @property
    def bound(self) -> float:
        """The number to reach, whichever the direction."""
        return self.at_least if self.at_least is not None else self.at_most  # type: ignore[return-value]

    def _contradictions(self) -> Iterator[str]:
        if self.metric not in HIGHER_IS_BETTER:
            yield f"metric {self.metric!r} is not known{_closest(self.metric, HIGHER_IS_BETTER)}"
        higher = HIGHER_IS_BETTER[self.metric]
        if (self.at_least is None) == (self.at_most is None) or (self.at_least is None) == higher:
            yield f"{self.metric} is better when {'higher' if higher else 'lower'}; give {'at_least' if higher else 'at_most'} and nothing else"
        if self.baseline is not None and not (self.bound > self.baseline if higher else self.bound < self.baseline):
            yield f"target {self.bound:g} is no better than baseline {self.baseline:g}"


class Latency(Section):
    """Service latency in milliseconds."""

    p50: Positive
    p99: Positive

    def _contradictions(self) -> Iterator[str]:
        if self.p50 > self.p99:
            yield f"p50 {self.p50:g} is above p99 {self.p99:g}; half of the requests cannot be slower than 99 % of them"


class Scale(Section):
    """How much there is, today and in a year."""

    requests_per_day_now: Count
    requests_per_day_in_a_year: Count
    models: Count
    training_rows: Count


class Constraints(Section):
    """What the system may not do."""

    personal_columns: tuple[str, ...]
    privacy: str
    interpretability: str
    human_in_the_loop: str
    fallback_allowed: bool


class Quality(Section):
    """One of the four qualities of an ML system and the requirements that prove it."""

    means: Text
    proven_by: tuple[str, ...]


class Requirements(Section):
    """What the business needs; every gate, alert and document reads it from here."""

    goal: Text
    owner: Text
    users: tuple[Text, ...] = Field(min_length=1)
    stakeholders: tuple[str, ...]
    kpi: Kpi
    quality: tuple[Target, ...] = Field(min_length=1)
    guard_rails: tuple[Target, ...]
    lift_over_baseline: float = Field(ge=0)
    latency_ms: Latency
    throughput_per_second: Positive
    availability: float = Field(gt=0, lt=1)
    cost_per_prediction_usd: Positive
    scale: Scale
    label_delay_days: float = Field(ge=0)
    constraints: Constraints
    qualities: dict[Literal["reliability", "scalability", "maintainability", "adaptability"], Quality] = Field(min_length=4)

    def ids(self) -> tuple[str, ...]:
        """The name of every requirement a check can prove, in reading order."""
        return (
            "ml_or_rules", "data_contract", "no_leak",
            *(f"{group}.{target.metric}" for group in ("quality", "guard_rails") for target in getattr(self, group)),
            "lift_over_baseline", "worst_slice", "protected_gap", "champion", "kpi",
            "parity", "bundle", "latency_ms.p50", "latency_ms.p99", "throughput_per_second", "cost_per_prediction_usd",
            "availability", "layers", "retraining",
        )  # fmt: skip

    def _contradictions(self) -> Iterator[str]:
        per_second = self.scale.requests_per_day_in_a_year / 86_400
        if per_second > self.throughput_per_second:
            yield (f"scale.requests_per_day_in_a_year means {per_second:,.0f} requests a second on average, "
                   f"above throughput_per_second {self.throughput_per_second:g}; raise the throughput")  # fmt: skip
        for name, quality in self.qualities.items():
            for proof in quality.proven_by:
                if proof not in self.ids():
                    yield f"qualities.{name}.proven_by names {proof!r}, which no check proves{_closest(proof, self.ids())}"


# ---- framing -----------------------------------------------------------------------------


class Input(Section):
    """One input of the problem contract, named as in the data."""

    name: str = Field(min_length=1)
    kind: Kind
    origin: Literal["request", "history"] = Field("request", alias="from")
    max_missing: Share = 0.0
    min: float | None = None
    max: float | None = None
    values: tuple[Label, ...] | None = None
    format: str = ""  # how a CSV holds it, as `adopt` found it: step3_data/table.py
    unit: str = ""
    describes: str = ""

    @property
    def nullable(self) -> bool:
        """Whether a request may leave the value out by sending null."""
        return self.max_missing > 0

    def _contradictions(self) -> Iterator[str]:
        if self.kind != "number" and (self.min is not None or self.max is not None):
            yield f"min and max are for numbers; {self.name!r} is a {self.kind}"
        if self.kind != "category" and self.values is not None:
            yield f"values are for categories; {self.name!r} is a {self.kind}"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield f"min {self.min:g} is above max {self.max:g}"


class Answer(Section):
    """An answer to one of the five questions, with its reason."""

    answer: bool
    because: Text


class Questions(Section):
    """The five questions that decide between machine learning and rules."""

    is_there_a_pattern: Answer
    is_there_enough_data: Answer
    would_rules_be_too_complex: Answer
    must_it_generalize_to_unseen_cases: Answer
    is_interpretability_critical: Answer


class Framing(Section):
    """The problem contract: what goes in, what comes out, how it is learned and measured."""

    task: Task
    target: Text
    positive: Label | None = None
    labels: tuple[Label, ...] | None = None  # of a multiclass task; rows with others are left out
    unit: str = ""
    metric: str
    objective: Text
    why: Text
    entity: Text | None = None
    time: Text | None = None
    label_time: Text | None = None
    inputs: tuple[Input, ...] = Field(min_length=1)
    questions: Questions

    def _contradictions(self) -> Iterator[str]:
        if self.metric not in METRICS_OF[self.task]:
            yield f"metric {self.metric!r} does not measure a {self.task} task; give one of {', '.join(METRICS_OF[self.task])}"
        if self.objective not in OBJECTIVES[self.task]:
            yield f"objective {self.objective!r} is not what a {self.task} task can minimise; give one of {', '.join(OBJECTIVES[self.task])}"
        if (self.task == "binary") != (self.positive is not None):
            yield "positive names the label to find in a binary task, and in no other: give it exactly there"
        if self.labels is not None and self.task != "multiclass":
            yield "labels lists the labels of a multiclass task; take it out here"
        names = [i.name for i in self.inputs]
        if twice := [n for n in names if names.count(n) > 1]:
            yield f"inputs name {twice[0]!r} twice; keep one"
        for what, column in (("target", self.target), ("label_time", self.label_time)):
            if column in names:
                yield f"the {what} {column!r} is among the inputs, and is known only afterwards; take it out"
        if self.time is None and self.label_time is not None:
            yield "label_time needs an event time: give time too"
        history = next((i.name for i in self.inputs if i.origin == "history"), None)
        for key in ("entity", "time"):
            if history is not None and getattr(self, key) is None:
                yield f"input {history!r} is from history, that of an entity as of a time, but {key} names no column; name it, or take the input out"


# ---- data, model, evaluation, deployment, monitoring -------------------------------------


class Sample(Section):
    """Settings of the simulator that makes the sample data."""

    rows: Count
    seed: Seed
    start: Moment
    days: Count
    drift: Literal["none", "covariate", "concept"]
    drift_day: int = Field(ge=0)


class Split(Section):
    """How rows are divided; the test part is what train and validation leave."""

    by: Literal["time", "group", "random"]
    train: Share = Field(gt=0, lt=1)
    validation: Share = Field(gt=0, lt=1)

    def _contradictions(self) -> Iterator[str]:
        if self.train + self.validation >= 1:
            yield f"train {self.train:g} + validation {self.validation:g} leave nothing to test on; keep the sum below 1"


class Data(Section):
    """Where rows come from and what must hold before anything learns from them."""

    raw: Text
    since: Moment | None = None
    sample: Sample | None
    split: Split
    leak_limit: Share = Field(gt=0.5, le=1)
    rows_listed: Count
    memory_gb: Positive

    def _contradictions(self) -> Iterator[str]:
        if Path(self.raw).parent != RAW:
            yield f"raw is {self.raw}; put it into {RAW}, which DVC watches"


class Boosting(Section):
    """HistGradientBoosting (scikit-learn user guide 1.11.1.1)."""

    learning_rate: float = Field(gt=0, le=1)
    max_iter: Count
    max_leaf_nodes: int = Field(gt=1)
    min_samples_leaf: Count
    l2_regularization: float = Field(ge=0)


class Linear(Section):
    """Logistic or ridge regression."""

    c: Positive


class Tune(Section):
    """The search over the estimator's settings."""

    trials: Count
    folds: int = Field(gt=1)


class Model(Section):
    """What is trained."""

    kind: Literal["boosting", "linear"]
    seed: Seed
    one_hot_up_to: int = Field(ge=1)
    max_words: Count
    boosting: Boosting
    linear: Linear
    rule_depth: int = Field(gt=0, le=6)
    tune: Tune


class Threshold(Section):
    """How the decision threshold of a binary task is chosen, on the validation part."""

    by: Literal["cost", "precision", "recall"]
    false_positive_usd: float = Field(0.0, ge=0)
    false_negative_usd: float = Field(0.0, ge=0)
    at_least: Share = 0.0

    def _contradictions(self) -> Iterator[str]:
        for needed in ("false_positive_usd", "false_negative_usd") if self.by == "cost" else ("at_least",):
            if not getattr(self, needed):
                yield f"a threshold by {self.by} needs {needed} above 0"


class Slices(Section):
    """Parts of the test data that must not collapse, and those that must be treated alike."""

    columns: tuple[str, ...]
    protected: tuple[str, ...]
    metric: str
    min_rows: Count
    max_drop: Positive
    max_gap: Positive


class Experiment(Section):
    """Design of the online test."""

    smallest_effect: Positive
    kpi_std: Positive
    significance: float = Field(gt=0, lt=1)
    power: float = Field(gt=0, lt=1)
    challenger_share: Share = Field(gt=0, lt=1)


class Evaluation(Section):
    """How success is measured, and when a challenger may replace the champion."""

    bootstrap: int = Field(ge=100)
    confidence: Share = Field(gt=0.5, lt=1)
    threshold: Threshold | None
    slices: Slices
    promote: Literal["better", "not_worse", "any"]
    experiment: Experiment


class Parity(Section):
    """How closely the export must follow the trained pipeline."""

    rows: Count
    max_difference: Positive


class Log(Section):
    """The prediction log."""

    path: Text
    flush_seconds: Positive
    queue: Count
    personal: Literal["hashed", "left_out", "clear"]


class Limits(Section):
    """What one request may hold, and how many may wait."""

    records: Count
    body_kb: Count
    body_seconds: Positive
    concurrency: Count


class Canary(Section):
    """A challenger's bundle, and the share of the traffic that it answers (canary), or answers for comparison only (shadow)."""

    bundle: str
    share: Share = Field(gt=0, le=1)
    mode: Literal["canary", "shadow"]


class LoadTest(Section):
    """The short load test that gates a deployment, and the longer one of `loadtest`."""

    seconds: float = Field(gt=0, le=60)
    rate_per_second: Positive
    connections: int = Field(gt=0, le=64)
    sweep_seconds: float = Field(gt=0, le=60)


class Deployment(Section):
    """How predictions are served and what one costs."""

    host: str
    port: int = Field(gt=0, lt=65_536)
    keys: Literal["required", "none"]
    parity: Parity
    log: Log
    limits: Limits
    reload_seconds: Positive
    drain_seconds: float = Field(ge=0)
    canary: Canary | None
    review: tuple[float, float] | None
    load_test: LoadTest
    core_hour_usd: Positive
    max_replicas: Count

    def _contradictions(self) -> Iterator[str]:
        if self.review and self.review[0] > self.review[1]:
            yield f"review begins at {self.review[0]:g} and ends below, at {self.review[1]:g}; give the lower score first"


class Drift(Section):
    """When a column counts as moved."""

    psi: Positive
    significance: float = Field(gt=0, lt=1)
    min_rows: Count


class Performance(Section):
    """How quality is judged once labels have matured."""

    labels: Count
    min_labelled: Share
    max_drop: Share = Field(gt=0, lt=1)


class Retrain(Section):
    """When the system is trained again."""

    automatic: bool
    min_labels: Count
    new_labels: Count
    after_days: Positive
    cooldown_days: float = Field(ge=0)


class Monitoring(Section):
    """What is watched, and when the system is retrained."""

    window_hours: Positive
    drift: Drift
    max_missing_increase: Share = Field(gt=0, le=1)
    performance: Performance
    retrain: Retrain


class Params(Section):
    """The seven sections, in the order of the seven steps."""

    requirements: Requirements
    framing: Framing
    data: Data
    model: Model
    evaluation: Evaluation
    deployment: Deployment
    monitoring: Monitoring

    def _contradictions(self) -> Iterator[str]:
        framing, requirements, slices, split = self.framing, self.requirements, self.evaluation.slices, self.data.split
        groups = {"quality": requirements.quality, "guard_rails": requirements.guard_rails}
        asked = [(f"requirements.{group}.{i}.metric", t.metric) for group, targets in groups.items() for i, t in enumerate(targets)]
        asked += [("requirements.kpi.moved_by.metric", requirements.kpi.moved_by.metric), ("evaluation.slices.metric", slices.metric)]
        for name, metric in asked:
            if metric not in METRICS_OF[framing.task]:
                yield f"{name} is {metric!r}, which does not measure a {framing.task} task; give one of {', '.join(METRICS_OF[framing.task])}"
        if (self.evaluation.threshold is None) != (framing.task != "binary"):
            yield "evaluation.threshold is for binary tasks: give one there and null elsewhere"
        if self.model.kind == "linear" and framing.objective == "absolute_error":
            yield "model.kind is linear, which minimises squared_error; give that as framing.objective, or boosting as model.kind"
        needed = {"time": "time", "group": "entity"}.get(split.by)
        if needed and getattr(framing, needed) is None:
            yield f"data.split.by is {split.by}, but framing.{needed} names no column; name it, or split in another way"
        names = {i.name for i in framing.inputs}
        for column in (*slices.columns, *slices.protected):
            if column not in names:
                yield f"evaluation.slices names {column!r}, which is not an input{_closest(column, names)}"
        for column in requirements.constraints.personal_columns:
            if column in names:
                yield f"requirements.constraints.personal_columns holds {column!r}, so the model may not read it; take it out of framing.inputs"


# ---- reading -----------------------------------------------------------------------------


def load(path: Path = PATH) -> Params:
    """Read, override from the environment, and check.

    Raises:
        ParamsError: with one line per mistake: file, line, key, what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        json.dumps(raw, default=str, skipkeys=True)  # raises for an alias that holds itself
    except FileNotFoundError:
        raise ParamsError(f"{path} is not here; run this from the project's folder") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} holds no sections; it needs {', '.join(Params.model_fields)}")
    for key, value in overrides(os.environ).items():
        _put(raw, key, value)
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(path, text, item) for item in error.errors()]
        raise ParamsError("\n".join(lines)) from None


def overrides(environ: Mapping[str, str]) -> dict[tuple[str, ...], Any]:
    """Values given as ``PARAMS__SECTION__KEY=value``, parsed as YAML, by lower-cased path.

    Raises:
        ParamsError: when one is not YAML.
    """
    found: dict[tuple[str, ...], Any] = {}
    for name, value in environ.items():
        if name.startswith(ENV_PREFIX):
            try:
                found[tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise ParamsError(
                    f"{name} in the environment is {value!r}, which is not valid YAML; give a value as params.yaml would hold it"
                ) from None
    return found


@cache
def line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """The line of every key and list item of a YAML text, by path."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[(*path, str(index))] = item.start_mark.line + 1
                walk(item, (*path, str(index)))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, ())
    return lines


def _sentence(path: Path, text: str, error: Any) -> str:
    """One pydantic error as `file line: key is value: what is wrong`."""
    message, lines = error["msg"].removeprefix("Value error, "), line_numbers(text)
    keys = tuple(str(k) for k in error["loc"]) or tuple(message.partition(" ")[0].split("."))  # between sections, the message begins with the key
    known = keys
    while known and known not in lines:
        known = known[:-1]
    where = f"{path} line {lines[known]}" if known else str(path)
    name = ".".join(keys)
    if error["type"] == "extra_forbidden":
        meant = _closest(keys[-1], _known_keys())
        return f"{where}: {name} is not a known key{meant + ' Mend its spelling, or' if meant else ';'} take it out"
    if error["type"] == "missing":
        return f"{where}: {name} is missing; add it"
    if not error["loc"]:
        return f"{where}: {message}"
    shown = "" if isinstance(error["input"], dict | BaseModel) else f" is {error['input']!r}"
    return f"{where}: {name}{shown}: {message}"


def _known_keys(section: type[BaseModel] = Section) -> set[str]:
    """Every key that some section knows."""
    own = {field.alias or name for name, field in section.model_fields.items()}
    return own.union(*(_known_keys(c) for c in section.__subclasses__()))


def _closest(word: str, words: Any) -> str:
    """`; did you mean x?`, or nothing."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ParamsError(f"{ENV_PREFIX}{'__'.join(keys).upper()} points below a single value")
    tree[keys[-1]] = value
