"""What users chose themselves, as of a moment: their items, and how much each still counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl

from jobs.features.log import EventLog

# Weights are whole numbers of this part, which add up to the same sum in any order.
_WHOLE = 2**24
# A choice is read until it counts so little.
_LEAST = 0.01


def own_choices(
    log: EventLog, users: pl.Series, as_of: datetime, actions: Sequence[str], half_life: timedelta, kept: int
) -> pl.DataFrame:
    """Return users' strongest items before a moment.

    Parameters
    ----------
    users
        Ids of those who get a row, each once.
    actions
        Event types that count.
    half_life
        Time after which a choice counts half; one that counts less than a hundredth is not read.
    kept
        Items per user at most, N.

    Returns
    -------
    polars.DataFrame
        ``user_id`` in the order of `users`; ``items``, list of ids, and ``strengths``, list<float32> of the same
        length: the faded numbers of choices, strongest first, equal ones by id. Empty for users without a choice.
    """
    start = as_of - min(half_life * math.log2(1 / _LEAST), max(as_of - log.start, timedelta(0)))
    age = (pl.lit(as_of) - pl.col("event_timestamp")).dt.total_microseconds() / (half_life / timedelta(microseconds=1))
    faded = (pl.lit(2.0).pow(-age) * _WHOLE).round().cast(pl.Int64).alias("strength")
    chosen = (
        log.window(start, as_of)
        .filter(pl.col("event_type").is_in(list(actions)))
        .select("user_id", "item_id", faded)
        .group_by("user_id", "item_id")
        .agg(pl.col("strength").sum())
        .sort(["user_id", "strength", "item_id"], descending=[False, True, False])
        .group_by("user_id", maintain_order=True)
        .agg(
            pl.col("item_id").head(kept).alias("items"),
            (pl.col("strength").head(kept) / _WHOLE).cast(pl.Float32).alias("strengths"),
        )
        .collect(engine="streaming")
    )
    rows = pl.DataFrame({"user_id": users}).join(chosen, on="user_id", how="left", maintain_order="left")
    return rows.with_columns(pl.col("items").fill_null([]), pl.col("strengths").fill_null([]))
