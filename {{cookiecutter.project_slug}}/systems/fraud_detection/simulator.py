"""A small world of card payments: who pays, who steals, and when the charge-back comes.

A stolen card is used several times within an hour or two, for more than its owner spends;
an owner sometimes shops in a burst too. So single payments tell little and history tells a lot.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ..params import Sample

CATEGORIES = np.array(["groceries", "fuel", "restaurants", "travel", "electronics", "fashion", "pharmacy", "games", "gift_cards", "utilities"])
HONEST_MIX = np.array([0.28, 0.12, 0.16, 0.04, 0.06, 0.09, 0.08, 0.05, 0.02, 0.10])
STOLEN_MIX = np.array([0.08, 0.04, 0.05, 0.10, 0.27, 0.12, 0.03, 0.13, 0.16, 0.02])
CHANNELS = np.array(["chip", "contactless", "online", "recurring"])
COUNTRIES = np.array(["home", "neighbour", "abroad"])
AGES = np.array(["18-25", "26-40", "41-65", "66+"])
HOURS = np.array([1, 1, 1, 1, 1, 2, 4, 7, 9, 9, 9, 11, 12, 10, 9, 9, 10, 12, 12, 10, 8, 6, 4, 2], dtype=float)
BATCH = 50_000  # rows in memory at a time
PAYMENTS_PER_CARD = 40
DAY = 86_400.0


def simulate(sample: Sample) -> Iterator[pa.Table]:
    """Payments in time order, in tables of at most about BATCH rows; the same sample gives the same bytes."""
    rng = np.random.default_rng(sample.seed)
    cards = max(50, sample.rows // PAYMENTS_PER_CARD)
    spend = rng.lognormal(3.1, 0.6, cards)
    age = rng.choice(4, cards, p=[0.17, 0.33, 0.36, 0.14])
    start, end = np.datetime64(sample.start, "us"), sample.days * DAY
    bounds = np.linspace(0, end, max(sample.days, sample.rows // BATCH) + 1)
    done = 0
    for low, high in pairwise(bounds):
        rows = round(sample.rows * high / end) - done
        done += rows
        moved = sample.drift if low >= sample.drift_day * DAY else "none"
        if rows:
            yield _payments(rng, rows, low, high, spend, age, moved, start, end)


def _payments(rng: np.random.Generator, rows: int, low: float, high: float, spend: np.ndarray, age: np.ndarray,
              moved: str, start: np.datetime64, end: float) -> pa.Table:  # fmt: skip
    """One stretch of time: honest payments, honest bursts and stolen cards, mixed."""
    kind = rng.choice(3, rows, p=[0.955, 0.018, 0.027])  # alone, honest burst, stolen
    card, offset = rng.integers(0, len(spend), rows), _time_of_day(rng, rows, low, high)
    for burst in (1, 2):  # payments of a burst share a card and an hour or two
        members = np.flatnonzero(kind == burst)
        slow = burst == 2 and moved == "concept"
        leader = members[np.arange(len(members)) // (1 if slow else 4) * (1 if slow else 4)]
        card[members] = card[leader]
        offset[members] = np.minimum(offset[leader] + rng.exponential(1500.0, len(members)) * (members != leader), high - 1)
    stolen = kind == 2
    amount = spend[card] * rng.lognormal(0.0, 0.7, rows) * np.where(stolen, rng.lognormal(0.75, 0.5, rows), 1.0)
    category = np.where(stolen, rng.choice(10, rows, p=STOLEN_MIX), rng.choice(10, rows, p=HONEST_MIX))
    online = np.where(stolen, 0.68, 0.30)
    if moved == "covariate":  # other customers: they spend more, online and abroad
        amount *= np.where(stolen, 1.0, 1.6)
        online = np.where(stolen, 0.68, 0.55)
    if moved == "concept":  # other thieves: one quiet purchase of what everybody buys, at the counter
        amount = np.where(stolen, spend[card] * rng.lognormal(1.4, 0.3, rows), amount)
        category = np.where(stolen, rng.choice([0, 1, 6], rows), category)
        online = np.where(stolen, 0.05, online)
    channel = np.where(rng.random(rows) < online, 2, rng.choice([0, 1, 3], rows, p=[0.42, 0.46, 0.12]))
    country = np.where(rng.random(rows) < np.where(stolen, 0.30, 0.05), 2, rng.choice(2, rows, p=[0.92, 0.08]))
    device = np.where(stolen, rng.exponential(120.0, rows), rng.exponential(420.0, rows)).clip(0, 4000).round(1)
    order = np.argsort(offset, kind="stable")
    settled = offset + np.where(stolen, rng.lognormal(2.2, 0.5, rows).clip(1, 29), 30.0) * DAY
    known = settled <= end
    columns = {
        "payment_id": pa.array([f"p{int(o):012d}{i:05d}" for i, o in enumerate(offset)]),
        "card_id": pa.array([f"card-{c:07d}" for c in card]),
        "paid_at": pa.array(start + (offset * 1e6).astype("timedelta64[us]")),
        "amount": pa.array(amount.clip(0.5, 20_000).round(2)),
        "merchant_category": pa.array(CATEGORIES[category]),
        "channel": pa.array(CHANNELS[channel]),
        "country": pa.array(COUNTRIES[country]),
        "device_age_days": pa.array(device, mask=(channel < 2) | (rng.random(rows) < 0.05)),
        "age_band": pa.array(AGES[age[card]], mask=rng.random(rows) < 0.03),
        "is_fraud": pa.array(stolen, mask=~known),
        "label_known_at": pa.array(start + (settled * 1e6).astype("timedelta64[us]"), mask=~known),
    }
    return pa.table(columns).take(order)


def _time_of_day(rng: np.random.Generator, rows: int, low: float, high: float) -> np.ndarray:
    """Seconds since the start within [low, high), following the hours of a day."""
    if high - low < DAY:
        return rng.uniform(low, high, rows)
    day = low + rng.integers(0, int((high - low) / DAY), rows) * DAY
    return day + (rng.choice(24, rows, p=HOURS / HOURS.sum()) + rng.random(rows)) * 3600
