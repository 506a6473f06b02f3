"""Writes the autoscaler's bounds and the alert rules into base, from what the requirements ask and the load test measured.

Run it after `run`: python deploy/kubernetes/from_requirements.py
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
UTILIZATION = 0.6  # of a core, at which the autoscaler adds a replica: scaling.yaml
LOWEST, HIGHEST = 2, 10  # times today's average: held at once, and after scaling


def bounds(per_replica: float, now: float, required: float, most: int) -> tuple[int, int]:
    """The lowest and highest number of replicas; all rates in requests a second.

    The lowest holds twice today's average and survives the loss of one; the highest holds ten times the
    average and the required throughput, and is two to ten times the lowest where `most` allows it.

    Raises:
        ValueError: when the requirement needs more than `most` replicas.
    """
    if not per_replica:
        raise ValueError("reports/6-deployment/load.json says that a replica answers nothing within the latencies; mend that first")
    low = max(2, math.ceil(LOWEST * now / (per_replica * UTILIZATION)))
    needed = math.ceil(max(HIGHEST * now, required) / (per_replica * UTILIZATION))
    if needed > most:
        raise ValueError(f"{needed} replicas are needed, but deployment.max_replicas is {most}; raise it, or make the service faster")
    return low, max(low, min(most, max(2 * low, min(needed, 10 * low))))


def main() -> int:
    """Write base/scaling.yaml and base/operator.yaml; 1 with a sentence when something is missing or cannot be."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    try:
        load = json.loads((ROOT / "reports/6-deployment/load.json").read_text(encoding="utf-8"))
        rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
        now = params["requirements"]["scale"]["requests_per_day_now"] / 86_400
        required, most = params["requirements"]["throughput_per_second"], params["deployment"]["max_replicas"]
        low, high = bounds(load["requests_per_second_per_replica"], now, required, most)
    except FileNotFoundError as error:
        print(f"{error.filename} is not here; run the seven steps first", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    scaling, operator = HERE / "base/scaling.yaml", HERE / "base/operator.yaml"
    text = scaling.read_text(encoding="utf-8")
    text = re.sub(r"minReplicas: \d+", f"minReplicas: {low}", text)
    scaling.write_text(re.sub(r"maxReplicas: \d+", f"maxReplicas: {high}", text), encoding="utf-8", newline="\n")
    head, _, _ = operator.read_text(encoding="utf-8").partition("spec:\n  groups:")
    groups = yaml.safe_dump({"spec": {"groups": rules["groups"]}}, sort_keys=False, allow_unicode=True, width=10_000)
    operator.write_text(head + groups, encoding="utf-8", newline="\n")
    print(f"{low} to {high} replicas; {sum(len(g['rules']) for g in rules['groups'])} rules")
    return 0


if __name__ == "__main__":
    sys.exit(main())
