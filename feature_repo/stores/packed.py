"""Embeddings out of a Feast online store as one array: the stored bytes are the array, no protobuf object is made.

::

    reader = EmbeddingReader(store, "item_embedding_v1", "embedding")
    answer = reader.read([17, 4, 99])
    answer.vectors[answer.found]
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from feast.value_type import ValueType

from feature_repo.contracts.errors import OnlineStoreError
from feature_repo.stores.backends import backend_of, field_of, key_of
from feature_repo.stores.embeddings import Embeddings, Freshness, Ids, id_column
from feature_repo.stores.wire_lists import list_header
from feature_repo.stores.wire_pieces import tag

if TYPE_CHECKING:
    from feast import FeatureStore

# Tag and length of the value, tag and length of the packed list in it.
_FRAME = re.compile(re.escape(tag(ValueType.FLOAT_LIST)) + rb"[\x80-\xff]*[\x00-\x7f]\x0a[\x80-\xff]*[\x00-\x7f]")


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
        self._key, self._kind = key_of(definition)
        field = field_of(definition, feature, [ValueType.FLOAT_LIST])
        self._name = f"{view}:{feature}"
        self._freshness = Freshness(definition.ttl, max_age)
        self._dim = int(field.vector_length or definition.tags.get("dim", 0))
        self.space_id: str | None = definition.tags.get("space_id")
        self._backend = backend_of(store, definition, [feature], wait_seconds)

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
        ((stored, times),) = self._backend.fetch(column) if len(column) else [([], np.zeros(0, np.int64))]
        fresh, age = self._freshness.judge(times, now)
        found = fresh & np.fromiter(map(bool, stored), np.bool_, len(stored))
        wanted = stored if found.all() else [stored[position] for position in np.flatnonzero(found).tolist()]
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
