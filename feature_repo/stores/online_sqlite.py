"""Batches into Feast's SQLite online store: one row per entity and feature, a transaction per batch."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.value_type import ValueType

from feature_repo.contracts.errors import BusyError, NotReadyError, OnlineStoreError
from feature_repo.stores import wire
from feature_repo.stores.batches import Batch
from feature_repo.stores.clocks import MISSING, Int64Array

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")
_CACHE_KIB = 65_536


class SqliteWriter:
    """Writes rows over what is stored, as Feast's SQLite store does.

    Parameters
    ----------
    path
        The database that ``feast apply`` made.
    table
        The view's table there.
    wait_seconds
        How long to wait for another process that holds the database.
    """

    def __init__(self, path: Path, table: str, wait_seconds: float) -> None:
        self._path = path
        with errors(path):
            self._connection = sqlite3.connect(
                path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
            )
            # More than the default of 2 MB, so that a million rows do not read every page again and again.
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        updates = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])
        self._statement = (
            f"INSERT INTO {quoted(table)} ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT(entity_key, feature_name) DO UPDATE SET {updates}"
        )

    def write(self, batch: Batch) -> None:
        """Store a batch, all of it or nothing.

        Raises
        ------
        BusyError
            If another process holds the database for too long.
        OnlineStoreError
            If it cannot be written.
        """
        # In the order of the index, so that neighbours are written together.
        order = pc.array_sort_indices(batch.keys.cast(pa.binary()))
        positions = order.to_numpy()
        keys = wire.as_list(batch.keys.take(order))
        event = _stored_moments(batch.times[positions])
        created = itertools.repeat(None) if batch.created is None else _stored_moments(batch.created[positions])
        clocks = list(zip(event, created, strict=False))
        rows = [
            [
                (key, name, value, text, *clock)
                for key, value, text, clock in zip(
                    keys, wire.as_list(values.take(order)), _texts(*batch.columns[name], order), clocks, strict=False
                )
            ]
            for name, values in batch.values.items()
        ]
        with errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    self._statement,
                    itertools.chain.from_iterable(zip(*rows, strict=True)) if len(rows) > 1 else rows[0],
                )
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def quoted(identifier: str) -> str:
    """Return a table's name as SQL."""
    return '"' + identifier.replace('"', '""') + '"'


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into errors that say what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        message = str(error)
        if "locked" in message or "busy" in message:
            raise BusyError(
                f"Another process holds the online store {path} ({message}). Wait for it to end, and run the command "
                "again: what was stored stays, and the rest follows."
            ) from error
        if "no such table" in message:
            raise NotReadyError(
                f"The online store {path} lacks a view ({message}). Run `feast apply` first."
            ) from error
        raise OnlineStoreError(
            f"The online store {path}: {message}. Check that the path is right, writable and on a disk with space."
        ) from error
    except sqlite3.DatabaseError as error:
        raise OnlineStoreError(
            f"The online store {path} is damaged ({error}). Remove it, run `feast apply`, and materialize again."
        ) from error


def moments_of(stored: Int64Array) -> Int64Array:
    """Return stored event times as microseconds since 1970, as Feast reads them back."""
    distinct, positions = np.unique(stored, return_inverse=True)
    # Feast writes UTC without saying so and Python takes it for local time, both ways.
    moments = [datetime.fromtimestamp(value).replace(tzinfo=UTC) - _EPOCH for value in distinct.tolist()]  # noqa: DTZ006
    return np.array([moment // timedelta(microseconds=1) for moment in moments], np.int64)[positions]


def _stored_moments(moments: Int64Array) -> list[int | None]:
    """Return event times as Feast's SQLite store keeps them: whole seconds of the local clock."""
    distinct, positions = np.unique(moments, return_inverse=True)
    stored = [
        None if moment == MISSING else int((_EPOCH + timedelta(microseconds=moment)).replace(tzinfo=None).timestamp())
        for moment in distinct.tolist()
    ]
    return [stored[0]] * len(moments) if len(stored) == 1 else [stored[position] for position in positions.tolist()]


def _texts(kind: ValueType, column: pa.Array, order: pa.Array) -> list[str | None] | itertools.repeat[None]:
    """Return the text that Feast keeps beside a scalar, for its text search."""
    if kind == ValueType.STRING:
        texts: list[str | None] = column.take(order).to_pylist()
        return texts
    if kind in (ValueType.INT32, ValueType.INT64, ValueType.BOOL):
        return [None if value is None else str(value) for value in column.take(order).to_pylist()]
    if kind in (ValueType.FLOAT, ValueType.DOUBLE):
        numbers = column.take(order).fill_null(np.nan).to_numpy(zero_copy_only=False)
        if kind == ValueType.FLOAT:
            numbers = numbers.astype(np.float32).astype(np.float64)
        return [str(value) if value == value else None for value in numbers.tolist()]
    return itertools.repeat(None)
