"""A leak-free split: by time, by group, or at random by content, and the proof that it leaks nothing."""

from pathlib import Path
from typing import Any

import duckdb

from ..params import Framing, Split
from ..step1_requirements.checks import Check, StepFailed, check_bound
from ..step2_framing.contract import as_text
from .source import in_sql, interval, name, open_part, text

PARTS = ("train", "validation", "test")
Counts = dict[str, int]  # rows of each part, and of what was left out
LEFT_OUT = {"without label": "left out: no label yet", "embargoed": "left out: label not in when the test begins"}
HOW = {"time": "later rows test what earlier ones taught", "group": "all rows of an entity fall together", "random": "equal rows fall together"}


def assign(connection: duckdb.DuckDBPyConnection, framing: Framing, split: Split, label_delay_days: float, since: str | None = None) -> Counts:
    """Make the table `parts` (row_id, part) from `events`; returns the rows of each part and of what was left out.

    Rows without a label (or with one that framing.labels does not list), or too young for theirs to have arrived, are left out. By time, the test
    part is the newest, and rows whose labels were not yet in when it began are embargoed. By group
    and at random, a hash decides, so that all rows of a group, or all equal rows, fall together.
    With `since`, older rows are history only, as if they had no label; what the world became is too young for an embargo.

    Raises:
        StepFailed: when a part is empty.
    """
    labelled = f"{name(framing.target)} IS NOT NULL"
    if framing.labels:
        labelled = f"coalesce({name(framing.target)}::VARCHAR IN ({', '.join(text(as_text(label)) for label in framing.labels)}), false)"
    if framing.time and label_delay_days:
        labelled += f" AND {name(framing.time)} <= (SELECT max({name(framing.time)}) FROM events) - {interval(label_delay_days)}"
    if framing.time and since:
        labelled += f" AND {name(framing.time)} >= {text(since)}::TIMESTAMP"
    part = _by_time(connection, framing, split, None if since else label_delay_days, labelled) if split.by == "time" else _by_hash(framing, split)
    part = f"CASE WHEN {labelled} THEN {part} ELSE 'without label' END"
    connection.execute(f"CREATE OR REPLACE TABLE parts AS SELECT row_id, {part} AS part FROM events")
    found: dict[str, int] = dict(connection.execute("SELECT part, count(*) FROM parts GROUP BY part").fetchall())
    if empty := [p for p in PARTS if not found.get(p)]:
        mend = f"{HOW[split.by]}, so give more that differ, or other shares in data.split of params.yaml"
        raise StepFailed(f"data: the {empty[0]} part of the split is empty ({found}); {mend}")
    return {part: found.get(part, 0) for part in (*PARTS, *LEFT_OUT)}


def check_split(connection: duckdb.DuckDBPyConnection, framing: Framing, split: Split, folder: Path) -> list[Check]:
    """Prove on the written files that train, validation and test share nothing they may not share, and each label is learned."""
    for part in PARTS:
        open_part(connection, part, folder / f"{part}.parquet", framing)
    pairs = (("train", "test"), ("validation", "test"), ("train", "validation"))
    mend = "Rows of one part stand in another: prepare the data again (`make run`), and mend step3_data/split.py if it stays."
    checks = [_shared(connection, "row_id", pairs, "rows in two parts of the split", mend)]
    if split.by == "time":
        time = name(in_sql(framing).time or "")
        late = sum(connection.execute(f"SELECT count(*) FROM {a} WHERE {time} >= (SELECT min({time}) FROM {b})").fetchall()[0][0] for a, b in pairs)
        checks.append(check_bound("no_leak", "rows to learn from that are younger than rows to test on", late, at_most=0, mend=mend))
    elif split.by == "group":
        checks.append(_shared(connection, name(in_sql(framing).entity or ""), pairs, f"values of {framing.entity} in two parts", mend))
    return checks + [_check_labels(connection, framing)] * (framing.task == "multiclass")


def _check_labels(connection: duckdb.DuckDBPyConnection, framing: Framing) -> Check:
    """No model can answer a label that it never saw, nor be measured on it."""
    target = name(in_sql(framing).target)
    others = f"(SELECT {target} FROM validation UNION SELECT {target} FROM test)"
    found = [as_text(r[0]) for r in connection.execute(f"FROM {others} ANTI JOIN train USING ({target}) ORDER BY 1").fetchall()]
    mend = (f"No row of the training part has {', '.join(map(repr, found[:5]))}: give more rows with it, "
            "or list the other labels in framing.labels of params.yaml, and rows with it are left out.")  # fmt: skip
    return check_bound("data_contract", "labels to test on that training never saw", len(found), at_most=0, mend=mend)


def _shared(connection: duckdb.DuckDBPyConnection, key: str, pairs: tuple[tuple[str, str], ...], what: str, mend: str) -> Check:
    shared = sum(connection.execute(f"SELECT count(DISTINCT {key}) FROM {a} SEMI JOIN {b} USING ({key})").fetchall()[0][0] for a, b in pairs)
    return check_bound("no_leak", what, shared, at_most=0, mend=mend)


def _by_time(connection: duckdb.DuckDBPyConnection, framing: Framing, split: Split, embargo_days: float | None, labelled: str) -> str:
    time = name(framing.time or "")

    def quantile(share: float, where: str) -> Any:
        return connection.execute(f"SELECT quantile_disc({time}, {share})::TIMESTAMP FROM events WHERE {where}").fetchall()[0][0]

    test_from = quantile(split.train + split.validation, labelled)
    if test_from is None:
        raise StepFailed("data: no row has a label yet; wait for labels, or lower requirements.label_delay_days")
    learn = f"{time} < {text(test_from)}::TIMESTAMP - {interval(embargo_days or 0)}"
    if framing.label_time and embargo_days is not None:  # some labels come later than the delay says
        learn += f" AND coalesce({name(framing.label_time)} < {text(test_from)}::TIMESTAMP, true)"
    validation_from = quantile(split.train / (split.train + split.validation), f"{labelled} AND {learn}")
    return (f"CASE WHEN {time} >= {text(test_from)} THEN 'test' WHEN NOT ({learn}) THEN 'embargoed' "
            f"WHEN {time} >= {text(validation_from)} THEN 'validation' ELSE 'train' END")  # fmt: skip


def _by_hash(framing: Framing, split: Split) -> str:
    content = [name(i.name) for i in framing.inputs if i.origin == "request"]
    key = name(framing.entity or "") if split.by == "group" else f"to_json([{', '.join(f'{c}::VARCHAR' for c in content)}])"
    place = f"(md5_number_lower(coalesce({key}::VARCHAR, '')) % 100000) / 100000.0"
    return f"CASE WHEN {place} < {split.train} THEN 'train' WHEN {place} < {split.train + split.validation} THEN 'validation' ELSE 'test' END"
