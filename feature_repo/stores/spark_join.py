"""The point-in-time join on Spark: keys and clocks first, features by the number of their row afterwards.

Stored rows and labels of one key are put into one sequence by time; a running maximum over (time, created, place)
is, at each label, the row that the rules of docs/point-in-time.md give it. That sequence carries no features: they
are read again for the rows that were found, and move once (ADR 80).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F

from feature_repo.stores.spark_rows import PLACE, ROW, SEEN, TIME, SparkView, named, stored_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_LABEL = "_hw_label"


@dataclass(frozen=True)
class Sought:
    """What is sought: labels with keys and times alone.

    Attributes
    ----------
    frame
        `ROW` (0 to N-1), `TIME` (microseconds) and every key by its name.
    rows
        N.
    span
        First and last time; None where no label has one.
    """

    frame: DataFrame
    rows: int
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Found:
    """The features of each view, in frames of `ROW` and result columns, and the cached search behind them."""

    features: list[DataFrame]
    cached: list[DataFrame]

    def beside(self, base: DataFrame) -> DataFrame:
        """Put all features beside a frame that has `ROW`; null where a label found no row."""
        for frame in self.features:
            base = base.join(frame, ROW, "left")
        return base

    def release(self) -> None:
        """Give back what was cached."""
        for frame in self.cached:
            frame.unpersist()


def find(sought: Sought, views: Sequence[SparkView], *, strict: bool, broadcast_rows: int) -> Found:
    """Find each label's row of every view and read its features.

    Parameters
    ----------
    views
        At least one.
    strict
        Whether rows written after the label are hidden.
    broadcast_rows
        Up to so many labels are sent to every executor, so that stored vectors stay where they are read.
    """
    features: dict[int, DataFrame] = {}
    cached = []
    by_keys: dict[tuple[str, ...], list[int]] = {}
    for number, view in enumerate(views):
        by_keys.setdefault(tuple(asked for asked, _ in view.read.keys), []).append(number)
    for keys, numbers in by_keys.items():
        winners = _winners(sought, keys, {number: views[number] for number in numbers}, strict)
        if len(numbers) > 1:
            winners = winners.persist()
            cached.append(winners)
        for number in numbers:
            winner = winners.select(ROW, f"_hw_{number}.*").dropna(subset=[PLACE])
            few = sought.rows <= broadcast_rows
            features[number] = _features(views[number], winner, few)
    return Found([features[number] for number in range(len(views))], cached)


def _winners(sought: Sought, keys: Sequence[str], views: dict[int, SparkView], strict: bool) -> DataFrame:
    """Return `ROW` and, by view, the struct of the row that each label sees; labels that can find none are left out."""
    span = sought.span or (0, 0)
    labels = sought.frame.dropna(subset=[TIME, *keys])
    both = labels.select(*map(named, keys), F.col(TIME).alias(SEEN), ROW, F.lit(True).alias(_LABEL))
    for number, view in views.items():
        rows = stored_rows(view, f"_hw_{number}", span, strict=strict).withColumn(_LABEL, F.lit(False))
        both = both.unionByName(rows, allowMissingColumns=True)
    # A row that is seen from the label's own moment on comes before the label.
    so_far = (
        Window.partitionBy(*map(named, keys))
        .orderBy(SEEN, _LABEL)
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    both = both.withColumns({f"_hw_{number}": F.max(f"_hw_{number}").over(so_far) for number in views})
    fresh = [
        F.when(F.col(SEEN) - F.col(f"_hw_{number}._hw_time") <= view.read.ttl, F.col(f"_hw_{number}"))
        if view.read.ttl
        else F.col(f"_hw_{number}")
        for number, view in views.items()
    ]
    return both.filter(_LABEL).select(
        ROW, *(column.alias(f"_hw_{number}") for number, column in zip(views, fresh, strict=True))
    )


def _features(view: SparkView, winner: DataFrame, few: bool) -> DataFrame:
    """Return `ROW` and the view's features under their names in the result."""
    if not view.placed:
        results = (F.col(f"f{at}").alias(result) for at, (result, _) in enumerate(view.read.features))
        return winner.select(ROW, *results)
    wanted = winner.select(ROW, PLACE)
    stored = view.frame.select(PLACE, *(named(stored).alias(result) for result, stored in view.read.features))
    return stored.join(F.broadcast(wanted) if few else wanted, PLACE).drop(PLACE)
