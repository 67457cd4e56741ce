"""Rows of one view on their way into an online store: what the engine hands to the writers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from feast import FeatureView
from feast.value_type import ValueType

from feature_repo.stores import wire
from feature_repo.stores.clocks import Int64Array, microseconds


@dataclass(frozen=True)
class ViewColumns:
    """Which columns of a table a view takes, by their names in the view.

    Attributes
    ----------
    keys, features
        Name and declared type, features in the view's order.
    created
        The column that says when a row was written, if there is one.
    """

    keys: tuple[tuple[str, ValueType], ...]
    features: tuple[tuple[str, ValueType], ...]
    time: str
    created: str | None

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        clocks = [self.time, *([self.created] if self.created else [])]
        return list(dict.fromkeys([*(name for name, _ in self.keys + self.features), *clocks]))

    @classmethod
    def of(cls, view: FeatureView) -> ViewColumns:
        """Return the columns of a view with a batch source."""
        source = view.batch_source
        assert source is not None
        return cls(
            tuple((column.name, column.dtype.to_value_type()) for column in view.entity_columns),
            tuple((column.name, column.dtype.to_value_type()) for column in view.features),
            source.timestamp_field,
            source.created_timestamp_column or None,
        )


@dataclass(frozen=True)
class Batch:
    """N rows as bytes.

    Attributes
    ----------
    keys
        Serialized entity keys, large binary [N], each only once.
    times, created
        Microseconds since 1970, int64 [N]; `created` is None where the view has no such column, and `MISSING`
        where a row has none.
    values
        Per feature its serialized values, large binary [N].
    columns
        Per feature its declared type and its column, for stores that keep more than bytes.
    last
        Whether it ends what a store with transactions stores whole or not at all.
    """

    keys: pa.Array
    times: Int64Array
    created: Int64Array | None
    values: dict[str, pa.Array]
    columns: dict[str, tuple[ValueType, pa.Array]]
    last: bool = True

    def __len__(self) -> int:
        return len(self.times)


class Writer(Protocol):
    """An online store that takes batches.

    Attributes
    ----------
    scratch
        Where batches are sorted for a store that wants them in the order of keys; None for any order.
    """

    scratch: Path | None

    def write(self, batch: Batch) -> None:
        """Store a batch as Feast would have: whole, together with those before it that were not `last`."""

    def close(self) -> None:
        """Give back what was opened."""


def pack(table: pa.Table, columns: ViewColumns) -> Batch:
    """Turn rows into bytes.

    Raises
    ------
    CannotPackError
        If a column is of a type that only Feast converts.
    InputDataError
        If a clock is no timestamp.
    """
    features = {name: (kind, wire.combined(table[name])) for name, kind in columns.features}
    clocks = [
        None if name is None else microseconds(table[name], "down", file="the source", name=name, naive="utc")
        for name in (columns.time, columns.created)
    ]
    assert clocks[0] is not None
    return Batch(
        wire.entity_keys([(name, table[name], kind) for name, kind in columns.keys]),
        clocks[0],
        clocks[1],
        {name: wire.values(column, kind, one_nan=True) for name, (kind, column) in features.items()},
        features,
    )
