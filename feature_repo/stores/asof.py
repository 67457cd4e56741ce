"""The join of keys and clocks: for each label the number of the one stored row that it may see.

No feature travels through here. Legend: N labels, M rows of one piece of a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from feature_repo.stores.clocks import MISSING, BoolArray, Int64Array

NONE = -1


@dataclass(frozen=True)
class Rows:
    """Keys and clocks of stored rows, in the order of their numbers.

    Attributes
    ----------
    codes, times, created, numbers
        int64 [M]: the key's code, the first moment of reading, the moment of writing (0 where a view does not
        record it, `MISSING` where a row does not), and the row's number within the view.
    ordered
        Whether it is known that all rows have one time and every row a larger code than the row before.
    """

    codes: Int64Array
    times: Int64Array
    created: Int64Array
    numbers: Int64Array
    ordered: bool = False


class Piece(Protocol):
    """A part of a view whose rows lie between two moments."""

    @property
    def low(self) -> int:
        """No row is earlier (microseconds)."""

    @property
    def high(self) -> int:
        """No row is later (microseconds)."""

    def load(self) -> Rows:
        """Read keys and clocks."""


def latest_rows(
    codes: Int64Array, times: Int64Array, order: Int64Array, pieces: Iterable[Piece], ttl: int, *, strict: bool
) -> Int64Array:
    """Return for each label the number of the row it sees, or -1.

    A label at time t sees, of the rows of its key with ``time <= t``, ``t - time <= ttl`` and, in strict mode,
    ``created <= t``, the one that is latest by (time, created, number).

    Parameters
    ----------
    codes, times
        int64 [N]: keys and times of the labels.
    order
        int64: labels that take part, by time ascending.
    pieces
        Parts of the view by `high` descending; parts may overlap. Each is read once, and only the labels that
        no later row can still serve better are looked up in it.
    ttl
        Microseconds; 0 for ever.
    strict
        Whether rows written after the label are hidden.
    """
    best = _Best(len(codes))
    # What is known of pending labels travels with them: fetching it anew by label costs more than the search.
    pending, asked, moments = order[:0], codes[:0], times[:0]
    cursor, by_time = len(order), times[order]
    left = list(pieces)
    for piece, after in zip(left, [*left[1:], None], strict=False):  # nothing comes after the last
        start = int(np.searchsorted(by_time, piece.low))
        if start < cursor:
            new = order[start:cursor]
            pending = np.concatenate([new, pending])
            asked, moments = np.concatenate([codes[new], asked]), np.concatenate([by_time[start:cursor], moments])
            cursor = start
        rows = piece.load() if len(pending) else None
        if rows is None or len(rows.codes) == 0:
            continue
        found = match(rows, asked, moments, strict=strict)
        if ttl:
            expired = moments - rows.times[np.maximum(found, 0)] > ttl
            found[expired] = NONE
        hit = np.flatnonzero(found >= 0)
        best.improve(pending[hit], rows, found[hit])
        if after is not None:
            keep = best.times[pending] <= after.high
            if ttl:
                keep &= moments - ttl <= after.high
            if not keep.all():
                pending, asked, moments = pending[keep], asked[keep], moments[keep]
    return best.numbers


class _Best:
    """The best row found so far for each label."""

    def __init__(self, count: int) -> None:
        self.times = np.full(count, MISSING, np.int64)
        self.created = np.full(count, MISSING, np.int64)
        self.numbers = np.full(count, NONE, np.int64)

    def improve(self, labels: Int64Array, rows: Rows, found: Int64Array) -> None:
        time, created, number = rows.times[found], rows.created[found], rows.numbers[found]
        old_time = self.times[labels]
        if (time > old_time).all():
            self.times[labels], self.created[labels], self.numbers[labels] = time, created, number
            return
        old_created = self.created[labels]
        better = (time > old_time) | (
            (time == old_time)
            & ((created > old_created) | ((created == old_created) & (number > self.numbers[labels])))
        )
        if not better.all():
            labels, time, created, number = labels[better], time[better], created[better], number[better]
        self.times[labels], self.created[labels], self.numbers[labels] = time, created, number


def match(rows: Rows, codes: Int64Array, times: Int64Array, *, strict: bool) -> Int64Array:
    """Return for each label the position in `rows` of the latest row of its key at or before its time, or -1.

    Parameters
    ----------
    rows
        At least one row.
    codes, times
        int64 [n], the labels.
    strict
        Whether a row also needs ``created <= time``.
    """
    if rows.ordered or _ordered(rows):
        at = np.minimum(np.searchsorted(rows.codes, codes), len(rows.codes) - 1)
        fits = (rows.codes[at] == codes) & (rows.times[0] <= times)
        if strict:
            fits &= rows.created[at] <= times
        return np.where(fits, at, NONE)
    return _match_history(rows, codes, times, strict)


def _ordered(rows: Rows) -> bool:
    return bool((rows.times == rows.times[0]).all()) and bool((rows.codes[1:] > rows.codes[:-1]).all())


def _match_history(rows: Rows, codes: Int64Array, times: Int64Array, strict: bool) -> Int64Array:
    """Match against several rows per key: sort by (key, time, created, number) and search in one array."""
    order = np.lexsort((rows.created, rows.times, rows.codes))
    keys, first = np.unique(rows.codes[order], return_index=True)
    moments = np.unique(rows.times)
    group = np.repeat(np.arange(len(keys)), np.diff(np.append(first, len(order))))
    place = group * len(moments) + np.searchsorted(moments, rows.times[order])

    wanted = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    reached = np.searchsorted(moments, times, side="right")
    at = np.searchsorted(place, wanted * len(moments) + reached) - 1
    fits = (keys[wanted] == codes) & (at >= first[wanted])
    if strict:
        at, fits = _written_by(rows.created[order], group, at, fits, times)
    return np.where(fits, order[np.maximum(at, 0)], NONE)


def _written_by(
    created: Int64Array, group: Int64Array, at: Int64Array, fits: BoolArray, times: Int64Array
) -> tuple[Int64Array, BoolArray]:
    """Step back from each position to the last row of its key that was written by the label's time."""
    ranks = np.unique(created, return_inverse=True)[1].astype(np.int64)
    # Each key's ranks lie below those of all keys before it, so one running minimum serves them all.
    shift = group * (len(created) + 1)
    earliest = np.minimum.accumulate(ranks - shift) + shift
    written = np.unique(created)
    safe = np.maximum(at, 0)
    fits = fits & (written[earliest[safe]] <= times)
    hidden = np.flatnonzero(fits & (created[safe] > times))
    while len(hidden):
        at[hidden] -= 1
        hidden = hidden[created[at[hidden]] > times[hidden]]
    return at, fits
