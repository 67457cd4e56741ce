"""What was shown and chosen before a moment, with what is known of each outcome besides who and what it was.

Legend: N impressions that are read, A activities, K negatives per activity, P outcomes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl

from jobs.features.log import OUTCOMES, EventLog

ONE_IN = 5  # impressions without a click that are read, each counting for so many
NEGATIVES = 8  # per activity
SWEEPS = 3  # over all factors of a rate
# Precision of one factor of a rate around the others, in logits: a deviation of 0.45.
FACTOR_PRIOR = 5.0


class OutcomeRows(NamedTuple):
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


class Read(NamedTuple):
    """What a moment knows of outcomes.

    rows: the outcomes; user_rates [U], item_rates [I], float32: how much likelier a click is with this user or item, in
    logits, given the context and the other side. 0 for whom nothing was shown to, and for what was not shown.
    """

    rows: OutcomeRows
    user_rates: np.ndarray
    item_rates: np.ndarray


@dataclass(frozen=True)
class OutcomeReader:
    """Reads the outcomes of the time before a moment, as they were known at it.

    Attributes
    ----------
    reach
        How far back they are read.
    half_life
        After it an outcome counts half.
    users, items
        Codes of the users and items that count, ascending.
    """

    log: EventLog
    as_of: datetime
    reach: timedelta
    half_life: timedelta
    users: np.ndarray
    items: np.ndarray

    def read(self, activity: Collection[str]) -> Read:
        """Return impressions, and beside them activities of these types, less those that are an impression's outcome.

        Of impressions without a click one in `ONE_IN` is read. Its offset adds up the rates of its context, its user
        and its item, which do not fade: who clicks much does so for long. An activity stands beside `NEGATIVES` items
        that others turned to on the same day, as often as they did: where each is as likely as all of them together,
        popularity cancels out.
        """
        shown, *rates = self._impressions()
        parts = zip(shown, self._activities(set(activity) - set(OUTCOMES)), strict=True)
        user, item, *rest = (np.concatenate(pair) for pair in parts)
        rows = OutcomeRows(
            user.astype(np.int64), item.astype(np.int64), *(values.astype(np.float32) for values in rest)
        )
        return Read(rows, *(values.astype(np.float32) for values in rates))

    def _impressions(self) -> tuple[OutcomeRows, np.ndarray, np.ndarray]:
        clicks = (
            self._events()
            .filter((pl.col("event_type") == "click") & pl.col("impression_id").is_not_null())
            .select("impression_id")
            .unique()
            .with_columns(clicked=pl.lit(True))
        )
        shown = (
            self._events()
            .filter(pl.col("event_type") == "impression")
            .join(clicks, on="impression_id", how="left", maintain_order="left")
            .with_columns(pl.col("clicked").fill_null(False))
            .filter(pl.col("clicked") | (pl.col("impression_id").hash(seed=0) % ONE_IN == 0))
        )
        context = self.log.context_columns.categorical
        rows = self._placed(shown, "clicked", "weight", *context)
        user, item, clicked = rows["user"].to_numpy(), rows["item"].to_numpy(), rows["clicked"].to_numpy()
        stands_for = rows["weight"].to_numpy() * np.where(clicked, 1.0, ONE_IN)
        factors = [*(_numbered(rows[name]) for name in context), user, item]
        sizes = [*(int(values.max(initial=-1)) + 1 for values in factors[:-2]), len(self.users), len(self.items)]
        offset, coefficients = additive_logits(clicked, stands_for, factors, sizes)
        outcomes = OutcomeRows(user, item, clicked, offset, stands_for * self._fading(rows), np.ones(len(rows)))
        return outcomes, coefficients[-2], coefficients[-1]

    def _activities(self, kinds: Collection[str]) -> OutcomeRows:
        """Return activities and then their negatives [A + A * K]."""
        rows = self._placed(self._events().filter(pl.col("event_type").is_in(kinds)))
        user, item, weight = rows["user"].to_numpy(), rows["item"].to_numpy(), self._fading(rows)
        day = rows["event_timestamp"].dt.epoch("d").to_numpy()
        rng = np.random.default_rng(int(self.as_of.timestamp()))
        # A log lies by time, so the activities of a day are side by side.
        first, last = np.searchsorted(day, day, side="left"), np.searchsorted(day, day, side="right")
        drawn = [item[first + (rng.random(len(item)) * (last - first)).astype(np.int64)] for _ in range(NEGATIVES)]
        count, copies = len(item), NEGATIVES + 1
        happened, offset = np.repeat([True] + [False] * NEGATIVES, count), np.full(count * copies, -np.log(NEGATIVES))
        beside, weights = np.concatenate([item, *drawn]), np.tile(weight, copies)
        return OutcomeRows(np.tile(user, copies), beside, happened, offset, weights, np.zeros(count * copies))

    def _events(self) -> pl.LazyFrame:
        return self.log.window(self.as_of - self.reach, self.as_of)

    def _placed(self, events: pl.LazyFrame, *columns: str) -> pl.DataFrame:
        """Return the time and some columns of the events whose user and item count, with the positions of both."""
        found = self.log.coded(events).select("event_timestamp", "user_code", "item_code", *columns).collect()
        for entity, codes in (("user", self.users), ("item", self.items)):
            places = pl.DataFrame({f"{entity}_code": codes}, schema={f"{entity}_code": pl.Int64}).with_row_index(entity)
            found = found.join(places, on=f"{entity}_code", how="inner", maintain_order="left")
        return found.with_columns(pl.col("user", "item").cast(pl.Int64))

    def _fading(self, events: pl.DataFrame) -> np.ndarray:
        age_us = int(self.as_of.timestamp() * 1_000_000) - events["event_timestamp"].dt.epoch("us").to_numpy()
        return np.exp2(-age_us / (self.half_life / timedelta(microseconds=1)))


def _numbered(values: pl.Series) -> np.ndarray:
    """Return the values of a column as integers from 0 on; what is missing is a value too."""
    return values.cast(pl.String).fill_null("").cast(pl.Categorical).to_physical().cast(pl.Int64).to_numpy()


def additive_logits(
    happened: np.ndarray, weight: np.ndarray, factors: list[np.ndarray], sizes: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return logits [N] of a logistic regression on factors alone, and of each factor one coefficient per value.

    Parameters
    ----------
    happened, weight
        bool and float [N].
    factors
        Per factor the value of each row, integers from 0 on [N].
    sizes
        Per factor how many values there are; the coefficient of one that no row has is 0.
    """
    mean = float(np.clip(np.average(happened, weights=weight), 1e-6, 1 - 1e-6)) if len(happened) else 0.5
    logit = np.full(len(happened), np.log(mean / (1 - mean)))
    coefficients = [np.zeros(size) for size in sizes]
    for _ in range(SWEEPS):
        for values, own in zip(factors, coefficients, strict=True):
            chance = 1 / (1 + np.exp(-logit))
            gradient = np.bincount(values, weight * (happened - chance), len(own)) - FACTOR_PRIOR * own
            step = gradient / (np.bincount(values, weight * chance * (1 - chance), len(own)) + FACTOR_PRIOR)
            own += step
            logit += step[values]
    return logit, coefficients
