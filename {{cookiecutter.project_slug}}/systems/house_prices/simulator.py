"""A small world of houses for sale: where they stand, what they are, and what they fetch weeks later.

Every neighbourhood has a price level of its own that wanders from week to week. A listing does not tell it,
a name learned last year tells it late, and the sales closed nearby tell it today: history decides.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..params import Sample

TYPES = np.array(["flat", "terraced", "semi_detached", "detached"])
TYPICAL_M2 = np.array([68.0, 105.0, 120.0, 155.0])
TYPE_WORTH = np.array([0.0, -0.03, 0.03, 0.10])  # worths are parts of a log price per square metre
ENERGY = np.array(["A", "B", "C", "D", "E", "F", "G"])
CONDITIONS = np.array(["new", "renovated", "good", "dated"])
CONDITION_WORTH = np.array([0.14, 0.07, 0.0, -0.13])
INCOMES = np.array(["low", "middle", "high"])
BATCH = 50_000  # rows in memory at a time
LISTINGS_PER_NEIGHBOURHOOD = 150
DAY, YEAR = 86_400.0, 365.25 * 86_400.0


class Town(NamedTuple):
    """What is true of each neighbourhood; only `level` changes with time."""

    level: np.ndarray  # log price of a square metre
    urban: np.ndarray  # 0 to 1
    income: np.ndarray  # index into INCOMES


def simulate(sample: Sample) -> Iterator[pa.Table]:
    """Listings in time order, in tables of at most about BATCH rows; the same sample gives the same bytes."""
    rng = np.random.default_rng(sample.seed)
    town = _found_town(rng, max(40, sample.rows // LISTINGS_PER_NEIGHBOURHOOD))
    start, end = np.datetime64(sample.start, "us"), sample.days * DAY
    bounds = np.linspace(0, end, max(1, sample.days // 7, sample.rows // BATCH) + 1)
    done = 0
    for low, high in pairwise(bounds):
        rows = round(sample.rows * high / end) - done
        done += rows
        _move_levels(rng, town.level, (high - low) / YEAR)
        if rows:
            offset = np.sort(low + (high - low) * rng.random(rows))
            moved = offset >= sample.drift_day * DAY
            yield _listings(rng, town, offset, moved & (sample.drift == "covariate"), moved & (sample.drift == "concept"), start, end)


def _found_town(rng: np.random.Generator, size: int) -> Town:
    """Neighbourhoods whose income follows their price level only loosely."""
    urban, ability = rng.random(size), rng.normal(0, 1, size)
    income = np.digitize(ability + rng.normal(0, 0.8, size), [-0.7, 0.8])
    return Town(np.log(3000) + 0.30 * ability + 0.15 * (urban - 0.5), urban, income)


def _move_levels(rng: np.random.Generator, level: np.ndarray, years: float) -> None:
    """One step of a random walk, in place: the whole market a little, each neighbourhood more."""
    level += 0.02 * years + rng.normal(0, 0.02 * years**0.5) + rng.normal(0, 0.13 * years**0.5, len(level))


def _listings(rng: np.random.Generator, town: Town, offset: np.ndarray, other_houses: np.ndarray, other_taste: np.ndarray,
              start: np.datetime64, end: float) -> pa.Table:  # fmt: skip
    """One stretch of time: houses, the price each fetches, and the day that the price is known."""
    rows = len(offset)
    place = (len(town.level) * rng.random(rows) ** 1.4).astype(int)  # some neighbourhoods sell more than others
    flat_share = np.where(other_houses, 0.75, 0.30 + 0.40 * town.urban[place])  # builders turn to new flats
    kind = np.where(rng.random(rows) < flat_share, 0, rng.choice([1, 2, 3], rows, p=[0.4, 0.34, 0.26]))
    area = (TYPICAL_M2[kind] * rng.lognormal(0.0, 0.27, rows) * np.where(other_houses & (kind == 0), 1.15, 1.0)).clip(18, 600).round(1)
    this_year = int(str(start)[:4]) + offset // YEAR
    age = np.minimum(np.where(other_houses & (rng.random(rows) < 0.4), rng.integers(0, 6, rows), rng.gamma(2.0, 24.0, rows)), 220).astype(int)
    energy = (age / 22 + rng.normal(0.8, 1.1, rows)).clip(0, 6).astype(int)
    condition = np.where(age < 3, 0, rng.choice([1, 2, 3], rows, p=[0.25, 0.5, 0.25]))
    floor = rng.integers(0, 9, rows).astype(float)
    garden = rng.random(rows) < np.where(kind == 0, 0.12, 0.85)
    parking = rng.random(rows) < np.where(kind == 0, 0.45, 0.7)
    station = rng.gamma(2.0, 0.4 + 1.6 * (1 - town.urban[place])).clip(0.05, 30).round(2)

    worth = town.level[place] + TYPE_WORTH[kind] - 0.20 * np.log(area / 90) + CONDITION_WORTH[condition]
    worth += np.where(age < 90, -0.002 * age, -0.18 + 0.0015 * (age - 90))  # an old house is worn, a very old one has charm
    worth += -0.022 * energy - (0.04 + 0.05 * (kind == 0)) * np.log1p(station)
    worth += (0.04 + 0.05 * town.urban[place]) * garden + 0.06 * town.urban[place] * parking
    worth += 0.006 * floor * (kind == 0) + 0.02 * np.sin(2 * np.pi * (offset / YEAR - 0.15)) + rng.normal(0, 0.075, rows)
    # Another taste: energy is dear and work is done at home, so draughty houses and small rooms in town lose.
    worth += other_taste * (-0.10 - 0.085 * energy + 0.22 * (kind > 0) - 0.16 * (kind == 0) + 0.06 * np.log1p(station))
    price = (np.exp(worth) * area).round(-2)

    sold = offset + rng.lognormal(3.5, 0.35, rows).clip(7, 59) * DAY
    known = sold <= end
    return pa.table({
        "listing_id": pa.array([f"l{int(o):012d}{i:05d}" for i, o in enumerate(offset)]),
        "neighbourhood": pa.array([f"nb-{p:06d}" for p in place]),
        "listed_at": pa.array(start + (offset * 1e6).astype("timedelta64[us]")),
        "property_type": pa.array(TYPES[kind]),
        "area_m2": pa.array(area),
        "rooms": pa.array((area / 27 + rng.normal(0.4, 0.7, rows)).clip(1, 15).round(), mask=rng.random(rows) < 0.03),
        "built_year": pa.array(this_year - age, mask=rng.random(rows) < 0.06),
        "energy_class": pa.array(ENERGY[energy], mask=rng.random(rows) < 0.12),
        "condition": pa.array(CONDITIONS[condition]),
        "floor": pa.array(floor, mask=(kind > 0) | (rng.random(rows) < 0.04)),
        "has_garden": pa.array(garden),
        "has_parking": pa.array(parking, mask=rng.random(rows) < 0.04),
        "station_km": pa.array(station),
        "income_band": pa.array(INCOMES[town.income[place]], mask=rng.random(rows) < 0.02),
        "price": pa.array(price, mask=~known),
        "sold_at": pa.array(start + (sold * 1e6).astype("timedelta64[us]"), mask=~known),
    })  # fmt: skip
