"""The two clocks of every stored row, held against the moments that a snapshot claims."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from validation.tables import Summary


class Clocks:
    """Counts the rows whose clocks are missing or wrong.

    Parameters
    ----------
    as_of
        No `created` may be earlier.
    available_at
        What every `event_timestamp` must be; None where each row has a moment of its own.
    checked_at
        When given, rows created more than a minute later are counted as coming from the future.
    """

    def __init__(self, as_of: datetime, available_at: datetime | None, checked_at: datetime | None) -> None:
        self._as_of = microseconds(as_of)
        self._expected = None if available_at is None else microseconds(available_at)
        # A minute of tolerance: the writer's and the gate's clocks may be on two machines.
        self._latest = None if checked_at is None else microseconds(checked_at + timedelta(minutes=1))
        self._event, self._created = _MomentRange(), _MomentRange()
        self._wrong_event = self._wrong_copy = self._early = self._late = self._nulls = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of one batch with columns ``event_timestamp``, ``created``, perhaps ``available_us``."""
        for name, seen in (("event_timestamp", self._event), ("created", self._created)):
            column = batch.column(name)
            values = column.drop_null().cast(pa.int64()).to_numpy()
            self._nulls += column.null_count
            seen.add(values)
            if name == "event_timestamp":
                self._wrong_event += 0 if self._expected is None else int((values != self._expected).sum())
            else:
                self._early += int((values < self._as_of).sum())
                self._late += 0 if self._latest is None else int((values > self._latest).sum())

        if "available_us" in batch.schema.names:
            equal = pc.equal(batch.column("available_us"), batch.column("event_timestamp").cast(pa.int64()))
            self._wrong_copy += len(batch) - int(pc.sum(equal).as_py() or 0)

    def merge(self, other: Clocks) -> None:
        """Add the counts of other rows of the same snapshot."""
        for name in ("_wrong_event", "_wrong_copy", "_early", "_late", "_nulls"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._event.merge(other._event)
        self._created.merge(other._created)

    def totals(self) -> Summary:
        """Return the counts, and the first and last moment of both clocks for a person."""
        return {
            "null_clocks": self._nulls,
            "wrong_event_timestamps": self._wrong_event,
            "wrong_available_us": self._wrong_copy,
            "created_before_as_of": self._early,
            "created_in_future": self._late,
            **self._event.totals("event_timestamp"),
            **self._created.totals("created"),
        }


class _MomentRange:
    def __init__(self) -> None:
        self._low: int | None = None
        self._high: int | None = None

    def add(self, values_N: npt.NDArray[np.int64]) -> None:
        if len(values_N):
            self._widen(int(values_N.min()), int(values_N.max()))

    def merge(self, other: _MomentRange) -> None:
        if other._low is not None and other._high is not None:
            self._widen(other._low, other._high)

    def _widen(self, low: int, high: int) -> None:
        self._low = low if self._low is None else min(self._low, low)
        self._high = high if self._high is None else max(self._high, high)

    def totals(self, name: str) -> Summary:
        return {f"min_{name}": iso(self._low), f"max_{name}": iso(self._high)}


def microseconds(moment: datetime) -> int:
    """Return microseconds since 1970 in UTC, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def iso(value: int | None) -> str:
    """Return a moment for a person; far-off values that no calendar holds stay numbers."""
    if value is None:
        return "none"
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)).isoformat()
    except OverflowError:
        return f"{value} us"
