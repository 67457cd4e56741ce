"""Lists as serialized Feast values: floats as they lie in memory, integers as varints, strings with a length each."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.wire_pieces import (
    CannotPackError,
    by_length,
    contents,
    join,
    lengths_of,
    ragged,
    tag,
    utf8,
    varint,
    varints,
)

_FLOATS: dict[ValueType, np.dtype[Any]] = {
    ValueType.FLOAT_LIST: np.dtype("<f4"),
    ValueType.DOUBLE_LIST: np.dtype("<f8"),
}
_ELEMENTS: dict[ValueType, tuple[pa.DataType, ...]] = {
    ValueType.FLOAT_LIST: (pa.float32(), pa.float64()),
    ValueType.DOUBLE_LIST: (pa.float32(), pa.float64()),
    ValueType.INT64_LIST: (pa.int64(),),
    ValueType.STRING_LIST: (pa.string(), pa.large_string()),
}
KINDS = frozenset(_ELEMENTS)
# In a list of strings, what stands before the length of each.
_STRING = b"\x0a"


def list_header(kind: ValueType, width: int) -> bytes:
    """Return what stands before the numbers of a list that takes `width` bytes."""
    inner = b"\x0a" + varint(width) if width else b""
    return tag(kind) + varint(len(inner) + width) + inner


def lists(column: pa.Array, kind: ValueType, one_nan: bool) -> pa.Array:
    """Return each list as a serialized Feast ``Value``: large binary [N], empty where the list is null.

    Parameters
    ----------
    column
        Lists in one piece, of one or of any length.
    kind
        One of `KINDS`.
    one_nan
        Give every NaN one form.

    Raises
    ------
    CannotPackError
        If the column's type does not fit its declared one, or a list has gaps.
    """
    own = column.type
    listed = pa.types.is_list(own) or pa.types.is_large_list(own) or pa.types.is_fixed_size_list(own)
    if not listed or own.value_type not in _ELEMENTS[kind]:
        raise CannotPackError(f"{own} as {kind.name}")
    flat = column.flatten()
    if flat.null_count:
        raise CannotPackError("lists with gaps")
    counts = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if kind in _FLOATS:
        numbers = _floats(flat, kind, one_nan)
        return _framed(kind, counts * numbers.itemsize, numbers.view(np.uint8))
    elements = varints(flat.to_numpy(zero_copy_only=False)) if kind == ValueType.INT64_LIST else _strings(flat)
    ends = np.concatenate([[0], np.cumsum(lengths_of(elements))])
    last = np.cumsum(np.maximum(counts, 0))
    widths = np.diff(ends[last], prepend=0)
    return _framed(kind, np.where(counts < 0, -1, widths), contents(elements))


def _framed(kind: ValueType, widths: Int64Array, data: npt.NDArray[np.uint8] | memoryview) -> pa.Array:
    """Return the bytes of all lists cut by their widths, each behind its header; a width of -1 stands for null."""
    header = by_length(widths, partial(_header, kind))
    return join(len(widths), header, ragged(data, np.maximum(widths, 0)))


def _header(kind: ValueType, width: int) -> bytes:
    if width < 0:
        return b""
    return tag(kind) + varint(width) if kind == ValueType.STRING_LIST else list_header(kind, width)


def _floats(flat: pa.Array, kind: ValueType, one_nan: bool) -> npt.NDArray:
    numbers = flat.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum is NaN if a number is, and otherwise for infinities of both signs alone.
        odd = bool(np.isnan(numbers.sum()))
        if kind == ValueType.FLOAT_LIST and odd:
            # As in Feast, whose Python floats turn signaling NaNs into quiet ones.
            numbers = numbers.astype(np.float64)
        numbers = np.ascontiguousarray(numbers, _FLOATS[kind])
    return np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers) if one_nan and odd else numbers


def _strings(flat: pa.Array) -> pa.Array:
    raw = utf8(flat)
    return join(len(raw), by_length(lengths_of(raw), _opened), raw)


def _opened(length: int) -> bytes:
    return _STRING + varint(length)
