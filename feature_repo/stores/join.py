"""The point-in-time join: labels in, labels with features out. Knows Arrow and files, not Feast.

Keys and clocks are joined first (`asof`), then features are read by row number (`gather`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.types import Problem
from feature_repo.stores.asof import Rows, latest_rows
from feature_repo.stores.clocks import MISSING, Int64Array, Naive, microseconds
from feature_repo.stores.gather import by_number, gather
from feature_repo.stores.keys import KeyCodes
from feature_repo.stores.reading import Reading
from feature_repo.stores.sources import Source, Unit


@dataclass(frozen=True)
class ViewJoin:
    """One view to join.

    Attributes
    ----------
    name
        For messages.
    keys
        (column among the labels, column in the files) per join key; empty for a view without entities.
    ttl
        Microseconds, 0 for ever; both edges belong to a row's life.
    features
        (column in the result, column in the files).
    """

    name: str
    source: Source
    keys: tuple[tuple[str, str], ...]
    ttl: int
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Settings:
    """How to join.

    Attributes
    ----------
    strict
        Whether rows written after the label are hidden (``created <= label time``).
    naive
        What to do with label times without a time zone.
    threads
        Parts read at the same time.
    piece_rows
        Stored rows whose keys are held at once, where parts overlap in time.
    """

    strict: bool = False
    naive: Naive = "error"
    threads: int = 1
    piece_rows: int = 4_000_000


def join(labels: pa.Table, time_column: str, views: Sequence[ViewJoin], settings: Settings) -> pa.Table:
    """Return the labels, in their order, with every view's features as each label's time knew them.

    Parameters
    ----------
    labels
        N rows with the label time and every view's join keys.
    time_column
        Timezone-aware label times; a label without one finds nothing.
    views
        What to join.

    Raises
    ------
    InputDataError
        If columns are missing, would be there twice, or do not fit.
    LakeError
        If a file cannot be read.
    """
    check_columns(labels, time_column, views)
    times = microseconds(labels[time_column], "down", file="the labels", name=time_column, naive=settings.naive)
    by_time = np.argsort(times)
    by_time = by_time[np.searchsorted(times, MISSING, side="right", sorter=by_time) :]
    columns = list(labels.columns)
    names = list(labels.column_names)

    def rows_of(view: ViewJoin) -> tuple[Int64Array, Int64Array]:
        numbers = row_numbers(labels, times, by_time, view, settings)
        return numbers, by_number(numbers)

    with ThreadPoolExecutor(settings.threads) as pool:
        for view, (numbers, order) in zip(views, pool.map(rows_of, views), strict=True):
            names += [result for result, _ in view.features]
            stored = [name for _, name in view.features]
            columns += gather(view.source, numbers, stored, settings.threads, order)
    return pa.table(columns, names=names)


def row_numbers(
    labels: pa.Table, times: Int64Array, by_time: Int64Array, view: ViewJoin, settings: Settings
) -> Int64Array:
    """Return the number of the row of a view that each label sees, or -1: int64 [N].

    Parameters
    ----------
    times
        int64 [N], microseconds.
    by_time
        The labels that have a time, by time.
    """
    stored = [name for _, name in view.keys]
    types = [view.source.type_of(name) for name in stored]
    if len(by_time) == 0 or not view.source.units:
        return np.full(len(times), -1, np.int64)
    asked = [name for name, _ in view.keys]
    keys = KeyCodes([labels[name] for name in asked], types, asked, len(times))
    order = by_time if keys.valid.all() else by_time[keys.valid[by_time]]
    first, last = int(times[by_time[0]]), int(times[by_time[-1]])
    units = [unit for unit in view.source.units if unit.low <= last and (not view.ttl or unit.high >= first - view.ttl)]
    strict = settings.strict and view.source.clocks.created is not None
    pieces = [_Piece(view.source, tuple(part), keys, stored, strict) for part in _overlapping(units, settings)]
    return latest_rows(keys.codes, times, order, pieces, view.ttl, strict=strict)


def _overlapping(units: Sequence[Unit], settings: Settings) -> list[list[Unit]]:
    """Put units that overlap in time together, up to a number of rows; latest first."""
    groups: list[list[Unit]] = []
    low = rows = 0
    for unit in sorted(units, key=lambda unit: (unit.high, unit.low), reverse=True):
        if groups and unit.high > low and rows + unit.rows <= settings.piece_rows:
            groups[-1].append(unit)
            low, rows = min(low, unit.low), rows + unit.rows
        else:
            groups.append([unit])
            low, rows = unit.low, unit.rows
    return [sorted(group, key=lambda unit: unit.first) for group in groups]


@dataclass(frozen=True)
class _Piece:
    """Units of a view that are searched together; rows that no label can see are left out."""

    source: Source
    units: tuple[Unit, ...]
    keys: KeyCodes
    stored: list[str]
    strict: bool

    @property
    def low(self) -> int:
        return min(unit.low for unit in self.units)

    @property
    def high(self) -> int:
        return max(unit.high for unit in self.units)

    def load(self) -> Rows:
        parts = [self._unit(unit) for unit in self.units]
        if len(parts) == 1:
            return parts[0]
        return Rows(
            codes=np.concatenate([part.codes for part in parts]),
            times=np.concatenate([part.times for part in parts]),
            created=np.concatenate([part.created for part in parts]),
            numbers=np.concatenate([part.numbers for part in parts]),
        )

    def _unit(self, unit: Unit) -> Rows:
        known_clocks = self.source.clock_constants(unit)
        if known_clocks is not None:
            return self._unit_of_one_moment(unit, *known_clocks)
        clocks = self.source.clocks
        wanted = dict.fromkeys([*self.stored, clocks.time, *([clocks.created] if clocks.created else [])])
        table = self.source.read(unit, list(wanted))
        times, created = self.source.clock_columns(unit, table)
        codes, known = self.keys.encode([table[name] for name in self.stored], table.num_rows)
        keep = times != MISSING
        if known is not None:
            keep &= known
        if self.strict:
            # Nobody can say that a row without a time of writing was there in time.
            keep &= created != MISSING
        numbers = np.arange(unit.first, unit.first + unit.rows)
        if keep.all():
            return Rows(codes, times, created, numbers)
        return Rows(codes[keep], times[keep], created[keep], numbers[keep])

    def _unit_of_one_moment(self, unit: Unit, time: int, written: int) -> Rows:
        """Read keys alone: all rows have the clocks that are given."""
        table = self.source.read(unit, self.stored)
        codes, known = self.keys.encode([table[name] for name in self.stored], table.num_rows)
        numbers = np.arange(unit.first, unit.first + unit.rows)
        if known is not None and not known.all():
            codes, numbers = codes[known], numbers[known]
        times, created = (np.broadcast_to(np.int64(clock), len(codes)) for clock in (time, written))
        ordered = known is None and self.keys.plain and self.source.ascends(unit, self.stored)
        return Rows(codes, times, created, numbers, ordered)


def check_columns(labels: pa.Table, time_column: str, views: Sequence[ViewJoin | Reading]) -> None:
    problems = []
    for name in dict.fromkeys([time_column, *(asked for view in views for asked, _ in view.keys)]):
        if name not in labels.column_names:
            problems.append(Problem("the labels", name, "is missing", labels.num_rows, "Add the column."))
    taken = list(labels.column_names)
    for view in views:
        for result, _ in view.features:
            if result in taken:
                remedy = "Ask for full feature names, or rename the label's column."
                problems.append(Problem("the labels", result, f"would be there twice ({view.name})", 0, remedy))
            taken.append(result)
    if problems:
        raise InputDataError(problems)
