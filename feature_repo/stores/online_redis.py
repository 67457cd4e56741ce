"""Batches into Redis, in Feast's layout: a hash per entity with a field per view and feature, and a clock per view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from feast.infra.online_stores.helpers import _mmh3
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.contracts.errors import OnlineStoreError
from feature_repo.stores import wire
from feature_repo.stores.batches import Batch
from feature_repo.stores.clocks import MISSING, BoolArray, Int64Array
from feature_repo.stores.per_id import PerId
from feature_repo.stores.places import RedisPlace
from feature_repo.stores.redis_wire import command, exchange, pool_of

# Commands that Redis holds at once; more of them would only take memory there.
_ROWS_PER_EXCHANGE = 16_384
# Stored clocks that a reader remembers the meaning of.
_MOST_MOMENTS = 100_000


def _clock_field(view: str) -> bytes:
    """Return the field of a hash that holds a view's event time."""
    return f"_ts:{view}".encode()


def _feature_field(view: str, feature: str) -> bytes:
    """Return the field of a hash that holds a feature."""
    return bytes(_mmh3(f"{view}:{feature}"))


def _moment(stored: bytes | None) -> int:
    """Return a stored event time as nanoseconds since 1970; 0 where there is none, as Feast reads it."""
    if not stored:
        return 0
    clock = Timestamp()
    try:
        clock.ParseFromString(stored)
    except DecodeError as error:
        raise OnlineStoreError(
            f"A stored event time is no protobuf Timestamp ({error}). Something other than Feast wrote these keys: "
            "use another project name or database."
        ) from error
    return clock.seconds * 1_000_000_000 + clock.nanos


class RedisWriter:
    """Writes what is newer than what is stored, as Feast's Redis store does.

    With ``skip_dedup`` it writes without comparing times first.
    """

    scratch: Path | None = None

    def __init__(self, place: RedisPlace) -> None:
        self._place, self._pool, self._view = place, pool_of(place.client), place.view
        self._project = wire.scalar(place.project.encode())

    def write(self, batch: Batch) -> None:
        """Store a batch; every row is one command, so that no reader sees half of it.

        Raises
        ------
        OnlineStoreError
            If the server breaks off or refuses. Rows before that are stored, and are passed over the next time.
        """
        for start in range(0, len(batch), _ROWS_PER_EXCHANGE):
            self._write(batch, slice(start, start + _ROWS_PER_EXCHANGE))

    def close(self) -> None:
        """Close the connection."""
        self._pool.disconnect()

    def _write(self, batch: Batch, part: slice) -> None:
        times = batch.times[part]
        keys = batch.keys[part]
        keys = wire.join(len(keys), keys, self._project)
        values = [column[part] for column in batch.values.values()]
        with exchange(self._pool) as server:
            if not self._place.skip_dedup:
                asked = command("HGET", len(keys), keys, _clock_field(self._view))
                newer = _newer(times, server.ask([wire.contents(asked)], len(keys)))
                if not newer.all():
                    chosen = pa.array(newer)
                    times, keys = times[newer], keys.filter(chosen)
                    values = [column.filter(chosen) for column in values]
            if len(keys) == 0:
                return
            fields: list[pa.Array | bytes] = [_clock_field(self._view), wire.timestamps(times)]
            for name, column in zip(batch.values, values, strict=True):
                fields += [_feature_field(self._view, name), column]
            packed = [wire.contents(command("HSET", len(keys), keys, *fields))]
            expire = self._place.key_ttl_seconds
            if expire:
                packed.append(wire.contents(command("EXPIRE", len(keys), keys, str(expire).encode())))
            server.ask(packed, len(keys) * len(packed))


class RedisReader:
    """Reads one feature of one view; a connection of its pool per call, so threads do not meet."""

    def __init__(self, place: RedisPlace, feature: str, keys: Callable[[pa.Array], pa.Array], integer: bool) -> None:
        self._pool = pool_of(place.client)
        project = wire.scalar(place.project.encode())
        fields = (_feature_field(place.view, feature), _clock_field(place.view))
        self._commands = PerId(
            lambda ids: command("HMGET", len(ids), wire.join(len(ids), keys(ids), project), *fields), integer
        )
        self._moments: dict[bytes | None, int] = {None: MISSING}

    def fetch(self, ids: pa.Array) -> tuple[list[bytes | None], Int64Array]:
        """Return the stored value of each id and its event time in microseconds, `MISSING` where none is.

        Raises
        ------
        OnlineStoreError
            If the server cannot be reached, twice, or refuses.
        """
        asked = self._commands.joined(ids)
        try:
            found = self._ask(asked, len(ids))
        except OnlineStoreError as error:
            if not isinstance(error.__cause__, (OSError, redis.ConnectionError)):
                raise
            # The pool may hold connections to a server that has been restarted since.
            self._pool.disconnect()
            found = self._ask(asked, len(ids))
        clocks = [clock for _, clock in found]
        return [value for value, _ in found], self._times(clocks)

    def close(self) -> None:
        """Close the connections."""
        self._pool.disconnect()

    def _ask(self, asked: memoryview, rows: int) -> list[Any]:
        with exchange(self._pool) as server:
            return server.ask([asked], rows)

    def _times(self, clocks: list[bytes | None]) -> Int64Array:
        distinct = set(clocks)
        if len(self._moments) > _MOST_MOMENTS:
            self._moments = {None: MISSING}
        for clock in distinct.difference(self._moments):
            self._moments[clock] = _moment(clock) // 1000
        if len(distinct) == 1:
            return np.full(len(clocks), self._moments[clocks[0]])
        return np.fromiter(map(self._moments.__getitem__, clocks), np.int64, len(clocks))


def _newer(times: Int64Array, stored: list[bytes | None]) -> BoolArray:
    """Return which rows are newer than what is stored; like Feast, equal times are not."""
    if not any(stored):
        return np.ones(len(times), np.bool_)
    moments = {clock: _moment(clock) for clock in set(stored)}
    before = np.array([moments[clock] for clock in stored], np.int64)
    return (before <= 0) | (times * 1000 > before)
