"""Apply: bring Feast's registry to what the ledger says exists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, attributes_view, choices_view, embedding_view, stats_view
from feature_repo.failpoints import durable
from jobs.workspace import Progress, Workspace, silent


@dataclass(frozen=True)
class Result:
    """Names of what is registered now, and of what was removed."""

    views: tuple[str, ...]
    services: tuple[str, ...]
    removed: tuple[str, ...]


def run(ws: Workspace, *, progress: Progress = silent) -> Result:
    """Record the configured consumers and register every view and service with Feast.

    Applying twice changes nothing; a view leaves the registry only when the ledger has no snapshot of it.

    Raises
    ------
    NotReadyError
        If nothing was published yet, or a consumer reads a version that is not trained yet.
    ConfigError
        If a consumer reads a version that is retired or does not exist.
    """
    progress("register consumers", 0, 2)
    published = {snapshot.view for snapshot in ws.ledger.snapshots(accepted=True)}
    if not published:
        raise NotReadyError("Nothing is published yet. Run `headwater backfill` first.")
    check_consumers(ws)
    known = {consumer["name"]: consumer["record"] for consumer in ws.ledger.consumers()}
    for consumer in ws.config.consumers:
        plain = [view(entity) for view in (attributes_view, stats_view) for entity in ENTITIES]
        plain += [choices_view()] if consumer.task == "retrieval" else []
        embeddings = [embedding_view(entity, version) for version in consumer.versions for entity in ENTITIES]
        views = [view for view in [*plain, *embeddings] if view in published]
        record = {**known.get(consumer.name, {}), "views": views, "owner": consumer.owner}
        ws.ledger.put_consumer(consumer.name, consumer.task, list(consumer.versions), record)
    progress("feast apply", 1, 2)
    from feature_repo.views import feast_objects
    from jobs.store import open_store

    objects = feast_objects(ws.home, ws.ledger)
    store = open_store(ws.home)
    registered: list[Any] = [*store.list_feature_services(), *store.list_feature_views()]
    stale = [found for found in registered if found.name not in objects]
    with durable("feast registry"):
        store.apply(list(objects.values()), objects_to_delete=stale, partial=False)
    progress("feast apply", 2, 2)
    return Result(
        views=tuple(view.name for view in store.list_feature_views()),
        services=tuple(service.name for service in store.list_feature_services()),
        removed=tuple(found.name for found in stale),
    )


def check_consumers(ws: Workspace, *, to_come: Collection[str] = ()) -> None:
    """Refuse configured consumers of versions that cannot be read; nothing is written.

    Parameters
    ----------
    to_come
        Versions that will be registered before a consumer is.

    Raises
    ------
    ConfigError
        If a version is retired, or neither the ledger nor config.yaml has it.
    NotReadyError
        If a version is not trained yet.
    """
    retired = lifecycle.retirements(ws.ledger)
    there = {version.version for version in ws.ledger.versions()} | set(to_come)
    configured = {upstream.version for upstream in ws.config.upstreams}
    for consumer in ws.config.consumers:
        read = dict.fromkeys(consumer.versions)
        gone = [version for version in read if version in retired]
        if gone:
            raise ConfigError(f"{consumer.name} is pinned to {', '.join(gone)}, which is retired. Pin it to another.")
        unknown = [version for version in read if version not in there | configured]
        if unknown:
            known = ", ".join(sorted((there | configured) - retired.keys(), key=lambda name: int(name[1:])))
            raise ConfigError(
                f"{consumer.name} reads {', '.join(unknown)}, and there is no such version (there are: "
                f"{known or 'none'}). Correct its `versions` in config.yaml, or add an upstream of that name."
            )
        waiting = [version for version in read if version not in there]
        if waiting:
            raise NotReadyError(
                f"{consumer.name} reads {', '.join(waiting)}, which is not trained yet. Run "
                f"`headwater train-upstream {' '.join(waiting)}` and `headwater backfill` first."
            )
