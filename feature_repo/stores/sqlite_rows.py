"""A batch as one SQL statement: SQLite cuts its rows out of the batch's own bytes, and Python touches none of them.

A column of bytes is one parameter. Where all its rows are of one width, row n is ``substr(?1, n * width + 1, width)``;
else start and length of each row are two more parameters, as decimal digits of one width.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from feature_repo.stores import wire_pieces
from feature_repo.stores.clocks import Int64Array

# What stands for NULL among numbers; no clock in seconds reaches it.
NULL = np.iinfo(np.int64).min
COUNTER = "temp._headwater_counter"
# The longest decimal number of 64 bits, with its sign.
_DIGITS = 20

Feature: TypeAlias = tuple[pa.Array, pa.Array | None]
"""Serialized values, and the text beside them (strings, null where there is none) or None."""


def count_to(connection: sqlite3.Connection, rows: int) -> None:
    """Make a connection's counter, which statements read, reach the numbers from 0 to `rows` - 1."""
    connection.execute(f"CREATE TABLE IF NOT EXISTS {COUNTER} (i INTEGER PRIMARY KEY)")
    (there,) = connection.execute(f"SELECT coalesce(max(i) + 1, 0) FROM {COUNTER}").fetchone()
    if there < rows:
        counted = f"counted(i) AS (SELECT {there} UNION ALL SELECT i + 1 FROM counted WHERE i + 1 < {rows})"
        connection.execute(f"INSERT INTO {COUNTER} WITH RECURSIVE {counted} SELECT i FROM counted")


class Upsert:
    """Writes N rows of F features into a table of Feast's SQLite store: one row of SQL per entity and feature.

    Parameters
    ----------
    table
        Its name, quoted.
    keys
        Large binary [N].
    features
        By name, values and texts: [N] each.
    event, created
        As they are stored: int64 [N], `NULL` where there is none.

    Attributes
    ----------
    sql, parameters
        The statement. It holds views of the arrays, so that they must outlive it.
    rows
        How many rows of SQL it writes: `count_to` has to have counted as many.
    """

    def __init__(
        self, table: str, keys: pa.Array, features: Mapping[str, Feature], event: Int64Array, created: Int64Array
    ) -> None:
        self.parameters: list[Any] = []
        names = [_text(name) for name in features]
        columns = {
            "entity_key": self._bytes(keys),
            "feature_name": _of_feature(names),
            "value": _of_feature([self._bytes(values) for values, _ in features.values()]),
            "value_text": _of_feature([self._texts(texts) for _, texts in features.values()]),
            "event_ts": self._numbers(event),
            "created_ts": self._numbers(created),
        }
        count = len(names)
        self.rows = len(keys) * count
        updates = ", ".join(f"{name} = excluded.{name}" for name in list(columns)[2:])
        numbered = "i AS n" if count == 1 else f"i / {count} AS n, i % {count} AS f"
        # The rows of an entity lie together, as a reader wants them. WHERE keeps ON from being taken for a join's.
        self.sql = (
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "
            f"FROM (SELECT {numbered} FROM {COUNTER} WHERE i < {self.rows}) WHERE true "
            f"ON CONFLICT(entity_key, feature_name) DO UPDATE SET {updates}"
        )

    def _parameter(self, value: Any) -> str:
        self.parameters.append(value)
        return f"?{len(self.parameters)}"

    def _bytes(self, column: pa.Array) -> str:
        lengths = wire_pieces.lengths_of(column)
        width = int(lengths[0])
        if (lengths == width).all():
            data = self._parameter(wire_pieces.contents(column)) if width else ""
            return f"substr({data}, n * {width} + 1, {width})" if width else "x''"
        return self._ragged(wire_pieces.contents(column), lengths)

    def _texts(self, column: pa.Array | None) -> str:
        if column is None or column.null_count == len(column):
            return "NULL"
        raw = column.cast(wire_pieces.BYTES).fill_null(b"")
        lengths = np.where(column.is_valid().to_numpy(zero_copy_only=False), wire_pieces.lengths_of(raw), NULL)
        return f"CAST({self._ragged(wire_pieces.contents(raw), lengths)} AS TEXT)"

    def _ragged(self, data: memoryview, lengths: Int64Array) -> str:
        widths = np.where(lengths == NULL, 0, lengths)
        starts = np.cumsum(widths) - widths + 1
        # Of no bytes at all substr makes NULL; of any it makes none of them.
        ready = self._parameter(data or b"\0")
        return f"substr({ready}, {self._numbers(starts)}, {self._numbers(lengths)})"

    def _numbers(self, numbers: Int64Array) -> str:
        if (numbers == numbers[0]).all():
            return "NULL" if numbers[0] == NULL else str(numbers[0])
        digits = self._parameter(numbers.astype(f"S{_DIGITS}").tobytes())
        number = f"CAST(substr({digits}, n * {_DIGITS} + 1, {_DIGITS}) AS INTEGER)"
        return f"NULLIF({number}, {NULL})" if (numbers == NULL).any() else number


def quoted(identifier: str) -> str:
    """Return a table's name as SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _of_feature(choices: list[str]) -> str:
    """Return what picks the choice of feature f."""
    if len(set(choices)) == 1:
        return choices[0]
    return f"CASE f {' '.join(f'WHEN {f} THEN {choice}' for f, choice in enumerate(choices))} END"
