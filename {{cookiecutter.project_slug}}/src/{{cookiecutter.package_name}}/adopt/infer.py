"""From what columns are like to a problem contract, with a reason for every decision."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..params import METRICS_OF, Task
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import as_text
from .profile import Column

MOST_LABELS = 50  # of a text target; more are ids or sentences
MOST_NUMBERED = 20  # whole numbers that still are labels
LEAST_ROWS, LEAST_PER_LABEL = 50, 20  # fewer cannot be split three ways
RARE = 0.1  # below this share of the rarer label, accuracy rewards doing nothing
LISTED = 12  # values of a category that is taken as closed
ACTOR = r"(customer|user|client|patient|account|member|subscriber|card|device|person|player|employee|student|household)s?"
MOMENT = re.compile(r"date|time|stamp|moment|when|created|opened|ordered|_at$|_on$|^day$|^ts$", re.IGNORECASE)
NO_MOMENT = re.compile(r"birth|born|\bdob\b|expir|due|until|end|updated|modified", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What the user said on the command line."""

    target: str
    time: str | None = None
    entity: str | None = None
    task: str | None = None
    positive: str | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something about a column, what adopt did about it, why, and how to have it otherwise."""

    column: str
    did: str
    why: str
    change: str = ""


@dataclass
class Contract:
    """The problem as it is inferred; `inputs` are as params.yaml holds them, `labels` is None for a number."""

    task: Task
    target: Column
    labels: list[Any] | None = None
    positive: Any = None
    time: str | None = None
    entity: str | None = None
    keeps_history: bool = False  # features.sql is the user's and stays
    trusts_leaks: bool = False  # --keep named a column that gives the target away
    inputs: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def say(self, *finding: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(*finding))


def infer(columns: Sequence[Column], asked: Asked, gone: Mapping[str, tuple[float, float]], later: Mapping[str, float]) -> Contract:
    """The whole contract.

    Args:
        gone: by column, the share that is missing where the target is missing, and where it is known.
        later: by date column, the share of rows in which it is later than the event time.
    """
    by_name = {c.name: c for c in columns}
    target = by_name[asked.target]
    contract = Contract(*_task(target, asked), time=plain_time(columns, asked), entity=_entity(columns, asked))
    _say_keys(contract, asked, target)
    after = _after(columns, target, gone, later)
    for column in columns:
        if column.name == target.name:
            continue
        reason = "" if column.name in asked.keep else _left_out(column, contract, asked) or after.get(column.name, ("", ""))
        if reason and reason[0]:
            contract.say(column.name, f"left out: {reason[0]}", reason[1], "" if column.name == contract.entity else f"--keep {_shown(column.name)}")
        else:
            contract.inputs.append(_input(column, contract))
    if not contract.inputs:
        raise StepFailed("no column is left to predict from: " + "; ".join(f"{f.column} {f.did}" for f in contract.findings[:5]))
    return contract


def resolve(asked: Asked, names: Sequence[str]) -> Asked:
    """What was asked with --drop and --keep taken apart at commas, unless the whole is a column's name.

    Raises:
        StepFailed: when something that was named is not there, with the closest names.
    """

    def listed(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for v in values for n in ([v] if v in names else filter(None, map(str.strip, v.split(",")))))

    asked = replace(asked, drop=listed(asked.drop), keep=listed(asked.keep))
    if asked.task and asked.task not in METRICS_OF:
        raise StepFailed(f"--task is {asked.task!r}; give one of {', '.join(METRICS_OF)}")
    wanted: dict[str, Iterable[str | None]] = {
        "--target": [asked.target],
        "--time": [asked.time],
        "--entity": [asked.entity],
        "--drop": asked.drop,
        "--keep": asked.keep,
    }
    for flag, values in wanted.items():
        for name in filter(None, values):
            if name not in names:
                raise StepFailed(f"{flag} names {name!r}, which is not a column{closest(name, names)}")
            if flag != "--target" and name == asked.target:
                raise StepFailed(f"{flag} names {name!r}, which is the target; name another column")
    return asked


def closest(word: str, words: Sequence[str]) -> str:
    """`; the closest are …`, from the nearest names or from all."""
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5) or [w for w in words if w.lower() == word.lower()] or list(words)[:8]
    return f"; the closest are {', '.join(map(repr, near))}"


def plain_time(columns: Sequence[Column], asked: Asked) -> str | None:
    """The event time: as asked, or the only date column that is never missing and is called like one."""
    dates = {c.name: c for c in columns if c.kind == "date" and c.distinct > 1}
    if asked.time:
        if asked.time not in dates:
            raise StepFailed(f"--time names {asked.time!r}, whose values are not dates; give ISO dates, or another column")
        return asked.time
    plain = [
        n for n, c in dates.items() if not c.missing and n != asked.target and n not in asked.drop and MOMENT.search(n) and not NO_MOMENT.search(n)
    ]
    return plain[0] if len(plain) == 1 else None


def _entity(columns: Sequence[Column], asked: Asked) -> str | None:
    """As asked, or the only column that is called like the id of somebody and repeats."""
    ids = [c.name for c in columns if re.fullmatch(ACTOR + r"[\W_]*(id|key|no|number|uuid)?", c.name, re.IGNORECASE) and c.name != asked.target
           and c.name not in (*asked.drop, *asked.keep) and c.distinct >= LEAST_ROWS and c.present >= 2 * c.distinct and not c.missing]  # fmt: skip
    return asked.entity or (ids[0] if len(ids) == 1 else None)


def _task(target: Column, asked: Asked) -> tuple[Task, Column, list[Any] | None, Any]:
    """Task, target, labels by frequency and the positive one."""
    if target.present < LEAST_ROWS:
        raise StepFailed(f"only {target.present} rows have a {target.name!r}; give at least {LEAST_ROWS} to learn from and to test on")
    if target.distinct < 2:
        raise StepFailed(f"{target.name!r} is {next(iter(target.counts), '')!r} in every row; there is nothing to tell apart")
    labels = list(target.counts)
    numeric = target.kind == "number"
    few = labels and (not numeric or (target.whole and len(labels) <= MOST_NUMBERED) or len(labels) == 2)
    task: Any = asked.task or ("regression" if numeric and not few else "binary" if len(labels) == 2 or asked.positive is not None else "multiclass")
    if task == "regression":
        if not numeric:
            raise StepFailed(f"{target.name!r} holds {target.kind}, which regression cannot predict; leave --task out")
        if asked.positive is not None:
            raise StepFailed("--positive is for a yes-or-no target; leave it out in regression")
        return task, target, None, None
    if target.kind == "date" or not labels or len(labels) > MOST_LABELS:
        raise StepFailed(
            f"{target.name!r} has {target.distinct:,} different values; labels must be at most {MOST_LABELS}, and numbers need --task regression"
        )
    if task == "multiclass":
        return task, target, labels, None
    if asked.positive is None and len(labels) > 2:
        raise StepFailed(f"{target.name!r} has {len(labels)} labels; say with --positive which one to find: {', '.join(map(str, labels[:8]))}")
    found = [v for v in labels if asked.positive is None or label_text(v) == asked.positive or str(v) == asked.positive]
    if not found:
        raise StepFailed(f"--positive is {asked.positive!r}, which no row has{closest(asked.positive or '', [label_text(v) for v in labels])}")
    return task, target, labels, found[-1]


def label_text(value: Any) -> str:
    """A label as people write it."""
    return as_text(value) or str(value)


def _say_keys(contract: Contract, asked: Asked, target: Column) -> None:
    """What was decided about the target and the keys, aloud."""
    rows, name = target.present, target.name
    about = f"{rows - target.counts.get(contract.positive, 0):,} rows have another" if contract.positive is not None else ""
    if target.missing:
        contract.say(
            name, f"{target.rows - target.present:,} rows left out", f"the target is missing in {target.missing:.1%} of {target.rows:,} rows"
        )
    what = f"{len(contract.labels)} labels" if contract.labels else f"numbers from {target.low:g} to {target.high:g}"
    contract.say(name, f"the target, {contract.task}", what, "" if asked.task else "--task")
    if contract.positive is not None:
        share = target.counts[contract.positive] / rows
        contract.say(name, f"{label_text(contract.positive)!r} is the positive label", f"{target.counts[contract.positive]:,} rows have it, {about}",
                     "framing.positive")  # fmt: skip
        others = [label_text(v) for v in contract.labels or () if v != contract.positive]
        if all(label_text(contract.positive) < o for o in others):
            contract.say(
                name, "kept so", f"the positive label sorts before {others[0]!r}; libraries that take the last one would be wrong", "framing.positive"
            )
        if min(share, 1 - share) < RARE:
            contract.say(
                name,
                "judged by average precision",
                f"{max(share, 1 - share):.1%} have one label, so accuracy would reward doing nothing",
                "framing.metric",
            )
    if contract.time:
        contract.say(contract.time, "the event time", "the split is by time, so the test is the future", "--time" if not asked.time else "data.split")
    if contract.entity:
        contract.say(
            contract.entity, "the entity", "it says whose row it is; features.sql can give its history, the model does not read it", "framing.entity"
        )


def _left_out(column: Column, contract: Contract, asked: Asked) -> tuple[str, str] | None:
    """What a column is left out as, and why; None for a good one."""
    if column.name in asked.drop:
        return "as asked", "--drop"
    if column.name == contract.entity:
        return "an identity", "learning who it is does not help with anybody new"
    if not column.present:
        return "empty", "no row has a value"
    if column.distinct == 1 and not column.missing:
        return "constant", f"always {_shown(next(iter(column.counts), ''))}"
    if column.increasing and column.present == column.rows:
        return "an index", "whole numbers that count the rows"
    named = re.search(r"(^|[\W_])(id|uuid|guid|key|index|rownames?)$|[a-z]I[dD]$|^unnamed", column.name, re.IGNORECASE if len(column.name) < 4 else 0)
    if column.unique > 0.95 and column.rows >= LEAST_ROWS and (is_code(column) or (column.kind == "number" and column.whole and named)):
        return "an id", f"{column.distinct:,} different values in {column.present:,} rows say which row it is, and nothing about the next"
    return None


def is_code(column: Column) -> bool:
    """Whether a text column holds codes or names, and no sentences."""
    return column.kind == "text" and not is_free_text(column)


def is_free_text(column: Column) -> bool:
    """Sentences: three words or more, hardly ever the same."""
    return column.kind == "text" and (column.words or 0) >= 3 and column.unique > 0.2 and column.distinct > LISTED


def _after(
    columns: Sequence[Column], target: Column, gone: Mapping[str, tuple[float, float]], later: Mapping[str, float]
) -> dict[str, tuple[str, str]]:
    """Columns that are known only after the event: later than it, or missing exactly where the target is."""
    found = {n: ("known only afterwards", f"later than the event in {share:.0%} of rows") for n, share in later.items() if share > 0.5}
    with_target = [n for n, (there, else_) in gone.items() if there > 0.5 and else_ < 0.005]
    if target.rows - target.present >= LEAST_PER_LABEL and len(with_target) <= len(columns) / 2:
        for n in with_target:
            why = f"missing in {gone[n][0]:.0%} of the rows without a target and in {gone[n][1]:.1%} of the others, so it comes with the outcome"
            found.setdefault(n, ("known only afterwards", why))
    return found


def _input(column: Column, contract: Contract) -> dict[str, Any]:
    """A column as an entry of framing.inputs; says what needs saying."""
    kind = column.kind if column.kind != "text" else "text" if is_free_text(column) else "category"
    made: dict[str, Any] = {"name": column.name, "kind": kind}
    place = f"framing.inputs.{column.name}"
    if kind == "number":
        made["min"], made["max"] = room(column.low, column.high)
        if column.whole and 2 < column.distinct <= LISTED:
            contract.say(column.name, "kept as a number", f"{column.distinct} whole numbers: if their order means nothing, they are codes", place)
    if kind == "category":
        _say_category(column, contract, place)
        if column.distinct <= LISTED and min(column.counts.values(), default=0) >= 5 and column.rows >= 200:
            made["values"] = sorted(column.counts)
    if kind == "date" and column.ambiguous:
        contract.say(column.name, f"read as {column.style}", "no day above 12 tells the order of day and month", "--day-first")
    if kind == "text":
        contract.say(column.name, "free text", f"{column.words:.0f} words on average", place)
    if column.missing:
        made["max_missing"] = min(1.0, round(column.missing * 1.2 + 0.05, 2))
    if column.style:
        made["format"] = column.style
    return made


def _say_category(column: Column, contract: Contract, place: str) -> None:
    if column.distinct > FEW_VALUES:
        contract.say(column.name, "kept as a category", f"{column.distinct:,} different values: many rows share few of them", place)


def room(low: float, high: float) -> tuple[float, float]:
    """Limits with as much room on each side as the values span; what is never negative stays so."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span))
    limits = (0.0 if low >= 0 else math.floor((low - span) / step) * step, math.ceil((high + span) / step) * step)
    return tuple(int(v) if v == int(v) and abs(v) < 1e15 else float(f"{v:.10g}") for v in limits)  # type: ignore[return-value]


def _shown(value: Any) -> str:
    text = label_text(value)
    return repr(text) if re.search(r"\W", text) else text


FEW_VALUES = 50
