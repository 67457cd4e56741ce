"""Checks of a raw Parquet file before any value is read: is it whole, and is its schema exact?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.types import Check

CLOCK = pa.timestamp("us", tz="UTC")
ID_TYPES = {"int64": pa.int64(), "string": pa.string()}


def snapshot_schema(entity: str, id_type: str) -> dict[str, pa.DataType | None]:
    """Return the columns and types that an embedding snapshot must have."""
    return {
        f"{entity}_id": ID_TYPES[id_type],
        "embedding": pa.list_(pa.float32()),
        "norm": pa.float32(),
        "available_us": pa.int64(),
        "event_timestamp": CLOCK,
        "created": CLOCK,
    }


def check_file(path: Path, expected: Mapping[str, pa.DataType | None], *, exact: bool = True) -> list[Check]:
    """Check footer, columns, types and time zones of a Parquet file.

    Parameters
    ----------
    expected
        Columns and types; None stands for any type.
    exact
        Whether other columns are refused.

    Returns
    -------
    list of Check
        ``file_readable`` and, where that passed, ``file_not_empty``, ``file_columns``, ``file_types`` and
        ``file_time_zone``. All of them are critical.
    """
    whole = "a Parquet file with a whole footer"
    try:
        size = path.stat().st_size
        footer = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        return [_check("file_readable", f"{type(error).__name__}: {error}", whole, False)]
    schema = footer.schema.to_arrow_schema()
    checks = [
        _check("file_readable", f"{size} bytes", whole, True),
        _check("file_not_empty", footer.num_rows, "at least one row", footer.num_rows > 0),
    ]
    found = list(schema.names)
    difference = _column_difference(found, list(expected), exact)
    checks.append(_check("file_columns", ", ".join(found), ", ".join(expected), not difference, difference))
    wrong, naive = [], []
    for name, kind in expected.items():
        if found.count(name) != 1 or kind is None:
            continue
        actual = schema.field(name).type
        if pa.types.is_timestamp(kind) and pa.types.is_timestamp(actual) and actual.tz != "UTC":
            naive.append(f"{name} is {actual}")
        elif not _same_type(actual, kind):
            wrong.append(f"{name} is {actual} instead of {kind}")
    wanted = ", ".join(f"{name} {kind or 'of any type'}" for name, kind in expected.items())
    checks.append(_check("file_types", "; ".join(wrong) or "as declared", wanted, not wrong))
    checks.append(_check("file_time_zone", "; ".join(naive) or "UTC", "timestamps in UTC", not naive))
    return checks


def check_row_groups(path: Path, error: Exception | None) -> Check:
    """Return the check of the pages themselves, from what reading all of them once gave."""
    bound = "every row group can be decoded"
    if error is not None:
        return _check("file_row_groups", f"{type(error).__name__}: {error}", bound, False)
    return _check("file_row_groups", pq.read_metadata(path).num_row_groups, bound, True)


def _same_type(actual: pa.DataType, expected: pa.DataType) -> bool:
    # The name of the list's inner field ("item", "element") depends on the writer and carries no meaning.
    if pa.types.is_list(expected):
        return pa.types.is_list(actual) and bool(actual.value_type == expected.value_type)
    return bool(actual == expected)


def _column_difference(found: list[str], expected: list[str], exact: bool) -> str:
    parts = []
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected] if exact else []
    double = sorted({name for name in found if found.count(name) > 1})
    for word, names in (("missing", missing), ("unexpected", extra), ("twice", double)):
        if names:
            parts.append(f"{word}: {', '.join(names)}")
    return "; ".join(parts)


def _check(name: str, observed: str | int, bound: str, passed: bool, detail: str = "") -> Check:
    return Check(name=name, severity="critical", passed=passed, observed=observed, bound=bound, detail=detail)
