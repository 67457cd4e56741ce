"""The leak report: what a training set read, and what a careless join would have read instead."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from feature_repo.contracts.naming import join_key
from jobs.workspace import Workspace

# When an outcome became known, where a label table says so.
ARRIVALS = ("click_timestamp", "conversion_timestamp", "label_timestamp")
KINDS = ("naive_join_would_leak", "before_any_snapshot", "past_ttl", "model_trained_after_as_of")


@dataclass(frozen=True)
class LeakReport:
    """Counts over all rows of a training set.

    Attributes
    ----------
    leaks
        Rows with any feature newer than their label, or older than its view allows. Must be 0.
    hit_rates
        Share of rows that found a row, by view.
    counts
        By view, and for rows to which it happens in ``any view``: ``naive_join_would_leak`` (the entity's latest
        row is newer than the label), ``before_any_snapshot``, ``past_ttl``, ``model_trained_after_as_of``; and under
        ``labels``, where the labels say when outcomes arrived, ``outcomes_after_train_end``.
    """

    leaks: int
    hit_rates: dict[str, float]
    counts: dict[str, dict[str, int]]


def leak_report(ws: Workspace, files: list[Path], views: list[str]) -> LeakReport:
    """Read a training set back and compare every feature's clock with its label's.

    Parameters
    ----------
    files
        Shards of the training set.
    views
        Its feature views; each carries ``available_us``.
    """
    rows = pl.scan_parquet(files)
    label_us = pl.col("event_timestamp").dt.epoch("us")
    records = {view.name: view for view in ws.ledger.views()}
    frame = rows.select(
        label_us.alias("label_us"),
        *dict.fromkeys(join_key(records[view].entity) for view in views),
        *(f"{view}__available_us" for view in views),
    )
    facts: dict[str, dict[str, pl.Expr]] = {}
    for view in views:
        frame = frame.join(_spans(ws, view), on=join_key(records[view].entity), how="left")
        facts[view] = _facts(view, records[view].ttl_days, _from_the_future(ws, view))
    expressions = [
        expression.sum().alias(f"{view}/{kind}") for view in views for kind, expression in facts[view].items()
    ]
    expressions += [
        pl.any_horizontal(facts[view][kind] for view in views).sum().alias(f"any view/{kind}")
        for kind in (*KINDS, "leak")
    ]
    values = frame.select(pl.len().alias("rows"), *expressions).collect(engine="streaming").row(0, named=True)
    counts = {scope: {kind: int(values[f"{scope}/{kind}"]) for kind in KINDS} for scope in (*views, "any view")}
    late = _late_outcomes(ws, rows)
    if late is not None:
        counts["labels"] = {"outcomes_after_train_end": late}
    hit_rates = {view: values[f"{view}/found"] / max(values["rows"], 1) for view in views}
    return LeakReport(int(values["any view/leak"]), hit_rates, counts)


def _spans(ws: Workspace, view: str) -> pl.LazyFrame:
    """Return the first and the last moment at which each entity had a row of a view."""
    key = join_key(next(record.entity for record in ws.ledger.views() if record.name == view))
    return (
        pl.scan_parquet(ws.home.view_folder(view) / "*.parquet")
        .group_by(key)
        .agg(pl.col("available_us").min().alias(f"{view}/first"), pl.col("available_us").max().alias(f"{view}/last"))
    )


def _facts(view: str, ttl_days: int, guilty: list[int]) -> dict[str, pl.Expr]:
    """Return what is counted of a view, one bool per row of the training set."""
    clock, label = pl.col(f"{view}__available_us"), pl.col("label_us")
    found = clock.is_not_null()
    before = pl.col(f"{view}/first").is_null() | (pl.col(f"{view}/first") > label)
    ttl_us = timedelta(days=ttl_days) // timedelta(microseconds=1)
    too_old = (label - clock > ttl_us) if ttl_us else pl.lit(False)
    return {
        "found": found,
        "leak": ((clock > label) | too_old).fill_null(False),
        "naive_join_would_leak": (pl.col(f"{view}/last") > label).fill_null(False),
        "before_any_snapshot": before,
        "past_ttl": ~found & ~before,
        "model_trained_after_as_of": clock.is_in(guilty).fill_null(False),
    }


def _from_the_future(ws: Workspace, view: str) -> list[int]:
    """Return the moments of snapshots whose model was trained on data later than their as_of (microseconds)."""
    ends = {space.space_id: space.train_end for space in ws.ledger.spaces()}
    return [
        int(snapshot.available_at.timestamp() * 1_000_000)
        for snapshot in ws.ledger.snapshots(view, accepted=True)
        if snapshot.space_id is not None and ends[snapshot.space_id] > snapshot.as_of
    ]


def _late_outcomes(ws: Workspace, rows: pl.LazyFrame) -> int | None:
    """Count training rows whose outcome arrived only after the downstream cut-off; None where nothing says when."""
    arrivals = [name for name in ARRIVALS if name in rows.collect_schema().names()]
    if not arrivals:
        return None
    cutoff = ws.splits.train_end
    late = pl.any_horizontal((pl.col(name) >= cutoff).fill_null(False) for name in arrivals)
    before = rows.filter(pl.col("event_timestamp") < cutoff)
    return int(before.select(late.sum()).collect().item() or 0)
