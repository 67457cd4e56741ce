"""How a Feast view is read: names as in the labels and the result on one side, as stored on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.repo_config import RepoConfig
from pydantic import BaseModel, Field

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores.clocks import Naive
from feature_repo.stores.sources import Clocks

LAG_TAG = "availability_lag_seconds"
_MICROSECOND = timedelta(microseconds=1)


class Rules(BaseModel):
    """Settings under ``offline_store`` that say which row a label sees, on every engine."""

    strict: bool = False
    """Hide rows that were written after the label (created <= label time)."""

    availability_lag_seconds: int = Field(0, ge=0)
    """How long after its event_timestamp a row can be read; a view's or source's tag of that name overrides it."""

    naive_timestamps: Naive = "error"
    """What to do with timestamps without a time zone: refuse them, or take them as UTC."""


@dataclass(frozen=True)
class Reading:
    """What is read of one view.

    Attributes
    ----------
    keys
        (column among the labels, stored column) per join key; empty for a view without entities.
    clocks
        The stored clocks.
    ttl
        Microseconds, 0 for ever.
    features
        (column in the result, stored column).
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    clocks: Clocks
    ttl: int
    features: tuple[tuple[str, str], ...]


def reading_of(
    config: RepoConfig, view: FeatureView, feature_refs: Sequence[str], full_feature_names: bool, strict: bool
) -> Reading:
    """Translate a Feast view and what is asked of it.

    Raises
    ------
    ConfigError
        If the view has no batch source.
    """
    source = view.batch_source
    if source is None:
        raise ConfigError(f"The feature view '{view.name}' has no batch source, so it has no history to join.")
    stored = {new: old for old, new in source.field_mapping.items()}
    projection = view.projection
    keys = tuple(
        (projection.join_key_map.get(column.name, column.name), stored.get(column.name, column.name))
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    )
    asked = dict.fromkeys(
        ref.split(":", 1)[1] for ref in feature_refs if ref.split(":", 1)[0] == projection.name_to_use()
    )
    prefix = f"{projection.name_alias or view.name}__" if full_feature_names else ""
    lag = view.tags.get(LAG_TAG) or (source.tags or {}).get(LAG_TAG) or config.offline_store.availability_lag_seconds
    naive: Naive = config.offline_store.naive_timestamps
    created = source.created_timestamp_column
    clocks = Clocks(
        stored.get(source.timestamp_field, source.timestamp_field),
        stored.get(created, created) if created else None,
        int(lag) * 1_000_000,
        naive,
        naive if strict else "utc",
    )
    ttl = view.ttl // _MICROSECOND if view.ttl else 0
    return Reading(view.name, keys, clocks, ttl, tuple((prefix + name, stored.get(name, name)) for name in asked))
