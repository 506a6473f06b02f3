"""The online test: how many users and days it needs, and what its results say."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ..params import Experiment
from ..step1_requirements.checks import StepFailed

ARMS = ("champion", "challenger")
SRM_ALARM = 0.001  # usual level for a sample-ratio check (Fabijan et al. 2019)


@dataclass(frozen=True)
class Design:
    """How large the online test must be."""

    champion_units: int
    challenger_units: int
    days: float


def design(settings: Experiment, requests_per_day: float) -> Design:
    """Units per arm that show the smallest effect worth having, by the two-sided z test of means."""
    z = stats.norm.ppf(1 - settings.significance / 2) + stats.norm.ppf(settings.power)
    share = settings.challenger_share
    total = (z * settings.kpi_std / settings.smallest_effect) ** 2 * (1 / share + 1 / (1 - share))
    challenger, champion = math.ceil(total * share), math.ceil(total * (1 - share))
    return Design(champion, challenger, (champion + challenger) / requests_per_day)


@dataclass(frozen=True)
class Analysis:
    """What the results say; `effect` is challenger minus champion, per unit of the KPI."""

    champion_units: int
    challenger_units: int
    sample_ratio_p: float
    effect: float
    low: float
    high: float
    p_value: float
    verdict: str


def analyse(settings: Experiment, values: Mapping[str, Sequence[float]], better: str) -> Analysis:
    """Test the difference between the arms (Welch), given one value of the KPI per unit; see `read_results`.

    Raises:
        StepFailed: when an arm has fewer than two units.
    """
    short = [arm for arm in ARMS if len(values[arm]) < 2]
    if short:
        raise StepFailed(f"experiment: {short[0]} has fewer than two units with a result; wait for more")
    a, b = (np.asarray(values[arm]) for arm in ARMS)
    expected = [(len(a) + len(b)) * s for s in (1 - settings.challenger_share, settings.challenger_share)]
    ratio_p = float(stats.chisquare([len(a), len(b)], expected).pvalue)
    test = stats.ttest_ind(b, a, equal_var=False)
    low, high = (float(v) for v in test.confidence_interval(1 - settings.significance))
    effect = float(b.mean() - a.mean())
    gain_low, gain_high = (low, high) if better == "higher" else (-high, -low)
    if ratio_p < SRM_ALARM:
        verdict = "invalid: the arms are not as large as planned, so mend the assignment and start again"
    elif gain_low > 0:
        verdict = "the challenger is better: promote it"
    elif gain_high < 0:
        verdict = "the challenger is worse: keep the champion"
    else:
        verdict = "no difference beyond noise: keep the champion, or run longer"
    return Analysis(len(a), len(b), ratio_p, effect, low, high, float(test.pvalue), verdict)


def read_results(path: Path) -> dict[str, list[float]]:
    """Read a CSV with the columns arm (champion or challenger) and kpi, one row per unit.

    Raises:
        StepFailed: when the file lacks a column or holds another arm or a KPI that is no number.
    """
    values: dict[str, list[float]] = {arm: [] for arm in ARMS}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                if row["arm"] not in values:
                    raise StepFailed(f"{path} line {line}: arm is {row['arm']!r}; it must be champion or challenger")
                if not math.isfinite(kpi := float(row["kpi"])):
                    raise StepFailed(f"{path} line {line}: kpi is {row['kpi']!r}, which is no number; mend it, or leave the row out")
                values[row["arm"]].append(kpi)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StepFailed(f"{path}: {error}; give a CSV with the columns arm and kpi, one row per unit") from None
    return values
