"""Step 7 at work: the reference to compare with, alert rules and dashboard from the requirements."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..params import BUNDLE, DASHBOARD, ONLINE, PREPARED, REFERENCE, RULES, Params
from ..step1_requirements.checks import Check, check_bound, checks_section, raise_if_failed, save_report
from ..step1_requirements.page import page, paragraph, section, table, whole_folder, write_text
from ..step3_data.encode import columns_of, columns_read
from ..step6_deployment.predictor import Predictor
from .alerts import alert_rules, dashboard
from .drift import SCORE, compare

REFERENCE_ROWS = 20_000


def run(params: Params) -> None:
    """Write models/reference, alert rules, dashboard and reports/7-monitoring.

    Raises:
        StepFailed: when the drift check would call the reference itself drifted.
    """
    reference = write_reference(params)
    rules = alert_rules(params.requirements, params.monitoring, __package__.partition(".")[0])
    board = dashboard(params.requirements, params.monitoring)
    write_text(RULES, yaml.safe_dump(rules, sort_keys=False, allow_unicode=True, width=200))
    write_text(DASHBOARD, json.dumps(board, indent=2, ensure_ascii=False))
    checks = [_quiet_on_itself(params, reference)]
    every = [rule for group in rules["groups"] for rule in group["rules"]]
    rows = [(r["alert"], r["for"], r["labels"]["severity"], r["annotations"]["summary"], r["expr"]) for r in every]
    panels = sum(p["type"] != "row" for p in board["panels"])
    parts = [
        checks_section(checks),
        section("Alerts", table(("alert", "for", "severity", "what it means", "expression"), rows)),
        section("Reference", paragraph(f"{REFERENCE}: {reference.num_rows:,} rows of the test part; `monitor` compares predictions with them.")),
    ]
    lead = f"{len(rows)} alerts and a dashboard of {panels} panels follow the requirements."
    save_report("monitoring", checks, page("Step 7: monitoring", lead, *parts))
    raise_if_failed("monitoring", checks)


def write_reference(params: Params) -> pa.Table:
    """Write models/reference: the newest rows of the test part, inputs, target and the bundle's scores."""
    names = columns_read(params.framing)
    rows = pq.read_table(PREPARED / "test.parquet", columns=[*names, params.framing.target])
    rows = rows.slice(max(0, rows.num_rows - REFERENCE_ROWS))
    predictor = Predictor(BUNDLE, ONLINE)
    scores = predictor.main_scores(predictor.scores(columns_of(rows, names)))
    reference = rows.append_column(SCORE, pa.array(scores, pa.float64()))
    with whole_folder(REFERENCE.parent) as folder:
        pq.write_table(reference, folder / REFERENCE.name)
    return reference


def _quiet_on_itself(params: Params, reference: pa.Table) -> Check:
    """A drift check that alarms on two halves of the same data would cry wolf in production."""
    order = np.random.default_rng(0).permutation(reference.num_rows)
    halves = [reference.take(pa.array(half)) for half in np.array_split(order, 2)]
    old, new = (columns_of(half, half.column_names) for half in halves)
    moved = [m.column for m in compare(params.framing, params.monitoring.drift, old, new) if m.drifted]
    mend = f"{', '.join(moved)} drifted between two random halves: raise monitoring.drift.psi or lower significance."
    return check_bound("monitoring", "false alarms on two halves of the reference", len(moved), at_most=0, mend=mend)
