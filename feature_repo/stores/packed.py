"""Embeddings out of a Feast online store as one array: the stored bytes are the array, no protobuf object is made.

::

    reader = EmbeddingReader(store, "item_embedding_v1", "embedding")
    answer = reader.read([17, 4, 99])
    answer.vectors[answer.found]
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast.value_type import ValueType

from feature_repo.contracts.errors import ConfigError, OnlineStoreError
from feature_repo.stores import wire
from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.embeddings import Embeddings, Freshness, Ids, id_column
from feature_repo.stores.places import SqlitePlace, place_of
from feature_repo.stores.wire import CannotPackError
from feature_repo.stores.wire_lists import list_header
from feature_repo.stores.wire_pieces import tag

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

# Tag and length of the value, tag and length of the packed list in it.
_FRAME = re.compile(re.escape(tag(ValueType.FLOAT_LIST)) + rb"[\x80-\xff]*[\x00-\x7f]\x0a[\x80-\xff]*[\x00-\x7f]")


class _Backend(Protocol):
    def fetch(self, ids: pa.Array) -> tuple[list[bytes | None], Int64Array]:
        """Return stored values and event times of ids."""

    def close(self) -> None:
        """Give back what was opened."""


class EmbeddingReader:
    """Reads one vector feature of one view from SQLite or Redis.

    Parameters
    ----------
    store
        Any Feast store; its registry is asked once, here.
    view, feature
        A view with one integer or string join key, and its feature of type ``Array(Float32)``.
    max_age
        Vectors older than this count as not found, besides those older than the view's TTL.
    wait_seconds
        How long to wait while another process writes (SQLite).

    Raises
    ------
    ConfigError
        If the view, the feature or the online store is not of these kinds.
    """

    def __init__(
        self,
        store: FeatureStore,
        view: str,
        feature: str,
        *,
        max_age: timedelta | None = None,
        wait_seconds: float = 5.0,
    ) -> None:
        definition = store.get_feature_view(view)
        if len(definition.entity_columns) != 1:
            raise ConfigError(
                f"The view '{view}' has {len(definition.entity_columns)} join keys; this reads views of one."
            )
        key = definition.entity_columns[0]
        fields = {field.name: field for field in definition.features}
        if feature not in fields:
            raise ConfigError(f"The view '{view}' has no feature '{feature}'; it has {', '.join(fields)}.")
        if fields[feature].dtype.to_value_type() != ValueType.FLOAT_LIST:
            raise ConfigError(f"{view}:{feature} is {fields[feature].dtype}; this reads Array(Float32).")
        self._key, self._kind = key.name, key.dtype.to_value_type()
        if self._kind not in (ValueType.INT64, ValueType.STRING):
            raise ConfigError(f"The join key '{key.name}' is {self._kind.name}; this reads INT64 and STRING.")
        self._name = f"{view}:{feature}"
        self._freshness = Freshness(definition.ttl, max_age)
        self._dim = int(fields[feature].vector_length or definition.tags.get("dim", 0))
        self.space_id: str | None = definition.tags.get("space_id")
        self._backend = _backend(store, definition, feature, wait_seconds)

    @property
    def dim(self) -> int:
        """Width of the vectors; 0 where nobody has said so and none has been read yet."""
        return self._dim

    def read(self, ids: Ids, now: datetime | None = None) -> Embeddings:
        """Return the vectors of ids, in their order; an id may occur more than once.

        Parameters
        ----------
        ids
            N ids of the entity's type.
        now
            The moment of reading, timezone-aware; the wall clock by default.

        Raises
        ------
        InputDataError
            If ids are of another type.
        BusyError, NotReadyError, OnlineStoreError
            If the store is locked, empty, cannot be reached or holds something else.
        """
        column = id_column(ids, self._kind == ValueType.INT64, self._key)
        stored, times = self._backend.fetch(column) if len(column) else ([], np.zeros(0, np.int64))
        fresh, age = self._freshness.judge(times, now)
        found = fresh & np.fromiter(map(bool, stored), np.bool_, len(stored))
        wanted = stored if found.all() else [stored[position] for position in np.flatnonzero(found)]
        vectors = self._decode([value for value in wanted if value])
        if not found.all():
            spread = np.zeros((len(stored), self._dim), np.float32)
            spread[found] = vectors
            vectors = spread
        return Embeddings(vectors, found, age, self.space_id)

    def close(self) -> None:
        """Give back connections that this reader opened."""
        self._backend.close()

    def _decode(self, stored: list[bytes]) -> npt.NDArray[np.float32]:
        if not stored:
            return np.zeros((0, self._dim), np.float32)
        frame = _FRAME.match(stored[0])
        start = frame.end() if frame else 0
        width = len(stored[0]) - start
        dim = self._dim or width // 4
        header = list_header(ValueType.FLOAT_LIST, 4 * dim)
        if width != 4 * dim or set(map(len, stored)) != {len(header) + width}:
            raise self._foreign(stored, header, dim)
        rows = np.frombuffer(b"".join(stored), np.uint8).reshape(len(stored), -1)
        if (rows[:, :start] != np.frombuffer(header, np.uint8)).any():
            raise self._foreign(stored, header, dim)
        self._dim = dim
        return np.ascontiguousarray(rows[:, start:]).view("<f4")

    def _foreign(self, stored: list[bytes], header: bytes, dim: int) -> OnlineStoreError:
        size = len(header) + 4 * dim
        wrong = sum(len(value) != size or not value.startswith(header) for value in stored)
        return OnlineStoreError(
            f"{self._name}: {wrong} of {len(stored)} stored values are not vectors of {dim} floats. Two widths do "
            "not fit into one array: materialize the view again, or read it with get_online_features."
        )


def _backend(store: FeatureStore, view: FeatureView, feature: str, wait_seconds: float) -> _Backend:
    key = view.entity_columns[0]
    kind = key.dtype.to_value_type()
    integer = kind == ValueType.INT64

    def keys(ids: pa.Array) -> pa.Array:
        return wire.entity_keys([(key.name, ids, kind)])

    try:
        place = place_of(store.config, store._get_provider().online_store, view)
    except CannotPackError as reason:
        raise ConfigError(f"{view.name}:{feature} cannot be read here: {reason}. Use get_online_features.") from reason
    if isinstance(place, SqlitePlace):
        from feature_repo.stores.online_sqlite import SqliteReader

        return SqliteReader(place, feature, keys, integer, wait_seconds)
    from feature_repo.stores.online_redis import RedisReader

    return RedisReader(place, feature, keys, integer)
