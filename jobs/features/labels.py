"""Opportunities with their outcomes: what a CTR or CVR model learns from.

An opportunity is an impression; where a log has none, a click. Its outcomes carry the moment at which
they became known, so that whoever trains at time T can leave out what had not arrived by T.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import polars as pl

from feature_repo.contracts.errors import ConfigError
from jobs.features.log import OUTCOMES, RESERVED, EventLog

CONVERSION = ("conversion",)
ACTIVITY_WINDOW = timedelta(days=7)  # activity later than that after a click has nothing to do with it
_TIED = ("impression_id", "user_id", "item_id", "event_timestamp")
_READ = ("impression_id", "event_timestamp", "user_id", "item_id", "user_code", "item_code", "weight")


class Opportunities:
    """The opportunities of a log with their outcomes, read from Parquet window by window.

    What stays in memory are the outcomes: which impressions were clicked or converted, and when that was known.

    Parameters
    ----------
    log
        The ingested log.
    since
        Opportunities before it are left out; None for none.
    known_at
        Opportunities from then on are left out, and outcomes that had not arrived read as not happened; None for
        the log as it ended.
    conversions
        Event types of which the first counts as the conversion. Activity belongs to the latest click of its user and
        item in the `ACTIVITY_WINDOW` before it.

    Raises
    ------
    ConfigError
        If the log has no event of one of these types.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        since: datetime | None = None,
        known_at: datetime | None = None,
        conversions: Sequence[str] = CONVERSION,
    ) -> None:
        unknown = [name for name in conversions if name not in (*CONVERSION, *log.record.counts)]
        if unknown:
            raise ConfigError(
                f"conversion_events names {', '.join(unknown)}, which the log does not have. It has: "
                f"{', '.join(sorted(log.record.counts))}. Mend config.yaml."
            )
        self._log = log
        self.since, self.known_at = since, known_at
        self.has_impressions = log.record.opportunity == "impression"
        events = {"click": ("click",), "conversion": conversions}
        self._context = [name for name in log.scan().collect_schema().names() if name not in RESERVED]
        self._arrived = {name: self._times_of(name, kinds) for name, kinds in events.items()}

    def _times_of(self, outcome: str, kinds: Sequence[str]) -> pl.DataFrame:
        found = first_outcomes(self._log.scan(), kinds).rename({"event_timestamp": f"{outcome}_timestamp"})
        return found.collect(engine="streaming")

    def count(self, start: datetime | None, end: datetime | None) -> int:
        """Return how many opportunities lie in [start, end)."""
        return int(self._events(start, end).select(pl.len()).collect(engine="streaming").item())

    def _events(self, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        start = max((moment for moment in (start, self.since) if moment is not None), default=None)
        end = min((moment for moment in (end, self.known_at) if moment is not None), default=None)
        base = "impression" if self.has_impressions else "click"
        return self._log.window(start, end).filter(pl.col("event_type") == base)

    def between(self, start: datetime | None, end: datetime | None) -> pl.DataFrame:
        """Return one row per opportunity in [start, end), by time; None for no bound.

        Returns
        -------
        polars.DataFrame
            impression_id, event_timestamp, user_id, item_id, user_code, item_code, weight, click (bool,
            null where the log has no impressions), click_timestamp, conversion (bool),
            conversion_timestamp, and the context columns.
        """
        rows = self._log.coded(self._events(start, end)).select(*_READ, *self._context).collect()
        for outcome, arrived in self._arrived.items():
            rows = rows.join(arrived, on="impression_id", how="left", maintain_order="left")
            rows = rows.with_columns(pl.col(f"{outcome}_timestamp").is_not_null().alias(outcome))
        if not self.has_impressions:
            rows = rows.with_columns(pl.lit(None, dtype=pl.Boolean).alias("click"))
        rows = rows.sort("event_timestamp", "user_code", "item_code", "impression_id", maintain_order=True)
        return rows if self.known_at is None else as_known_at(rows, self.known_at)


def first_outcomes(events: pl.LazyFrame, kinds: Collection[str]) -> pl.LazyFrame:
    """Return which opportunities among `events` were followed by an event of these types, and when first.

    Columns impression_id and event_timestamp, one row per opportunity that was. Activity belongs to the latest click of
    its user and item in the `ACTIVITY_WINDOW` before it.
    """

    def of(kinds: Collection[str]) -> pl.LazyFrame:
        return events.filter(pl.col("event_type").is_in(kinds)).select(_TIED)

    tied = [name for name in kinds if name in OUTCOMES]
    found = [of(tied).filter(pl.col("impression_id").is_not_null())] if tied else []
    if len(tied) < len(kinds):
        found.append(_after_clicks(of(["click"]), of([name for name in kinds if name not in tied])))
    return pl.concat(found).group_by("impression_id").agg(pl.col("event_timestamp").min())


def _after_clicks(clicks: pl.LazyFrame, activity: pl.LazyFrame) -> pl.LazyFrame:
    """Give activity the impression of the click that it followed; what followed none is left out."""
    # Of clicks at the same moment the one with the smallest id counts, in whatever order they lie.
    ordered = clicks.sort("event_timestamp", "impression_id", descending=[False, True])
    tied = (
        activity.drop("impression_id")
        .sort("event_timestamp")
        .join_asof(
            ordered,
            on="event_timestamp",
            by=["user_id", "item_id"],
            strategy="backward",
            tolerance=ACTIVITY_WINDOW,
            check_sortedness=False,
        )
    )
    return tied.filter(pl.col("impression_id").is_not_null()).select(_TIED)


def opportunities(log: EventLog, start: datetime | None = None, end: datetime | None = None) -> pl.DataFrame:
    """Return the opportunities in [start, end) as :meth:`Opportunities.between` does, as the log ended."""
    return Opportunities(log).between(start, end)


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
