"""The bytes that Feast's online stores hold, made from Arrow columns without one protobuf object per value.

A row's bytes are laid side by side by Arrow's element-wise join: what is the same in every row is a scalar, what
depends on a length only is looked up by length, and vectors are the column's own buffer. tests hold each layout
against Feast's own serialization.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feature_repo.stores.assembly import Column, in_one_piece
from feature_repo.stores.clocks import Int64Array

Piece: TypeAlias = pa.Array | pa.Scalar

BYTES = pa.large_binary()
# What Feast writes for a timestamp that is not there.
_NO_TIMESTAMP = np.iinfo(np.int64).min
_LISTS: dict[ValueType, np.dtype[Any]] = {ValueType.FLOAT_LIST: np.dtype("<f4"), ValueType.DOUBLE_LIST: np.dtype("<f8")}


class CannotPackError(Exception):
    """A column is of a type that is not packed here; Feast's own conversion has to do it."""


def scalar(value: bytes) -> pa.Scalar:
    """Return bytes that are the same in every row."""
    return pa.scalar(value, BYTES)


def join(rows: int, *pieces: Piece) -> pa.Array:
    """Return the pieces of each row side by side, as one large binary array of `rows` rows."""
    if not any(isinstance(piece, pa.Array) for piece in pieces):
        whole = b"".join(piece.as_py() for piece in pieces)
        return pa.repeat(scalar(whole), rows)
    return pc.binary_join_element_wise(*pieces, scalar(b""))


def by_length(lengths: Int64Array, header: Callable[[int], bytes]) -> Piece:
    """Return each row's header, which depends on the row's length alone; a scalar if all lengths are equal."""
    if len(lengths) and (lengths == lengths[0]).all():
        return scalar(header(int(lengths[0])))
    distinct, positions = np.unique(lengths, return_inverse=True)
    return pa.array([header(int(length)) for length in distinct], BYTES).take(pa.array(positions))


def lengths_of(column: pa.Array) -> Int64Array:
    """Return the length in bytes of each row of a binary array without nulls: int64 [N]."""
    return pc.binary_length(column).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def varint(number: int) -> bytes:
    """Return a protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def varints(numbers: Int64Array) -> pa.Array:
    """Return int64 [N] as protobuf varints; negative numbers take ten bytes."""
    unsigned = numbers.astype(np.int64).view(np.uint64)
    septets = [unsigned >> np.uint64(shift) for shift in range(0, 70, 7) if shift == 0 or (unsigned >> shift).any()]
    digits = np.stack(septets, axis=1) if septets else unsigned[:, None]
    counts = np.maximum((digits != 0).sum(axis=1), 1)
    places = np.arange(digits.shape[1])
    raw = (digits & np.uint64(0x7F)).astype(np.uint8) | np.where(places < counts[:, None] - 1, 0x80, 0).astype(np.uint8)
    return ragged(raw[places < counts[:, None]], counts)


def ragged(data: npt.NDArray[np.uint8], lengths: Int64Array) -> pa.Array:
    """Return flat bytes and the length of each row as a binary array, without copying the bytes."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return pa.LargeBinaryArray.from_buffers(BYTES, len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def fixed(numbers: npt.NDArray) -> pa.Array:
    """Return numbers of one width as their little-endian bytes."""
    little = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
    return ragged(little.view(np.uint8), np.full(len(numbers), numbers.dtype.itemsize, np.int64))


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


def contents(column: pa.Array) -> memoryview:
    """Return the bytes of all rows of a large binary array one after another, without copying them."""
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    start, stop = int(offsets[column.offset]), int(offsets[column.offset + len(column)])
    data = column.buffers()[2]
    return memoryview(data)[start:stop] if data is not None else memoryview(b"")


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
    if kind in _LISTS:
        return _lists(column, kind, one_nan)
    valid, body = _scalar_body(column, kind)
    whole = join(len(column), scalar(tag(kind)), body)
    return whole if valid is None else pc.if_else(pa.array(valid), whole, scalar(b""))


def combined(column: Column) -> pa.Array:
    """Return a column in one piece, dictionaries decoded."""
    whole = in_one_piece(column)
    return whole.cast(whole.type.value_type) if pa.types.is_dictionary(whole.type) else whole


def tag(kind: ValueType) -> bytes:
    """Return the protobuf tag with which a Feast ``Value`` of a type begins."""
    wire_type = {ValueType.FLOAT: 5, ValueType.DOUBLE: 1}.get(
        kind, 0 if kind in (ValueType.INT32, ValueType.INT64, ValueType.BOOL, ValueType.UNIX_TIMESTAMP) else 2
    )
    return varint(Value.DESCRIPTOR.fields_by_name[f"{kind.name.lower()}_val"].number << 3 | wire_type)


def list_header(kind: ValueType, width: int) -> bytes:
    """Return what stands before the numbers of a list that takes `width` bytes."""
    inner = b"\x0a" + varint(width) if width else b""
    return tag(kind) + varint(len(inner) + width) + inner


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
        return _utf8(column)
    raise CannotPackError(f"join keys of type {kind.name}")


def _lists(column: pa.Array, kind: ValueType, one_nan: bool) -> pa.Array:
    own = column.type
    listed = pa.types.is_list(own) or pa.types.is_large_list(own) or pa.types.is_fixed_size_list(own)
    if not listed or own.value_type not in (pa.float32(), pa.float64()):
        raise CannotPackError(f"{own} as {kind.name}")
    flat = column.flatten()
    if flat.null_count:
        raise CannotPackError("vectors with gaps")
    numbers = flat.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum is NaN if a number is, and otherwise for infinities of both signs alone.
        odd = bool(np.isnan(numbers.sum()))
        if kind == ValueType.FLOAT_LIST and odd:
            # As in Feast, whose Python floats turn signaling NaNs into quiet ones.
            numbers = numbers.astype(np.float64)
        numbers = np.ascontiguousarray(numbers, _LISTS[kind])
    if one_nan and odd:
        numbers = np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers)
    counts = pc.list_value_length(column)
    lengths = counts.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) * numbers.itemsize
    header = by_length(lengths, lambda width: list_header(kind, width) if width >= 0 else b"")
    return join(len(column), header, ragged(numbers.view(np.uint8), np.maximum(lengths, 0)))


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
        raw = _utf8(column)
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


def _utf8(column: pa.Array) -> pa.Array:
    own = column.type
    if not (pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own)):
        raise CannotPackError(f"{own} as STRING")
    return column.cast(pa.large_string()).cast(BYTES)


def _seconds(column: pa.Array) -> Int64Array:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    raw = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // per_second
    if column.null_count:
        raw = np.where(column.is_valid().to_numpy(zero_copy_only=False), raw, _NO_TIMESTAMP)
    return raw
