"""Clocks as int64 microseconds since 1970, whatever unit the file or frame has them in."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.types import Problem

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Naive = Literal["error", "utc"]
Rounding = Literal["up", "down"]

# A clock that is not there. No real one gets so early: it is 292,277 years before 1970.
MISSING = np.iinfo(np.int64).min
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def microseconds(
    column: pa.ChunkedArray | pa.Array, rounding: Rounding, *, file: str, name: str, naive: Naive = "error"
) -> Int64Array:
    """Return a column of timestamps as microseconds since 1970; nulls become `MISSING`.

    Parameters
    ----------
    column
        Timestamps in any unit, shape ``(N,)``.
    rounding
        Where nanoseconds do not fit: stored rows round up and label times down, so that rounding never shows
        a row to a label that came before it.
    file, name
        Where the column comes from, for the message.
    naive
        Whether timestamps without a time zone are an error, or are taken as UTC.

    Raises
    ------
    InputDataError
        If the column is no timestamp, has no time zone, or does not fit into 64 bits.
    """
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise _refused(file, name, f"is {kind}, not a timestamp", len(column), "Store it as timestamp[us, tz=UTC].")
    if kind.tz is None and naive == "error":
        raise _refused(
            file,
            name,
            "has timestamps without a time zone",
            len(column),
            "Write them with one (UTC), or set `naive_timestamps: utc` under offline_store if they are UTC already.",
        )
    missing = pc.is_null(column).to_numpy(zero_copy_only=False) if column.null_count else None
    raw = column.cast(pa.int64()) if missing is None else column.cast(pa.int64()).fill_null(0)
    values = raw.to_numpy(zero_copy_only=False) if isinstance(raw, pa.Array) else raw.to_numpy()
    result = _scaled(values, kind.unit, rounding, file, name)
    if missing is not None:
        result = np.where(missing, MISSING, result)
    return result


def _scaled(values: Int64Array, unit: str, rounding: Rounding, file: str, name: str) -> Int64Array:
    if unit == "ns":
        whole = values // 1000
        return whole + (values % 1000 != 0) if rounding == "up" else whole
    factor = _UNITS[unit]
    if factor > 1 and len(values) and np.abs(values).max() > np.iinfo(np.int64).max // factor:
        raise _refused(file, name, f"holds timestamp[{unit}] values beyond microseconds", len(values), "Correct them.")
    return values * factor if factor > 1 else values


def _refused(file: str, name: str, reason: str, rows: int, remedy: str) -> InputDataError:
    return InputDataError([Problem(file, name, reason, rows, remedy)])
