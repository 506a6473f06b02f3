"""The evaluation report and the model card."""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

from ..params import Framing, Params
from ..step1_requirements.checks import Check, checks_section
from ..step1_requirements.page import AMBER, BLUE, GREY, RED, axes, figure, markdown_table, page, paragraph, plain, section, table
from .experiment import Design
from .gate import Measured
from .metrics import Answers, calibration_bins


def evaluation_page(params: Params, measured: Measured, checks: Sequence[Check], answers: Answers, classes: list[str], plan: Design) -> str:
    """The whole report as HTML."""
    framing, kpi = params.framing, params.requirements.kpi
    failed = [c.requirement for c in checks if c.outcome == "fail"]
    metrics = [(name, e.value, e.low, e.high) for name, e in measured.metrics.items()]
    by = params.evaluation.slices.metric
    slices = [(s.column, s.value, s.rows, s.metric, s.drop, "yes" if s.judged else "no: too small") for s in measured.slices]
    expected = kpi.expected(measured.metrics[kpi.moved_by.metric].value)
    effect = (f"{kpi.name}: {plain(kpi.baseline)} {kpi.unit} today, {plain(expected)} expected with this model, {plain(kpi.target)} wanted. "
              f"{kpi.moved_by.because} This is an estimate from {kpi.moved_by.metric}, not a measurement.")  # fmt: skip
    online = (f"{plan.champion_units:,} units with the champion and {plan.challenger_units:,} with the challenger show a change of "
              f"{params.evaluation.experiment.smallest_effect:g} in the mean per unit; at today's traffic that takes {plain(plan.days)} days. "
              "Put the results in a CSV with the columns arm and kpi and run `experiment` on it.")  # fmt: skip
    return page(
        "Step 5: evaluation",
        f"The gate is {'closed: ' + ', '.join(failed) if failed else 'open: every requirement of this step is met'}.",
        checks_section(checks),
        section("Metrics on the test part", table(("metric", "value", "interval from", "to"), metrics)),
        section("How it errs", *_figures(framing, measured, answers, classes)),
        section(f"Slices, by {by}", table(("column", "value", "rows", by, "drop against the whole", "judged"), slices)),
        section("Expected effect on the business", paragraph(effect)),
        section("Online test", paragraph(online)),
    )


def model_card(params: Params, measured: Measured, checks: Sequence[Check], version: dict[str, str]) -> str:
    """The model card (Mitchell et al. 2019) as Markdown."""
    r, framing = params.requirements, params.framing
    decides = "" if measured.threshold is None else f" It says yes at a score of {plain(measured.threshold)} and above."
    return "\n".join([
        f"# Model card: {framing.target}, version {version['version']}", "",
        f"**What it is for.** {r.goal}. Used by {', '.join(r.users)}. Not for anything else.", "",
        f"**What it does.** A {params.model.kind} model for a {framing.task} task: from {len(framing.inputs)} inputs "
        f"it predicts {framing.target}.{decides}", "",
        f"**Where it came from.** Data {version['data']}, code {version['code']}, run {version['run']}. Owner: {r.owner}.", "",
        "## Measured on the newest data it never saw", "", markdown_table(("metric", "value, with interval"), measured.metrics.items()), "",
        f"Over the {measured.baseline} baseline it adds {measured.lift} in {framing.metric}.", "",
        f"## By slice ({params.evaluation.slices.metric})", "",
        markdown_table(("slice", "rows", "value"), [(f"{s.column} = {s.value}", s.rows, plain(s.metric)) for s in measured.slices]), "",
        "## Requirements", "",
        markdown_table(("requirement", "measured", "limit", "verdict"), [(c.requirement, c.measured, c.limit, c.outcome) for c in checks]), "",
        "## Limits", "",
        f"* Privacy: {r.constraints.privacy}", f"* Interpretability: {r.constraints.interpretability}",
        f"* People: {r.constraints.human_in_the_loop}",
        "* It knows the world of its training data; step 7 watches whether that world moves.", "",
    ])  # fmt: skip


def _figures(framing: Framing, measured: Measured, answers: Answers, classes: list[str]) -> list[str]:
    if framing.task == "regression":
        return [_regression_figure(framing, answers)]
    figures = [_calibration_figure(answers)]
    return [_threshold_figure(measured, answers), *figures] if framing.task == "binary" else [_confusion_figure(answers, classes), *figures]


def _threshold_figure(measured: Measured, answers: Answers) -> str:
    drawing, (left, right) = axes(9, 3.2, columns=2)
    precision, recall, _ = sk.precision_recall_curve(answers.labels, answers.scores)
    left.plot(recall, precision, color=BLUE)
    at = measured.threshold if measured.threshold is not None else 0.5
    left.plot(measured.metrics["recall"].value, measured.metrics["precision"].value, "o", color=RED, label=f"threshold {at:.3g}")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    left.legend()
    bins = np.linspace(0, 1, 41)
    for label, colour, words in ((0, GREY, "negative"), (1, RED, "positive")):
        right.hist(answers.scores[answers.labels == label], bins, color=colour, alpha=0.7, label=words)
    right.axvline(at, color=AMBER, linestyle="--")
    right.set(xlabel="score", ylabel="rows", yscale="log")
    right.legend()
    return figure(drawing, "Left: precision against recall, with the chosen threshold. Right: scores of both classes; dashed is the threshold.")


def _calibration_figure(answers: Answers) -> str:
    predicted, observed, _ = calibration_bins(answers)
    drawing, panel = axes(4.4, 3.4)
    top = max(float(predicted.max()), float(observed.max())) * 1.05
    panel.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    panel.plot(predicted, observed, "o-", color=BLUE)
    panel.set(xlabel="predicted probability", ylabel="observed share")
    return figure(drawing, "Calibration: of the cases called 30 % likely, 30 % should happen (the dashed line).")


def _confusion_figure(answers: Answers, classes: list[str]) -> str:
    matrix = sk.confusion_matrix(answers.labels, answers.decisions, labels=range(len(classes)), normalize="true")
    size = min(9.0, 2.2 + 0.5 * len(classes))
    drawing, panel = axes(size, size)
    panel.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    panel.grid(visible=False)
    panel.set_xticks(range(len(classes)), [c[:18] for c in classes], rotation=45, ha="right")
    panel.set_yticks(range(len(classes)), [c[:18] for c in classes])
    panel.set(xlabel="predicted", ylabel="true")
    for i, j in np.ndindex(*matrix.shape):
        if matrix[i, j] >= 0.005:
            panel.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7.5, color="white" if matrix[i, j] > 0.5 else "black")
    return figure(drawing, "Of each true label, the share that was predicted as what.")


def _regression_figure(framing: Framing, answers: Answers) -> str:
    drawing, (left, right) = axes(9, 3.4, columns=2)
    pick = np.random.default_rng(0).permutation(len(answers.labels))[:2000]
    low, high = np.quantile(answers.labels, [0, 1])
    left.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=1)
    left.plot(answers.labels[pick], answers.scores[pick], ".", color=BLUE, markersize=3, alpha=0.5)
    left.set(xlabel=f"true {framing.target} {framing.unit}".rstrip(), ylabel="predicted")
    errors = answers.scores - answers.labels
    edge = float(np.quantile(np.abs(errors), 0.99)) or 1.0
    right.hist(np.clip(errors, -edge, edge), 41, color=BLUE)
    right.set(xlabel=f"predicted minus true {framing.unit}".rstrip(), ylabel="rows")
    return figure(drawing, "Left: predicted against true. Right: the errors, the outermost 1 % at the edge.")
