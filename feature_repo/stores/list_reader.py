"""List features out of a Feast online store, for the few users of a request.

::

    reader = ListReader(store, "user_history_v1", ["item_ids", "weights"])
    answer = reader.read([17, 4])
    answer.values["item_ids"][0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from google.protobuf.message import DecodeError

from feature_repo.contracts.errors import ConfigError, OnlineStoreError
from feature_repo.stores.backends import backend_of, field_of, key_of
from feature_repo.stores.clocks import MISSING, BoolArray
from feature_repo.stores.embeddings import Freshness, Ids, id_column

if TYPE_CHECKING:
    from feast import FeatureStore

_KINDS = (ValueType.FLOAT_LIST, ValueType.INT64_LIST, ValueType.STRING_LIST)


@dataclass(frozen=True)
class Lists:
    """Lists of N asked ids, in their order.

    Attributes
    ----------
    values
        Per feature one list of floats, integers or strings per id; empty where not found.
    found
        bool [N]: every feature is stored and not null, and none is older than the TTL or from the future. A list that
        is stored empty is found.
    """

    values: dict[str, list[list]]
    found: BoolArray


class ListReader:
    """Reads list features of one view from SQLite or Redis.

    All features of an id come from one moment, so that lists that were written together stay together.

    Parameters
    ----------
    store
        Any Feast store; its registry is asked once, here.
    view, features
        A view with one integer or string join key, and features of it, at least one, each of type ``Array(Float32)``,
        ``Array(Int64)`` or ``Array(String)``.
    wait_seconds
        How long to wait while another process writes (SQLite).

    Raises
    ------
    ConfigError
        If the view, a feature or the online store is not of these kinds.
    """

    def __init__(self, store: FeatureStore, view: str, features: Sequence[str], *, wait_seconds: float = 5.0) -> None:
        definition = store.get_feature_view(view)
        self._view = view
        self._key, self._kind = key_of(definition)
        self._fields = {
            name: f"{field_of(definition, name, _KINDS).dtype.to_value_type().name.lower()}_val" for name in features
        }
        if not self._fields:
            names = ", ".join(field.name for field in definition.features)
            raise ConfigError(f"No feature of the view '{view}' is asked for. Name at least one of {names}.")
        self._freshness = Freshness(definition.ttl, None)
        self._backend = backend_of(store, definition, list(self._fields), wait_seconds)

    def read(self, ids: Ids, now: datetime | None = None) -> Lists:
        """Return the lists of ids, in their order; an id may occur more than once.

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
        found = np.ones(len(column), np.bool_)
        if not len(column):
            return Lists({name: [] for name in self._fields}, found)
        answers = dict(zip(self._fields, self._backend.fetch(column), strict=True))
        for stored, times in answers.values():
            found &= self._freshness.judge(times, now)[0] & np.fromiter(map(bool, stored), np.bool_, len(stored))
        values = {
            name: [self._decoded(name, value) if there else [] for value, there in zip(stored, found, strict=True)]
            for name, (stored, _) in answers.items()
        }
        return Lists(values, found)

    def stored(self, ids: Ids) -> BoolArray:
        """Return which ids have a row, however old, bool [N]; errors as of :meth:`read`."""
        column = id_column(ids, self._kind == ValueType.INT64, self._key)
        if not len(column):
            return np.zeros(0, np.bool_)
        return np.all([times != MISSING for _, times in self._backend.fetch(column)], axis=0)

    def close(self) -> None:
        """Give back connections that this reader opened."""
        self._backend.close()

    def _decoded(self, name: str, stored: bytes | None) -> list:
        assert stored
        field, held = self._fields[name], None
        try:
            value = Value.FromString(stored)
            held = value.WhichOneof("val")
        except DecodeError:
            pass
        if held != field:
            raise OnlineStoreError(
                f"{self._view}:{name}: a stored value is {held or 'no Feast value'}, not {field}. The view's type "
                "changed, or something other than Feast wrote it: materialize the view again."
            )
        return list(getattr(value, field).val)
