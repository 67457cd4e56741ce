"""Event times as people write them, turned into UTC microseconds, with every fault named.

Nothing is guessed: a naive time has no meaning without its zone, and an integer is a time only if one unit
alone puts the whole column between 1990 and 2100.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

UTC_MICROSECONDS = pl.Datetime("us", "UTC")

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
FUTURE_TOLERANCE = timedelta(days=1)

# The windows of two units never overlap: 2100 in seconds is far below 1990 in milliseconds, and so on.
_PER_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}

_DATE_AND_TIME = r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?"
_ZONE = r"\s?(Z|z|UTC|GMT|[+-]\d{2}(:?\d{2})?)"

_NAIVE_REMEDY = (
    "State the zone: write the column as timestamp[us, UTC] (in DuckDB: t AT TIME ZONE 'UTC'), "
    "or as text such as 2017-08-07T12:00:00Z."
)


@dataclass(frozen=True)
class Fault:
    """Rows of one column that are wrong for one reason; `mask` is True for them (null-free, one per row)."""

    reason: str
    remedy: str
    mask: pl.Series


@dataclass(frozen=True)
class Times:
    """Parsed times (null where unusable) and what was wrong with the others."""

    moments: pl.Series
    faults: tuple[Fault, ...]


def parse_times(column: pl.Series, now: datetime) -> Times:
    """Turn a column of times into UTC microseconds.

    Accepted are timestamps with a zone, ISO 8601 text with a zone, and integers in seconds, milliseconds,
    microseconds or nanoseconds since 1970 where the magnitude of the whole column allows one unit only.

    Parameters
    ----------
    column
        Any dtype, shape ``(N,)``.
    now
        Timezone-aware; times later than a day after it are a fault.

    Returns
    -------
    Times
        Shape ``(N,)``; a row with a fault of its own may still carry its moment.
    """
    assert now.tzinfo is not None, "now must be timezone-aware"
    null = column.is_null()
    moments, faults = _parse(column)
    faults.insert(0, Fault("is null", "Fill the time in or leave the row out.", null))
    day_after = now + FUTURE_TOLERANCE
    faults += [
        Fault(
            "is negative (before 1970)",
            "Correct the time; a time before 1970 usually comes from a wrong unit or a placeholder.",
            _true_where(moments < datetime(1970, 1, 1, tzinfo=UTC)),
        ),
        Fault(
            "is before 1990",
            "Correct the time; it usually means that the values were written in another unit than declared.",
            _true_where((moments >= datetime(1970, 1, 1, tzinfo=UTC)) & (moments < EARLIEST)),
        ),
        Fault(
            f"is in the far future (after {day_after:%Y-%m-%dT%H:%M:%SZ})",
            "Correct the time or the unit; check this machine's clock if the time is right.",
            _true_where(moments > day_after),
        ),
    ]
    return Times(moments, tuple(fault for fault in faults if fault.mask.any()))


def _parse(column: pl.Series) -> tuple[pl.Series, list[Fault]]:
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return column.dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS), []
    if dtype.is_integer():
        return _from_integers(column)
    if dtype == pl.Null:
        return column.cast(UTC_MICROSECONDS), []
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        return _from_text(column.cast(pl.String))
    everything = column.is_not_null()
    if dtype in (pl.Date, pl.Datetime):
        return _nothing(column), [Fault(f"is a naive time ({dtype}, no zone)", _NAIVE_REMEDY, everything)]
    remedy = "Write it as timestamp[us, UTC], as ISO 8601 text with a zone, or as whole seconds since 1970."
    return _nothing(column), [Fault(f"is no time ({dtype})", remedy, everything)]


def _from_text(column: pl.Series) -> tuple[pl.Series, list[Fault]]:
    text = column.str.strip_chars()
    zoned = _true_where(text.str.contains(f"^{_DATE_AND_TIME}{_ZONE}$"))
    naive = _true_where(text.str.contains(rf"^{_DATE_AND_TIME}$|^\d{{4}}-\d{{2}}-\d{{2}}$"))
    uniform = (
        text.str.replace(_ZONE + "$", "$1")
        .str.replace("(Z|z|UTC|GMT)$", "+0000")
        .str.replace(r"([+-]\d{2})$", "${1}00")
        .str.replace(r"([+-]\d{2}):(\d{2})$", "$1$2")
        .str.replace("^(.{10}).", "${1}T")
        .str.replace("^(.{16})([+-])", "${1}:00$2")
        .str.replace(",", ".", literal=True)
    )
    moments = (
        pl.select(pl.when(zoned).then(uniform).alias(column.name))
        .to_series()
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", strict=False)
        .cast(UTC_MICROSECONDS)
    )
    unreadable = moments.is_null() & column.is_not_null() & ~naive
    return moments, [
        Fault("is a naive time (text without a zone)", _NAIVE_REMEDY, naive),
        Fault(
            "can't be parsed as a time",
            "Write ISO 8601 with a zone, such as 2017-08-07T12:00:00Z or 2017-08-07 14:00:00+02:00.",
            unreadable,
        ),
    ]


def _from_integers(column: pl.Series) -> tuple[pl.Series, list[Fault]]:
    # Unsigned 64-bit values beyond the signed range fit no unit either way; as null they'd look like missing ones.
    numbers = column.clip(upper_bound=2**63 - 1).cast(pl.Int64) if column.dtype == pl.UInt64 else column
    numbers = numbers.cast(pl.Int64)
    low, high = int(EARLIEST.timestamp()), int(LATEST.timestamp())
    fits = {
        unit: _true_where((numbers >= low * scale) & (numbers < high * scale)) for unit, scale in _PER_SECOND.items()
    }
    found = {unit: int(mask.sum()) for unit, mask in fits.items() if mask.any()}
    everything = column.is_not_null()
    if len(found) > 1:
        told = " and ".join(f"{unit} ({rows:,} rows)" for unit, rows in found.items())
        reason = f"mixes {told}, so its unit is ambiguous"
        return _nothing(column), [Fault(reason, "Write the whole column in one unit.", everything)]
    negative = _true_where(numbers < 0)
    negatives = Fault(
        "is negative (before 1970)", "Correct the time; it may be a placeholder for a missing one.", negative
    )
    if not found:
        reason = "fits no time between 1990 and 2100 in seconds, milliseconds, microseconds or nanoseconds"
        remedy = "Write the column as timestamp[us, UTC], or as whole seconds since 1970-01-01 UTC."
        return _nothing(column), [negatives, Fault(reason, remedy, everything & ~negative)]
    (unit,) = found
    outside = everything & ~negative & ~fits[unit]
    ours, per_second = numbers.set(~fits[unit], None), _PER_SECOND[unit]
    micros = ours * (10**6 // per_second) if per_second <= 10**6 else ours // (per_second // 10**6)
    reason = f"is no time between 1990 and 2100 in {unit}, the unit of the other rows"
    return micros.cast(UTC_MICROSECONDS), [negatives, Fault(reason, "Correct these rows.", outside)]


def _nothing(column: pl.Series) -> pl.Series:
    return pl.Series(column.name, [None], dtype=UTC_MICROSECONDS).new_from_index(0, len(column))


def _true_where(mask: pl.Series) -> pl.Series:
    return mask.fill_null(False)
