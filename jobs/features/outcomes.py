"""What was shown, chosen and bought before a moment, with what is known of each outcome besides who and what it was.

Legend: N impressions or clicks that are read, A activities, K negatives per activity, P outcomes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl

from jobs.features.labels import first_outcomes
from jobs.features.log import OUTCOMES, EventLog

ONE_IN = 5  # impressions without a click that are read, each counting for so many
NEGATIVES = 8  # per activity
SWEEPS = 3  # over all factors of a rate
# Precision of one factor of a rate around the others, in logits: a deviation of 0.45.
FACTOR_PRIOR = 5.0
AGES = (1, 2, 4, 8, 16, 32)  # of clicks, in days: what follows them takes its time


class OutcomeRows(NamedTuple):
    """Outcomes [P] of known users and items.

    user, item int64: positions among the codes that were asked for; happened, offset, weight, rated, age float32 as in
    `models.upstream.outcomes.Outcomes`.
    """

    user: np.ndarray
    item: np.ndarray
    happened: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    rated: np.ndarray
    age: np.ndarray


class Read(NamedTuple):
    """What a moment knows of outcomes.

    rows: the outcomes; user_rates [U], item_rates [I], float32: how much likelier it happens with this user or item, in
    logits, given the context and the other side. 0 for whom and for what nothing could happen.
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
    users, items
        Codes of the users and items that count, ascending.
    """

    log: EventLog
    as_of: datetime
    reach: timedelta
    users: np.ndarray
    items: np.ndarray

    def clicks(self, activity: Collection[str]) -> Read:
        """Return impressions, and beside them activities of these types, less those that are an impression's outcome.

        Of impressions without a click one in `ONE_IN` is read. Its offset adds up the rates of its context, its user
        and its item, which do not fade: who clicks much does so for long. An activity stands beside `NEGATIVES` items
        that others turned to on the same day, as often as they did: where each is as likely as all of them together,
        popularity cancels out.
        """
        clicked = self._clicked().unique().with_columns(happened=pl.lit(True))
        shown = (
            self._opportunities()
            .join(clicked, on="impression_id", how="left", maintain_order="left")
            .with_columns(pl.col("happened").fill_null(False))
            .filter(pl.col("happened") | (pl.col("impression_id").hash(seed=0) % ONE_IN == 0))
            .with_columns(weight=pl.col("weight").cast(pl.Float64) * pl.when("happened").then(1.0).otherwise(ONE_IN))
        )
        read = self._rated(shown)
        activities = self._activities(set(activity) - set(OUTCOMES))
        rows = OutcomeRows(*(np.concatenate(pair) for pair in zip(read.rows, activities, strict=True)))
        return read._replace(rows=rows)

    def conversions(self, kinds: Collection[str]) -> Read:
        """Return clicks; it happened where an event of these types followed.

        The offset of a click adds up the rates of its context, its age, its user and its item. A click of today has
        not seen all that will follow it, which is nobody's fault: its age says so.
        """
        followed = first_outcomes(self._events(), kinds).select("impression_id").with_columns(happened=pl.lit(True))
        age = (pl.lit(self.as_of) - pl.col("event_timestamp")).dt.total_days()
        opportunities = (
            self._opportunities()
            .join(self._clicked(), on="impression_id", how="semi", maintain_order="left")
            .join(followed, on="impression_id", how="left", maintain_order="left")
            .with_columns(pl.col("happened").fill_null(False), age=pl.sum_horizontal(age >= least for least in AGES))
        )
        return self._rated(opportunities, "age")

    def _clicked(self) -> pl.LazyFrame:
        tied = (pl.col("event_type") == "click") & pl.col("impression_id").is_not_null()
        return self._events().filter(tied).select("impression_id")

    def _opportunities(self) -> pl.LazyFrame:
        return self._events().filter(pl.col("event_type") == self.log.record.opportunity)

    def _rated(self, opportunities: pl.LazyFrame, *factors: str) -> Read:
        """Return opportunities, `happened` and `weight` given, with what context, user, item and more add up to."""
        context = (*self.log.context_columns.categorical, *factors)
        rows = self._placed(opportunities, "happened", "weight", *context)
        user, item, happened = rows["user"].to_numpy(), rows["item"].to_numpy(), rows["happened"].to_numpy()
        weight = rows["weight"].to_numpy()
        values = [*(_numbered(rows[name]) for name in context), user, item]
        sizes = [*(int(value.max(initial=-1)) + 1 for value in values[:-2]), len(self.users), len(self.items)]
        offset, coefficients = additive_logits(happened, weight, values, sizes)
        outcomes = _outcome_rows(user, item, happened, offset, weight, np.ones(len(rows)), self._ages(rows))
        return Read(outcomes, *(rates.astype(np.float32) for rates in coefficients[-2:]))

    def _activities(self, kinds: Collection[str]) -> OutcomeRows:
        """Return activities and then their negatives [A + A * K]."""
        rows = self._placed(self._events().filter(pl.col("event_type").is_in(kinds)))
        user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
        day = rows["event_timestamp"].dt.epoch("d").to_numpy()
        rng = np.random.default_rng(int(self.as_of.timestamp()))
        # A log lies by time, so the activities of a day are side by side.
        first, last = np.searchsorted(day, day, side="left"), np.searchsorted(day, day, side="right")
        drawn = [item[first + (rng.random(len(item)) * (last - first)).astype(np.int64)] for _ in range(NEGATIVES)]
        count, copies = len(item), NEGATIVES + 1
        happened, offset = np.repeat([True] + [False] * NEGATIVES, count), np.full(count * copies, -np.log(NEGATIVES))
        beside, ages = np.concatenate([item, *drawn]), np.tile(self._ages(rows), copies)
        same = np.ones(count * copies)
        return _outcome_rows(np.tile(user, copies), beside, happened, offset, same, 0 * same, ages)

    def _events(self) -> pl.LazyFrame:
        return self.log.window(self.as_of - self.reach, self.as_of)

    def _placed(self, events: pl.LazyFrame, *columns: str) -> pl.DataFrame:
        """Return the time and some columns of the events whose user and item count, with the positions of both."""
        found = self.log.coded(events).select("event_timestamp", "user_code", "item_code", *columns).collect()
        for entity, codes in (("user", self.users), ("item", self.items)):
            places = pl.DataFrame({f"{entity}_code": codes}, schema={f"{entity}_code": pl.Int64}).with_row_index(entity)
            found = found.join(places, on=f"{entity}_code", how="inner", maintain_order="left")
        return found.with_columns(pl.col("user", "item").cast(pl.Int64))

    def _ages(self, events: pl.DataFrame) -> np.ndarray:
        """Return how old events are, in days."""
        age_us = int(self.as_of.timestamp() * 1_000_000) - events["event_timestamp"].dt.epoch("us").to_numpy()
        return age_us / (timedelta(days=1) / timedelta(microseconds=1))


def _outcome_rows(user: np.ndarray, item: np.ndarray, *rest: np.ndarray) -> OutcomeRows:
    return OutcomeRows(user.astype(np.int64), item.astype(np.int64), *(values.astype(np.float32) for values in rest))


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
