"""Step 5: metrics are right, intervals cover, thresholds keep their promise, and the gate lets nothing bad through."""

import csv
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from {{ cookiecutter.package_name }}.params import CANDIDATE, HIGHER_IS_BETTER, METRICS_OF, PREPARED, Experiment, Input, Params, Slices, Target, Threshold
from {{ cookiecutter.package_name }}.step1_requirements.checks import StepFailed, load_verdict
from {{ cookiecutter.package_name }}.step4_model.train import read, read_part
from {{ cookiecutter.package_name }}.step5_evaluation.experiment import analyse, design, read_results
from {{ cookiecutter.package_name }}.step5_evaluation.gate import Champion, Measured, gate
from {{ cookiecutter.package_name }}.step5_evaluation.metrics import (
    Answers,
    Estimate,
    answers_of,
    bootstrap,
    choose_threshold,
    interval,
    lead,
    measure,
    resample,
)
from {{ cookiecutter.package_name }}.step5_evaluation.slices import measure_slices, protected_gap, worst_drop
from {{ cookiecutter.package_name }}.step5_evaluation.stage import _answers_of_champion, run

RNG = np.random.default_rng(0)
LABELS, NOISE = RNG.integers(0, 2, 500), RNG.normal(size=500)
CLASSES, LOGITS = RNG.integers(0, 4, 500), RNG.normal(size=(500, 4))
BINARY = answers_of("binary", LABELS, np.column_stack([np.zeros(500), 1 / (1 + np.exp(-LABELS - NOISE))]), 0.7)
LIKELY = np.exp(LOGITS + np.eye(4)[CLASSES])
MANY = answers_of("multiclass", CLASSES, LIKELY / LIKELY.sum(axis=1, keepdims=True), None)
NUMBERS = answers_of("regression", 100 + 10 * NOISE, 100 + 10 * NOISE + RNG.normal(size=500), None)
ANSWERS = {"binary": BINARY, "multiclass": MANY, "regression": NUMBERS}
WEIGHTS = RNG.integers(0, 3, 500).astype(float)

#: The same metric by scikit-learn, from (labels, scores, decisions, weights).
REFERENCE: dict[str, Callable[..., float]] = {
    "roc_auc": lambda y, s, d, w: sk.roc_auc_score(y, s, sample_weight=w),
    "average_precision": lambda y, s, d, w: sk.average_precision_score(y, s, sample_weight=w),
    "precision": lambda y, s, d, w: sk.precision_score(y, d, sample_weight=w),
    "recall": lambda y, s, d, w: sk.recall_score(y, d, sample_weight=w),
    "f1": lambda y, s, d, w: sk.f1_score(y, d, sample_weight=w),
    "false_positive_rate": lambda y, s, d, w: 1 - sk.recall_score(1 - y, 1 - d, sample_weight=w),
    "brier": lambda y, s, d, w: sk.brier_score_loss(y, s, sample_weight=w),
    "log_loss": lambda y, s, d, w: sk.log_loss(y, s, sample_weight=w),
    "accuracy": lambda y, s, d, w: sk.accuracy_score(y, d, sample_weight=w),
    "balanced_accuracy": lambda y, s, d, w: sk.balanced_accuracy_score(y, d, sample_weight=w),
    "f1_macro": lambda y, s, d, w: sk.f1_score(y, d, average="macro", sample_weight=w),
    "top2_accuracy": lambda y, s, d, w: sk.top_k_accuracy_score(y, s, k=2, sample_weight=w),
    "mae": lambda y, s, d, w: sk.mean_absolute_error(y, s, sample_weight=w),
    "rmse": lambda y, s, d, w: sk.root_mean_squared_error(y, s, sample_weight=w),
    "median_absolute_error": lambda y, s, d, w: float(np.median(np.repeat(np.abs(y - s), w.astype(int)))),
    "mape": lambda y, s, d, w: sk.mean_absolute_percentage_error(y, s, sample_weight=w),
    "r2": lambda y, s, d, w: sk.r2_score(y, s, sample_weight=w),
}


@pytest.mark.parametrize(("task", "metric"), [(t, m) for t, names in METRICS_OF.items() for m in names if m in REFERENCE])
def test_a_metric_is_what_scikit_learn_says_with_and_without_weights(task: str, metric: str) -> None:
    a = ANSWERS[task]
    for weights in (np.ones(500), WEIGHTS):
        expected = REFERENCE[metric](a.labels, a.scores, a.decisions, weights)
        assert measure(metric, a, weights) == pytest.approx(expected, rel=0.01 if "median" in metric else 1e-9)


def test_every_metric_is_tested() -> None:
    assert set(HIGHER_IS_BETTER) == set(REFERENCE) | {"calibration_error"}


def test_calibration_error_is_the_gap_between_said_and_seen() -> None:
    said = np.repeat([0.2, 0.9], 100)
    seen = np.concatenate([np.arange(100) < 20, np.arange(100) < 60]).astype(int)
    assert measure("calibration_error", Answers(seen, said, seen)) == pytest.approx((0 + 0.3) / 2)


def test_a_metric_without_both_labels_is_not_a_number() -> None:
    """So that a part of the data with one label only is shown, but never judged."""
    alone = BINARY.at(np.flatnonzero(LABELS == 0))
    assert all(np.isnan(measure(m, alone)) for m in ("roc_auc", "average_precision", "precision", "recall", "f1"))


def test_bootstrap_intervals_cover_the_truth() -> None:
    """Of 100 samples with a true accuracy of 0.8, the 90 % interval holds it about 90 times."""
    hits = 0
    for seed in range(100):
        right = (np.random.default_rng(seed).random(200) < 0.8).astype(int)
        a = Answers(np.ones(200), right, right)
        found = interval(measure("accuracy", a), bootstrap(["accuracy"], a, resample(200, 100, seed))["accuracy"], 0.9)
        hits += (found.low or 0) <= 0.8 <= (found.high or 0)
    assert 80 <= hits <= 98


def test_a_model_does_not_lead_itself_and_leads_a_worse_one() -> None:
    weights = resample(500, 100, 0)
    worse = replace(BINARY, scores=RNG.random(500))
    mine = bootstrap(["roc_auc"], BINARY, weights)["roc_auc"]
    same, better = (lead("roc_auc", BINARY, other, mine, weights, 0.95) for other in (BINARY, worse))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert better.low and better.low > 0
    errors = bootstrap(["log_loss"], BINARY, weights)["log_loss"]
    assert lead("log_loss", BINARY, worse, errors, weights, 0.95).value > 0


# ---- threshold -----------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [BINARY.scores, 1 - BINARY.scores], ids=["a good model", "a bad model"])
@pytest.mark.parametrize(("wrong_yes", "wrong_no"), [(1.0, 1.0), (1.0, 30.0), (30.0, 1.0), (1e6, 1.0), (1.0, 1e6)])
def test_the_threshold_by_cost_is_the_cheapest_there_is(wrong_yes: float, wrong_no: float, scores: np.ndarray) -> None:
    """No cut, not even the one that never says yes, costs less."""

    def cost(cut: float) -> float:
        yes = scores >= cut
        return float((yes & (LABELS == 0)).sum() * wrong_yes + (~yes & (LABELS == 1)).sum() * wrong_no)

    chosen = choose_threshold(Threshold(by="cost", false_positive_usd=wrong_yes, false_negative_usd=wrong_no), LABELS, scores)
    assert cost(chosen) == min(map(cost, [*scores, 2.0]))


@pytest.mark.parametrize("most", [0.02, 0.1, 0.3])
def test_the_threshold_by_cost_keeps_the_guard_rail(most: float) -> None:
    """However dear a missed case is, honest cases are not turned away beyond the guard rail, and no needless room is left."""
    chosen = choose_threshold(Threshold(by="cost", false_positive_usd=1.0, false_negative_usd=1e6), LABELS, BINARY.scores, most)
    rate = measure("false_positive_rate", replace(BINARY, decisions=(BINARY.scores >= chosen).astype(int)))
    assert most / 6 < rate <= most


@pytest.mark.parametrize("promise", [0.5, 0.8, 0.95])
def test_a_promised_precision_or_recall_is_kept(promise: float) -> None:
    """And the other of the two is as high as the promise allows."""
    for by, other in (("precision", "recall"), ("recall", "precision")):
        chosen = choose_threshold(Threshold(by=by, at_least=promise), LABELS, BINARY.scores)
        cuts = [replace(BINARY, decisions=(BINARY.scores >= cut).astype(int)) for cut in (chosen, *BINARY.scores)]
        kept, best = ([measure(metric, cut) for cut in cuts] for metric in (by, other))
        assert kept[0] >= promise
        assert best[0] == pytest.approx(max(b for k, b in zip(kept, best, strict=True) if k >= promise), rel=0.02)


# ---- slices --------------------------------------------------------------------------------

SLICES = Slices(columns=("where",), protected=("who",), metric="accuracy", min_rows=50, max_drop=0.2, max_gap=0.2)


def test_a_collapsed_slice_and_an_unfair_gap_are_found() -> None:
    rows = pd.DataFrame({"where": np.arange(1000) // 100, "who": np.where(np.arange(1000) % 2, "a", "b")})
    right = np.ones(1000, dtype=int)
    right[(rows["where"] == 3) & (rows["who"] == "a")] = 0
    found = measure_slices(SLICES, (), rows, Answers(np.ones(1000), right, right))
    drop, where = worst_drop(SLICES, found)
    gap, groups = protected_gap(SLICES, found)
    assert (where, drop) == ("where = 3", pytest.approx((0.95 - 0.5) / 0.95))
    assert ("who" in groups, gap) == (True, pytest.approx(0.1 / 0.95))


def test_small_slices_are_shown_but_not_judged() -> None:
    rows = pd.DataFrame({"where": ["big"] * 500 + ["small"] * 10 + [None] * 60, "who": "x"})
    right = np.array([1] * 500 + [0] * 10 + [1] * 60)
    found = measure_slices(SLICES, (), rows, Answers(np.ones(570), right, right))
    assert {(s.value, s.judged) for s in found} == {("big", True), ("small", False), ("(missing)", True), ("x", True)}
    assert worst_drop(SLICES, found)[0] < 0.05
    assert protected_gap(SLICES, found) is None


def test_numbers_and_dates_of_many_values_are_judged_by_quarter() -> None:
    days = np.datetime64("2026-01-01", "us") + np.arange(200) * np.timedelta64(1, "D")
    rows = pd.DataFrame({"where": days, "who": np.arange(200)})
    right = (np.arange(200) >= 50).astype(int)
    found = measure_slices(SLICES, (), rows, Answers(np.ones(200), right, right))
    assert [s.rows for s in found] == [50] * 8
    assert worst_drop(SLICES, found) == (1.0, "where = lowest quarter")


def test_a_category_whose_codes_are_numbers_is_judged_by_code() -> None:
    rows = pd.DataFrame({"where": np.arange(2000) % 20, "who": np.arange(2000) % 20})
    right = (rows["where"] != 7).to_numpy().astype(int)
    found = measure_slices(SLICES, [Input(name=n, kind="category") for n in ("where", "who")], rows, Answers(np.ones(2000), right, right))
    assert (worst_drop(SLICES, found) or ())[1:] == ("where = 7",)
    assert "who: 7 against" in (protected_gap(SLICES, found) or ("", ""))[1]


# ---- the gate ------------------------------------------------------------------------------


@pytest.fixture
def good(params: Params) -> Measured:
    """Measured values that meet every requirement."""
    better = Estimate(1.0, 0.5, 1.5)
    return Measured({m: Estimate(0.5, 0.4, 0.6) for m in METRICS_OF[params.framing.task]}, better, "rule", [], Champion())


def failed(params: Params, measured: Measured) -> list[str]:
    """The requirements that close the gate."""
    return [c.requirement for c in gate(params.requirements, params.framing, params.evaluation, measured) if c.outcome == "fail"]


def test_the_gate_opens_when_every_requirement_is_met(params: Params, good: Measured) -> None:
    assert failed(params, good) == []


def test_what_no_slice_is_large_enough_for_is_not_said_to_pass(params: Params, good: Measured) -> None:
    found = {c.requirement: c for c in gate(params.requirements, params.framing, params.evaluation, good)}
    assert {found[name].outcome for name in ("worst_slice", "protected_gap")} == {"not measured"}


def test_a_requirement_stricter_than_the_model_closes_the_gate_by_name(params: Params, good: Measured) -> None:
    metric = params.requirements.quality[0].metric
    bound = {"at_least": 0.6} if HIGHER_IS_BETTER[metric] else {"at_most": 0.4}
    strict = params.requirements.model_copy(update={"quality": (Target(metric=metric, unit="", **bound),)})
    assert failed(params.model_copy(update={"requirements": strict}), good) == [f"quality.{metric}"]


@pytest.mark.parametrize("lift", [Estimate(-0.1, -0.2, 0.0), Estimate(0.3, -0.1, 0.7), Estimate(float("nan"), float("nan"), float("nan"))])
def test_a_model_that_adds_nothing_beyond_noise_closes_the_gate(lift: Estimate, params: Params, good: Measured) -> None:
    assert failed(params, replace(good, lift=lift)) == ["lift_over_baseline"]


BETTER, TIED, WORSE, NOTHING = Estimate(0.1, 0.05, 0.2), Estimate(0.1, -0.05, 0.2), Estimate(-0.1, -0.2, -0.05), Estimate(0, 0, 0)


@pytest.mark.parametrize(("promote", "champion", "closed"), [
    ("better", Champion("1", BETTER), False),
    ("better", Champion("1", TIED), True),
    ("better", Champion("1", WORSE), True),
    ("not_worse", Champion("1", TIED), False),
    ("not_worse", Champion("1", WORSE), True),
    ("not_worse", Champion("1", NOTHING, identical=True), True),
    ("better", Champion("1", itself=True), False),
    ("better", Champion("1", why_not="it cannot be loaded"), False),
])  # fmt: skip
def test_a_challenger_must_beat_the_champion_beyond_noise(promote: str, champion: Champion, closed: bool, params: Params, good: Measured) -> None:
    """A worse and an identical one are refused, a tie unless it is allowed; the champion itself may run again."""
    strict = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"promote": promote})})
    assert failed(strict, replace(good, champion=champion)) == ["champion"] * closed


@pytest.fixture
def aside(candidate: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of what the step reads, to spoil and to judge without a trace."""
    for folder in (candidate, prepared):
        shutil.copytree(folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("aside")
def test_a_model_is_not_tested_on_data_that_came_after_its_training(params: Params) -> None:
    pq.write_table(pq.read_table(PREPARED / "train.parquet").slice(1), PREPARED / "train.parquet")
    with pytest.raises(StepFailed, match="run `model` first"):
        run(params)


@pytest.mark.usefixtures("aside")
def test_a_baseline_is_judged_at_its_own_threshold(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model adds nothing to a rule that decides as it does, though the rule's scores are ten times lower."""
    if not params.evaluation.threshold:
        pytest.skip("evaluation.threshold is not set, so each decides at 0.5")
    trained = read(CANDIDATE / "model.joblib")
    rule: Any = SimpleNamespace(predict_proba=lambda frame: trained.model.predict_proba(frame) / 10)
    monkeypatch.setattr(f"{run.__module__}.read", lambda path: replace(trained, rule=rule))
    monkeypatch.setattr(f"{run.__module__}.evaluation_page", lambda *_: "")
    with suppress(StepFailed):
        run(params.model_copy(update={"framing": params.framing.model_copy(update={"metric": "balanced_accuracy"})}))
    lift = next(c for c in load_verdict("evaluation") or [] if c.requirement == "lift_over_baseline")
    assert lift.outcome == "fail"


def test_a_champion_whose_inputs_changed_their_kind_is_not_compared(candidate: Path, prepared: Path, params: Params, tmp_path: Path) -> None:
    """The data holds texts now where the champion, its contract says, read numbers."""
    trained, framing = read(candidate / "model.joblib"), params.framing
    test = read_part(framing, prepared / "test.parquet", trained.classes)
    texts = [n for n in test.rows.columns if test.rows[n].map(type).eq(str).any() and n not in (framing.target, framing.entity)]
    if not texts:
        pytest.skip("the table holds no texts")
    theirs = framing.model_copy(update={"inputs": (Input(name=texts[0], kind="number"),)})
    shutil.copy(candidate / "model.joblib", tmp_path)
    (tmp_path / "framing.json").write_text(theirs.model_dump_json(by_alias=True), encoding="utf-8")
    registry: Any = SimpleNamespace(fetch=lambda version, folder: tmp_path)
    assert "was made for another contract" in str(_answers_of_champion(params, registry, "1", test.rows.columns, trained.classes))


def test_the_step_leaves_a_whole_report_whatever_the_verdict(evaluated: Path, params: Params) -> None:
    verdict = {c.requirement for c in load_verdict("evaluation") or []}
    targets = {f"quality.{t.metric}" for t in params.requirements.quality}
    assert {"no_leak", "lift_over_baseline", "worst_slice", "protected_gap", "champion", "kpi", *targets} <= verdict
    assert {p.name for p in evaluated.iterdir()} >= {"index.html", "model_card.md", "evaluation.json"}


# ---- the online test -----------------------------------------------------------------------

PLAN = Experiment(smallest_effect=1, kpi_std=10, significance=0.05, power=0.8, challenger_share=0.5)


def test_the_sample_size_is_the_textbooks() -> None:
    """2 (1.96 + 0.8416)^2 (10 / 1)^2 = 1,570 a group (Lehr's rule says 1,600)."""
    found = design(PLAN, 3140)
    assert (found.champion_units, found.challenger_units, found.days) == (1570, 1570, 1.0)


@pytest.mark.parametrize(("shift", "units", "better", "verdict"), [
    (2.0, 1000, "higher", "better"), (2.0, 1000, "lower", "worse"), (-2.0, 1000, "lower", "better"),
    (0.0, 1000, "higher", "no difference"), (2.0, 700, "higher", "invalid"),
])  # fmt: skip
def test_results_of_the_online_test_are_read_right(shift: float, units: int, better: str, verdict: str, tmp_path: Path) -> None:
    """A shift of two standard errors and more is seen either way, none is not, and arms of unplanned size are invalid."""
    base = np.random.default_rng(0).normal(50, 5, 1000)
    rows = [("champion", v) for v in base] + [("challenger", v + shift) for v in base[::-1][:units]]
    assert verdict in analyse(PLAN, read_results(results(tmp_path, rows)), better).verdict


def test_a_broken_results_file_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="line 3: arm is 'control'"):
        analyse(PLAN, read_results(results(tmp_path, [("champion", 1), ("control", 2)])), "higher")


@pytest.mark.parametrize("kpi", ["nan", "inf", "many"])
def test_a_result_that_is_no_number_is_refused(kpi: str, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=kpi):
        read_results(results(tmp_path, [("champion", 1), ("challenger", kpi)]))


def results(folder: Path, rows: list[tuple[str, Any]]) -> Path:
    """A results file."""
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("arm", "kpi"), *rows])
    return folder / "results.csv"
