"""Batches into Redis, in Feast's layout: a hash per entity with a field per view and feature, and a clock per view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.helpers import _mmh3
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.contracts.errors import OnlineStoreError
from feature_repo.stores import wire
from feature_repo.stores.batches import Batch
from feature_repo.stores.clocks import BoolArray, Int64Array
from feature_repo.stores.redis_wire import command, exchange

if TYPE_CHECKING:
    from redis import Redis

# Commands that Redis holds at once; more of them would only take memory there.
_ROWS_PER_EXCHANGE = 16_384


def clock_field(view: str) -> bytes:
    """Return the field of a hash that holds a view's event time."""
    return f"_ts:{view}".encode()


def feature_field(view: str, feature: str) -> bytes:
    """Return the field of a hash that holds a feature."""
    return bytes(_mmh3(f"{view}:{feature}"))


def moment(stored: bytes | None) -> int:
    """Return a stored event time as nanoseconds since 1970; 0 where there is none, as Feast reads it."""
    if not stored:
        return 0
    clock = Timestamp()
    clock.ParseFromString(stored)
    return clock.seconds * 1_000_000_000 + clock.nanos


class RedisWriter:
    """Writes what is newer than what is stored, as Feast's Redis store does.

    Parameters
    ----------
    client
        Feast's own client of the store.
    view
        The view's name in the store, with its version where Feast's versioning is on.
    always
        Write without comparing times first (Feast's ``skip_dedup``).
    expire
        Seconds until a hash that was written expires (Feast's ``key_ttl_seconds``).
    """

    def __init__(self, client: Redis, project: str, view: str, *, always: bool, expire: int | None) -> None:
        self._client, self._view, self._always, self._expire = client, view, always, expire
        self._project = wire.scalar(project.encode())

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
        """Do nothing: the connection went back to the client's pool."""

    def _write(self, batch: Batch, part: slice) -> None:
        times = batch.times[part]
        keys = batch.keys[part]
        keys = wire.join(len(keys), keys, self._project)
        values = [column[part] for column in batch.values.values()]
        with exchange(self._client) as server:
            if not self._always:
                asked = command("HGET", len(keys), keys, clock_field(self._view))
                newer = _newer(times, server.ask([wire.contents(asked)], len(keys)))
                if not newer.all():
                    chosen = pa.array(newer)
                    times, keys = times[newer], keys.filter(chosen)
                    values = [column.filter(chosen) for column in values]
            if len(keys) == 0:
                return
            fields: list[pa.Array | bytes] = [clock_field(self._view), wire.timestamps(times)]
            for name, column in zip(batch.values, values, strict=True):
                fields += [feature_field(self._view, name), column]
            packed = [wire.contents(command("HSET", len(keys), keys, *fields))]
            if self._expire:
                packed.append(wire.contents(command("EXPIRE", len(keys), keys, str(self._expire).encode())))
            server.ask(packed, len(keys) * len(packed))


def _newer(times: Int64Array, stored: list[bytes | None]) -> BoolArray:
    """Return which rows are newer than what is stored; like Feast, equal times are not."""
    if not any(stored):
        return np.ones(len(times), np.bool_)
    try:
        moments = {clock: moment(clock) for clock in set(stored)}
    except Exception as error:
        raise OnlineStoreError(
            f"A stored event time is no protobuf Timestamp ({error}). Something other than Feast wrote these keys: "
            "use another project name or database."
        ) from error
    before = np.array([moments[clock] for clock in stored], np.int64)
    return (before <= 0) | (times * 1000 > before)
