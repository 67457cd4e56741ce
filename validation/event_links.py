"""Clicks must follow their impression and conversions their click: what is wrong between rows of an event log."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from validation.bad_rows import PLACE, BadRows

_UNTIE = "or give the event another type name to keep it as plain activity."


def opportunity_type(events: pl.DataFrame) -> str | None:
    """Return what an event log's opportunities are: impressions, without them clicks, without both None."""
    types = set(events["event_type"].unique())
    return next((name for name in ("impression", "click") if name in types), None)


def check_links(
    events: pl.DataFrame, *, click_window: timedelta, conversion_window: timedelta
) -> tuple[pl.DataFrame, list[BadRows]]:
    """Check that every click and conversion follows what it was caused by.

    Parameters
    ----------
    events
        Canonical events of all files with ``__file`` and ``__row``; ``impression_id`` is filled wherever
        one was given or found.
    click_window, conversion_window
        How far back a click or conversion without ``impression_id`` was looked for, for the messages.

    Returns
    -------
    tuple
        The good rows, and the bad ones by reason. A row that hangs on a bad row is bad too.
    """
    opportunity = opportunity_type(events)
    if opportunity is None:
        return events, []
    bad: list[BadRows] = []
    tied = events.filter(pl.col("event_type").is_in(["impression", "click", "conversion"]))
    keys = ["impression_id", "event_timestamp", "user_id", "item_id"]
    parts = {name: tied.filter(event_type=name).select(*keys, *PLACE) for name in ("impression", "click", "conversion")}
    chances = _without_repeats(parts[opportunity], opportunity, bad)
    clicks = chances
    if opportunity == "impression":
        clicks = _check_against(
            parts["click"],
            chances,
            "click",
            f"Add its impression (the same user and item, at most {_days(click_window)} before it), {_UNTIE}",
            bad,
        )
        conversions = _known(parts["conversion"], chances, bad)
    else:
        conversions = parts["conversion"]
    first_clicks = clicks.group_by("impression_id").agg(
        pl.col("event_timestamp").min(), pl.col("user_id").first(), pl.col("item_id").first()
    )
    _check_against(
        conversions,
        first_clicks,
        "conversion",
        f"Add its click (the same user and item, at most {_days(conversion_window)} before it), {_UNTIE}",
        bad,
    )
    if not bad:
        return events, []
    places = pl.concat([found.rows for found in bad]).unique()
    return events.join(places, on=list(PLACE), how="anti", maintain_order="left"), bad


def _without_repeats(chances: pl.DataFrame, name: str, bad: list[BadRows]) -> pl.DataFrame:
    """Keep the earliest row of each impression_id."""
    if chances["impression_id"].n_unique() == len(chances):
        return chances
    ordered = chances.sort("event_timestamp", *PLACE)
    first = ordered["impression_id"].is_first_distinct()
    reason = f"is that of an earlier {name} (duplicate {name}s)"
    remedy = (
        "Keep one row per impression_id; rows without one are the same if user, item and time are."
        if name == "impression"
        else "Without impressions a click stands for its impression: keep one row per click."
    )
    bad.append(BadRows("impression_id", reason, remedy, ordered.filter(~first).select(PLACE)))
    return ordered.filter(first)


def _known(conversions: pl.DataFrame, chances: pl.DataFrame, bad: list[BadRows]) -> pl.DataFrame:
    """Part off the conversions that name an impression which does not exist."""
    unknown = conversions.filter(pl.col("impression_id").is_not_null()).join(chances, on="impression_id", how="anti")
    if unknown.is_empty():
        return conversions
    remedy = f"Add the impression, correct the id, {_UNTIE}"
    bad.append(BadRows("impression_id", "of a conversion is that of no impression", remedy, unknown.select(PLACE)))
    return conversions.join(unknown.select(PLACE), on=list(PLACE), how="anti")


def _check_against(
    rows: pl.DataFrame, causes: pl.DataFrame, name: str, remedy_missing: str, bad: list[BadRows]
) -> pl.DataFrame:
    """Check `rows` (clicks or conversions) against what caused them; return the good ones.

    `causes` has one row per ``impression_id`` with time, user and item.
    """
    cause = "impression" if name == "click" else "click"
    causes = causes.select(
        "impression_id", cause_time="event_timestamp", cause_user="user_id", cause_item="item_id", found=pl.lit(True)
    )
    joined = rows.join(causes, on="impression_id", how="left")
    missing = pl.col("found").is_null()
    elsewhere = (pl.col("cause_user") != pl.col("user_id")) | (pl.col("cause_item") != pl.col("item_id"))
    early = pl.col("event_timestamp") < pl.col("cause_time")
    reasons = [
        ("impression_id", f"of a {name} leads to no {cause}", remedy_missing, missing),
        (
            "impression_id",
            f"of a {name} is that of a {cause} of another user or item",
            f"Correct the id; a {name} has the user and item of its {cause}.",
            elsewhere & ~missing,
        ),
        (
            "event_timestamp",
            f"of a {name} is before its {cause}",
            f"Correct the clocks or the ids; a {name} may be at the very time of its {cause} but not before it.",
            early & ~missing & ~elsewhere,
        ),
    ]
    for column, reason, remedy, condition in reasons:
        found = joined.filter(condition).select(PLACE)
        if len(found):
            bad.append(BadRows(column, reason, remedy, found))
    return joined.filter(~(missing | elsewhere | early)).select(rows.columns)


def _days(window: timedelta) -> str:
    return f"{window / timedelta(days=1):g} days"
