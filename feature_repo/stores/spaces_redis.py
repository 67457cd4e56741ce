"""Feast's Redis store behind the check that no read mixes spaces; apart, because Redis is Feast's extra."""

from __future__ import annotations

from typing import Literal

from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

from feature_repo.stores.spaces import SpaceChecked


class SpaceRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Settings of the Redis online store; `type` names this plug-in."""

    # Feast tells stores apart by this field, and its own class allows its own names only.
    type: Literal["feature_repo.stores.spaces_redis.SpaceRedisOnlineStore"] = (
        "feature_repo.stores.spaces_redis.SpaceRedisOnlineStore"  # type: ignore[assignment]
    )


class SpaceRedisOnlineStore(SpaceChecked, RedisOnlineStore):
    """Feast's Redis store that never answers with vectors of two spaces."""
