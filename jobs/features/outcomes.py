"""What was shown and chosen before a moment, with what is known of each outcome besides who and what it was.

Legend: N impressions that are read, A activities, K negatives per activity, P outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from jobs.features.log import OUTCOMES, EventLog

ONE_IN = 5  # impressions without a click that are read, each counting for so many
NEGATIVES = 4  # per activity
SWEEPS = 3  # over all factors of a rate
# Precision of one factor of a rate around the others, in logits: a deviation of 0.45.
FACTOR_PRIOR = 5.0


@dataclass(frozen=True)
class OutcomeRows:
    """Outcomes [P] of known users and items.

    user, item int64: positions among the codes that were asked for; happened, offset, weight, rated float32 as in
    `models.upstream.fold_in_outcomes.Outcomes`.
    """

    user: np.ndarray
    item: np.ndarray
    happened: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    rated: np.ndarray


def outcome_rows(
    log: EventLog,
    as_of: datetime,
    *,
    reach: timedelta,
    half_life: timedelta,
    activity: tuple[str, ...],
    users: np.ndarray,
    items: np.ndarray,
) -> OutcomeRows:
    """Read the outcomes of the time `reach` before a moment, as they were known at it.

    Of impressions without a click one in `ONE_IN` is read. Its offset adds up the rates of its context, its user and
    its item. An activity stands beside `NEGATIVES` items that others turned to on the same day, as often as they did:
    where each is as likely as all of them together, popularity cancels out.

    Parameters
    ----------
    activity
        Event types that are read beside; those that are an outcome of an impression are left out.
    users, items
        Codes of the users and items that count, ascending.
    """
    shown = _impressions(log, as_of, reach)
    shown = _placed(shown, users, items)
    clicked = shown["clicked"].to_numpy()
    weight = shown["weight"].to_numpy() * _fading(shown, as_of, half_life) * np.where(clicked, 1.0, ONE_IN)
    context = [_numbered(shown[name]) for name in log.context_columns.categorical]
    factors = [*context, shown["user"].to_numpy(), shown["item"].to_numpy()]
    offset = additive_logits(clicked, weight, factors)
    rows = [shown["user"].to_numpy(), shown["item"].to_numpy(), clicked, offset, weight, np.ones(len(shown))]
    beside = _activities(log, as_of, reach, half_life, activity, users, items)
    joined = [np.concatenate(pair) for pair in zip(rows, beside, strict=True)]
    return OutcomeRows(*(values.astype(np.int64) for values in joined[:2]), *(v.astype(np.float32) for v in joined[2:]))


def _impressions(log: EventLog, as_of: datetime, reach: timedelta) -> pl.DataFrame:
    """Return all impressions with a click and one in `ONE_IN` of the others: time, codes, clicked, weight, context."""
    events = log.window(as_of - reach, as_of)
    clicks = (
        events.filter((pl.col("event_type") == "click") & pl.col("impression_id").is_not_null())
        .select("impression_id")
        .unique()
        .with_columns(clicked=pl.lit(True))
    )
    chosen = pl.col("clicked") | (pl.col("impression_id").hash(seed=0) % ONE_IN == 0)
    shown = (
        events.filter(pl.col("event_type") == "impression")
        .join(clicks, on="impression_id", how="left", maintain_order="left")
        .with_columns(pl.col("clicked").fill_null(False))
        .filter(chosen)
    )
    context = log.context_columns.categorical
    read = ("event_timestamp", "user_code", "item_code", "clicked", "weight")
    return log.coded(shown).select(*read, *context).collect()


def _activities(
    log: EventLog,
    as_of: datetime,
    reach: timedelta,
    half_life: timedelta,
    activity: tuple[str, ...],
    users: np.ndarray,
    items: np.ndarray,
) -> list[np.ndarray]:
    """Return the columns of `OutcomeRows` for activities and their negatives [A + A * K]."""
    wanted = [name for name in activity if name not in OUTCOMES]
    events = log.window(as_of - reach, as_of).filter(pl.col("event_type").is_in(wanted))
    seen = log.coded(events).select("event_timestamp", "user_code", "item_code").collect()
    seen = _placed(seen, users, items).sort("event_timestamp", maintain_order=True)
    user, item, weight = seen["user"].to_numpy(), seen["item"].to_numpy(), _fading(seen, as_of, half_life)
    day = seen["event_timestamp"].dt.epoch("d").to_numpy()
    rng = np.random.default_rng(int(as_of.timestamp()))
    # Activities lie by time, so those of a day side by side.
    first, last = np.searchsorted(day, day, side="left"), np.searchsorted(day, day, side="right")
    drawn = [item[first + (rng.random(len(item)) * (last - first)).astype(np.int64)] for _ in range(NEGATIVES)]
    copies, count = NEGATIVES + 1, len(item)
    happened, beside = np.repeat([True] + [False] * NEGATIVES, count), np.concatenate([item, *drawn])
    offset, rated = np.full(count * copies, -np.log(NEGATIVES)), np.zeros(count * copies)
    return [np.tile(user, copies), beside, happened, offset, np.tile(weight, copies), rated]


def _numbered(values: pl.Series) -> np.ndarray:
    """Return the values of a column as integers from 0 on; what is missing is a value too."""
    return values.cast(pl.String).fill_null("").cast(pl.Categorical).to_physical().cast(pl.Int64).to_numpy()


def _placed(events: pl.DataFrame, users: np.ndarray, items: np.ndarray) -> pl.DataFrame:
    """Keep events of the users and items that count, with their positions."""
    for entity, codes in (("user", users), ("item", items)):
        places = pl.DataFrame({f"{entity}_code": codes}, schema={f"{entity}_code": pl.Int64}).with_row_index(entity)
        events = events.join(places, on=f"{entity}_code", how="inner", maintain_order="left")
    return events.with_columns(pl.col("user", "item").cast(pl.Int64))


def _fading(events: pl.DataFrame, as_of: datetime, half_life: timedelta) -> np.ndarray:
    age_us = int(as_of.timestamp() * 1_000_000) - events["event_timestamp"].dt.epoch("us").to_numpy()
    return np.exp2(-age_us / (half_life / timedelta(microseconds=1)))


def additive_logits(happened: np.ndarray, weight: np.ndarray, factors: list[np.ndarray]) -> np.ndarray:
    """Return logits [N] of a logistic regression on factors alone, each value of which has one coefficient.

    Parameters
    ----------
    happened, weight
        bool and float [N].
    factors
        Per factor the value of each row, integers from 0 on [N].
    """
    mean = float(np.clip(np.average(happened, weights=weight), 1e-6, 1 - 1e-6)) if len(happened) else 0.5
    logit = np.full(len(happened), np.log(mean / (1 - mean)))
    coefficients = [np.zeros(int(values.max(initial=-1)) + 1) for values in factors]
    for _ in range(SWEEPS):
        for values, own in zip(factors, coefficients, strict=True):
            chance = 1 / (1 + np.exp(-logit))
            gradient = np.bincount(values, weight * (happened - chance), len(own)) - FACTOR_PRIOR * own
            step = gradient / (np.bincount(values, weight * chance * (1 - chance), len(own)) + FACTOR_PRIOR)
            own += step
            logit += step[values]
    return logit
