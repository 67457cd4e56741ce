"""Where Feast's online stores keep a view: a table of a SQLite file, or fields of Redis hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast import FeatureView
from feast.infra.online_stores.helpers import compute_table_id, compute_versioned_name
from feast.repo_config import RepoConfig

from feature_repo.stores.wire import CannotPackError

if TYPE_CHECKING:
    from redis import Redis

_KNOWN = {
    ("feast.infra.online_stores.sqlite", "SqliteOnlineStore"),
    ("feast.infra.online_stores.redis", "RedisOnlineStore"),
}
# A store that is derived from one of Feast's and keeps these keeps its layout; those of this package do anyhow.
_LAYOUT = ("online_write_batch", "online_read")
_OURS = __name__.rpartition(".")[0] + "."


@dataclass(frozen=True)
class SqlitePlace:
    """A table of a file."""

    path: Path
    table: str


@dataclass(frozen=True)
class RedisPlace:
    """A view's fields in the hashes of a project.

    Attributes
    ----------
    client
        Feast's own client.
    view
        With its version where Feast's versioning is on.
    skip_dedup, key_ttl_seconds
        Feast's settings of these names.
    """

    client: Redis
    project: str
    view: str
    skip_dedup: bool
    key_ttl_seconds: int | None


def place_of(config: RepoConfig, store: Any, view: FeatureView) -> SqlitePlace | RedisPlace:
    """Return where an online store keeps a view.

    Raises
    ------
    CannotPackError
        If the store, or a setting of it, is none whose layout is known here.
    """
    name = f"{type(store).__module__}.{type(store).__name__}"
    base: Any = next((base for base in type(store).__mro__ if (base.__module__, base.__name__) in _KNOWN), None)
    if base is None or not (name.startswith(_OURS) or _keeps_layout(type(store), base)):
        raise CannotPackError(f"the online store is {name}, not SQLite or Redis")
    if config.entity_key_serialization_version != 3:
        raise CannotPackError("entity_key_serialization_version is not 3")
    settings: Any = config.online_store
    versioned = config.registry.enable_online_feature_view_versioning
    if base.__name__ == "SqliteOnlineStore":
        if settings.vector_enabled or settings.enable_openai_compatible_store:
            raise CannotPackError("SQLite keeps more columns (vector_enabled, enable_openai_compatible_store)")
        return SqlitePlace(Path(store._get_db_path(config)), compute_table_id(config.project, view, versioned))
    if settings.redis_type != "redis":
        raise CannotPackError(f"Redis as {settings.redis_type.value}")
    return RedisPlace(
        store._get_client(settings),
        config.project,
        compute_versioned_name(view, versioned),
        settings.skip_dedup,
        settings.key_ttl_seconds,
    )


def _keeps_layout(derived: Any, base: Any) -> bool:
    return all(getattr(derived, method) is getattr(base, method) for method in _LAYOUT)
