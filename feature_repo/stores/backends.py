"""The stored bytes of some features of one view by id, out of SQLite or Redis: what every reader here reads through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
from feast.types import from_value_type
from feast.value_type import ValueType

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores import wire
from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.places import SqlitePlace, place_of
from feature_repo.stores.wire import CannotPackError

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView, Field


class Backend(Protocol):
    """Features of one view, as one store keeps them."""

    def fetch(self, ids: pa.Array) -> list[tuple[Sequence[bytes | None], Int64Array]]:
        """Return the stored values of N ids and their event times, one pair per feature.

        Event times are microseconds since 1970, int64 [N], `MISSING` where nothing is stored. All features of an id
        are of one moment: no write comes between them.
        """

    def close(self) -> None:
        """Give back what was opened."""


def key_of(view: FeatureView) -> tuple[str, ValueType]:
    """Return the name and type of a view's one join key.

    Raises
    ------
    ConfigError
        If it has more than one, or one that is neither INT64 nor STRING.
    """
    if len(view.entity_columns) != 1:
        names = ", ".join(column.name for column in view.entity_columns)
        raise ConfigError(
            f"The view '{view.name}' has {len(view.entity_columns)} join keys ({names}); this reads views of one. "
            "Use get_online_features."
        )
    key = view.entity_columns[0]
    kind = key.dtype.to_value_type()
    if kind not in (ValueType.INT64, ValueType.STRING):
        raise ConfigError(
            f"The join key '{key.name}' is {kind.name}; this reads INT64 and STRING. Use get_online_features."
        )
    return key.name, kind


def field_of(view: FeatureView, feature: str, kinds: Collection[ValueType]) -> Field:
    """Return a view's feature.

    Raises
    ------
    ConfigError
        If the view lacks it, or it is none of the `kinds` that are read.
    """
    fields = {field.name: field for field in view.features}
    if feature not in fields:
        raise ConfigError(
            f"The view '{view.name}' has no feature '{feature}'; it has {', '.join(fields)}. Name one of these."
        )
    field = fields[feature]
    if field.dtype.to_value_type() not in kinds:
        read = ", ".join(str(from_value_type(kind)) for kind in kinds)
        raise ConfigError(f"{view.name}:{feature} is {field.dtype}; this reads {read}. Use get_online_features.")
    return field


def backend_of(store: FeatureStore, view: FeatureView, features: Sequence[str], wait_seconds: float) -> Backend:
    """Return what reads features of a view from a store's online store.

    Parameters
    ----------
    view
        With a join key that `key_of` takes.
    features
        At least one, in the order in which they are answered.
    wait_seconds
        How long to wait while another process writes (SQLite).

    Raises
    ------
    ConfigError
        If the online store is none that is read here.
    """
    name, kind = key_of(view)
    integer = kind == ValueType.INT64

    def keys(ids: pa.Array) -> pa.Array:
        return wire.entity_keys([(name, ids, kind)])

    try:
        place = place_of(store.config, store._get_provider().online_store, view)
    except CannotPackError as reason:
        named = ", ".join(f"{view.name}:{feature}" for feature in features)
        raise ConfigError(f"{named} cannot be read here: {reason}. Use get_online_features.") from reason
    if isinstance(place, SqlitePlace):
        from feature_repo.stores.online_sqlite import SqliteReader

        return SqliteReader(place, features, keys, integer, wait_seconds)
    from feature_repo.stores.online_redis import RedisReader

    return RedisReader(place, features, keys, integer)
