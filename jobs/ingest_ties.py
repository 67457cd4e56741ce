"""Ties clicks and conversions that came without an ``impression_id`` to what they followed."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from jobs.stable_hash import as_positive_int64, hash_columns
from validation.event_links import opportunity_type
from validation.events import TIED_TYPES


def tie(events: pl.DataFrame, *, click_window: timedelta, conversion_window: timedelta) -> pl.DataFrame:
    """Fill ``impression_id`` wherever it can be known.

    An impression without an id gets one from its user, item and time. A click without one takes that of the
    latest impression of its user and item at or before it, within `click_window`; a conversion that of the latest
    click, within `conversion_window`. In a log without impressions a click stands for its impression. Activity has
    none.

    Parameters
    ----------
    events
        Canonical events of all files.

    Returns
    -------
    polars.DataFrame
        The same rows in the same order; ``impression_id`` is Int64 or String.
    """
    events = _with_id_type(events)
    opportunity = opportunity_type(events)
    is_tied = pl.col("event_type").is_in(list(TIED_TYPES))
    events = events.with_columns(impression_id=pl.when(is_tied).then("impression_id"))
    if opportunity is None or events.filter(is_tied)["impression_id"].null_count() == 0:
        return events
    ids = events["impression_id"]
    numbered = events.select(
        "event_type", "event_timestamp", "user_id", "item_id", row=pl.int_range(pl.len(), dtype=pl.UInt32)
    )

    def without_id(name: str) -> pl.DataFrame:
        return numbered.filter((pl.col("event_type") == name) & ids.is_null())

    def with_id(name: str) -> pl.DataFrame:
        return numbered.with_columns(impression_id=ids).filter(
            (pl.col("event_type") == name) & pl.col("impression_id").is_not_null()
        )

    missing = without_id(opportunity)
    ids = ids.scatter(missing["row"], _made_ids(missing, ids.dtype))
    for name, cause, window in (
        ("click", "impression", click_window),
        ("conversion", "click", conversion_window),
    ):
        found = _latest_before(without_id(name), with_id(cause), window)
        ids = ids.scatter(found["row"], found["impression_id"])
    return events.with_columns(impression_id=ids)


def _with_id_type(events: pl.DataFrame) -> pl.DataFrame:
    """Give ``impression_id`` a type that given and made ids share."""
    numeric = events.schema["user_id"] == pl.Int64
    given = events.schema["impression_id"]
    if given == pl.Null:
        return events.with_columns(pl.col("impression_id").cast(pl.Int64 if numeric else pl.String))
    if given == pl.Int64 and not numeric:
        return events.with_columns(pl.col("impression_id").cast(pl.String))
    return events


def _made_ids(rows: pl.DataFrame, dtype: pl.DataType) -> pl.Series:
    """Return ids that depend on user, item and time only: the same in every run and file layout."""
    micros = rows["event_timestamp"].to_physical()
    if dtype == pl.Int64:
        hashes = hash_columns(rows["user_id"].to_numpy(), rows["item_id"].to_numpy(), micros.to_numpy())
        return pl.Series("impression_id", as_positive_int64(hashes))
    # The length in front keeps ('a:b', 'c') and ('a', 'b:c') apart.
    user = pl.col("user_id").cast(pl.String)
    return rows.with_columns(micros=micros).select(
        impression_id=pl.format("{}:{}:{}:{}", user.str.len_chars(), user, "item_id", "micros")
    )["impression_id"]


def _latest_before(rows: pl.DataFrame, causes: pl.DataFrame, window: timedelta) -> pl.DataFrame:
    """Return ``row`` and ``impression_id`` of the rows that have a cause at or before them within `window`."""
    keys = ["user_id", "item_id"]
    # Of causes at the same moment the one with the smallest id counts, in whatever order they came.
    ordered = causes.sort("event_timestamp", "impression_id", descending=[False, True])
    return (
        rows.sort("event_timestamp")
        .join_asof(
            ordered.select("event_timestamp", *keys, "impression_id"),
            on="event_timestamp",
            by=keys,
            strategy="backward",
            tolerance=window,
            check_sortedness=False,
        )
        .filter(pl.col("impression_id").is_not_null())
        .select("row", "impression_id")
    )
