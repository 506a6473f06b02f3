"""params.yaml and features.sql for an adopted table; the user's comments and other sections stay."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from ..params import HIGHER_IS_BETTER
from ..step2_framing.contract import as_text
from ..step3_data.source import name
from ..step3_data.split import HOW
from .infer import RARE, Contract
from .measure import Measured, best_kind, better_than

Changes = dict[str, tuple[Any, str | None]]  # by path: the value, and the comment behind it (None: as it was)
MOST_SLICES = 6  # values of a column that slices the test part

UNIT = {"roc_auc": "0 to 1, guessing is 0.5", "average_precision": "0 to 1, guessing is the share of positives", "accuracy": "share of rows",
        "f1_macro": "0 to 1", "rmse": "in the target's unit"}  # fmt: skip
SAY = "To be said by those who know the business."
FEATURES = Template("""\
-- History features as of each moment: one row per row_id of `moments` (row_id$keys). There are none yet; every column of
-- data/raw that framing.inputs lists passes to the model as it is. `events` holds every row, with the columns of data/raw;
-- only what was known before the moment may be read: the data step proves it by hiding the future.
-- For a feature, write this instead of the SELECT below, and add to framing.inputs of params.yaml
--     - {name: rows_30d, kind: number, min: 0, from: history}
--
-- SELECT moments.row_id, count(past.$entity) AS rows_30d FROM moments LEFT JOIN events AS past
--     ON past.$entity = moments.$entity AND past.$time < moments.$time AND past.$time >= moments.$time - INTERVAL 30 DAY
-- GROUP BY moments.row_id
SELECT row_id FROM moments
""")


def features_sql(contract: Contract) -> str:
    """A features.sql without features, and a commented example of one."""
    entity, time = (name(one_line(k or d)) for k, d in ((contract.entity, "your entity"), (contract.time, "your event time")))
    keys = "".join(f", {name(one_line(k))}" for k in (contract.entity, contract.time) if k)
    return FEATURES.substitute(keys=keys, entity=entity, time=time)


def one_line(column: str) -> str:
    """A name without line ends, for a comment."""
    return " ".join(column.split())


def split_by(contract: Contract) -> str:
    """How rows are divided: by time where there is one, else by entity, else at random."""
    return "time" if contract.time else "group" if contract.entity else "random"


def metric_of(contract: Contract) -> str:
    """What models are ranked by: average precision where accuracy is useless, the usual measure elsewhere."""
    if contract.task == "regression":
        return "rmse"
    most = contract.counts[contract.positive] if contract.task == "binary" else max(contract.counts.values())
    useless = not RARE <= most / contract.target.present <= 1 - RARE
    return ("f1_macro" if useless else "accuracy") if contract.task == "multiclass" else "average_precision" if useless else "roc_auc"


class Document:
    """params.yaml with its comments, changed in place."""

    def __init__(self, text: str) -> None:
        self.yaml = YAML()
        self.yaml.preserve_quotes, self.yaml.width, self.yaml.allow_unicode = True, 4096, True
        self.yaml.indent(mapping=2, sequence=4, offset=2)
        self.yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
        self.tree, self.was = self.yaml.load(text), yaml.safe_load(text)

    def text(self) -> str:
        """The whole file."""
        out = io.StringIO()
        self.yaml.dump(self.tree, out)
        return out.getvalue()

    def put(self, path: str, value: Any, comment: str | None = None) -> None:
        """Set one value; an unchanged one keeps everything, a changed one gets the comment, if there is one."""
        *parents, key = path.split(".")
        tree, was = self.tree, self.was
        for parent in parents:
            tree, was = tree[parent], was[parent]
        if key in was and json.dumps(was[key]) == json.dumps(value):
            return
        if key in tree:
            tree[key] = styled(value)
        elif value is not None:
            tree.insert(1 + [*tree, "target"].index("target"), key, styled(value))
        if key in tree and comment is not None:
            _comment(tree, key, comment)


def _comment(tree: CommentedMap, key: str, words: str) -> None:
    """Replace the comment behind a value, but not what stands on the lines below it."""
    token = (tree.ca.items.get(key) or [None] * 4)[2]
    if token is not None:
        token.value = (f"# {words}" if words else "") + "".join(token.value.partition("\n")[1:])
    elif words:
        tree.yaml_add_eol_comment(words, key)


def styled(value: Any, inner: bool = False) -> Any:
    """A value in the file's style: what is inside a list on one line, texts quoted where another reader could mistake them."""
    if isinstance(value, Mapping):
        made: Any = CommentedMap((k, styled(v, True)) for k, v in value.items())
        made.fa.set_flow_style()
        return made
    if isinstance(value, list | tuple):
        made = CommentedSeq(styled(v, True) for v in value)
        if inner or not any(isinstance(v, Mapping) for v in value):
            made.fa.set_flow_style()
        return made
    if isinstance(value, str) and not (re.fullmatch(r"[A-Za-z_][\w ]*\w|[A-Za-z_]", value, re.ASCII) and yaml.safe_load(value) == value):
        return DoubleQuotedScalarString(value)
    return value


def change(document: Document, contract: Contract, measured: Measured, demo: bool) -> None:
    """Write the contract, and what other sections must say about it; the demo's own story goes, yours stays."""
    old = document.was
    changes = _framing(contract, measured, old["framing"]) | _data(contract, measured, old)
    same = (old["framing"]["task"], old["framing"]["target"]) == (contract.task, contract.target.name)
    if demo:
        changes |= _no_story(contract, old["framing"]["questions"])
    if demo or not same:
        changes |= _requirements(contract, measured)
    comments = {i["name"]: document.tree["framing"]["inputs"].ca.items.get(n) for n, i in enumerate(old["framing"]["inputs"])}
    for path, (value, comment) in changes.items():
        document.put(path, value, comment)
    inputs = document.tree["framing"]["inputs"]
    inputs.ca.items.update({n: comments[i["name"]] for n, i in enumerate(inputs) if comments.get(i["name"])})


def _framing(contract: Contract, measured: Measured, old: Mapping[str, Any]) -> Changes:
    """What the table decides; units and descriptions that inputs had stay, and so do history features."""
    known = {i["name"]: {k: v for k, v in i.items() if k in ("unit", "describes")} for i in old["inputs"]}
    history = [i for i in old["inputs"] if i.get("from") == "history"] if contract.keeps_history else []
    labels = [as_text(v) for v in contract.counts if as_text(v) not in measured.rare]
    return {
        "framing.task": (contract.task, ""),
        "framing.target": (contract.target.name, ""),
        "framing.positive": (contract.positive, "the rarer label, unless you say otherwise"),
        "framing.labels": (labels if measured.rare else None, "rows with other labels are left out: too few to split"),
        "framing.metric": (metric_of(contract), "what models are ranked by"),
        "framing.objective": ("squared_error" if contract.task == "regression" else "log_loss", ""),
        "framing.entity": (contract.entity, ""),
        "framing.time": (contract.time, ""),
        "framing.label_time": (None, ""),
        "framing.inputs": ([i | known.get(i["name"], {}) for i in contract.inputs] + history, None),
    }


def least_per_leaf(contract: Contract, most: int) -> int:
    """Rows that a leaf of boosted trees needs: fewer in a small table."""
    return min(most, max(5, contract.target.present // 50))


def _data(contract: Contract, measured: Measured, old: Mapping[str, Any]) -> Changes:
    """Where the rows come from, and what model and slices suit them."""
    values = {i["name"]: i["values"] for i in contract.inputs if 2 <= len(i.get("values", ())) <= MOST_SLICES}
    names = [i["name"] for i in contract.inputs]
    kept, protected = ([c for c in old["evaluation"]["slices"][k] if c in names] for k in ("columns", "protected"))
    odds = round(contract.target.present / contract.counts[contract.positive] - 1) if contract.positive is not None else 1
    threshold = {"by": "cost", "false_positive_usd": 1.0, "false_negative_usd": float(max(1, odds))} if contract.task == "binary" else None
    unchanged = (old["evaluation"]["threshold"] is None) == (threshold is None) and old["data"]["sample"] is None
    tried = ", ".join(f"{k} {abs(v):.3g}" for k, v in measured.kinds.items())
    return {
        "data.sample": (None, "your own table is in data/raw"),
        "data.since": (None, None),
        "data.split": (old["data"]["split"] | {"by": split_by(contract)}, f"{HOW[split_by(contract)]}; the test part is what is left of 1"),
        "data.leak_limit": (1.0 if contract.trusts_leaks else old["data"]["leak_limit"], "nothing is refused, because --keep said so"),
        "model.kind": (best_kind(measured.kinds), f"{metric_of(contract)} on some validation rows: {tried}"),
        "model.boosting.min_samples_leaf": (least_per_leaf(contract, old["model"]["boosting"]["min_samples_leaf"]), None),
        "monitoring.performance.labels": (min(old["monitoring"]["performance"]["labels"], max(100, contract.target.present // 10)), None),
        "monitoring.retrain.min_labels": (min(old["monitoring"]["retrain"]["min_labels"], max(200, contract.target.present // 4)), None),
        "evaluation.threshold": (old["evaluation"]["threshold"] if unchanged else threshold, "say what a false alarm and a miss cost"),
        "evaluation.slices.columns": (kept or sorted(values, key=lambda n: len(values[n]))[:2], None),
        "evaluation.slices.protected": (protected, None),
    }


def _no_story(contract: Contract, questions: Iterable[str]) -> Changes:
    """Neutral words where the demo spoke of its own business."""
    business = ("privacy", "interpretability", "human_in_the_loop")
    values: dict[str, Any] = {
        "requirements.goal": f"Predict {one_line(contract.target.name)}",
        **dict.fromkeys(("framing.why", *(f"requirements.constraints.{k}" for k in business)), SAY),
        "requirements.owner": "to be named",
        "requirements.users": ["to be named"],
        **{f"requirements.{key}": [] for key in ("stakeholders", "guard_rails", "constraints.personal_columns")},
        "requirements.scale.training_rows": contract.target.present,
        "framing.unit": "",
        **{f"framing.questions.{k}": {"answer": k != "is_interpretability_critical", "because": SAY} for k in questions},
        "evaluation.experiment": {"smallest_effect": 0.02, "kpi_std": 1.0, "significance": 0.05, "power": 0.8, "challenger_share": 0.5},
    }
    commented: Changes = {
        "requirements.label_delay_days": (0, "how long a label takes; younger rows are not learned from"),
        "deployment.review": (None, "[low, high]: scores in this band are answered `review`; a person decides"),
        "evaluation.slices.max_drop": (1.0, "worst slice: at most this share worse than the whole; tighten it"),
    }
    return {path: (value, "") for path, value in values.items()} | commented


def _requirements(contract: Contract, measured: Measured) -> Changes:
    """Quality "better than the baseline", and a KPI that stands for one to be named."""
    metric, today = metric_of(contract), float(f"{measured.baseline:.4g}")
    higher = HIGHER_IS_BETTER[metric]
    bound = {"at_least" if higher else "at_most": better_than(today, metric)}
    moved_by = {"metric": metric, "today": today, "effect_per_unit": 1.0 if higher else -1.0, "because": SAY}
    kpi = {"name": "the KPI, to be named", "unit": "its unit", "baseline": 0.0, "target": 1.0, "better": "higher", "moved_by": moved_by}
    return {
        "requirements.quality": ([{"metric": metric, **bound, "unit": UNIT[metric], "baseline": today}], "better than the baseline: raise it"),
        "requirements.guard_rails": ([], ""),
        "requirements.lift_over_baseline": (0.0, "raise it to what makes a model worth its upkeep"),
        **{f"requirements.kpi.{key}": (value, "") for key, value in kpi.items()},
        "evaluation.slices.metric": ({"regression": "rmse", "binary": "roc_auc", "multiclass": "accuracy"}[contract.task], ""),
    }
