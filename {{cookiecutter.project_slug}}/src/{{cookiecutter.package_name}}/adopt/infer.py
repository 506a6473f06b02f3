"""From what columns are like to a problem contract, with a reason for every decision."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..params import METRICS_OF, Task
from ..step1_requirements.checks import StepFailed
from ..step2_framing.contract import as_text
from ..step3_data.table import unit_of
from .profile import Column

MOST_LABELS = 50  # of a target; more are ids or sentences
MOST_NUMBERED = 20  # whole numbers that still are labels
LEAST_ROWS, LEAST_PER_LABEL = 50, 20  # fewer cannot be split three ways
RARE = 0.1  # share of the rarer label below which accuracy rewards doing nothing
LARGEST = 1e15  # of a target
CLOSED = 12  # values of a category that are taken as all there are
MANY = 50  # values of a category that call for a word
MOSTLY = 0.5  # share of missing values that calls for a word
ACTOR = r"(customer|user|client|patient|subject|account|member|subscriber|card|device|person|player|employee|student)s?[\W_]*(id|key|no|number|uuid)?"
IDS = re.compile(r"(?i:^unnamed|^(row)?names?$|(^|[\W_])id([\W_]|$)|[\W_](uuid|guid|key|index)$|^(row)?(index|no|number|names)$|^rowid$)|[a-z]I[dD]$")
MOMENT = re.compile(r"date|time|stamp|moment|when|created|opened|ordered|(^|[\W_])(at|on|ts)$|^(day|week|month|quarter|year)$", re.IGNORECASE)
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


@dataclass
class Contract:
    """The problem as inferred; `inputs` are as params.yaml holds them, `counts` is rows per label and empty for a number."""

    task: Task
    target: Column
    counts: dict[Any, int]
    positive: Any = None
    time: str | None = None
    entity: str | None = None
    keeps_history: bool = False  # features.sql is the user's and stays
    trusts_leaks: bool = False  # --keep named a column that gives the target away
    inputs: list[dict[str, Any]] = field(default_factory=list)
    findings: list[tuple[str, str, str, str]] = field(default_factory=list)

    def say(self, column: str, did: str, why: str, change: str = "") -> None:
        """Note something about a column, what adopt did about it, why, and the flag or the place in params.yaml that changes it."""
        self.findings.append((column, did, why, change))


def infer(columns: Sequence[Column], asked: Asked, gone: Mapping[str, tuple[float, float]], later: Mapping[str, float]) -> Contract:
    """The whole contract.

    Args:
        gone: by column, the share that is missing where the target is missing, and where it is known.
        later: by date column, the share of rows in which it is later than the event time.

    Raises:
        StepFailed: when the target cannot be predicted, or no column is left to predict it from.
    """
    target = next(c for c in columns if c.name == asked.target)
    contract = Contract(*_task(target, asked), time=plain_time(columns, asked), entity=asked.entity or plain_entity(columns, asked))
    _say_target(contract)
    _say_keys(contract, columns)
    after = _known_afterwards(columns, target, gone, later)
    for column in columns:
        if column is target:
            continue
        left_out = _left_out(column, contract, asked) or after.get(column.name)
        if left_out and (column.name not in asked.keep or column.name == contract.entity):
            change = "" if column.name in (*asked.drop, asked.entity) else f"--keep {_quoted(column.name)}"
            contract.say(column.name, f"left out: {left_out[0]}", left_out[1], change)
        else:
            contract.inputs.append(_input(column, contract))
    if not contract.inputs:
        reasons = "; ".join(f"{name} is {did}" for name, did, *_ in contract.findings if did.startswith("left out"))
        raise StepFailed(f"no column is left to predict {target.name!r} from ({reasons or 'there is no other'}); --keep one")
    return contract


def resolve(asked: Asked, names: Sequence[str]) -> Asked:
    """What was asked, with --drop and --keep taken apart at commas unless the whole is a column's name.

    Raises:
        StepFailed: when something that was named is not there, with the closest names.
    """

    def listed(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for v in values for n in ([v] if v in names else [w.strip() for w in v.split(",") if w.strip()]))

    asked = replace(asked, drop=listed(asked.drop), keep=listed(asked.keep))
    if asked.task and asked.task not in METRICS_OF:
        raise StepFailed(f"--task is {asked.task!r}; give one of {', '.join(METRICS_OF)}")
    wanted: dict[str, Iterable[str | None]] = {"--time": [asked.time], "--entity": [asked.entity], "--drop": asked.drop, "--keep": asked.keep}
    for flag, name in (("--target", asked.target), *((f, n) for f, values in wanted.items() for n in values if n)):
        if name not in names:
            raise StepFailed(f"{flag} names {name!r}, which is not a column{closest(name, names)}")
        if flag != "--target" and name == asked.target:
            raise StepFailed(f"{flag} names {name!r}, which is the target; name another column")
    return asked


def closest(word: str, words: Sequence[str]) -> str:
    """`; the closest are …`, or the first names when none is near."""
    lower = {w.lower(): w for w in reversed(words)}
    near = [lower[w] for w in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.5)]
    return f"; the closest are {', '.join(map(repr, near))}" if near else f"; there are {', '.join(map(repr, words[:8]))}{' …' * (len(words) > 8)}"


def plain_time(columns: Sequence[Column], asked: Asked) -> str | None:
    """The event time: as asked, or the only date column that is never missing and is called like one.

    Raises:
        StepFailed: when the column that was asked for holds no dates.
    """
    dates = {c.name: c for c in columns if c.kind == "date" and c.distinct > 1}
    if asked.time and asked.time not in dates:
        raise StepFailed(f"--time names {asked.time!r}, whose values are not dates in one order; give ISO dates, or another column")
    plain = [n for n, c in dates.items() if not c.missing and MOMENT.search(n) and not NO_MOMENT.search(n) and n not in (asked.target, *asked.drop)]
    return asked.time or (plain[0] if len(plain) == 1 else None)


def plain_entity(columns: Sequence[Column], asked: Asked) -> str | None:
    """The only column that is called like somebody's id and repeats."""
    free = [c for c in columns if c.name not in (asked.target, *asked.drop, *asked.keep) and not c.missing and c.kind != "date"]
    ids = [c.name for c in free if re.fullmatch(ACTOR, c.name, re.IGNORECASE) and c.distinct >= LEAST_ROWS and c.present >= 2 * c.distinct]
    return ids[0] if len(ids) == 1 else None


def _task(target: Column, asked: Asked) -> tuple[Task, Column, dict[Any, int], Any]:
    """Task, target, rows per label and the positive label."""
    name, labels, numeric = target.name, target.counts, target.kind == "number"
    if target.present < LEAST_ROWS:
        raise StepFailed(f"only {target.present} rows have a value in {name!r}; at least {LEAST_ROWS} are needed to learn from and to test on")
    if target.distinct < 2:
        raise StepFailed(f"{name!r} is {_quoted(next(iter(labels), ''))} in every row, so there is nothing to tell apart")
    few = 0 < len(labels) <= (2 if numeric and not target.whole else MOST_NUMBERED if numeric else MOST_LABELS)
    classes: Task = "binary" if len(labels) == 2 or asked.positive is not None else "multiclass"
    task: Any = asked.task or (classes if few or not numeric else "regression")
    if task == "regression":
        if not numeric or asked.positive is not None:
            raise StepFailed(f"{name!r} holds {'numbers' if numeric else target.kind}: regression takes numbers, and no --positive")
        if max(abs(target.low), abs(target.high)) > LARGEST:
            raise StepFailed(f"{name!r} goes from {target.low:g} to {target.high:g}, too far to learn; predict its logarithm, or another unit")
        return task, target, {}, None
    if target.kind == "date":
        raise StepFailed(f"{name!r} holds dates, which cannot be predicted; predict a number or a label")
    if not 0 < len(labels) <= MOST_LABELS:
        raise StepFailed(f"{name!r} holds {target.distinct:,} {target.kind}s; more than {MOST_LABELS} are no labels, and regression takes numbers")
    return task, target, labels, _positive(target, asked) if task == "binary" else None


def _positive(target: Column, asked: Asked) -> Any:
    """The label that was asked for, or the rarer one; of two equally frequent ones the one that sorts last."""
    texts = {as_text(v) or "": v for v in target.counts}
    if asked.positive is None and len(texts) == 2:
        return min(sorted(target.counts, key=str, reverse=True), key=lambda v: target.counts[v])
    if asked.positive is None:
        raise StepFailed(f"{target.name!r} has {len(texts)} labels; say with --positive which one to find: {', '.join(list(texts)[:8])}")
    if asked.positive not in texts:
        raise StepFailed(f"--positive is {asked.positive!r}, which no row has{closest(asked.positive, list(texts))}")
    return texts[asked.positive]


def _say_target(contract: Contract) -> None:
    target, counts, positive = contract.target, contract.counts, contract.positive
    name, rows = target.name, target.present
    what = f"{len(counts)} labels, {', '.join(map(_quoted, list(counts)[:4]))}{' …' * (len(counts) > 4)}" if counts else ""
    contract.say(name, f"the target: {contract.task}", what or f"numbers from {target.low:g} to {target.high:g}", "--task")
    if target.missing:
        contract.say(name, f"rows left out: {target.rows - rows:,}", f"they have no target, {target.missing:.1%} of {target.rows:,}")
    spelled = Counter(str(v).strip().lower() for v in counts)
    if alike := [v for v in counts if spelled[str(v).strip().lower()] > 1]:
        contract.say(name, "labels kept apart", f"{', '.join(map(_quoted, alike))} differ only by case or spaces; make them one in the file")
    if positive is None:
        return
    share, others = counts[positive] / rows, [v for v in counts if v != positive]
    many = f"{counts[positive]:,} rows have it, {rows - counts[positive]:,} have not"
    contract.say(name, f"positive is {_quoted(positive)}", many, "framing.positive")
    if all(str(positive) < str(v) for v in others):
        why = f"the positive label sorts before {_quoted(others[0])}; tools that take the last one mean the other"
        contract.say(name, "taken as it is", why, "framing.positive")
    if min(share, 1 - share) < RARE:
        why = f"{max(share, 1 - share):.1%} of the rows have one label, so accuracy would reward doing nothing"
        contract.say(name, "ranked by average precision", why, "framing.metric")


def _say_keys(contract: Contract, columns: Sequence[Column]) -> None:
    for column in columns:
        if column.name == contract.time:
            contract.say(column.name, "the event time", "the split is by time, so the test is the future", "data.split")
            if column.missing:
                contract.say(column.name, f"rows left out: {column.rows - column.present:,}", "they have no event time")
        if column.name == contract.entity:
            contract.say(column.name, "the entity", "it says whose row it is: features.sql can give its history", "framing.entity")
    dates = [c.name for c in columns if c.kind == "date" and c.name != contract.target.name]
    if not contract.time and dates:
        contract.say("(rows)", "not split by time", f"no date is plainly that of the event: {', '.join(map(_quoted, dates[:4]))}", "--time")


def _left_out(column: Column, contract: Contract, asked: Asked) -> tuple[str, str] | None:
    """What a column is left out as, and why; None for a good one."""
    c = column
    a_code = (c.kind == "text" and not is_free_text(c) and not c.nearly) or (c.kind == "number" and c.whole and IDS.search(c.name))
    an_id = a_code and c.unique > 0.95 and c.distinct > CLOSED
    reasons: tuple[tuple[Any, str, Callable[[], str]], ...] = (
        (c.name in asked.drop, "as asked", lambda: "--drop"),
        (c.name == contract.entity, "an identity", lambda: "knowing who it is does not help with anybody new"),
        (not c.present, "empty", lambda: "no row has a value"),
        (c.distinct == 1 and not c.missing, "constant", lambda: f"always {_quoted(next(iter(c.counts)))}"),
        (c.increasing and c.present == c.rows, "an index", lambda: "whole numbers that grow from row to row"),
        (an_id, "an id", lambda: f"{c.distinct:,} different values in {c.present:,} rows say which row it is, and no more"),
    )
    return next(((what, why()) for holds, what, why in reasons if holds), None)


def is_free_text(column: Column) -> bool:
    """Sentences: three words or more, hardly ever the same."""
    return column.kind == "text" and (column.words or 0) >= 3 and column.unique > 0.2 and column.distinct > CLOSED


def _known_afterwards(
    columns: Sequence[Column], target: Column, gone: Mapping[str, tuple[float, float]], later: Mapping[str, float]
) -> dict[str, tuple[str, str]]:
    """Columns that are later than the event, or missing exactly where the target is; with what and why."""
    why = "known only afterwards", "it is later than the event in {:.0%} of rows; framing.label_time, if the target was known then"
    found = {n: (why[0], why[1].format(share)) for n, share in later.items() if share > 0.5}
    with_target = [n for n, (there, elsewhere) in gone.items() if there > 0.5 and elsewhere < 0.005]
    if target.rows - target.present >= LEAST_PER_LABEL and len(with_target) <= len(columns) / 2:
        for n in with_target:
            shares = f"missing in {gone[n][0]:.0%} of the rows without a target, in {gone[n][1]:.1%} of the others"
            found.setdefault(n, (why[0], f"{shares}: it comes with the outcome"))
    return found


def _input(column: Column, contract: Contract) -> dict[str, Any]:
    """A column as an entry of framing.inputs; says what needs a word."""
    c, place = column, f"framing.inputs.{column.name}"
    kind = "text" if is_free_text(c) else "category" if c.kind == "text" else c.kind
    made: dict[str, Any] = {"name": c.name, "kind": kind}
    if IDS.search(c.name) and c.distinct > CLOSED and (c.whole or kind == "category"):
        why = f"called like an id, but only {c.distinct:,} of {c.present:,} differ: it may say whose row it is, or be a code"
        contract.say(c.name, f"kept as a {kind}", why, f"--entity {_quoted(c.name)}, or --drop")
    if kind == "number":
        made["min"], made["max"] = room(c.low, c.high)
        if c.whole and 2 < c.distinct <= CLOSED:
            contract.say(c.name, "kept as a number", f"{c.distinct} whole numbers; if they are codes, make it a category", place)
    elif kind == "category" and c.distinct <= CLOSED and c.rows >= 200 and min(c.counts.values()) >= 5:
        made["values"] = sorted(c.counts)
    elif kind == "category" and c.distinct > CLOSED and c.nearly:
        contract.say(c.name, "kept as a category", f"but for a few, its values are {c.nearly}s: mend those in the file, or leave them empty", place)
    elif kind == "category" and c.distinct > MANY:
        contract.say(c.name, "kept as a category", f"{c.distinct:,} different values: its history (features.sql) may tell more", place)
    elif kind == "date" and c.ambiguous:
        contract.say(c.name, f"read as {c.style}", "no day above 12 tells which comes first", "--day-first")
    elif kind == "text":
        contract.say(c.name, "kept as free text", f"{c.words:.0f} words on average", place)
    if c.missing > MOSTLY:
        contract.say(c.name, "kept", f"missing in {c.missing:.0%} of the rows", f"--drop {_quoted(c.name)}")
    if c.missing and c.name != contract.time:
        made["max_missing"] = min(1.0, round(c.missing * 1.2 + 0.05, 2))
    if unit := unit_of(c.style):
        made["unit"] = unit
        contract.say(c.name, "kept as a number", f"a request sends a plain number, in {unit}", place)
    return made | ({"format": c.style} if c.style else {})


def room(low: float, high: float) -> tuple[float, float]:
    """Limits with as much room on each side as the values span; what is never negative stays so."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span))
    limits = (0.0 if low >= 0 else math.floor((low - span) / step) * step, math.ceil((high + span) / step) * step)
    lowest, highest = (int(v) if v == int(v) and abs(v) < 1e15 else float(f"{v:.10g}") for v in limits)
    return lowest, highest


def _quoted(value: Any) -> str:
    """A name or a label, in quotes where a shell or a reader needs them."""
    words = as_text(value) or ""
    return words if re.fullmatch(r"[\w.+-]+", words) else '"' + words.replace('"', '\\"') + '"'
