"""Batches into Redis, in Feast's layout: a hash per entity with a field per view and feature, and a clock per view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
        # Commands are packed while the server works on those before.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="redis")

    def write(self, batch: Batch) -> None:
        """Store a batch; every row is one command, so that no reader sees half of it.

        Raises
        ------
        OnlineStoreError
            If the server breaks off or refuses. Rows before that are stored, and are passed over the next time.
        """
        waiting: list[Future[None]] = []
        try:
            for start in range(0, len(batch), _ROWS_PER_EXCHANGE):
                packed = self._packed(batch, slice(start, start + _ROWS_PER_EXCHANGE))
                while waiting:
                    waiting.pop().result()
                waiting.append(self._thread.submit(self._send, *packed))
        finally:
            while waiting:
                waiting.pop().result()

    def close(self) -> None:
        """Close the connection."""
        self._thread.shutdown()
        self._pool.disconnect()

    def _packed(self, batch: Batch, part: slice) -> tuple[Int64Array, pa.Array, list[pa.Array]]:
        """Return event times, the commands that ask for what is stored, and those that store: one of each per row."""
        times, keys = batch.times[part], batch.keys[part]
        keys = wire.join(len(keys), keys, self._project)
        fields: list[pa.Array | bytes] = [_clock_field(self._view), wire.timestamps(times)]
        for name, column in batch.values.items():
            fields += [_feature_field(self._view, name), column[part]]
        stores = [command("HSET", len(keys), keys, *fields)]
        expire = self._place.key_ttl_seconds
        if expire:
            stores.append(command("EXPIRE", len(keys), keys, str(expire).encode()))
        return times, command("HGET", len(keys), keys, _clock_field(self._view)), stores

    def _send(self, times: Int64Array, asks: pa.Array, stores: list[pa.Array]) -> None:
        with exchange(self._pool) as server:
            if not self._place.skip_dedup:
                newer = _newer(times, server.ask([wire.contents(asks)], len(asks)))
                if not newer.all():
                    chosen = pa.array(newer)
                    stores = [commands.filter(chosen) for commands in stores]
            if len(stores[0]):
                server.ask([wire.contents(commands) for commands in stores], len(stores[0]) * len(stores))


class RedisReader:
    """Reads features of one view; a connection of its pool per call, so threads do not meet."""

    def __init__(
        self, place: RedisPlace, features: Sequence[str], keys: Callable[[pa.Array], pa.Array], integer: bool
    ) -> None:
        self._pool = pool_of(place.client)
        project = wire.scalar(place.project.encode())
        fields = (*(_feature_field(place.view, feature) for feature in features), _clock_field(place.view))
        self._commands = PerId(
            lambda ids: command("HMGET", len(ids), wire.join(len(ids), keys(ids), project), *fields), integer
        )
        self._moments: dict[bytes | None, int] = {None: MISSING}

    def fetch(self, ids: pa.Array) -> list[tuple[Sequence[bytes | None], Int64Array]]:
        """Return, per feature, the stored value of each id and its event time, as `Backend` says.

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
        *features, clocks = zip(*found, strict=True)
        times = self._times(clocks)
        return [(stored, times) for stored in features]

    def close(self) -> None:
        """Close the connections."""
        self._pool.disconnect()

    def _ask(self, asked: memoryview, rows: int) -> list[Any]:
        with exchange(self._pool) as server:
            return server.ask([asked], rows)

    def _times(self, clocks: Sequence[bytes | None]) -> Int64Array:
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
