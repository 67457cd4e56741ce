"""Versions: register a space as the next one, list and show them, retire them, prune their snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.contracts.naming import ENTITIES, check_version, choices_view, embedding_view, stats_view
from feature_repo.contracts.types import Snapshot, Version
from feature_repo.failpoints import durable
from feature_repo.lifecycle import Retirement
from jobs import config as settings
from jobs import train_upstream
from jobs.workspace import Progress, Workspace, silent

LOCK = "release"  # whoever moves what is in use holds it, so that nothing is retired while it is promoted


@dataclass(frozen=True)
class Registered:
    """A version and whether it was there already."""

    version: Version
    reused: bool = False


def register(
    ws: Workspace,
    space_id: str,
    *,
    name: str | None = None,
    description: str = "",
    owner: str = "upstream team",
) -> Registered:
    """Give a trained space its number: the next one, unless `name` says another.

    Two feature views come into being beside the old ones with its first refresh. Registering a space again changes
    nothing.

    Raises
    ------
    NotFoundError
        If no such space was trained.
    ConfigError
        If the name stands for another space, or the space has another name.
    """
    space = ws.ledger.space(space_id)
    with ws.home.lock("register"):
        known = {version.version: version for version in ws.ledger.versions()}
        same = [version for version in known.values() if version.space_id == space_id]
        if same and name in (None, same[0].version):
            return Registered(same[0], reused=True)
        if same:
            raise ConfigError(f"Space {space_id} is {same[0].version} already; a space has one version.")
        chosen = check_version(name or next_version(ws))
        if chosen in known:
            raise ConfigError(
                f"{chosen} stands for space {known[chosen].space_id} and never changes it: leave the name out, and "
                f"{space_id} becomes {next_version(ws)}."
            )
        version = Version(chosen, space.space_id, description, owner, ws.config.smoothing)
        ws.ledger.put_version(version)
    return Registered(version)


def retrain(
    ws: Workspace,
    like: str,
    train_end: datetime,
    *,
    name: str | None = None,
    description: str = "",
    progress: Progress = silent,
) -> train_upstream.Result:
    """Train an upstream with another one's settings up to another moment, and register it as the next version.

    The new upstream is written into config.yaml first; killed and run again, the training goes on.

    Parameters
    ----------
    like
        Version whose settings are taken over.
    train_end
        Nothing from this moment on is trained on.

    Raises
    ------
    ConfigError
        If there is no upstream `like`, `name` is taken, or as :func:`check_train_end`.
    """
    base = ws.config.upstream(like)
    changes = {"train_end": train_end, "version": "", "description": ""}
    wanted = base.model_dump() | changes
    for upstream in ws.config.upstreams:
        same = upstream.model_dump() | {"version": "", "description": ""} == wanted
        if same and name in (None, upstream.version):
            return train_upstream.run(ws, upstream.version, progress=progress)
    check_train_end(ws, base, train_end)
    chosen = check_version(name or next_version(ws))
    if any(upstream.version == chosen for upstream in ws.config.upstreams):
        raise ConfigError(f"config.yaml has another upstream {chosen}: leave the name out for {next_version(ws)}.")
    text = description or f"{base.description or like}, trained up to {train_end:%Y-%m-%d}"
    added = base.model_copy(update={"version": chosen, "train_end": train_end, "description": text})
    settings.save(ws.config.model_copy(update={"upstreams": (*ws.config.upstreams, added)}), ws.home)
    return train_upstream.run(Workspace.open(ws.home.root), chosen, progress=progress)


def check_train_end(ws: Workspace, upstream: settings.Upstream, train_end: datetime) -> None:
    """Refuse a cut-off before which there is nothing to learn from, or after which the log has no moment.

    Raises
    ------
    ConfigError
        If it lies within the log's first weeks, from which a DERM takes no rows, or after the log's last day.
    """
    first = ws.log.start + (settings.WARM_UP if upstream.kind == "derm" else timedelta(0))
    last = ws.log.end.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if train_end > last:
        raise ConfigError(
            f"The log ends at {ws.log.end:%Y-%m-%d %H:%M}: a model trained up to {train_end:%Y-%m-%d} could not be "
            f"refreshed at any moment of it. Choose a --train-end up to {last:%Y-%m-%d}, or ingest a longer log first."
        )
    if train_end <= first:
        raise ConfigError(
            f"The log begins at {ws.log.start:%Y-%m-%d %H:%M}, and {upstream.version} learns from what comes after "
            f"{first:%Y-%m-%d %H:%M}: choose a --train-end later than that, not {train_end:%Y-%m-%d}."
        )


def next_version(ws: Workspace) -> str:
    """Return the first number that neither the ledger nor config.yaml knows."""
    taken = [version.version for version in ws.ledger.versions()]
    taken += [upstream.version for upstream in ws.config.upstreams]
    return f"v{max((int(name[1:]) for name in taken), default=0) + 1}"


def used_by(ws: Workspace, version: str) -> list[str]:
    """Return who reads a version, in words: configured and registered consumers, releases that can be live."""
    consumers = {consumer.name for consumer in ws.config.consumers if version in consumer.versions}
    consumers |= {consumer["name"] for consumer in ws.ledger.consumers() if version in consumer["versions"]}
    found = [f"consumer {name}" for name in sorted(consumers)]
    return found + [f"release {item.name}" for item in releases.usable(ws.ledger) if version in item.versions]


def retire(ws: Workspace, version: str, *, by: str, why: str, now: datetime) -> Retirement:
    """Stop refreshing a version; its views leave Feast with the next apply, its snapshots stay until pruned.

    Raises
    ------
    ConfigError
        If a consumer or a release uses it; the message says which.
    """
    ws.ledger.version(version)
    with ws.home.lock(LOCK):
        known = lifecycle.retirements(ws.ledger).get(version)
        if known is not None:
            return known
        users = used_by(ws, version)
        if users:
            raise ConfigError(
                f"{version} is in use by {', '.join(users)}. Pin the consumers to another version in config.yaml and "
                "run `headwater apply`, drop the releases with `headwater release drop`, then retire it."
            )
        retirement = Retirement(version, now, by, why)
        lifecycle.retire(ws.ledger, retirement)
    return retirement


@dataclass(frozen=True)
class Pruned:
    """What pruning removed, and what it had to keep and why (snapshot id to reason)."""

    removed: tuple[str, ...]
    kept: dict[str, str]


def prune(ws: Workspace, version: str | None = None, *, keep: timedelta | None = None, dry_run: bool = False) -> Pruned:
    """Remove snapshots older than `keep` before the newest of their view that nobody needs.

    The ledger forgets them first, in one transaction per view that also notes their files; then file and twin go.
    Killed in between, the next pruning, and `headwater doctor`, end what was begun.

    Parameters
    ----------
    version
        None prunes every version, and the counts and own choices of users and items.
    keep
        The configured coverage by default (90 days).
    """
    reach = ws.config.coverage if keep is None else keep
    names = [ws.ledger.version(version).version] if version else [item.version for item in ws.ledger.versions()]
    plain = [] if version else [*map(stats_view, ENTITIES), choices_view()]
    removed: list[str] = []
    kept: dict[str, str] = {}
    with ws.home.lock(LOCK):
        reasons = needed(ws)
        for view in [*(embedding_view(entity, name) for name in names for entity in ENTITIES), *plain]:
            snapshots = ws.ledger.snapshots(view, accepted=True)
            if not snapshots:
                continue
            horizon = snapshots[-1].as_of - reach
            old = [snapshot for snapshot in snapshots if snapshot.as_of < horizon]
            kept |= {item.snapshot_id: reasons[item.snapshot_id] for item in old if item.snapshot_id in reasons}
            doomed = [snapshot for snapshot in old if snapshot.snapshot_id not in reasons]
            if doomed and not dry_run:
                lifecycle.forget(ws.ledger, view, horizon, doomed)
            removed += [snapshot.snapshot_id for snapshot in doomed]
        if not dry_run:
            finish_removals(ws)
    return Pruned(tuple(removed), kept)


def finish_removals(ws: Workspace) -> list[str]:
    """Remove the files of snapshots that the ledger has forgotten; return the snapshots' ids."""
    from feature_repo.stores.twin import twin_path

    waiting = lifecycle.removals(ws.ledger)
    recorded = {snapshot.path for snapshot in ws.ledger.snapshots()}
    for path in waiting.values():
        file = ws.home.root / path
        if path in recorded:
            continue  # published again since
        try:
            for gone in (file, twin_path(file)):
                with durable(f"remove {gone.parent.name}/{gone.name}"):
                    gone.unlink(missing_ok=True)
        except OSError as error:
            raise LakeError(f"Could not remove {file}: {error}. Fix permissions and prune again.") from error
    if waiting:
        lifecycle.removed(ws.ledger, list(waiting))
    return list(waiting)


def needed(ws: Workspace) -> dict[str, str]:
    """Return the snapshots that somebody needs, with the reason: training sets, consumers' indexes, releases."""
    views = {view.name: view for view in ws.ledger.views()}
    reasons: dict[str, str] = {}
    snapshots = ws.ledger.snapshots(accepted=True)
    for manifest in ws.ledger.training_sets():
        for snapshot in snapshots:
            if snapshot.view in manifest["request"]["views"] and reaches(manifest, snapshot, views[snapshot.view]):
                reasons[snapshot.snapshot_id] = f"training set {manifest['service']}"
    for consumer in ws.ledger.consumers():
        if "snapshot" in consumer["record"]:
            reasons[consumer["record"]["snapshot"]] = f"index of {consumer['name']}"
    for release in releases.usable(ws.ledger):
        reasons |= dict.fromkeys(release.snapshots.values(), f"release {release.name}")
    return reasons


def reaches(manifest: dict[str, Any], snapshot: Snapshot, view: Any) -> bool:
    """Return whether a row of a training set can have read a snapshot: not newer than it, not past its time to live."""
    start, end = (datetime.fromisoformat(manifest[name]) for name in ("start", "end"))
    expires = snapshot.available_at + timedelta(days=view.ttl_days) if view.ttl_days else None
    return snapshot.available_at <= end and (expires is None or expires >= start)


def rows(ws: Workspace) -> list[dict[str, str]]:
    """Return every version as a row for a person."""
    retired = lifecycle.retirements(ws.ledger)
    found = []
    for version in ws.ledger.versions():
        space = ws.ledger.space(version.space_id)
        snapshots = [item for item in ws.ledger.snapshots(accepted=True) if item.version == version.version]
        found.append(
            {
                "version": version.version,
                "state": "retired" if version.version in retired else "refreshed" if snapshots else "registered",
                "space": version.space_id,
                "floats": str(space.dim),
                "trained before": f"{space.train_end:%Y-%m-%d}",
                "snapshots": str(len(snapshots)),
                "latest as_of": f"{max(item.as_of for item in snapshots):%Y-%m-%d}" if snapshots else "-",
                "used by": ", ".join(used_by(ws, version.version)) or "nobody",
                "description": version.description,
            }
        )
    return found


def details(ws: Workspace, name: str) -> dict[str, Any]:
    """Return everything the ledger knows of one version; NotFoundError if there is none."""
    version = ws.ledger.version(name)
    space = ws.ledger.space(version.space_id)
    retired = lifecycle.retirements(ws.ledger).get(name)
    carried = lifecycle.bridged(ws.ledger)
    snapshots = [item for item in ws.ledger.snapshots() if item.version == name]
    return {
        "version": name,
        "space_id": space.space_id,
        "dim": space.dim,
        "trained before": space.train_end.isoformat(),
        "events": space.data_fingerprint,
        "weights": str(Path(space.artifact)),
        "continued by": continued_by(ws, name) or "nothing",
        "owner": version.owner,
        "smoothing": "off" if version.smoothing is None else version.smoothing,
        "description": version.description,
        "retired": "no" if retired is None else f"{retired.at:%Y-%m-%d} by {retired.by}: {retired.why}",
        "snapshots accepted": sum(item.accepted for item in snapshots),
        "snapshots refused": sum(not item.accepted for item in snapshots),
        "snapshots through a bridge": sum(item.snapshot_id in carried for item in snapshots),
        "used by": ", ".join(used_by(ws, name)) or "nobody",
    }


def continued_by(ws: Workspace, name: str) -> str | None:
    """Return the models that make a version's vectors after its own, in words; None where there are none.

    Models that were trained on from it and stayed in its space, and those whose vectors come over a bridge.
    """
    found = [
        f"{model.space_id} (trained on from it) from {model.train_end:%Y-%m-%d}"
        for model in lifecycle.models_of(ws.ledger, name)[1:]
    ]
    carried, names = lifecycle.bridged(ws.ledger), {item.space_id: item.version for item in ws.ledger.versions()}
    first: dict[str, datetime] = {}
    for item in ws.ledger.snapshots(accepted=True):
        if item.version == name and item.snapshot_id in carried:
            space = carried[item.snapshot_id]["from_space"]
            first[space] = min(item.as_of, first.get(space, item.as_of))
    found += [
        f"{space} ({names.get(space, 'no version')}, over a bridge) from {at:%Y-%m-%d}" for space, at in first.items()
    ]
    return ", ".join(found) or None
