"""The leak report: what a training set read, and what a careless join would have read instead."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from feature_repo.contracts.naming import join_key
from jobs.workspace import Workspace


@dataclass(frozen=True)
class LeakReport:
    """Counts over all rows of a training set.

    Attributes
    ----------
    leaks
        Rows with any feature newer than their label. Must be 0.
    hit_rates
        Share of rows that found a row, by view.
    counts
        By view: ``naive_join_would_leak``, ``before_any_snapshot``, ``past_ttl``,
        ``model_trained_after_as_of``; and over all: ``outcomes_after_train_end``.
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
    leaks, hit_rates, counts = 0, {}, {}
    records = {view.name: view for view in ws.ledger.views()}
    for view in views:
        record = records[view]
        key, column = join_key(record.entity), f"{view}__available_us"
        spans = (
            pl.scan_parquet(ws.home.view_folder(view) / "*.parquet")
            .group_by(key)
            .agg(pl.col("available_us").min().alias("first"), pl.col("available_us").max().alias("last"))
        )
        joined = rows.select(key, label_us.alias("label_us"), column).join(spans, on=key, how="left")
        found = pl.col(column).is_not_null()
        before = pl.col("first").is_null() | (pl.col("first") > pl.col("label_us"))
        ttl_us = timedelta(days=record.ttl_days) // timedelta(microseconds=1)
        too_old = (pl.col("label_us") - pl.col(column) > ttl_us) if ttl_us else pl.lit(False)
        row = joined.select(
            pl.len().alias("rows"),
            found.sum().alias("found"),
            (pl.col(column) > pl.col("label_us")).sum().alias("newer"),
            (pl.col("last") > pl.col("label_us")).sum().alias("naive"),
            before.sum().alias("before"),
            (~found & ~before).sum().alias("past_ttl"),
            (found & too_old).sum().alias("too_old"),
        ).collect()
        value = row.row(0, named=True)
        leaks += value["newer"] + value["too_old"]
        hit_rates[view] = value["found"] / max(value["rows"], 1)
        counts[view] = {
            "naive_join_would_leak": value["naive"],
            "before_any_snapshot": value["before"],
            "past_ttl": value["past_ttl"],
            "model_trained_after_as_of": _from_the_future(ws, view, rows, column),
        }
    counts["labels"] = {"outcomes_after_train_end": _late_outcomes(ws, rows)}
    return LeakReport(leaks, hit_rates, counts)


def _from_the_future(ws: Workspace, view: str, rows: pl.LazyFrame, column: str) -> int:
    """Count rows whose snapshot came from a model trained on data later than the snapshot's as_of."""
    ends = {space.space_id: space.train_end for space in ws.ledger.spaces()}
    guilty = [
        int(snapshot.available_at.timestamp() * 1_000_000)
        for snapshot in ws.ledger.snapshots(view, accepted=True)
        if snapshot.space_id is not None and ends[snapshot.space_id] > snapshot.as_of
    ]
    if not guilty:
        return 0
    return int(rows.select(pl.col(column).is_in(guilty).sum()).collect().item())


def _late_outcomes(ws: Workspace, rows: pl.LazyFrame) -> int:
    """Count training rows whose outcome arrived only after the downstream cut-off."""
    cutoff = ws.splits.train_end
    late = (pl.col("click_timestamp") >= cutoff) | (pl.col("conversion_timestamp") >= cutoff)
    before = rows.filter(pl.col("event_timestamp") < cutoff)
    return int(before.select(late.fill_null(False).sum()).collect().item() or 0)
