"""params.yaml and features.sql for an adopted table; the user's comments and other sections stay."""

import io
import re
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from ..params import HIGHER_IS_BETTER, METRICS_OF
from ..step2_framing.contract import as_text
from ..step3_data.source import name
from .infer import RARE, Contract

UNIT = {"roc_auc": "0 to 1, guessing is 0.5", "average_precision": "0 to 1, guessing is the share of positives", "accuracy": "share of rows",
        "f1_macro": "0 to 1", "rmse": "in the target's unit"}  # fmt: skip
SAY = "To be said by those who know the business."
FEATURES = """\
-- History features as of each moment: one row per row_id of `moments`. There are none yet; every column of
-- data/raw that framing.inputs lists passes to the model as it is.
--   moments: row_id{keys}   the rows that features are wanted for
--   events:  every row, with the columns of data/raw
-- Only what was known before the moment may be read; the data step proves it by hiding the future.
-- For a feature, write this instead of the SELECT below, and add to framing.inputs of params.yaml
--     - {{name: rows_30d, kind: number, min: 0, from: history}}
--
-- SELECT moments.row_id, count(past.{entity}) AS rows_30d
-- FROM moments
-- LEFT JOIN events AS past
--     ON past.{entity} = moments.{entity}
--     AND past.{time} < moments.{time}
--     AND past.{time} >= moments.{time} - INTERVAL 30 DAY
-- GROUP BY moments.row_id
SELECT row_id FROM moments
"""


def features_sql(contract: Contract) -> str:
    """A features.sql without features, and a commented example of one."""
    entity, time = (name(one_line(k or d)) for k, d in ((contract.entity, "your entity"), (contract.time, "your event time")))
    keys = "".join(f", {name(one_line(k))}" for k in (contract.entity, contract.time) if k)
    return FEATURES.format(keys=keys, entity=entity, time=time)


def one_line(column: str) -> str:
    """A name without line ends, for a comment."""
    return " ".join(column.split())


def metric_of(contract: Contract) -> str:
    """What models are ranked by: average precision where accuracy is useless, the usual measure elsewhere."""
    if contract.task == "regression":
        return "rmse"
    shares = [n / contract.target.present for n in contract.target.counts.values()]
    if contract.task == "multiclass":
        return "f1_macro" if max(shares) > 1 - RARE else "accuracy"
    share = contract.target.counts[contract.positive] / contract.target.present
    return "average_precision" if min(share, 1 - share) < RARE else "roc_auc"


def framing_of(contract: Contract) -> dict[str, Any]:
    """The keys of the framing section that the table decides."""
    return {
        "task": contract.task,
        "target": contract.target.name,
        "positive": contract.positive,
        "metric": metric_of(contract),
        "objective": "squared_error" if contract.task == "regression" else "log_loss",
        "entity": contract.entity,
        "time": contract.time,
        "inputs": contract.inputs,
    }


def split_of(contract: Contract) -> str:
    """How rows are divided: by time where there is one, else by entity, else at random."""
    return "time" if contract.time else "group" if contract.entity else "random"


class Document:
    """params.yaml with its comments, changed in place."""

    def __init__(self, text: str) -> None:
        self.yaml = YAML()
        self.yaml.preserve_quotes, self.yaml.width, self.yaml.allow_unicode = True, 4096, True
        self.tree = self.yaml.load(text)

    def text(self) -> str:
        """The whole file."""
        out = io.StringIO()
        self.yaml.dump(self.tree, out)
        return out.getvalue()

    def put(self, path: str, value: Any, comment: str | None = None) -> None:
        """Set one value; an unchanged one keeps everything, a changed one gets the comment, if there is one."""
        *parents, key = path.split(".")
        tree = self.tree
        for parent in parents:
            tree = tree[parent]
        if key in tree and plain(tree[key]) == plain(value):
            return
        if value is None and key not in ("sample", "threshold"):
            tree.pop(key, None)
            return
        if key in tree:
            tree[key] = styled(value)
        else:
            tree.insert(1 + max((i for i, k in enumerate(tree) if k in ("target", "positive")), default=len(tree) - 1), key, styled(value))
        if comment is not None:
            _comment(tree, key, comment)


def _comment(tree: CommentedMap, key: str, words: str) -> None:
    """Replace the comment behind a value, but not what stands on the lines below it."""
    token = (tree.ca.items.get(key) or [None] * 4)[2]
    if token is not None:
        below = token.value[token.value.index("\n") :] if "\n" in token.value else ""
        token.value = (f"# {words}" if words else "") + below
    elif words:
        tree.yaml_add_eol_comment(words, key)


def plain(value: Any) -> Any:
    """A value as safe YAML would read it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, str) else float(value) if isinstance(value, float) else value


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


def write_framing(document: Document, contract: Contract, labels: list[str] | None) -> None:
    """The framing section; units and descriptions that the user gave to inputs stay, and comments behind them."""
    why = "The positive label is rare, so accuracy would reward doing nothing." if metric_of(contract) == "average_precision" else SAY
    keys = framing_of(contract) | {"labels": labels, "label_time": None}
    comments = {"positive": "the rarer label, unless --positive says otherwise", "metric": "what models are ranked by",
                "labels": "rows with other labels are left out: too few to split"}  # fmt: skip
    old = document.tree["framing"]["inputs"]
    had = {str(i["name"]): (i, old.ca.items.get(n)) for n, i in enumerate(old)}
    keys["inputs"] = [i | {k: plain(had[i["name"]][0][k]) for k in ("unit", "describes") if k in had.get(i["name"], ({},))[0]} for i in contract.inputs]
    if document.tree["framing"]["target"] != contract.target.name or document.tree["framing"]["task"] != contract.task:
        keys |= {"why": f"Adopted from a table. {why}", "unit": None}
    for key, value in keys.items():
        document.put(f"framing.{key}", value, comments.get(key, ""))
    for place, made in enumerate(contract.inputs):
        if comment := had.get(made["name"], (None, None))[1]:
            document.tree["framing"]["inputs"].ca.items[place] = comment


def write_rest(document: Document, contract: Contract, settings: Mapping[str, Any], demo: bool) -> None:
    """What other sections must say about the table; of the demo's, everything that told its story."""
    if demo:
        for path, value in (_no_story(contract) | {k: v for k, v in settings.items() if k.startswith("demo:")}).items():
            document.put(path.removeprefix("demo:"), value, "")
    for path, value in settings.items():
        if not path.startswith("demo:"):
            document.put(path, *value) if isinstance(value, tuple) else document.put(path, value)


def _no_story(contract: Contract) -> dict[str, Any]:
    """Neutral words where the demo spoke of its own business."""
    target, rows = contract.target.name, contract.target.present
    return {
        "requirements.goal": f"Predict {one_line(target)}",
        "requirements.owner": "to be named",
        "requirements.users": ["to be named"],
        "requirements.stakeholders": [],
        "requirements.guard_rails": [],
        "requirements.scale.training_rows": rows,
        "requirements.label_delay_days": 0,
        "requirements.constraints.personal_columns": [],
        **{f"requirements.constraints.{k}": SAY for k in ("privacy", "interpretability", "human_in_the_loop")},
        "framing.questions.is_there_a_pattern": {"answer": True, "because": "Assumed; the gate of step 5 closes when there is none."},
        "framing.questions.is_there_enough_data": {"answer": True, "because": f"{rows:,} rows with a target."},
        "framing.questions.would_rules_be_too_complex": {"answer": True, "because": "Assumed; step 5 compares with a few rules."},
        "framing.questions.must_it_generalize_to_unseen_cases": {"answer": True, "because": "New rows are unlike the old ones."},
        "framing.questions.is_interpretability_critical": {"answer": False, "because": SAY},
        "evaluation.experiment": {"smallest_effect": 0.02, "kpi_std": 1.0, "significance": 0.05, "power": 0.8, "challenger_share": 0.5},
    }


def requirements_of(contract: Contract, baseline: float, bound: float) -> dict[str, Any]:
    """Quality "better than the baseline", and a KPI that stands for one to be named."""
    metric = metric_of(contract)
    side = "at_least" if HIGHER_IS_BETTER[metric] else "at_most"
    today = float(f"{baseline:.4g}")
    return {
        "requirements.quality": [{"metric": metric, side: bound, "unit": UNIT[metric], "baseline": today}],
        "requirements.lift_over_baseline": 0.0,
        "requirements.kpi": {
            "name": "the KPI, to be named", "unit": "its unit", "baseline": 0.0, "target": 1.0, "better": "higher",
            "moved_by": {"metric": metric, "today": today, "effect_per_unit": 1.0 if side == "at_least" else -1.0, "because": SAY},
        },
        "evaluation.slices.metric": {"regression": "rmse", "binary": "roc_auc", "multiclass": "accuracy"}[contract.task],
    }  # fmt: skip


def stale_metrics(params: Mapping[str, Any], contract: Contract) -> bool:
    """Whether requirements ask for metrics that do not measure this task."""
    asked = [t["metric"] for group in ("quality", "guard_rails") for t in params["requirements"][group]]
    known = METRICS_OF[contract.task]
    return any(m not in known for m in (*asked, params["requirements"]["kpi"]["moved_by"]["metric"], params["evaluation"]["slices"]["metric"]))


def slices_of(contract: Contract) -> list[str]:
    """The two inputs whose values make the fewest and largest groups."""
    few = [i for i in contract.inputs if 2 <= len(i.get("values", ())) <= 6]
    return [i["name"] for i in sorted(few, key=lambda i: len(i["values"]))[:2]]


def label_keys(contract: Contract) -> dict[str, int]:
    """Rows per label, by the label's text."""
    return {as_text(v) or str(v): n for v, n in contract.target.counts.items()} if contract.labels else {}
