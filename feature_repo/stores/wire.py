"""The bytes that Feast's online stores hold, made from Arrow columns without one protobuf object per value.

A row's bytes are laid side by side by Arrow's element-wise join: what is the same in every row is a scalar, what
depends on a length only is looked up by length, and vectors are the column's own buffer (`wire_pieces`, `wire_lists`).
tests hold each layout against Feast's own serialization.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feature_repo.stores import wire_lists
from feature_repo.stores.assembly import Column, in_one_piece
from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.wire_pieces import (
    CannotPackError,
    Piece,
    by_length,
    contents,
    fixed,
    join,
    lengths_of,
    scalar,
    tag,
    utf8,
    varint,
    varints,
)

# What Feast writes for a timestamp that is not there.
_NO_TIMESTAMP = np.iinfo(np.int64).min


def as_list(column: pa.Array) -> list[bytes]:
    """Return the rows of a large binary array without nulls as bytes objects, faster than Arrow does."""
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = contents(column)
    widths = np.diff(offsets)
    if len(widths) == 0:
        return []
    if widths[0] and (widths == widths[0]).all():
        rows: list[bytes] = np.frombuffer(data, f"V{widths[0]}").tolist()
        return rows
    whole = bytes(data)
    return [whole[start:stop] for start, stop in itertools.pairwise((offsets - offsets[0]).tolist())]


def entity_keys(columns: Sequence[tuple[str, Column, ValueType]]) -> pa.Array:
    """Return each row's entity key in Feast's serialization version 3: large binary [N].

    Parameters
    ----------
    columns
        Name, values without nulls and declared type per join key, in any order.

    Raises
    ------
    CannotPackError
        If a key is null or of a type that is not packed.
    """
    ordered = sorted(columns, key=lambda column: column[0])
    names = b"".join(
        _number(ValueType.STRING.value) + _number(len(name.encode())) + name.encode() for name, _, _ in ordered
    )
    pieces: list[Piece] = [scalar(_number(len(ordered)) + names)]
    for name, column, kind in ordered:
        values = _key_bytes(name, combined(column), kind)
        marker = _number(kind.value)
        pieces += [by_length(lengths_of(values), partial(_marked, marker)), values]
    return join(len(ordered[0][1]), *pieces)


def timestamps(moments: Int64Array) -> pa.Array:
    """Return microseconds since 1970 as protobuf Timestamps: large binary [N]."""
    distinct, positions = np.unique(moments, return_inverse=True)
    seconds, nanos = distinct // 1_000_000, distinct % 1_000_000 * 1000
    whole = join(len(distinct), _field(b"\x08", seconds), _field(b"\x10", nanos))
    return (
        whole
        if len(distinct) == len(moments) and (positions[1:] > positions[:-1]).all()
        else whole.take(pa.array(positions))
    )


def values(column: Column, kind: ValueType, *, one_nan: bool = False) -> pa.Array:
    """Return each row as a serialized Feast ``Value``: large binary [N], empty where the value is null.

    Parameters
    ----------
    one_nan
        Give every NaN in a list one form. It has many, of two signs; Feast's join of offline rows leaves one.

    Raises
    ------
    CannotPackError
        If the column's type, or its declared type, is not packed.
    """
    column = combined(column)
    if kind in wire_lists.KINDS:
        return wire_lists.lists(column, kind, one_nan)
    valid, body = _scalar_body(column, kind)
    whole = join(len(column), scalar(tag(kind)), body)
    return whole if valid is None else pc.if_else(pa.array(valid), whole, scalar(b""))


def combined(column: Column) -> pa.Array:
    """Return a column in one piece, dictionaries decoded."""
    whole = in_one_piece(column)
    return whole.cast(whole.type.value_type) if pa.types.is_dictionary(whole.type) else whole


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _marked(marker: bytes, length: int) -> bytes:
    return marker + _number(length)


def _field(marker: bytes, numbers: Int64Array) -> pa.Array:
    """Return a protobuf integer field; zero is not written."""
    whole = join(len(numbers), scalar(marker), varints(numbers))
    return whole if numbers.all() else pc.if_else(pa.array(numbers != 0), whole, scalar(b""))


def _key_bytes(name: str, column: pa.Array, kind: ValueType) -> pa.Array:
    if column.null_count:
        raise CannotPackError(f"the join key '{name}' is null in {column.null_count} rows")
    if kind == ValueType.INT64:
        return fixed(_integers(column, pa.int64()))
    if kind == ValueType.INT32:
        return fixed(_integers(column, pa.int32()))
    if kind == ValueType.STRING:
        return utf8(column)
    raise CannotPackError(f"join keys of type {kind.name}")


def _scalar_body(column: pa.Array, kind: ValueType) -> tuple[npt.NDArray[np.bool_] | None, pa.Array]:
    """Return which rows have a value (None: all) and the bytes after the tag."""
    valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    if kind in (ValueType.INT64, ValueType.INT32):
        return valid, varints(_integers(column, pa.int64() if kind == ValueType.INT64 else pa.int32()).astype(np.int64))
    if kind in (ValueType.FLOAT, ValueType.DOUBLE):
        wide = kind == ValueType.DOUBLE
        if column.type != pa.float64() and (wide or column.type != pa.float32()):
            raise CannotPackError(f"{column.type} as {kind.name}")
        numbers = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
        there = ~np.isnan(numbers)
        with np.errstate(over="ignore"):
            return None if there.all() else there, fixed(numbers.astype("<f8" if wide else "<f4"))
    if kind == ValueType.BOOL and pa.types.is_boolean(column.type):
        return valid, fixed(column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8))
    if kind == ValueType.UNIX_TIMESTAMP and pa.types.is_timestamp(column.type):
        return None, varints(_seconds(column))
    if kind == ValueType.STRING:
        raw = utf8(column)
        raw = raw.fill_null(b"") if raw.null_count else raw
        return valid, join(len(column), by_length(lengths_of(raw), varint), raw)
    raise CannotPackError(f"{column.type} as {kind.name}")


def _integers(column: pa.Array, kind: pa.DataType) -> npt.NDArray:
    if not pa.types.is_integer(column.type):
        raise CannotPackError(f"{column.type} as {kind}")
    try:
        cast = column.cast(kind)
    except pa.ArrowInvalid as error:
        raise CannotPackError(str(error)) from error
    return cast.fill_null(0).to_numpy(zero_copy_only=False)


def _seconds(column: pa.Array) -> Int64Array:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    raw = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // per_second
    if column.null_count:
        raw = np.where(column.is_valid().to_numpy(zero_copy_only=False), raw, _NO_TIMESTAMP)
    return raw
