"""Somebody's own table: it works through to a served prediction, or is refused in a sentence."""

import csv
import gzip
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adopting
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import datasets

pytestmark = pytest.mark.slow
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def project(bake_into: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[adopting.Project]:
    with adopting.imported(bake_into, tmp_path_factory.mktemp("adopt")) as made:
        yield made


@pytest.fixture
def fresh(project: adopting.Project) -> adopting.Project:
    project.fresh()
    return project


def write_csv(path: Path, rows: Rows, separator: str = ",", encoding: str = "utf-8", packed: bool = False) -> Path:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    data = out.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def noise(rows: int = 120, seed: int = 0) -> Rows:
    """A table with nothing odd about it: what predicts y is x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = x + rng.normal(size=rows) > 0
    return [{"x": f"{a:.4f}", "colour": c, "y": "yes" if b else "no"} for a, c, b in zip(x, rng.choice(["red", "blue"], rows), y, strict=True)]


# ---- tables that come with scikit-learn ----------------------------------------------------

PLAIN = {  # the metric that a plain, untuned model reaches, and how far below it ours may stay
    "breast_cancer": ("roc_auc", 0.99, 0.02),
    "wine": ("accuracy", 0.97, 0.06),  # one row of the test part is three points
    "diabetes": ("r2", 0.42, 0.02),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_tables_of_scikit_learn(name: str, fresh: adopting.Project, tmp_path: Path) -> None:
    """Adopted in one command, they reach what a plain model reaches, and the service agrees with batch scoring."""
    table = tmp_path / f"{name}.csv"
    getattr(datasets, f"load_{name}")(as_frame=True).frame.to_csv(table, index=False)
    fresh.params.PATH.write_text(fresh.params.PATH.read_text(encoding="utf-8").replace("max_iter: 20", "max_iter: 150"), encoding="utf-8")
    assert fresh.adopt(str(table), "--target", "target").code == 0
    said = fresh.run()
    assert all("lift_over_baseline" in s for s in said), said  # so few rows may not prove more than a few rules know
    metric, plain, room = PLAIN[name]
    assert json.loads(Path("metrics.json").read_text())[metric] > plain - room
    served, scored = fresh.serve(table)
    assert served == scored
    assert fresh.red() == []


def test_the_projects_own_tests_hold_on_a_hostile_table(fresh: adopting.Project, tmp_path: Path) -> None:
    """Names that break careless code, text over several lines, labels that are sentences, one of them too rare to learn."""
    labels, rng = ["yes, please", 'no "thanks"', "#3"], np.random.default_rng(0)
    rows = with_columns(
        noise(400), **{'say "hi"': lambda i, r: "rare" if i < 4 else labels[(r["y"] == "yes") + (i % 7 == 0) * (r["y"] == "yes")]},
        **{"a: b #c": lambda i, r: f"line one\nis {'good' if i % 7 == 0 else 'fine'}, row {i};\nend" if i % 9 else ""},
        Age=lambda i, _: i % 60, age=lambda i, _: f"{i % 60},5", row_id=lambda i, _: f"{i % 30:03}",
        **{"x'; DROP TABLE t; --": lambda i, _: i % 3, "名前": lambda i, _: i % 2 == 0, "1st [€]": lambda *_: f"€{rng.integers(10**6):,}"},
        **{"class": lambda i, _: f"{i % 12 + 1}/{i % 28 + 1}/2024"})  # fmt: skip
    table = write_csv(tmp_path / "t.csv", [{k: v for k, v in row.items() if k != "y"} for row in rows], ";", "utf-16")
    answer = fresh.adopt(str(table), "--target", 'say "hi"')
    assert answer.code == 0, answer.error
    assert "rare (4)" in answer.said
    assert {i.name: i.kind for i in fresh.params.load().framing.inputs}["1st [€]"] == "number"
    assert [s for s in fresh.run() if "evaluation" not in s] == []
    served, scored = fresh.serve(table)
    assert served == scored
    assert fresh.red() == []


# ---- what is found ---------------------------------------------------------------------------


def with_columns(rows: Rows, **columns: Callable[[int, dict[str, Any]], Any]) -> Rows:
    return [row | {name: make(i, row) for name, make in columns.items()} for i, row in enumerate(rows)]


FOUND = [
    ("an index", {"n": lambda i, _: i + 7}, r"^ *n +left out: an index"),
    ("an id", {"code": lambda i, _: f"k{i * 37 % 1000}"}, r"^ *code +left out: an id"),
    ("a constant", {"year": lambda *_: 2013}, r"^ *year +left out: constant +always 2013"),
    ("an empty column", {"void": lambda *_: ""}, r"^ *void +left out: empty"),
    ("a leak", {"told": lambda _, row: row["y"].upper()}, r"^ *told +kept, AND THE DATA STEP WILL STOP"),
    ("a positive label that sorts first", {"y": lambda i, _: int(i % 3 > 0)}, r"^ *y +positive is 0[^$]*sorts before 1"),
    ("a missing target", {"y": lambda i, row: "" if i % 4 == 0 else row["y"]}, r"^ *y +rows left out: 30"),
    ("dates that could be either", {"d": lambda i, _: f"{i % 12 + 1}/{i % 11 + 1}/2024"}, r"^ *d +read as month/day/year"),
    ("known only afterwards", {"y": lambda i, r: "" if i % 4 == 0 else r["y"], "late": lambda i, _: "" if i % 4 == 0 else i * 7 % 50},
     r"^ *late +left out: known only afterwards"),
    ("later than the event", {"at": lambda i, _: f"2024-01-{i % 28 + 1:02}", "closed": lambda i, _: f"2024-02-{i % 28 + 1:02}"},
     r"^ *closed +left out: known only afterwards"),
    ("equal rows with both labels", {"x": lambda i, _: i % 20}, r"patterns come with several labels"),
    ("a class too small", {"y": lambda i, r: "maybe" if i < 3 else r["y"]}, r"^ *y +1 label left out +.*maybe \(3\)"),
    ("free text", {"words": lambda i, _: f"the row {i} says hello to row {i + 1}"}, r"^ *words +kept as free text"),
    ("an entity", {"customer_id": lambda i, _: f"c{i % 55}"}, r"^ *customer_id +the entity[^$]*an identity .*--keep customer_id"),
    ("many values", {"town": lambda i, _: f"t{i % 60}"}, r"^ *town +kept as a category +60 different"),
    ("whole numbers", {"grade": lambda i, _: i % 5}, r"^ *grade +kept as a number"),
    ("many of a sort", {f"n{k}": lambda i, _: i % 3 for k in range(9)}, r"^ *1 more +kept as a number +as those above: n8"),
    ("a unit", {"load": lambda i, _: f"{i * i % 1999:,} sq ft"}, r"^ *load +kept as a number +a request sends a plain number, in sq ft"),
    ("an id that repeats", {"item_id_nr": lambda i, _: i * 37 % 70}, r"^ *item_id_nr +kept as a number +called like an id"),
    ("a month", {"month": lambda i, _: f"2024-{i % 12 + 1:02}-01"}, r"^ *month +the event time"),
    ("a column that is nearly numbers", {"load": lambda i, _: "(kg)" if i == 0 else i * i % 1999}, r"^ *load +kept .*its values are numbers"),
    ("labels spelled in two ways", {"y": lambda i, row: row["y"].title() if i % 2 else row["y"]}, r"^ *y +labels kept apart +.*differ only by case"),
    ("a target that is NA", {"y": lambda i, row: "NA" if i % 4 == 0 else row["y"]}, r"^ *y +rows left out: 30"),
    ("a text that tells all", {"note": lambda i, row: f"said {row['y']} in row {i}"}, r"^ *\(text\) .*a text may hold the answer"),
    ("labels with a fraction", {"y": lambda _, row: 1.0 if row["y"] == "yes" else 0.5}, r"^ *y +the target: binary +2 labels, .*0\.5"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "says"), [f[1:] for f in FOUND], ids=[f[0] for f in FOUND])
def test_it_says_what_it_found(columns: dict[str, Any], says: str, fresh: adopting.Project, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", with_columns(noise(), **columns))
    answer = fresh.adopt(str(table), "--target", "y")
    assert answer.code == 0, answer.error
    assert re.search(says, answer.said, re.MULTILINE), answer.said


def test_imbalance_is_ranked_by_average_precision(fresh: adopting.Project, tmp_path: Path) -> None:
    rows = with_columns(noise(1200), y=lambda i, r: "fraud" if i % 25 == 0 else "fine")
    assert "ranked by average precision" in fresh.adopt(str(write_csv(tmp_path / "t.csv", rows)), "--target", "y").said
    assert fresh.params.load().framing.metric == "average_precision"


def test_a_leak_stops_the_data_step_unless_it_is_dropped_or_kept(fresh: adopting.Project, tmp_path: Path) -> None:
    rows = with_columns(noise(300), told=lambda _, row: row["y"].upper())
    table = str(write_csv(tmp_path / "t.csv", rows))
    assert fresh.adopt(table, "--target", "y").code == 0
    assert "told" in fresh.run()[0]
    assert fresh.adopt(table, "--target", "y", "--drop", "told").code == 0
    assert not [s for s in fresh.run() if "no_leak" in s]
    assert fresh.adopt(table, "--target", "y", "--keep", "told").code == 0
    assert not [s for s in fresh.run() if "no_leak" in s]


# ---- refusals ----------------------------------------------------------------------------------

REFUSED = [
    ("a wrong target", {}, ["--target", "Y"], "the closest are 'y'"),
    ("a wrong column to drop", {}, ["--target", "y", "--drop", "color"], "the closest are 'colour'"),
    ("one class", {"y": lambda *_: "yes"}, ["--target", "y"], "nothing to tell apart"),
    ("no target at all", {"y": lambda *_: ""}, ["--target", "y"], "only 0 rows"),
    ("a positive label that is not there", {}, ["--target", "y", "--positive", "ja"], "no row has"),
    ("regression on words", {}, ["--target", "y", "--task", "regression"], "regression takes numbers"),
    ("an unknown task", {}, ["--target", "y", "--task", "ranking"], "binary, multiclass, regression"),
    ("a time that is none", {}, ["--target", "y", "--time", "x"], "are not dates"),
    ("ids as a target", {"y": lambda i, _: f"n{i}"}, ["--target", "y"], "are no labels"),
    ("too few that differ", {"x": lambda *_: "", "colour": lambda i, _: "red" if i % 2 else "blue"}, ["--target", "y"], "equal rows fall together"),
    ("nothing to predict from", {}, ["--target", "y", "--drop", "x,colour"], "no column is left"),
]


@pytest.mark.parametrize(("columns", "words", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_it_refuses_in_a_sentence_and_changes_nothing(
    columns: dict[str, Any], words: list[str], says: str, fresh: adopting.Project, tmp_path: Path
) -> None:
    table = write_csv(tmp_path / "t.csv", with_columns(noise(), **columns))
    refused(fresh, [str(table), *words], says)


FILES = [
    ("no file", None, "is not here"),
    ("an empty file", b"", "is empty"),
    ("only names", b"x,y\n", "only 0 rows"),
    ("a broken Parquet file", b"PAR1 and no more", "cannot be read"),
    ("a workbook", b"PK\x03\x04 and so on", "save the table as CSV"),
    ("a broken gzip", gzip.compress(b"x,y\n1,2\n" * 99)[:-12], "cannot be read"),
    ("a row too long", b"x,y\n1,2\n1,2,3\n", "Line: 3"),
    ("neither UTF-8 nor anything", "x,y\né,1\nü,2\n".encode() + b"\xe9,3\n", "line 4, byte 14 is 0xe9"),
    ("bytes", bytes(range(32)) * 100, "holds no text"),
]


@pytest.mark.parametrize(("content", "says"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, says: str, fresh: adopting.Project, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    if content is not None:
        table.write_bytes(content)
    refused(fresh, [str(table), "--target", "y"], says)


def refused(project: adopting.Project, words: list[str], says: str) -> None:
    before = project.state()
    answer = project.adopt(*words)
    assert answer.code == 2
    assert says in answer.error
    assert len(answer.error.strip().splitlines()) == 1
    assert project.state() == before


def test_a_dry_run_changes_nothing(fresh: adopting.Project, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", noise())
    before = fresh.state()
    answer = fresh.adopt(str(table), "--target", "y", "--dry-run")
    assert answer.code == 0
    assert "the target: binary" in answer.said
    assert fresh.state() == before


def test_a_console_that_cannot_show_a_name_is_no_reason_to_fail(fresh: adopting.Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' consoles, and files to which output goes, know few letters."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    table = write_csv(tmp_path / "t.csv", with_columns(noise(), 名前=lambda i, _: i % 3))
    done = fresh.command(sys.executable, "-m", adopting.PACKAGE, "adopt", str(table), "--target", "y", "--drop", "名前", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert r"\u540d\u524d" in done.stdout


# ---- files of every kind -----------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_contract(fresh: adopting.Project, tmp_path: Path) -> None:
    rows = with_columns(noise(), größe=lambda i, _: "groß" if i % 3 else "klein", n=lambda i, _: i * i % 17)
    files = [
        write_csv(tmp_path / "a.csv", rows),
        write_csv(tmp_path / "b.tsv", rows, "\t", "latin-1"),
        write_csv(tmp_path / "c.csv.gz", rows, ";", "utf-16", packed=True),
        write_csv(tmp_path / "d.txt", rows, "|", "utf-8-sig"),
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(json.dumps(r | {"x": float(r["x"])}) for r in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([r | {"x": float(r["x"])} for r in rows]), tmp_path / "f.parquet")
    contracts = []
    for file in (*files, tmp_path / "e.jsonl", tmp_path / "f.parquet"):
        fresh.fresh()
        assert fresh.adopt(str(file), "--target", "y").code == 0, file
        contracts.append(fresh.params.load().framing)
    assert all(c == contracts[0] for c in contracts), contracts


@pytest.mark.parametrize("first", [7, 1234567890123456789, 2**63 + 1])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_people_whose_ids_are_long_stay_apart(ending: str, first: int, fresh: adopting.Project, tmp_path: Path) -> None:
    rows = with_columns(noise(), customer_id=lambda i, _: first + i % 50)
    file = write_csv(tmp_path / "t.csv", rows)
    if ending == "parquet":
        kinds = {"customer_id": pa.uint64()}
        pq.write_table(pa.table({n: pa.array([r[n] for r in rows], kinds.get(n)) for n in rows[0]}), file := tmp_path / "t.parquet")
    assert fresh.adopt(str(file), "--target", "y", "--entity", "customer_id").code == 0
    written = pq.read_table(fresh.params.load().data.raw).column("customer_id").to_pylist()
    assert list(map(str, written)) == [str(r["customer_id"]) for r in rows]


def test_numbers_and_dates_of_other_countries(fresh: adopting.Project, tmp_path: Path) -> None:
    rows = with_columns(
        noise(), price=lambda i, _: f"1.{i:03},5", on=lambda i, _: f"{i % 28 + 1}.{i % 12 + 1}.2024 10:30", code=lambda i, _: f"{i % 30:03}",
        seen=lambda i, _: "N/A" if i % 3 == 0 else str(i % 40), opens=lambda i, _: f"{i % 24:02}:{i % 4 * 15:02}",
        closes=lambda i, _: f"{i % 11 + 1}:30:18 {'PM' if i % 2 else 'am'}", gain=lambda i, _: f"({i}.50)" if i % 5 else f"${i:,}")  # fmt: skip
    table = write_csv(tmp_path / "t.csv", rows, ";")
    assert fresh.adopt(str(table), "--target", "y").code == 0
    kinds = {i.name: (i.kind, i.format, i.nullable) for i in fresh.params.load().framing.inputs}
    assert kinds["price"] == ("number", "1.234,5", False)
    assert kinds["on"] == ("date", "day/month/year", False)
    assert kinds["code"] == ("category", "", False)
    assert kinds["seen"] == ("number", "", True)
    assert [kinds[n][:2] for n in ("opens", "closes", "gain")] == [("number", "hh:mm"), ("number", "hh:mm"), ("number", "$1,234.5")]
    raw = pq.read_table("data/raw/events.parquet")
    assert raw.column("price").to_pylist()[:2] == [1000.5, 1001.5]
    assert raw.column("opens").to_pylist()[:2] == [0, 1.25]  # hours since midnight
    assert raw.column("closes").to_pylist()[1] == pytest.approx(14.505)
    assert raw.column("gain").to_pylist()[:2] == [0, -1.5]


def test_one_time_of_day_for_training_batch_and_service(fresh: adopting.Project, tmp_path: Path) -> None:
    """A file holds 08:30, a request 8.5; both get the same answer."""
    rng = np.random.default_rng(0)
    rows = [
        row | {"at": f"{h:02}:{m:02}", "y": int(h > 12) if rng.random() < 0.8 else 0}
        for row, h, m in zip(noise(400), *rng.integers((0, 0), (24, 60), (400, 2)).T, strict=True)
    ]
    table = write_csv(tmp_path / "t.csv", rows)
    assert fresh.adopt(str(table), "--target", "y").code == 0
    assert not [s for s in fresh.run() if "evaluation" not in s]
    assert {i.name: i.unit for i in fresh.params.load().framing.inputs}["at"] == "hours since midnight"
    served, scored = fresh.serve(table)
    assert served == scored
    assert len(set(served)) > 10


def test_values_that_meet_a_threshold_are_exported_as_they_are(fresh: adopting.Project, tmp_path: Path) -> None:
    """Halfway between 0.122 and 0.124 is 0.123, but not in single precision: `serve` compares the export with the model."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=400)
    y = x + rng.normal(size=400) * 0.7 > 0
    table = write_csv(tmp_path / "t.csv", [{"x": f"{a:.3f}", "y": b} for a, b in zip(x, y, strict=True)])
    assert fresh.adopt(str(table), "--target", "y").code == 0
    assert not [s for s in fresh.run() if "evaluation" not in s]
    served, scored = fresh.serve(table)
    assert served == scored


# ---- again, with other flags --------------------------------------------------------------------


def test_again_changes_only_what_the_flags_change(fresh: adopting.Project, tmp_path: Path) -> None:
    """Also where the settings that it writes are others than those it found, and would decide for another kind of model."""
    table = str(write_csv(tmp_path / "t.csv", noise()))
    params = Path("params.yaml")
    params.write_text(re.sub(r"min_samples_leaf: \d+", "min_samples_leaf: 20", params.read_text(encoding="utf-8")), encoding="utf-8")
    assert fresh.adopt(table, "--target", "y").code == 0
    mine = params.read_text(encoding="utf-8").replace("owner: to be named", "owner: Ada   # ask her").replace("at_least: 0.51", "at_least: 0.6")
    params.write_text(mine, encoding="utf-8")
    assert fresh.adopt(table, "--target", "y").code == 0
    assert params.read_text(encoding="utf-8") == mine
    answer = fresh.adopt(table, "--target", "y", "--drop", "colour")
    assert answer.code == 0
    changed = params.read_text(encoding="utf-8")
    assert "owner: Ada   # ask her" in changed
    assert "at_least: 0.6" in changed
    assert "colour" not in changed
    assert "params.yaml.bak" in answer.said
    assert Path("params.yaml.bak").read_text(encoding="utf-8") == mine


MINE = """SELECT moments.row_id, count(past.at) AS visits, max(past.at) AS last_seen
FROM moments LEFT JOIN events AS past ON past.customer_id = moments.customer_id AND past.at < moments.at GROUP BY moments.row_id
"""


def test_your_own_features_stay_and_reach_the_online_table(fresh: adopting.Project, tmp_path: Path) -> None:
    """A date among them too, as text that the one transform reads."""
    visits = with_columns(noise(), customer_id=lambda i, _: i % 50, at=lambda i, _: f"2024-01-{i % 28 + 1:02}")
    table = str(write_csv(tmp_path / "t.csv", visits))
    assert fresh.adopt(table, "--target", "y").code == 0
    fresh.query.write_text(MINE, encoding="utf-8")
    params = Path("params.yaml")
    mine = "  inputs:\n    - {name: visits, kind: number, from: history}\n    - {name: last_seen, kind: date, from: history, max_missing: 1}\n"
    params.write_text(params.read_text(encoding="utf-8").replace("  inputs:\n", mine), encoding="utf-8")
    assert fresh.adopt(table, "--target", "y", "--drop", "colour").code == 0
    assert fresh.query.read_text(encoding="utf-8") == MINE
    assert [i.name for i in fresh.params.load().framing.inputs if i.origin == "history"] == ["visits", "last_seen"]
    assert not [s for s in fresh.run() if "evaluation" not in s]
    assert fresh.module("step3_data.features").refresh_online(fresh.params.load()) == 50
    online = fresh.module("step6_deployment.predictor").OnlineTable(fresh.params.ONLINE)
    assert online.features("7") == {"visits": 3, "last_seen": "2024-01-24T00:00:00"}


# ---- made-up tables -------------------------------------------------------------------------------

NAMES = [
    "a b", "a.b", "a/b", "f(x)", "1st", "class", "select", "Straße", "名前", "Age", "age", "AGE", "row_id", "Part", "score", "decision",
    "records", "t", 'say "hi"', "it's", "a,b", "a;b", "[x]", "{y}", "$a$b", "a\\b", "#c", "-", "%d", "null", "true", "on", "no", "12", "1e5",
    "a: b", "a #b", "* x", "& y", "prediction_id", "model_version", "target", "y", "self", "x'; DROP TABLE t; --", "🙂", "very " * 20 + "long",
    "<b>", "[red]", "@psi", "_", "__init__",
]  # fmt: skip
VALUES = [
    "yes", "no", "Yes", "on", "null", "NA", "None", "?", "-", "a,b", 'q"q', "two\nlines", " pad ", "é", "日本", "🙂", "0", "00", "1e5", "true",
    "{x}", "[1]", "'",
]  # fmt: skip
KINDS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "small whole": lambda r, n: r.integers(0, 4, n),
    "whole": lambda r, n: r.integers(-(10**6), 10**6, n),
    "huge": lambda r, n: r.normal(size=n) * 10.0 ** r.integers(-40, 40, n),
    "decimal": lambda r, n: r.normal(size=n).round(3),
    "boolean": lambda r, n: r.choice(["true", "FALSE"], n),
    "category": lambda r, n: r.choice(VALUES, n),
    "two": lambda r, n: r.choice(r.choice(VALUES, 2, replace=False), n),
    "codes": lambda r, n: [f"{v:05}" for v in r.integers(0, 30, n)],
    "text": lambda r, n: [" ".join(r.choice([*VALUES, "lorem", "ipsum", "dolor"], r.integers(0, 12))) for _ in range(n)],
    "ISO date": lambda r, n: [f"20{a:02}-{b:02}-{c:02}T{d:02}:00:00Z" for a, b, c, d in r.integers(1, (30, 13, 28, 24), (n, 4))],
    "US date": lambda r, n: [f"{b}/{c}/19{a}" for a, b, c in r.integers(10, (99, 13, 28), (n, 3))],
    "constant": lambda _, n: ["same"] * n,
    "index": lambda _, n: range(n),
    "empty": lambda _, n: [""] * n,
    "mixed": lambda r, n: r.choice(["1", "2.5", "x", "2024-01-01", "NaN", "inf", ""], n),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Rows, str, list[str]]:
    """A table, its target and flags; values come from a seed, so that examples stay small to report."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=7, unique=True))
    target = draw(st.sampled_from(["two", "two", "boolean", "small whole", "decimal", "whole", *sorted(KINDS)]))
    kinds = [target, *(draw(st.sampled_from(sorted(KINDS))) for _ in names[1:])]
    holes = [draw(st.sampled_from([0.0, 0.0, 0.1])), *(draw(st.sampled_from([0.0, 0.0, 0.1, 0.6])) for _ in names[1:])]
    rng, rows = np.random.default_rng(draw(st.integers(0, 999))), draw(st.sampled_from([150, 150, 150, 70, 3]))
    columns = [["" if rng.random() < h else str(v) for v in KINDS[k](rng, rows)] for k, h in zip(kinds, holes, strict=True)]
    flags = ["--task", draw(st.sampled_from(["binary", "multiclass", "regression"]))] if draw(st.integers(0, 9)) == 0 else []
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], names[0], flags


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(made=tables(), separator=st.sampled_from([",", ";", "\t", "|"]))
def test_any_table_is_served_or_refused_in_a_sentence(made: tuple[Rows, str, list[str]], separator: str, project: adopting.Project) -> None:
    rows, target, flags = made
    project.fresh()
    table = write_csv(project.folder.parent / "made.csv", rows, separator)
    before = project.state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = project.adopt(str(table), "--target", target, *flags)
        if answer.code:
            assert answer.code == 2
            assert len(answer.error.strip().splitlines()) == 1
            assert project.state() == before
            return
        said = project.run()
        if any(s.startswith(("data:", "model:")) for s in said):
            assert all(c.isprintable() or c == "\n" for s in said for c in s)
            return
        served, scored = project.serve(table)
    assert served == scored
    assert all(math.isfinite(s) for s in served)
