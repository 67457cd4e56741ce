"""Batches into Feast's SQLite online store: one row per entity and feature, a transaction per chunk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast.value_type import ValueType

from feature_repo.contracts.errors import BusyError, NotReadyError, OnlineStoreError
from feature_repo.failpoints import durable
from feature_repo.stores import wire
from feature_repo.stores.batches import Batch
from feature_repo.stores.clocks import MISSING, Int64Array
from feature_repo.stores.per_id import PerId
from feature_repo.stores.places import SqlitePlace
from feature_repo.stores.sqlite_rows import NULL, Upsert, count_to, quoted

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CACHE_KIB = 65_536
# A database that is smaller than this is given larger pages than SQLite's 4 KiB.
_SMALL_BYTES = 1 << 20
_PAGE_BYTES = 16_384
# SQLite takes no parameter of a gigabyte, and copies each.
_STATEMENT_BYTES = 64e6
_MAPPED_BYTES = 1 << 31
_KEYS_PER_QUERY = 5_000
_NOTHING: tuple[bytes | None, int] = (None, MISSING)


class SqliteWriter:
    """Writes rows over what is stored, as Feast's SQLite store does; quickest if batches come in the order of keys.

    Parameters
    ----------
    place
        The view's table in the database that ``feast apply`` made.
    wait_seconds
        How long to wait for another process that holds the database.
    """

    def __init__(self, place: SqlitePlace, wait_seconds: float) -> None:
        self._path, self._table = place.path, quoted(place.table)
        self.scratch: Path | None = place.path.parent
        self._broken = False
        with _errors(self._path):
            self._connection = sqlite3.connect(
                self._path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
            )
            # More than the default of 2 MB, so that a million rows do not read every page again and again.
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._connection.execute("PRAGMA temp_store = MEMORY")
            (encoding,) = self._connection.execute("PRAGMA encoding").fetchone()
            self._widen_pages()
        if encoding != "UTF-8":
            raise wire.CannotPackError(f"{self._path} holds text as {encoding}")

    def _widen_pages(self) -> None:
        """Rewrite a database that is still small with larger pages: a load has fewer of them to fill and to sync."""
        names = ("page_size", "page_count", "journal_mode")
        size, count, journal = (self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        # With a write-ahead log the size of pages is fixed.
        if size < _PAGE_BYTES and size * count <= _SMALL_BYTES and journal != "wal":
            self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._connection.execute("VACUUM")

    def write(self, batch: Batch) -> None:
        """Store a batch with those before it since the last one that was `last`: all of them or none.

        Once a batch failed, nothing more is taken: those before it are gone.

        Raises
        ------
        BusyError
            If another process holds the database for too long.
        OnlineStoreError
            If it cannot be written.
        """
        if self._broken:
            raise OnlineStoreError(f"A batch for {self._path} was not stored, so none after it is. Load again.")
        try:
            with _errors(self._path):
                self._insert(batch)
                if batch.last:
                    with durable("online rows"):
                        self._connection.execute("COMMIT")
        except BaseException:
            self._broken = True
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _insert(self, batch: Batch) -> None:
        event, created = (_stored_moments(clock, len(batch)) for clock in (batch.times, batch.created))
        features = {name: (values, _texts(*batch.columns[name])) for name, values in batch.values.items()}
        size = batch.keys.nbytes + sum(values.nbytes for values in batch.values.values())
        rows = max(1, int(len(batch) * min(1.0, _STATEMENT_BYTES / max(size, 1))))
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        for start in range(0, len(batch), rows):
            part = slice(start, start + rows)
            cut = {
                name: (values[part], None if texts is None else texts[part])
                for name, (values, texts) in features.items()
            }
            upsert = Upsert(self._table, batch.keys[part], cut, event[part], created[part])
            count_to(self._connection, upsert.rows)
            self._connection.execute(upsert.sql, upsert.parameters)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


class SqliteReader:
    """Reads features of one view; a connection per thread.

    Parameters
    ----------
    place
        The view's table.
    keys, integer
        From ids to entity keys, and whether ids are int64.
    wait_seconds
        How long to wait for a process that is writing.
    """

    def __init__(
        self,
        place: SqlitePlace,
        features: Sequence[str],
        keys: Callable[[pa.Array], pa.Array],
        integer: bool,
        wait_seconds: float,
    ) -> None:
        self._keys = PerId(keys, integer)
        self._path, self._table, self._wait = place.path, quoted(place.table), wait_seconds
        self._features = tuple(features)
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []

    def fetch(self, ids: pa.Array) -> list[tuple[Sequence[bytes | None], Int64Array]]:
        """Return, per feature, the stored value of each id and its event time, as `Backend` says.

        Raises
        ------
        BusyError
            If another process writes for too long.
        NotReadyError
            If the store or the view's table is not there yet.
        OnlineStoreError
            If it cannot be read.
        """
        asked = self._keys.listed(ids)
        several = len(self._features) > 1 or len(asked) > _KEYS_PER_QUERY
        with _errors(self._path), self._one_moment(several) as connection:
            return [self._read(connection, feature, asked) for feature in self._features]

    def _read(
        self, connection: sqlite3.Connection, feature: str, asked: list[bytes]
    ) -> tuple[Sequence[bytes | None], Int64Array]:
        found: dict[bytes, tuple[bytes, int]] = {}
        for start in range(0, len(asked), _KEYS_PER_QUERY):
            part = asked[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            query = (
                f"SELECT entity_key, value, event_ts FROM {self._table} "
                f"WHERE entity_key IN ({marks}) AND feature_name = ?"
            )
            for key, value, moment in connection.execute(query, (*part, feature)):
                found[key] = (value, moment)
        rows = [found.get(key, _NOTHING) for key in asked]
        stored = np.array([moment for _, moment in rows], np.int64)
        there = stored != MISSING
        times = np.full(len(rows), MISSING)
        times[there] = _moments_of(stored[there])
        return [value for value, _ in rows], times

    @contextmanager
    def _one_moment(self, several: bool) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; the queries of one fetch see no write between them."""
        connection = self._connection()
        if several:
            connection.execute("BEGIN")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._opened:
            self._opened.pop().close()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            if not self._path.exists():
                raise NotReadyError(f"There is no online store {self._path} yet. Run `feast apply` and materialize.")
            address = f"{self._path.resolve().as_uri()}?mode=ro"
            opened = sqlite3.connect(address, uri=True, timeout=self._wait, check_same_thread=False)
            # Pages are looked up in the page cache of the machine, not copied into one of our own.
            opened.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
            self._opened.append(opened)
            self._local.connection = opened
        connection: sqlite3.Connection = self._local.connection
        return connection


@contextmanager
def _errors(path: Path) -> Iterator[None]:
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


def _moments_of(stored: Int64Array) -> Int64Array:
    """Return stored event times as microseconds since 1970, as Feast reads them back."""
    distinct, positions = np.unique(stored, return_inverse=True)
    # Feast writes UTC without saying so and Python takes it for local time, both ways.
    moments = [datetime.fromtimestamp(value).replace(tzinfo=UTC) - _EPOCH for value in distinct.tolist()]  # noqa: DTZ006
    return np.array([moment // timedelta(microseconds=1) for moment in moments], np.int64)[positions]


def _stored_moments(moments: Int64Array | None, rows: int) -> Int64Array:
    """Return event times as Feast's SQLite store keeps them: whole seconds of the local clock."""
    if moments is None:
        return np.full(rows, NULL)
    if (moments == moments[0]).all():
        distinct, positions = moments[:1], np.zeros(rows, np.int64)
    else:
        distinct, positions = np.unique(moments, return_inverse=True)
    stored = [
        NULL if moment == MISSING else int((_EPOCH + timedelta(microseconds=moment)).replace(tzinfo=None).timestamp())
        for moment in distinct.tolist()
    ]
    return np.array(stored, np.int64)[positions]


def _texts(kind: ValueType, column: pa.Array) -> pa.Array | None:
    """Return the text that Feast keeps beside a scalar, for its text search; None beside all else."""
    if kind == ValueType.STRING:
        return column.cast(pa.large_string())
    if kind in (ValueType.INT32, ValueType.INT64, ValueType.BOOL):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
    elif kind in (ValueType.FLOAT, ValueType.DOUBLE):
        numbers = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
        if kind == ValueType.FLOAT:
            numbers = numbers.astype(np.float32).astype(np.float64)
        texts = [str(value) if value == value else None for value in numbers.tolist()]
    else:
        return None
    return pa.array(texts, pa.large_string())
