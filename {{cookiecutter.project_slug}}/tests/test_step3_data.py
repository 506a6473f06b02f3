"""Step 3: rows keep the contract, features never read ahead, parts of the split share nothing, one transform for all."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from {{ cookiecutter.package_name }}.params import SCRATCH, Framing, Input, Params, Split
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed, load_verdict
from {{ cookiecutter.package_name }}.step2_framing.contract import as_text, inputs_of
from {{ cookiecutter.package_name }}.step3_data.encode import classes_of, columns_of, columns_read, encode, encode_labels, number_names
from {{ cookiecutter.package_name }}.step3_data.features import QUERY, as_known_at, build, check_point_in_time, materialize
from {{ cookiecutter.package_name }}.step3_data.source import connect, in_sql, name, open_events
from {{ cookiecutter.package_name }}.step3_data.split import PARTS, assign, check_split
from {{ cookiecutter.package_name }}.step3_data.validation import check_alone, check_rows, scores_alone
from {{ cookiecutter.package_name }}.step6_deployment.predictor import OnlineTable

Store = duckdb.DuckDBPyConnection


@pytest.fixture(scope="module")
def store(params: Params, framing: Framing, raw: Path) -> Iterator[Store]:
    """DuckDB with the tables `events` and `features`."""
    with connect(params.data.memory_gb, SCRATCH) as connection:
        open_events(connection, params.data, framing)
        build(connection, framing, QUERY.read_text(encoding="utf-8"))
        yield connection


@pytest.fixture
def history(framing: Framing) -> list[str]:
    """The columns that features.sql makes."""
    found = [i.name for i in inputs_of(framing, "history")]
    if not found or framing.entity is None or framing.time is None:
        pytest.skip("the contract takes nothing from an entity's history")
    return found


@pytest.fixture
def delay(params: Params) -> float:
    """Days until a label arrives."""
    return params.requirements.label_delay_days


def test_features_do_not_change_when_the_future_is_hidden(store: Store, framing: Framing, history: list[str], delay: float) -> None:
    assert check_point_in_time(store, framing, QUERY.read_text(encoding="utf-8"), delay).outcome == "pass"


@pytest.mark.parametrize("fault", ["counts later events", "knows labels before they arrive"])
def test_features_that_read_ahead_are_caught(fault: str, store: Store, framing: Framing, history: list[str], delay: float) -> None:
    entity, time, target = (name(k or "") for k in (framing.entity, framing.time, framing.target))
    if fault == "knows labels before they arrive" and framing.label_time is None and not delay:
        pytest.skip("labels arrive with their events")
    seen, order = ("count(*)", ">") if fault == "counts later events" else (f"count(other.{target})", "<")
    peek = (f"SELECT moments.row_id, {seen} AS peeked FROM moments LEFT JOIN events AS other "
            f"ON other.{entity} = moments.{entity} AND other.{time} {order} moments.{time} GROUP BY moments.row_id")  # fmt: skip
    own = QUERY.read_text(encoding="utf-8")
    query = f"SELECT own.* REPLACE (peeked AS {name(history[0])}) FROM ({own}\n) AS own JOIN ({peek}) AS peek USING (row_id)"
    build(store, framing, query)
    found = check_point_in_time(store, framing, query, delay)
    build(store, framing, own)
    assert (found.requirement, found.outcome) == ("no_leak", "fail")


def test_online_features_equal_offline_features_at_the_same_moment(
    store: Store, framing: Framing, history: list[str], delay: float, tmp_path: Path
) -> None:
    """What the API would have looked up just before an event is what training learned from, for busy entities late in the data."""
    entity, time, columns = name(framing.entity or ""), name(framing.time or ""), ", ".join(f"features.{name(h)}" for h in history)
    rows = store.execute(f"SELECT {entity}, {time}, {columns} FROM events JOIN features USING (row_id) WHERE {entity} IS NOT NULL "
                         f"QUALIFY count(*) OVER (PARTITION BY {entity}) > 1 ORDER BY {time} DESC, row_id LIMIT 4").fetchall()  # fmt: skip
    for who, when, *offline in rows:
        materialize(store, framing, QUERY.read_text(encoding="utf-8"), delay, tmp_path / "online.sqlite", when)
        online = OnlineTable(tmp_path / "online.sqlite").features(as_text(who))
        assert all(map(same, offline, (online[h] for h in history))), (who, offline, online)


def test_an_unknown_entity_has_the_features_of_no_history(store: Store, framing: Framing, history: list[str], delay: float, tmp_path: Path) -> None:
    """They are those of the very first event, before which nothing had happened."""
    time, columns = name(framing.time or ""), ", ".join(name(h) for h in history)
    when, *first = store.execute(f"SELECT {time}, {columns} FROM events JOIN features USING (row_id) ORDER BY {time}, row_id LIMIT 1").fetchall()[0]
    materialize(store, framing, QUERY.read_text(encoding="utf-8"), delay, tmp_path / "online.sqlite", when)
    unknown = OnlineTable(tmp_path / "online.sqlite").features("nobody has this name")
    assert all(map(same, first, (unknown[h] for h in history))), (first, unknown)


@pytest.mark.parametrize(("ids", "known"), [((7.0, 8.5), ["", "7", "8.5"]), (("", "x"), ["", "x"])], ids=["numbers with gaps", "an empty id"])
def test_the_online_table_calls_an_entity_what_requests_call_it(
    ids: tuple[Any, Any], known: list[str], params: Params, framing: Framing, raw: Path, history: list[str], tmp_path: Path
) -> None:
    table, entity = pq.read_table(raw), framing.entity or ""
    changed = table.set_column(table.column_names.index(entity), entity, pa.array([ids[row % 2] for row in range(table.num_rows)]))
    pq.write_table(changed, tmp_path / "raw.parquet")
    with connect(params.data.memory_gb, SCRATCH) as connection:
        open_events(connection, params.data.model_copy(update={"raw": str(tmp_path / "raw.parquet")}), framing)
        materialize(connection, in_sql(framing), QUERY.read_text(encoding="utf-8"), 0, tmp_path / "online.sqlite")
    with closing(sqlite3.connect(tmp_path / "online.sqlite")) as online:
        assert [row[0] for row in online.execute("SELECT entity FROM online ORDER BY entity")] == known


def same(offline: Any, online: Any) -> bool:
    """Equal, but for the last digits of a sum; DuckDB's decimals are numbers in JSON."""
    if isinstance(online, float) and offline is not None:
        return math.isclose(offline, online, rel_tol=1e-9, abs_tol=1e-9)
    return bool(offline == online)


def test_the_step_passes_its_own_checks(prepared: Path) -> None:
    assert {c.outcome for c in load_verdict("data") or []} == {"pass"}


def test_no_row_is_in_two_parts_and_learning_ends_before_testing_begins(prepared: Path, params: Params, framing: Framing) -> None:
    """By time, rows whose labels were not in when the test begins are left out; by group, no group is in two parts."""
    parts = [pq.read_table(prepared / f"{part}.parquet").to_pandas() for part in PARTS]
    ids = np.concatenate([p.iloc[:, 0] for p in parts])
    assert len(ids) == len(set(ids))
    if params.data.split.by == "time":
        spans = [(p[framing.time].min(), p[framing.time].max()) for p in parts]
        wait = timedelta(days=0 if params.data.since else params.requirements.label_delay_days)
        assert spans[0][1] < spans[1][0] <= spans[1][1] < spans[2][0] - wait
    if params.data.split.by == "group":
        groups = [set(p[framing.entity]) for p in parts]
        assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])


@pytest.fixture
def daily(params: Params, odd: Framing, odd_table: pa.Table, tmp_path: Path) -> Iterator[tuple[Store, Framing]]:
    """A row a day from 2030 on; every second label is late, by 100 days."""
    days = np.datetime64("2030-01-01", "us") + np.arange(300) * np.timedelta64(1, "D")
    table = odd_table.append_column("at", pa.array(days)).append_column("known", pa.array(days + np.tile([0, 100], 150) * np.timedelta64(1, "D")))
    pq.write_table(table, tmp_path / "daily.parquet")
    with connect(1, SCRATCH) as connection:
        open_events(connection, params.data.model_copy(update={"raw": str(tmp_path / "daily.parquet")}), odd)
        yield connection, odd.model_copy(update={"time": "at"})


def test_without_a_label_time_a_label_is_known_once_the_delay_has_passed(daily: tuple[Store, Framing]) -> None:
    connection, framing = daily
    with as_known_at(connection, framing, datetime(2030, 1, 1) + timedelta(days=100), 30):
        assert connection.execute("""SELECT count(*), count("y?") FROM events""").fetchall() == [(100, 70)]


def test_of_days_without_a_time_the_last_is_known_too(daily: tuple[Store, Framing]) -> None:
    connection, framing = daily
    connection.execute('CREATE TABLE days AS SELECT row_id, "y?", "at"::DATE AS "at" FROM all_events')
    connection.execute("CREATE OR REPLACE VIEW all_events AS FROM days")
    with as_known_at(connection, framing, datetime(2030, 1, 10, 0, 0, 0, 1), 0):
        assert connection.execute("SELECT count(*) FROM events").fetchall() == [(10,)]


def test_without_a_label_time_too_young_rows_are_left_out_and_embargoed(daily: tuple[Store, Framing]) -> None:
    counts = assign(*daily, Split(by="time", train=0.5, validation=0.25), 30)
    assert (counts["without label"], counts["embargoed"]) == (30, 30)


@pytest.mark.parametrize(("since", "embargoed"), [(None, True), ("2030-02-01", False)])
def test_labels_later_than_the_delay_are_not_learned_unless_the_world_changed(
    since: str | None, embargoed: bool, daily: tuple[Store, Framing]
) -> None:
    connection, framing = daily
    assign(connection, framing.model_copy(update={"label_time": "known"}), Split(by="time", train=0.5, validation=0.25), 1, since)
    late = """SELECT count(*) FROM events JOIN parts USING (row_id) WHERE part IN ('train', 'validation')
              AND known >= (SELECT min("at") FROM events JOIN parts USING (row_id) WHERE part = 'test')"""
    assert (connection.execute(late).fetchall()[0][0] == 0) is embargoed


def test_test_rows_planted_in_training_are_caught(prepared: Path, params: Params, framing: Framing, store: Store, tmp_path: Path) -> None:
    tables = {part: pq.read_table(prepared / f"{part}.parquet") for part in PARTS}
    tables["train"] = pa.concat_tables([tables["train"], tables["test"].slice(0, 1)])
    for part, table in tables.items():
        pq.write_table(table, tmp_path / f"{part}.parquet")
    found = check_split(store, framing, params.data.split, tmp_path)
    assert (found[0].outcome, found[0].measured) == ("fail", "1")


def test_a_label_that_training_never_saw_is_named_with_the_mend(daily: tuple[Store, Framing], tmp_path: Path) -> None:
    connection, framing = daily
    for part, labels in zip(PARTS, (["a", "b"], ["a", "b"], ["a", "new"]), strict=True):
        pq.write_table(pa.table({"row_id": [PARTS.index(part) * 2, PARTS.index(part) * 2 + 1], "y?": labels}), tmp_path / f"{part}.parquet")
    many = framing.model_copy(update={"task": "multiclass", "positive": None})
    last = check_split(connection, many, Split(by="random", train=0.5, validation=0.25), tmp_path)[-1]
    assert last.outcome == "fail" and "'new'" in last.reason and "framing.labels" in last.reason


@pytest.mark.parametrize("by", ["random", "group"])
def test_equal_rows_and_groups_fall_together(by: Any, params: Params, odd: Framing, odd_table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(odd_table, tmp_path / "odd.parquet")
    with connect(1, SCRATCH) as connection:
        open_events(connection, params.data.model_copy(update={"raw": str(tmp_path / "odd.parquet")}), odd)
        counts = assign(connection, odd, Split(by=by, train=0.5, validation=0.25), 0)
        parts = dict(connection.execute("SELECT row_id, part FROM parts").fetchall())
    assert sum(counts[part] for part in PARTS) == len(parts) == 300
    assert all(parts[row] == parts[row + 200] for row in range(100))
    if by == "group":
        homes: dict[str, set[str]] = {}
        for row, group in enumerate(odd_table.column("[group]").to_pylist()):
            homes.setdefault(group, set()).add(parts[row])
        assert {len(home) for home in homes.values()} == {1}


@pytest.mark.parametrize(
    ("column", "value"), [("living area (m²)", -1.0), ("living area (m²)", 501.0), ("living area (m²)", "n/a"), ("class", "c"), ("1st.größe", 4)]
)
def test_a_bad_value_is_listed_with_its_row(column: str, value: Any, odd: Framing, odd_table: pa.Table, tmp_path: Path) -> None:
    values = odd_table.column(column).to_pylist()
    values[7] = value
    texts = [None if v is None else str(v) for v in values]  # one text makes the whole column texts, as a CSV's "n/a" does
    bad, missing = rows_checked(odd, odd_table, column, pa.array(texts if isinstance(value, str) else values), tmp_path)
    assert (bad.outcome, missing.outcome) == ("fail", "pass")
    assert bad.measured == "1 values in 300 rows" and f"row 7: {column} is {value!r}" in bad.reason


def test_too_many_nulls_are_refused_with_their_share(odd: Framing, odd_table: pa.Table, tmp_path: Path) -> None:
    bad, missing = rows_checked(odd, odd_table, "class", pa.array([None] * 240 + ["a"] * 60), tmp_path)
    assert (bad.outcome, missing.outcome) == ("pass", "fail")
    assert "class is missing in 80.0% of rows, at most 50.0% may be" in missing.reason


def rows_checked(odd: Framing, table: pa.Table, column: str, values: pa.Array, folder: Path) -> list[Any]:
    """The checks of a table with one column replaced."""
    pq.write_table(table.set_column(table.column_names.index(column), column, values), folder / "rows.parquet")
    return check_rows([path := folder / "rows.parquet"], path, odd.inputs, 10, "values")


def test_a_missing_column_is_refused_by_name(params: Params, odd: Framing, odd_table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(odd_table.drop_columns(["1st.größe"]), tmp_path / "rows.parquet")
    with connect(1, SCRATCH) as connection, pytest.raises(StepFailed, match=r"has no column '1st\.größe'"):
        open_events(connection, params.data.model_copy(update={"raw": str(tmp_path / "rows.parquet")}), odd)


def test_a_target_that_is_no_finite_number_is_no_label(params: Params, odd: Framing, odd_table: pa.Table, tmp_path: Path) -> None:
    wrong = pa.array([math.nan, math.inf, -math.inf, None, *[1.0] * 296])
    pq.write_table(odd_table.set_column(odd_table.column_names.index("y?"), "y?", wrong), tmp_path / "rows.parquet")
    with connect(1, SCRATCH) as connection:
        open_events(connection, params.data.model_copy(update={"raw": str(tmp_path / "rows.parquet")}), odd)
        assert connection.execute('SELECT count("y?") FROM events').fetchall() == [(296,)]


def test_a_feature_that_stays_nan_was_not_reading_ahead(daily: tuple[Store, Framing]) -> None:
    connection, framing = daily
    past = framing.model_copy(update={"inputs": (Input.model_validate({"name": "h", "kind": "number", "from": "history"}),)})
    query = "SELECT row_id, 'nan'::DOUBLE AS h FROM moments"
    build(connection, past, query)
    assert check_point_in_time(connection, past, query, 0).outcome == "pass"


def test_a_copy_of_the_target_is_caught(prepared: Path, params: Params, framing: Framing) -> None:
    table = pq.read_table(prepared / "train.parquet")
    copy = Input(name="copy", kind="number" if framing.task == "regression" else "category")
    leaky = framing.model_copy(update={"inputs": (*framing.inputs, copy)})
    target = table.column(framing.target).to_pylist()
    alone = scores_alone(leaky, columns_of(table, [i.name for i in framing.inputs]) | {"copy": target}, target)
    found = check_alone(alone, params.data.leak_limit)
    assert found.outcome == "fail" and "'copy'" in found.reason


# ---- the one transform ---------------------------------------------------------------------


@pytest.mark.parametrize("time", [None, "sold on"])
def test_columns_and_records_give_the_same_arrays(time: str | None, odd: Framing, odd_table: pa.Table) -> None:
    """Training reads columns from Parquet and the API values from JSON; a model must not tell them apart."""
    odd, names = odd.model_copy(update={"time": time}), [i.name for i in odd.inputs]
    batch = encode(odd, columns_of(odd_table, names))
    for start, rows in ((0, 300), *((k, 1) for k in range(20))):
        one = encode(odd, {n: odd_table.column(n).to_pylist()[start : start + rows] for n in names})
        assert batch.keys() == one.keys() == {"numbers", "strings"}
        np.testing.assert_array_equal(batch["numbers"][start : start + rows], one["numbers"])
        np.testing.assert_array_equal(batch["strings"][start : start + rows], one["strings"])
    assert (batch["numbers"].shape, batch["numbers"].dtype, batch["strings"].shape) == ((300, len(number_names(odd))), np.float32, (300, 3))


def test_values_become_what_the_pipeline_expects(odd: Framing) -> None:
    """None and NaN are missing, 3, 3.0 and "3.0" are one category, words are cut and lowered, dates become parts."""
    moment = np.datetime64("2024-02-29T18:30", "us").item()
    columns: dict[str, list[Any]] = {
        "living area (m²)": [1.5, None, float("nan")], "class": ["a", None, "never seen"], "1st.größe": [3.0, None, "3.0"],
        'say "hi"': ["日本語 Straße, ÇA  va! a", None, "! x"], "it's ok; --": [True, None, False], "sold on": [moment, None, moment],
    }  # fmt: skip
    arrays = encode(odd, columns)
    assert arrays["strings"].tolist() == [["a", "3", "日本語 straße ça va"], ["(missing)"] * 3, ["never seen", "3", "(missing)"]]
    expected = [1.5, 1.0, 18.5, 3, 29, 2, (moment - np.datetime64("2000-01-01", "us").item()) / timedelta(days=1)]
    assert arrays["numbers"][0].tolist() == pytest.approx(expected, rel=1e-6)
    assert np.isnan(arrays["numbers"][1]).all()
    assert np.isnan(arrays["numbers"][2, 0]) and arrays["numbers"][2, 1] == 0


def test_a_date_is_aged_by_the_event_time_also_where_that_is_no_input(odd: Framing, odd_table: pa.Table) -> None:
    timed, moment = odd.model_copy(update={"time": "when"}), np.datetime64("2030-01-01", "us").item()
    columns = columns_of(odd_table.append_column("when", pa.array([moment] * 300)), columns_read(timed))
    days = encode(timed, columns)["numbers"][:, number_names(timed).index("sold on days")]
    sold = odd_table.column("sold on").to_pylist()
    assert days.tolist() == pytest.approx([float("nan") if s is None else (moment - s) / timedelta(days=1) for s in sold], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(("task", "values", "classes", "labels"), [
    ("binary", ["yes", "no", "yes"], ["no", "yes"], [1, 0, 1]),
    ("binary", ["yes", "zebra"], ["zebra", "yes"], [1, 0]),
    ("multiclass", ["b", "a", "c"], ["a", "b", "c"], [1, 0, 2]),
    ("regression", [2, 1.5], [], [2.0, 1.5]),
])  # fmt: skip
def test_labels_follow_the_order_of_classes(task: str, values: list[Any], classes: list[str], labels: list[Any], odd: Framing) -> None:
    contract = odd.model_copy(update={"task": task, "positive": "yes" if task == "binary" else None})
    assert classes_of(contract, values) == classes
    assert encode_labels(contract, classes, values).tolist() == labels
