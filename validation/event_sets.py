"""Statistics and rules of an ingested event log: nothing lost on the way, nothing from the future, like its own past.

Single rows are checked while they are read (`validation/events.py`), where a person can be told file and row; here
the log as a whole is, after it was brought into canonical form.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl

from validation.rules import Rule, must, warn
from validation.specs import Bounds, EventsSpec
from validation.tables import Summary, write_summary

RECENT = timedelta(days=28)
LEAST_OUTCOMES = 100


def event_statistics(events: pl.DataFrame, spec: EventsSpec, workdir: Path) -> tuple[Path, Summary]:
    """Write one row of statistics of a canonical event log and return it.

    ``rows_lost`` is what was read and is neither stored nor refused; ``<entity>_hits`` the share of events whose entity
    the attribute table knows; ``<outcome>_rate_change`` the rate of the last four weeks over that of the time before,
    where both have a hundred outcomes.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    moment, weight = pl.col("event_timestamp"), pl.col("weight")
    counted = events.select(
        pl.len().alias("rows"),
        moment.null_count().alias("null_times"),
        pl.sum_horizontal(pl.col("user_id", "item_id").null_count()).alias("null_ids"),
        (moment > spec.now + timedelta(days=1)).sum().alias("future_events"),
        (~(weight.is_finite() & (weight > 0)).fill_null(False)).sum().alias("bad_weights"),
    ).row(0, named=True)
    summary: Summary = {
        "dataset": spec.name,
        **counted,
        "rows_refused": spec.rows_refused,
        "rows_lost": spec.rows_in - spec.rows_refused - counted["rows"],
    }
    for entity, ids in spec.known_ids.items():
        summary[f"{entity}_hits"] = float(events[f"{entity}_id"].is_in(ids.implode()).mean() or 0.0)  # type: ignore[arg-type]
    summary |= _rate_changes(events)
    return write_summary(workdir / "events.summary.parquet", summary), summary


def _rate_changes(events: pl.DataFrame) -> Summary:
    end = events["event_timestamp"].max()
    recent = pl.col("event_timestamp") > pl.lit(end) - RECENT
    kinds = events.group_by(recent.alias("recent"), pl.col("event_type").cast(pl.String).alias("kind")).len()
    counts = {(new, kind): count for new, kind, count in kinds.iter_rows()}
    found: Summary = {}
    for base, outcome in (("impression", "click"), ("click", "conversion")):
        sizes = [counts.get((new, kind), 0) for new in (True, False) for kind in (outcome, base)]
        if min(sizes) >= LEAST_OUTCOMES:
            found[f"{outcome}_rate_change"] = (sizes[0] / sizes[1]) / (sizes[2] / sizes[3])
    return found


def event_rules(spec: EventsSpec, bounds: Bounds, summary: Summary) -> list[Rule]:
    """Return every rule for an event log."""
    rules = [
        must("events_rows", "rows", (1, None), "no event is left"),
        must("rows_conserved", "rows_lost", (0, 0), "rows were lost or multiplied between reading and storing"),
        must("rows_refused", "rows_refused", (0, spec.tolerated), "more bad rows than --max-bad-rows"),
        must("times_present", "null_times", (0, 0), "events without a moment"),
        must("ids_present", "null_ids", (0, 0), "events without a user or an item"),
        must("no_future_events", "future_events", (0, 0), "events later than a day from now"),
        must("weights", "bad_weights", (0, 0), "weights that are not above 0 and finite"),
    ]
    for entity in spec.known_ids:
        why = f"events of {entity}s that their table does not know"
        rules.append(warn(f"{entity}_hits_usual", f"{entity}_hits", (bounds.usual_hit_share, None), why))
    for outcome in ("click", "conversion"):
        if f"{outcome}_rate_change" in summary:
            limits = (1 / bounds.label_rate_factor, bounds.label_rate_factor)
            why = "the rate of the last four weeks is unlike before: is the log complete?"
            rules.append(warn(f"{outcome}_rate_usual", f"{outcome}_rate_change", limits, why))
    return rules
