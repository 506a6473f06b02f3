"""Step 4: every kind of pipeline trains and predicts, twice the same; nothing is learned from noise; runs are tracked."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import check_cv

from {{ cookiecutter.package_name }}.params import HIGHER_IS_BETTER, METRICS_OF, Framing, Params, Split, Tune
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed
from {{ cookiecutter.package_name }}.step3_data.encode import columns_of, encode, encode_labels, number_names
from {{ cookiecutter.package_name }}.step4_model.pipeline import Estimator, build_pipeline, frame_of, predict
from {{ cookiecutter.package_name }}.step4_model.tracking import BACKEND, CHALLENGER, CHAMPION, Run, open_tracker
from {{ cookiecutter.package_name }}.step4_model.train import Part, classes_in, data_version, fit, read, read_part, scorer_of
from {{ cookiecutter.package_name }}.step4_model.tune import _folds, search, write_values
from {{ cookiecutter.package_name }}.step5_evaluation.metrics import answers_of, bootstrap, lead, measure, resample

ROWS = 800


@pytest.fixture(scope="module")
def classes(prepared: Path, framing: Framing) -> list[str]:
    """The labels in column order."""
    return classes_in(framing, prepared / "train.parquet")


@pytest.fixture(scope="module")
def train(prepared: Path, framing: Framing, classes: list[str]) -> Part:
    """The training rows."""
    return read_part(framing, prepared / "train.parquet", classes)


@pytest.mark.parametrize("kind", get_args(Estimator))
def test_every_kind_of_pipeline_predicts_and_trains_twice_the_same(kind: Estimator, train: Part, classes: list[str], params: Params) -> None:
    """Probabilities of all classes that sum to one, or one number a row; the same seed gives the same model."""
    rows = np.unique(np.concatenate([np.arange(ROWS) % len(train.labels), *(np.flatnonzero(train.labels == k)[:3] for k in range(len(classes)))]))
    frame, labels = train.frame.iloc[rows], train.labels[rows]
    first, second = (predict(params.framing, build_pipeline(params.framing, params.model, kind, frame).fit(frame, labels), frame) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    if params.framing.task == "regression":
        assert first.shape == (len(rows),) and np.isfinite(first).all()
    else:
        assert first.shape == (len(rows), len(classes))
        np.testing.assert_allclose(first.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(Estimator))
def test_every_kind_of_column_trains_and_predicts(kind: Estimator, odd: Framing, odd_table: Any, params: Params) -> None:
    """Numbers, categories, texts, booleans and dates with gaps and odd names; values never seen in training are answered too."""
    names = [i.name for i in odd.inputs]
    frame = frame_of(encode(odd, columns_of(odd_table, names)))
    pipeline = build_pipeline(odd, params.model, kind, frame).fit(frame, encode_labels(odd, ["no", "yes"], odd_table.column("y?").to_pylist()))
    empty = frame_of(encode(odd, {n: [None] for n in names}))
    strange = frame_of(encode(odd, {n: [None] for n in names} | {"class": ["zzz"], "1st.größe": [99], 'say "hi"': ["unheard of"]}))
    for rows, shape in ((frame, (300, 2)), (empty, (1, 2)), (strange, (1, 2))):
        answers = predict(odd, pipeline, rows)
        assert answers.shape == shape and np.isfinite(answers).all()


def test_a_line_is_not_drawn_beyond_the_rows_that_it_was_learned_from(odd: Framing, odd_table: Any, params: Params) -> None:
    """Of January a linear model that learned November and December says what it says of them; a wrong unit does not run away with it either."""
    frame = frame_of(encode(odd, columns_of(odd_table, [i.name for i in odd.inputs])))
    pipeline = build_pipeline(odd, params.model, "linear", frame).fit(frame, encode_labels(odd, ["no", "yes"], odd_table.column("y?").to_pylist()))
    numbers = range(len(number_names(odd)))
    edge, far = frame.copy(), frame.copy()
    for column in numbers:
        edge[column], far[column] = frame[column].max(), frame[column].max() + 1e6
    np.testing.assert_allclose(predict(odd, pipeline, far), predict(odd, pipeline, edge), atol=1e-6)


def test_boosting_minimises_the_objective(params: Params, train: Part) -> None:
    objective = "absolute_error" if params.framing.task == "regression" else "log_loss"
    framing = params.framing.model_copy(update={"objective": objective})
    assert build_pipeline(framing, params.model, "boosting", train.frame)["estimator"].loss == objective


def test_a_model_learns_more_than_it_is_told_by_chance(candidate: Path, prepared: Path, params: Params) -> None:
    """On the rows it was trained on, the model beats the trivial baseline: the least that a working pipeline does."""
    trained = read(candidate / "model.joblib")
    part = read_part(params.framing, prepared / "train.parquet", trained.classes)
    assert advantage(params, trained.model, trained.trivial, part).low > 0


def test_shuffled_labels_teach_nothing(train: Part, classes: list[str], prepared: Path, params: Params) -> None:
    """A model of noise does not beat the trivial baseline beyond noise, but for a lucky shuffle; one that always does has seen the answers."""
    part = read_part(params.framing, prepared / "validation.parquet", classes)

    def learns(seed: int) -> bool:
        noise = replace(train, labels=np.random.default_rng(seed).permutation(train.labels))
        trained = fit(params.framing, params.model, noise, classes)
        return bool(advantage(params, trained.model, trained.trivial, part).low > 0)

    assert not all(learns(seed) for seed in range(6))


def advantage(params: Params, model: Any, baseline: Any, part: Part) -> Any:
    """How much better the model is, by a metric that a lucky mix of labels does not improve."""
    metric = params.framing.metric if params.framing.task == "regression" else "log_loss"
    ours, theirs = (answers_of(params.framing.task, part.labels, predict(params.framing, p, part.frame), None) for p in (model, baseline))
    resamples = resample(len(part.labels), 100, 0)
    return lead(metric, ours, theirs, bootstrap([metric], ours, resamples)[metric], resamples, 0.999)


def test_a_search_goes_on_where_it_stopped(prepared: Path, params: Params) -> None:
    """The settings in force are tried first, so that the winner is no worse than they are."""

    def search_for(trials: int) -> Any:
        return search(params.model_copy(update={"model": params.model.model_copy(update={"tune": Tune(trials=trials, folds=2)})}))

    first, then = search_for(1), search_for(3)
    in_force = getattr(params.model, params.model.kind).model_dump()
    assert first.trials[0].params == then.trials[0].params == in_force
    assert [t.state.name for t in then.trials] == ["COMPLETE"] * 3
    assert then.best_value == max(t.value for t in then.trials)


def test_folds_go_forward_in_time_whatever_the_order_of_rows(train: Part, params: Params) -> None:
    rows = pd.DataFrame({"at": pd.date_range("2030-01-01", periods=12)[::-1]})
    part, split = replace(train, rows=rows), Split(by="time", train=0.5, validation=0.25)
    model = params.model.model_copy(update={"tune": Tune(trials=1, folds=3)})
    folds, _ = _folds(params.framing.model_copy(update={"time": "at"}), split, model, part)
    times = rows["at"].to_numpy()
    assert all(times[learn].max() < times[test].min() for learn, test in check_cv(folds).split(rows))


@pytest.mark.parametrize("groups", [["a", "b", "c", "d", "e", None] * 4, [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")] * 4])
def test_rows_without_a_group_fall_together_in_the_folds(groups: list[Any], train: Part, params: Params) -> None:
    part, split = replace(train, rows=pd.DataFrame({"who": groups})), Split(by="group", train=0.5, validation=0.25)
    model = params.model.model_copy(update={"tune": Tune(trials=1, folds=3)})
    folds, given = _folds(params.framing.model_copy(update={"entity": "who"}), split, model, part)
    homes = [{k % 6 for k in test} for _, test in folds.split(groups, groups=given)]
    assert sum(5 in home for home in homes) == 1


@pytest.mark.parametrize("metric", ["log_loss", "top2_accuracy"])
def test_rows_that_lack_a_label_are_scored_too(metric: str, candidate: Path, train: Part, classes: list[str], params: Params) -> None:
    if metric not in METRICS_OF[params.framing.task]:
        pytest.skip(f"{metric} does not measure a {params.framing.task} task")
    some = np.flatnonzero(train.labels != len(classes) - 1)[:ROWS]
    frame, labels = train.frame.iloc[some], train.labels[some]
    model = read(candidate / "model.joblib").model
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    expected = measure(metric, answers_of(params.framing.task, labels, predict(params.framing, model, frame), None))
    score = scorer_of(params.framing.model_copy(update={"metric": metric}))(model, frame, labels)
    assert score == pytest.approx(sign * expected, rel=1e-4)


def test_what_is_written_into_params_keeps_its_comments(tmp_path: Path) -> None:
    path, name = tmp_path / "params.yaml", "model.boosting.max_iter"
    text = "data:\n  since: null # all rows\nmodel:\n  boosting:\n    max_iter: 150 # more is slower\n"
    path.write_text(text, encoding="utf-8")
    write_values(path, {name: 700})
    assert path.read_text(encoding="utf-8") == text.replace("150", "700")


def test_one_label_only_is_refused(train: Part, params: Params) -> None:
    if params.framing.task != "binary":
        pytest.skip("about binary tasks")
    with pytest.raises(StepFailed, match="one class only"):
        fit(params.framing, params.model, replace(train, labels=np.zeros_like(train.labels)), [])


def test_the_candidate_is_the_registered_challenger(candidate: Path, tmp_path: Path) -> None:
    """What the registry hands out under `challenger` is what the model step left, byte for byte."""
    tracker = open_tracker()
    version = tracker.version_of(CHALLENGER)
    assert version is not None
    assert f'"version": "{version}"' in (candidate / "version.json").read_text(encoding="utf-8")
    fetched = tracker.fetch(version, tmp_path)
    assert (fetched / "model.joblib").read_bytes() == (candidate / "model.joblib").read_bytes()


def test_tracking_keeps_runs_versions_and_aliases_apart(candidate: Path, tmp_path: Path) -> None:
    """Whichever tracking was chosen: a second run is a second version, an alias moves, an unknown one is nobody."""
    tracker = open_tracker()
    versions = []
    for content in ("first", "second"):
        files = tmp_path / content
        files.mkdir()
        (files / "größe.txt").write_text(content, encoding="utf-8")
        run = tracker.log(Run(f"run {content}", {"depth": 3, "kind": "x"}, {"validation_model": -0.5}, {"data": "d"}, files))
        versions.append(tracker.register(run))
        tracker.set_alias("trial", versions[-1])
    assert versions[0] != versions[1] == tracker.version_of("trial")
    assert tracker.version_of("nobody") is None
    for version, content in zip(versions, ("first", "second"), strict=True):
        target = tmp_path / f"fetched {content}"
        target.mkdir()
        assert (tracker.fetch(version, target) / "größe.txt").read_text(encoding="utf-8") == content


def test_a_registry_that_is_away_is_not_one_without_a_champion(candidate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if BACKEND != "mlflow":
        pytest.skip("the registry is a folder, which is never away")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker: Any = open_tracker()
    tracker.client = type(tracker.client)(registry_uri="http://127.0.0.1:9")
    with pytest.raises(StepFailed, match="which version is champion"):
        tracker.version_of(CHAMPION)


def test_a_moved_project_keeps_its_versions_and_logs_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.txt").write_text("first", encoding="utf-8")
    run = Run("a run", {}, {}, {}, tmp_path / "files")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = open_tracker()
    version = before.register(before.log(run))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    after = open_tracker()
    assert (after.fetch(version, tmp_path) / "model.txt").read_text(encoding="utf-8") == "first"
    assert (after.fetch(after.register(after.log(run)), tmp_path / "files") / "model.txt").exists()
    assert not (tmp_path / "here").exists()


def test_the_versions_of_data_change_with_the_data(prepared: Path, tmp_path: Path) -> None:
    before = data_version(prepared)
    for path in prepared.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.slice(1) if path.stem == "train" else table, tmp_path / path.name)
    assert before == data_version(prepared) != data_version(tmp_path)
