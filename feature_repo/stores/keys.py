"""Join keys as one int64 code per row: equal codes for equal keys, on both sides of a join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.types import Problem
from feature_repo.stores.clocks import BoolArray, Int64Array

Column: TypeAlias = pa.ChunkedArray | pa.Array


class KeyCodes:
    """Codes of the keys that occur among the labels.

    One integer key is its own code. Anything else is numbered by the distinct values among the labels, key by
    key, so that only what a label asks for is ever compared.

    Parameters
    ----------
    columns
        One column per join key, each of shape ``(N,)``; none for a view without entities.
    types
        The Arrow types of the same keys in the view's files.
    names
        Their names among the labels, for messages.
    rows
        N, needed where there is no key.

    Attributes
    ----------
    codes : int64 [N]
    valid : bool [N]
        False where a key is null: such a label matches nothing.
    plain : bool
        Whether codes are the keys themselves, in their order.

    Raises
    ------
    InputDataError
        If a key's type among the labels cannot equal its type in the files.
    """

    def __init__(
        self, columns: Sequence[Column], types: Sequence[pa.DataType], names: Sequence[str], rows: int
    ) -> None:
        self._names = tuple(names)
        self._kinds = [key_type(kind) for kind in types]
        cast = [as_key(column, kind, name) for column, kind, name in zip(columns, self._kinds, names, strict=True)]
        self.plain = len(cast) == 1 and self._kinds[0] == pa.int64()
        self._values: list[pa.Array] = []
        self._combined: list[Int64Array] = []
        if self.plain:
            self.codes, self.valid = _numbers(cast[0])
            return
        self.codes, self.valid = np.zeros(rows, np.int64), np.ones(rows, np.bool_)
        for column in cast:
            values = pc.unique(column).drop_null()
            self._values.append(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
            codes, known = _positions(column, self._values[-1])
            self.valid &= known
            combined = self.codes * (len(self._values[-1]) + 1) + codes
            self._combined.append(np.unique(combined[self.valid]))
            self.codes = np.searchsorted(self._combined[-1], combined)

    def encode(self, columns: Sequence[Column], rows: int) -> tuple[Int64Array, BoolArray | None]:
        """Return codes int64 [M] of rows of the view's files, and which are known (None: all of them)."""
        cast = [
            as_key(column, kind, name) for column, kind, name in zip(columns, self._kinds, self._names, strict=True)
        ]
        if self.plain:
            codes, known = _numbers(cast[0])
            return codes, None if cast[0].null_count == 0 else known
        codes, known = np.zeros(rows, np.int64), np.ones(rows, np.bool_)
        for column, values, combinations in zip(cast, self._values, self._combined, strict=True):
            part, there = _positions(column, values)
            combined = codes * (len(values) + 1) + part
            if len(combinations) == 0:
                return np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
            codes = np.minimum(np.searchsorted(combinations, combined), len(combinations) - 1)
            known &= there & (combinations[codes] == combined)
        return codes, known


def key_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which keys are compared."""
    if pa.types.is_dictionary(kind):
        return key_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def as_key(column: Column, kind: pa.DataType, name: str) -> Column:
    own = key_type(column.type)
    # Pandas turns integers with gaps into floats; no other conversion may pass in silence.
    convertible = own == kind or pa.types.is_null(own) or (kind == pa.int64() and pa.types.is_floating(own))
    try:
        if not convertible:
            raise pa.ArrowInvalid(f"{column.type} never equals {kind}")
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowInvalid as error:
        problem = Problem(
            "join keys",
            name,
            f"does not fit the key of the view's files ({error})",
            len(column),
            "Make the types equal.",
        )
        raise InputDataError([problem]) from error


def _numbers(column: Column) -> tuple[Int64Array, BoolArray]:
    if column.null_count == 0:
        values = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
        return values, np.ones(len(column), np.bool_)
    valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
    return column.fill_null(0).to_numpy(zero_copy_only=False), valid


def _positions(column: Column, values: pa.Array) -> tuple[Int64Array, BoolArray]:
    """Return each value's position in `values`, and whether it has one; nulls have none."""
    found = pc.index_in(column, value_set=values, skip_nulls=True)
    known = pc.is_valid(found).to_numpy(zero_copy_only=False)
    return found.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), known
