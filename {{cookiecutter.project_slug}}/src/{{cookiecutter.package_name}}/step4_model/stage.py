"""Step 4 at work: train the model and its baselines, track the run, register the challenger."""

import json
import logging
from typing import Any

import numpy as np
from sklearn.inspection import permutation_importance
from sklearn.tree import export_text

from ..params import CANDIDATE, PREPARED, Framing, Params
from ..step1_requirements.checks import check_that, save_report
from ..step1_requirements.page import BLUE, axes, figure, page, paragraph, preformatted, section, table, whole_folder, write_text
from ..step3_data.encode import number_names, string_inputs
from .tracking import BACKEND, CHALLENGER, Run, open_tracker
from .train import Part, Trained, classes_in, code_version, data_version, fit, read_part, save, scorer_of

SAMPLE_ROWS, SHUFFLES = 2_000, 3  # behind each importance of a table of up to FEW_COLUMNS; a wider one gets fewer
FEW_COLUMNS, LEAST_ROWS = 50, 300
log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write models/candidate and reports/4-model, track the run and register it as challenger."""
    framing, model = params.framing, params.model
    classes = classes_in(framing, PREPARED / "train.parquet")
    train, validation = (read_part(framing, PREPARED / f"{part}.parquet", classes) for part in ("train", "validation"))
    log.info("model: training %s on %s rows", model.kind, f"{len(train.labels):,}")
    trained = fit(framing, model, train, classes)
    scorer = scorer_of(framing)
    scores = {name: float(scorer(getattr(trained, name), validation.frame, validation.labels)) for name in ("model", "rule", "trivial")}
    versions = {"data": data_version(PREPARED), "code": code_version(), "kind": model.kind}
    with whole_folder(CANDIDATE) as folder:
        save(trained, folder / "model.joblib")
        write_text(folder / "framing.json", framing.model_dump_json(by_alias=True))
        metrics = {f"validation_{name}": score for name, score in scores.items()}
        settings = {"kind": model.kind, "seed": model.seed, **getattr(model, model.kind).model_dump()}
        tracker = open_tracker()
        run_id = tracker.log(Run(f"{model.kind} on {versions['data']}", settings, metrics, versions, folder))
        version = tracker.register(run_id)
        tracker.set_alias(CHALLENGER, version)
        write_text(folder / "version.json", json.dumps({"version": version, "run": run_id, **versions}, indent=2))
    checks = [check_that("model", f"trained, tracked in {BACKEND} and registered", True, f"version {version}", "a registered version")]
    save_report("model", checks, _page(framing, trained, validation, scores, settings, version, run_id, versions))


def _page(framing: Framing, trained: Trained, part: Part, scores: dict[str, float], settings: dict[str, Any],
          version: str, run_id: str, versions: dict[str, str]) -> str:  # fmt: skip
    names = {"model": "the model", "rule": "rule-like baseline", "trivial": "trivial baseline"}
    return page(
        "Step 4: model",
        f"Version {version} of the registry, a {settings['kind']} model, is the challenger.",
        section("On the validation part", table(("what", framing.metric), [(names[k], abs(v)) for k, v in scores.items()])),
        section("What the model listens to", _importance_figure(framing, trained, part)),
        section("The rule-like baseline", paragraph("A shallow tree: what a person could write down. `a = b <= 0.50` says that a is not b."),
                preformatted(_rules(framing, trained))),
        section("Settings", table(("setting", "value"), settings.items())),
        section("Where it came from", table(("what", "is"), {"run": f"{run_id} in {BACKEND}", **versions}.items())),
    )  # fmt: skip


def _importance_figure(framing: Framing, trained: Trained, part: Part) -> str:
    """Permutation importance (Breiman 2001) of each encoded column: what shuffling it costs."""
    columns = part.frame.shape[1]
    rows, shuffles = (SAMPLE_ROWS, SHUFFLES) if columns <= FEW_COLUMNS else (max(LEAST_ROWS, SAMPLE_ROWS * FEW_COLUMNS // columns), 1)
    pick = np.random.default_rng(0).permutation(len(part.labels))[:rows]
    sample, score = (part.frame.iloc[pick], part.labels[pick]), scorer_of(framing)
    found = permutation_importance(trained.model, *sample, scoring=score, n_repeats=shuffles, random_state=0)
    names = number_names(framing) + [i.name for i in string_inputs(framing)]
    order = np.argsort(found.importances_mean)[-15:]
    drawing, panel = axes(7, 0.8 + 0.22 * len(order))
    panel.barh([names[i][:40] for i in order], found.importances_mean[order], xerr=found.importances_std[order], color=BLUE)
    panel.set_xlabel(f"loss of {framing.metric} when the column is shuffled")
    how = f"the line is one standard deviation of {shuffles} shuffles" if shuffles > 1 else f"{columns} columns are many, so few rows and one shuffle"
    return figure(drawing, f"Permutation importance on {len(pick):,} validation rows; {how}.")


def _rules(framing: Framing, trained: Trained) -> str:
    columns = trained.rule["columns"]
    named = dict(enumerate(number_names(framing) + [i.name for i in string_inputs(framing)]))
    words = []
    for out in columns.get_feature_names_out():
        part, _, rest = out.partition("__")
        column, _, value = rest.removeprefix("x").partition("_")
        label = named[int(column)] if column.isdigit() and int(column) in named and not part.startswith("words") else f"word {rest}"
        words.append(f"{label} = {value}" if value else label)
    return str(export_text(trained.rule["estimator"], feature_names=words, class_names=trained.classes or None, decimals=2))
