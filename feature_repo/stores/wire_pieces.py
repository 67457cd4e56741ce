"""Bytes of many rows as Arrow arrays: pieces that are joined side by side, and protobuf's numbers and tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feature_repo.stores.clocks import Int64Array

Piece: TypeAlias = pa.Array | pa.Scalar
Buffer: TypeAlias = npt.NDArray[np.uint8] | memoryview

BYTES = pa.large_binary()


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
    rest = numbers.astype(np.int64).view(np.uint64)
    counts = np.ones(len(rest), np.int64)
    for shift in range(7, int(rest.max(initial=0)).bit_length(), 7):
        counts += rest >= np.uint64(1 << shift)
    at, left = np.cumsum(counts) - counts, counts
    data = np.empty(int(counts.sum()), np.uint8)
    while len(rest):
        more = left > 1
        data[at] = (rest & np.uint64(0x7F)).astype(np.uint8) | np.where(more, 0x80, 0).astype(np.uint8)
        rest, at, left = rest[more] >> np.uint64(7), at[more] + 1, left[more] - 1
    return ragged(data, counts)


def ragged(data: Buffer, lengths: Int64Array) -> pa.Array:
    """Return flat bytes and the length of each row as a binary array, without copying the bytes."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return pa.LargeBinaryArray.from_buffers(BYTES, len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def fixed(numbers: npt.NDArray) -> pa.Array:
    """Return numbers of one width as their little-endian bytes."""
    little = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
    return ragged(little.view(np.uint8), np.full(len(numbers), numbers.dtype.itemsize, np.int64))


def contents(column: pa.Array) -> memoryview:
    """Return the bytes of all rows of a large binary array one after another, without copying them."""
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    start, stop = int(offsets[column.offset]), int(offsets[column.offset + len(column)])
    data = column.buffers()[2]
    return memoryview(data)[start:stop] if data is not None else memoryview(b"")


def utf8(column: pa.Array) -> pa.Array:
    """Return text as its bytes, null where it is; CannotPackError if it is none."""
    own = column.type
    if not (pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own)):
        raise CannotPackError(f"{own} as STRING")
    return column.cast(pa.large_string()).cast(BYTES)


def tag(kind: ValueType) -> bytes:
    """Return the protobuf tag with which a Feast ``Value`` of a type begins."""
    wire_type = {ValueType.FLOAT: 5, ValueType.DOUBLE: 1}.get(
        kind, 0 if kind in (ValueType.INT32, ValueType.INT64, ValueType.BOOL, ValueType.UNIX_TIMESTAMP) else 2
    )
    return varint(Value.DESCRIPTOR.fields_by_name[f"{kind.name.lower()}_val"].number << 3 | wire_type)
