"""No read brings user and item vectors of different spaces together: the check, offline and online.

A feature view says by its tag ``space_id`` of which space its vectors are; views without the tag are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from feast import FeatureService, FeatureView, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse

from feature_repo.contracts.spaces import check_read
from feature_repo.failpoints import durable

SPACE_TAG = "space_id"


def check_views(views: Iterable[FeatureView]) -> None:
    """Raise SpaceMismatchError if views of different spaces are read together."""
    tagged = [view for view in views if SPACE_TAG in view.tags]
    check_read(("+".join(view.entities), view.tags[SPACE_TAG], view.name) for view in tagged)


class SpaceChecked(OnlineStore):
    """To be put before an online store of Feast: refuses reads that mix spaces, and reads as that store does."""

    def get_online_features(
        self,
        config: Any,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        *arguments: Any,
        **named: Any,
    ) -> OnlineResponse:
        """Read the features of some entities; SpaceMismatchError if they are of different spaces."""
        references = utils._get_features(registry, project, features, allow_cache=True)
        names = {reference.split(":")[0].split("@")[0] for reference in references}
        known = registry.list_feature_views(project, allow_cache=True)
        check_views(view for view in known if view.name in names)
        return super().get_online_features(config, features, entity_rows, registry, project, *arguments, **named)


class SpaceSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Settings of the SQLite online store; `type` names this plug-in."""

    # Feast tells stores apart by this field, and its own class allows its own names only.
    type: Literal["feature_repo.stores.spaces.SpaceSqliteOnlineStore"] = (
        "feature_repo.stores.spaces.SpaceSqliteOnlineStore"  # type: ignore[assignment]
    )


class SpaceSqliteOnlineStore(SpaceChecked, SqliteOnlineStore):
    """Feast's SQLite store that never answers with vectors of two spaces."""

    def online_write_batch(self, config: Any, table: FeatureView, data: Any, progress: Any) -> None:
        """Write rows in one transaction."""
        with durable(f"online rows {table.name}"):
            super().online_write_batch(config, table, data, progress)

    def retrieve_online_documents_v2(
        self,
        config: Any,
        table: FeatureView,
        requested_features: list[str],
        embedding: list[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        *arguments: Any,
        **named: Any,
    ) -> list[Any]:
        """Return the rows nearest to a vector, exactly; with a text, a filter or `vector_enabled` as Feast's store."""
        plain = embedding is not None and query_string is None and not any([*arguments, *named.values()])
        if not plain or config.online_store.vector_enabled:
            given = (requested_features, embedding, top_k, distance_metric, query_string)
            return super().retrieve_online_documents_v2(config, table, *given, *arguments, **named)
        from feature_repo.stores.vector_search import search

        assert embedding is not None
        return search(config, self._get_conn(config), table, requested_features, embedding, top_k, distance_metric)
