"""What was known of every user and item at a moment: counts, last actions, interests.

Everything here reads events strictly before `as_of` and nothing else.

Legend: U users, I items, T sequence length, A item attributes, K interests kept per attribute, J top items.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import numpy as np
import polars as pl

from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Entity
from jobs.features.log import OUTCOMES, EventLog

WINDOWS_DAYS = (7, 28)
COUNTED = ("impressions", "clicks", "conversions", "activity")
STATS = tuple(f"{what}_{days}d" for days in WINDOWS_DAYS for what in COUNTED)
INTEREST_HALF_LIFE = timedelta(days=30)
_WHOLE = 2**24


# A refresh reads the same counts for the plain views and for every version.
@lru_cache(maxsize=4)
def stats(log: EventLog, entity: Entity, as_of: datetime, coverage: timedelta) -> pl.DataFrame:
    """Count each entity's events in the days before `as_of`.

    Down-sampled rows count by their weight, so that the counts estimate the whole log.

    Returns
    -------
    polars.DataFrame
        The id, its code and one float32 column per name in `STATS`, for every entity with any event
        within `coverage` before `as_of`, by code.
    """
    key, code = join_key(entity), f"{entity}_code"
    kind = pl.col("event_type")
    masks = {
        "impressions": kind == "impression",
        "clicks": kind == "click",
        "conversions": kind == "conversion",
        "activity": ~kind.is_in(list(OUTCOMES)),
    }
    sums = [
        # In float64 a sum of float32 weights is exact, hence the same in any order.
        pl.col("weight")
        .cast(pl.Float64)
        .filter(masks[what] & (pl.col("event_timestamp") >= as_of - timedelta(days=days)))
        .sum()
        .cast(pl.Float32)
        .alias(f"{what}_{days}d")
        for days in WINDOWS_DAYS
        for what in COUNTED
    ]
    counted = log.window(as_of - coverage, as_of).group_by(key).agg(sums).collect(engine="streaming")
    return counted.join(log.codes[entity], on=key).select(key, code, *STATS).sort(code)


def profile_columns(log: EventLog) -> list[str]:
    """Return the columns of :func:`profile`: a count per event type that the log has, and rates."""
    return [*(f"profile:{kind} count" for kind in _kinds(log)), *(f"profile:{kind} rate" for kind, _, _ in _rates(log))]


@lru_cache(maxsize=4)
def profile(log: EventLog, entity: Entity, as_of: datetime, coverage: timedelta) -> pl.DataFrame:
    """Count each entity's events of every type within `coverage` before `as_of`, and how often they follow others.

    Clicks are counted per impression, all that comes after per click. A rate is relative to that of all entities
    together and shrunk towards it: 1 says that nothing special is known.

    Returns
    -------
    polars.DataFrame
        The code and float64 columns as in :func:`profile_columns`, for every entity with any event within
        `coverage`, by code.
    """
    key, code = join_key(entity), f"{entity}_code"
    weight = pl.col("weight").cast(pl.Float64)
    sums = [weight.filter(pl.col("event_type") == kind).sum().alias(f"profile:{kind} count") for kind in _kinds(log)]
    counted = log.window(as_of - coverage, as_of).group_by(key).agg(sums).collect(engine="streaming")
    counts = counted.join(log.codes[entity], on=key).sort(code)
    rates = []
    for kind, base, prior in _rates(log):
        total, of = (float(counts[f"profile:{name} count"].to_numpy().sum()) for name in (kind, base))
        mean = total / max(of, 1.0)
        shrunk = (pl.col(f"profile:{kind} count") + prior * mean) / (pl.col(f"profile:{base} count") + prior)
        rates.append((shrunk / mean if mean > 0 else pl.lit(1.0)).alias(f"profile:{kind} rate"))
    return counts.with_columns(rates).select(code, *profile_columns(log))


def _kinds(log: EventLog) -> list[str]:
    return sorted(kind for kind, rows in log.record.counts.items() if rows)


def _rates(log: EventLog) -> list[tuple[str, str, float]]:
    """Return what is counted per what, and how many of the latter count as much as the mean over all."""
    kinds = _kinds(log)
    clicks = [("click", "impression", 100.0)] if "click" in kinds and "impression" in kinds else []
    after = [kind for kind in kinds if kind not in ("impression", "click")] if "click" in kinds else []
    return [*clicks, *((kind, "click", 20.0) for kind in after)]


def known_items(log: EventLog, as_of: datetime, coverage: timedelta, min_events: int) -> pl.DataFrame:
    """Return item_id and item_code of items with at least `min_events` events in the days before `as_of`."""
    counted = log.window(as_of - coverage, as_of).group_by("item_id").len().collect(engine="streaming")
    frequent = counted.filter(pl.col("len") >= min_events)
    return frequent.join(log.codes["item"], on="item_id").select("item_id", "item_code").sort("item_code")


@dataclass(frozen=True)
class UserHistory:
    """Histories of the users that were active before `as_of`.

    Attributes
    ----------
    user_code
        int64 [U], ascending.
    item_code
        int64 [U, T], most recent first, -1 for padding.
    action
        int16 [U, T], position in `Activity.actions`, -1 for padding.
    age_hours
        float32 [U, T], hours from the event to `as_of`, 0 for padding.
    interest_value
        int32 [U, A, K], attribute values by falling weight, 0 for padding.
    interest_weight
        float32 [U, A, K], decayed counts, each attribute's summing to at most 1.
    top_item
        int64 [U, J], item codes by falling decayed count, -1 for padding.
    top_weight
        float32 [U, J], log1p of the decayed counts, summing to 1.
    """

    user_code: np.ndarray
    item_code: np.ndarray
    action: np.ndarray
    age_hours: np.ndarray
    interest_value: np.ndarray
    interest_weight: np.ndarray
    top_item: np.ndarray
    top_weight: np.ndarray


class Activity:
    """The actions of a log, sorted once by user and time, to be read as of any moment.

    Parameters
    ----------
    log
        The ingested log.
    actions
        Event types that count as a user's history; None for all but impressions.
    """

    def __init__(self, log: EventLog, actions: tuple[str, ...] | None) -> None:
        kind = pl.col("event_type")
        chosen = kind != "impression" if actions is None else kind.is_in(list(actions))
        known = {name for name, rows in log.record.counts.items() if rows > 0}
        self.actions = tuple(sorted(known - {"impression"} if actions is None else known & set(actions)))
        position = {name: index for index, name in enumerate(self.actions)}
        events = (
            log.coded(log.scan().filter(chosen))
            .select(
                "user_code",
                "item_code",
                kind.replace_strict(position, return_dtype=pl.Int16).alias("action"),
                pl.col("event_timestamp").dt.epoch("us").alias("time_us"),
            )
            .collect(engine="streaming")
            .sort("user_code", "time_us", "item_code", "action")
        )
        self.user = events["user_code"].to_numpy()
        self.item = events["item_code"].to_numpy()
        self.action = events["action"].to_numpy()
        self.time_us = events["time_us"].to_numpy()
        self._users = int(log.codes["user"].height)
        self._starts = np.searchsorted(self.user, np.arange(self._users + 1))

    def between(self, start: datetime, end: datetime) -> tuple[np.ndarray, np.ndarray]:
        """Return user codes and item codes of the actions in [start, end)."""
        chosen = self._in(start, end)
        return self.user[chosen], self.item[chosen]

    def fading(self, start: datetime, end: datetime, half_life: timedelta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user codes and item codes of the actions in [start, end), and what each still counts at `end`."""
        chosen = self._in(start, end)
        ages = (_micros(end) - self.time_us[chosen]) / (half_life / timedelta(microseconds=1))
        return self.user[chosen], self.item[chosen], np.exp2(-ages)

    def _in(self, start: datetime, end: datetime) -> np.ndarray:
        return (self.time_us >= _micros(start)) & (self.time_us < _micros(end))

    def before(
        self,
        as_of: datetime,
        *,
        length: int,
        interests: int,
        top_items: int,
        item_values: np.ndarray,
        coverage: timedelta,
    ) -> UserHistory:
        """Read every active user's last actions and interests as of a moment.

        Parameters
        ----------
        as_of
            Only actions strictly before it are read.
        length
            T, actions kept per user.
        interests
            K, values kept per user and attribute.
        top_items
            J, items kept per user.
        item_values
            int32 [items, A], encoded attributes by item code; 0 is unknown.
        coverage
            Actions older than this are not read.
        """
        now, oldest = _micros(as_of), _micros(as_of - coverage)
        inside = (self.time_us >= oldest) & (self.time_us < now)
        counts = np.bincount(self.user[inside], minlength=self._users)
        past = np.bincount(self.user[self.time_us < now], minlength=self._users)
        users = np.flatnonzero(counts)
        # Sorted by user then time, a user's readable actions end right before the first later one.
        ends = self._starts[:-1][users] + past[users]
        offset = np.arange(length)
        positions = ends[:, None] - 1 - offset[None, :]
        real = offset[None, :] < counts[users][:, None]
        positions = np.where(real, positions, 0)
        age = (now - self.time_us[positions]) / 3.6e9
        row = np.searchsorted(users, self.user[inside])
        decayed = self._decayed(inside, now)
        items = self.item[inside]
        values, weights = _interests(row, decayed, item_values[items], (len(users), interests))
        top, top_weight = _top_items(row, decayed, items, (len(users), top_items))
        return UserHistory(
            user_code=users.astype(np.int64),
            item_code=np.where(real, self.item[positions], -1),
            action=np.where(real, self.action[positions], -1).astype(np.int16),
            age_hours=np.where(real, age, 0).astype(np.float32),
            interest_value=values,
            interest_weight=weights,
            top_item=top,
            top_weight=top_weight,
        )

    def _decayed(self, inside: np.ndarray, now: int) -> np.ndarray:
        """Weigh each action by its age: int64 [actions], 2 ** 24 for an action of this moment."""
        half_life_us = INTEREST_HALF_LIFE / timedelta(microseconds=1)
        # Whole numbers add up to the same sum in any order, so two runs give the same interests.
        return np.rint(np.exp2((self.time_us[inside] - now) / half_life_us) * _WHOLE).astype(np.int64)


def _interests(
    row: np.ndarray, decayed: np.ndarray, values_NA: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return each user's strongest values per attribute and their shares, [U, A, K] each."""
    users, kept = shape
    attributes = values_NA.shape[1]
    values = np.zeros((users, attributes, kept), np.int32)
    weights = np.zeros((users, attributes, kept), np.float32)
    for attribute in range(attributes):
        known = values_NA[:, attribute] > 0
        top = _strongest(row[known], values_NA[known, attribute], decayed[known], kept)
        where = (top["row"].to_numpy(), attribute, top["rank"].to_numpy())
        values[where] = top["value"].to_numpy()
        weights[where] = (top["decayed"] / top["total"]).to_numpy()
    return values, weights


def _top_items(
    row: np.ndarray, decayed: np.ndarray, items: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return each user's strongest items and their weights, [U, J] each."""
    top = _strongest(row, items, decayed, shape[1])
    where = (top["row"].to_numpy(), top["rank"].to_numpy())
    codes = np.full(shape, -1, np.int64)
    codes[where] = top["value"].to_numpy()
    weights = np.zeros(shape, np.float64)
    # The tenth purchase of an item says less about a user than the first of another.
    weights[where] = np.log1p(top["decayed"].to_numpy() / _WHOLE)
    return codes, (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _strongest(row: np.ndarray, value: np.ndarray, decayed: np.ndarray, kept: int) -> pl.DataFrame:
    """Return per row the `kept` values of the largest decayed count: row, value, decayed, rank, the row's total."""
    return (
        pl.DataFrame({"row": row, "value": value, "decayed": decayed})
        .group_by("row", "value")
        .agg(pl.col("decayed").sum())
        .sort(["row", "decayed", "value"], descending=[False, True, False])
        .with_columns(
            pl.int_range(pl.len()).over("row").alias("rank"), pl.col("decayed").sum().over("row").alias("total")
        )
        .filter(pl.col("rank") < kept)
    )


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)
