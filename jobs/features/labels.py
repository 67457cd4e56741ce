"""Opportunities with their outcomes: what a CTR or CVR model learns from.

An opportunity is an impression; where a log has none, a click. Its outcomes carry the moment at which
they became known, so that whoever trains at time T can leave out what had not arrived by T.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from jobs.features.log import RESERVED, EventLog


def opportunities(log: EventLog) -> pl.DataFrame:
    """Return one row per opportunity, by time.

    Returns
    -------
    polars.DataFrame
        impression_id, event_timestamp, user_id, item_id, user_code, item_code, weight, click (bool,
        null where the log has no impressions), click_timestamp, conversion (bool),
        conversion_timestamp, and the context columns.
    """
    events = log.coded
    has_impressions = bool((events["event_type"] == "impression").any())
    base = "impression" if has_impressions else "click"
    context = [name for name in events.columns if name not in (*RESERVED, "user_code", "item_code")]
    rows = events.filter(pl.col("event_type") == base).select(
        "impression_id", "event_timestamp", "user_id", "item_id", "user_code", "item_code", "weight", *context
    )
    for outcome in ("click", "conversion"):
        arrived = (
            events.filter((pl.col("event_type") == outcome) & pl.col("impression_id").is_not_null())
            .group_by("impression_id")
            .agg(pl.col("event_timestamp").min().alias(f"{outcome}_timestamp"))
        )
        rows = rows.join(arrived, on="impression_id", how="left", maintain_order="left")
        rows = rows.with_columns(pl.col(f"{outcome}_timestamp").is_not_null().alias(outcome))
    if not has_impressions:
        rows = rows.with_columns(pl.lit(None, dtype=pl.Boolean).alias("click"))
    return rows.sort("event_timestamp", "user_code", "item_code", "impression_id")


def as_known_at(rows: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """Return the opportunities before `moment` with only the outcomes that had arrived by then.

    An outcome at or after `moment` reads as not happened, and its time as null: that is what the log
    showed at that moment.
    """
    known = rows.filter(pl.col("event_timestamp") < moment)
    for outcome in ("click", "conversion"):
        arrived = pl.col(f"{outcome}_timestamp") < moment
        known = known.with_columns(
            pl.when(pl.col(outcome).is_null()).then(None).otherwise(arrived.fill_null(False)).alias(outcome),
            pl.when(arrived).then(pl.col(f"{outcome}_timestamp")).alias(f"{outcome}_timestamp"),
        )
    return known


def late_outcomes(rows: pl.DataFrame, moment: datetime) -> int:
    """Count outcomes of opportunities before `moment` that arrive at or after it."""
    before = rows.filter(pl.col("event_timestamp") < moment)
    late = (pl.col("click_timestamp") >= moment) | (pl.col("conversion_timestamp") >= moment)
    return int(before.select(late.fill_null(False).sum()).item())
