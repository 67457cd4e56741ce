"""Releases: make one, promote it once the online store is ready, roll back in one write, drop what is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import BusyError, ConfigError, LakeError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, choices_view, embedding_view
from feature_repo.contracts.spaces import check_pins
from feature_repo.contracts.types import Release, Snapshot
from feature_repo.lake import folder_digest, read_json
from jobs import item_index
from jobs.own_choices import OwnChoices, choices_before
from jobs.popularity import Popularity
from jobs.versions import LOCK
from jobs.workspace import Progress, Workspace, silent


@dataclass(frozen=True)
class Moved:
    """The release that is live now, the one that was before, and whether anything changed."""

    release: Release
    before: str | None
    changed: bool


def create(
    ws: Workspace,
    consumers: list[str] | None = None,
    *,
    name: str | None = None,
    description: str = "",
    now: datetime,
    progress: Progress = silent,
) -> Release:
    """Bind trained consumers, their embedding versions, an item index and the online tables together.

    Nothing is served by it yet. The same parts again give the release that is there.

    Parameters
    ----------
    consumers
        Names; every trained one by default. A retrieval consumer brings the item index of its version's latest
        snapshot.

    Raises
    ------
    NotReadyError
        If a consumer is not trained, or a version has no snapshot.
    SpaceMismatchError
        If a consumer was trained on another space than its version stands for.
    ConfigError
        If a version is retired, or the name is taken.
    """
    known = {consumer["name"]: consumer for consumer in ws.ledger.consumers()}
    trained = [item for item, consumer in known.items() if "artifact" in consumer["record"]]
    chosen = consumers or trained
    missing = [item for item in chosen if item not in trained]
    if missing or not chosen:
        raise NotReadyError(
            f"Not trained yet: {', '.join(missing) or 'any consumer'}. Run `headwater train-downstream NAME` first."
        )
    tasks = [known[item]["task"] for item in chosen]
    for task in sorted({task for task in tasks if tasks.count(task) > 1}):
        same = [item for item in chosen if known[item]["task"] == task]
        raise ConfigError(
            f"{' and '.join(same)} are of one task ({task}), and a release has one consumer per task: name those to "
            "release with --consumer."
        )
    versions = {version: None for item in chosen for version in known[item]["versions"]}
    served = {version: ws.ledger.version(version).space_id for version in versions}
    retired = sorted(served.keys() & lifecycle.retirements(ws.ledger).keys())
    if retired:
        raise ConfigError(f"{', '.join(retired)} is retired and not refreshed any more: train on a living version.")
    parts: dict[str, dict[str, Any]] = {}
    index: dict[str, Any] | None = None
    for step, item in enumerate(chosen):
        progress(f"release: {item}", step, len(chosen))
        consumer = known[item]
        if consumer["task"] == "retrieval":
            index = _index(ws, consumer)
        else:
            parts[item] = _ranker(ws, consumer, served)
    snapshots = {
        embedding_view(entity, version): _latest(ws, embedding_view(entity, version)).snapshot_id
        for version in served
        for entity in ENTITIES
    }
    if index is not None and "own_choices" in index:
        snapshots[choices_view()] = _latest_choices(ws, index["version"]).snapshot_id
    with ws.home.lock("create-release"):
        made = releases.every(ws.ledger)
        taken = {release.name for release in made}
        fresh = Release(name or f"r{len(made) + 1}", now, description, served, parts, index, snapshots)
        for release in made:
            if _parts(release) == _parts(fresh) and name in (None, release.name):
                return release
        if fresh.name in taken:
            raise ConfigError(f"There is another release {fresh.name}, and releases never change: choose a new name.")
        releases.put(ws.ledger, fresh)
    return fresh


def _parts(release: Release) -> tuple[Any, ...]:
    return release.versions, release.consumers, release.index, release.snapshots


def _latest(ws: Workspace, view: str) -> Snapshot:
    snapshots = ws.ledger.snapshots(view, accepted=True)
    if not snapshots:
        raise NotReadyError(f"{view} has no snapshot yet. Run `headwater backfill` first.")
    return snapshots[-1]


def _latest_choices(ws: Workspace, version: str) -> Snapshot:
    """Return the choices that can be read with a version's latest users; NotReadyError where none can."""
    found = choices_before(ws, _latest(ws, embedding_view("user", version)))
    if found is None:
        raise NotReadyError(
            f"Retrieval adds own choices, and {choices_view()} has no snapshot that can be read with the latest users "
            f"of {version}. Publish one (`headwater backfill`, own_choices above 0), or run `headwater "
            "train-downstream` for the retrieval consumer and create a new release."
        )
    return found


def _ranker(ws: Workspace, consumer: dict[str, Any], served: dict[str, str]) -> dict[str, Any]:
    folder = ws.home.root / consumer["record"]["artifact"]
    check_pins(read_json(folder / "consumer.json")["spaces"], served, who=f"The consumer {consumer['name']}")
    return {
        "task": consumer["task"],
        "versions": consumer["versions"],
        "artifact": consumer["record"]["artifact"],
        "digest": folder_digest(folder),
    }


def _index(ws: Workspace, consumer: dict[str, Any]) -> dict[str, Any]:
    """Build the index of the latest item snapshot of a consumer's version, or find the one that was built."""
    version = consumer["versions"][0]
    snapshot = _latest(ws, embedding_view("item", version))
    learned = read_json(ws.home.root / consumer["record"]["artifact"] / "index.json")
    popularity, own = Popularity.read(learned.get("popularity")), OwnChoices.read(learned.get("own_choices"))
    folder = item_index.find_or_build(ws, snapshot, popularity)
    return {
        "artifact": str(folder.relative_to(ws.home.root)),
        "digest": folder_digest(folder),
        "version": version,
        "space_id": ws.ledger.version(version).space_id,
        "snapshot_id": snapshot.snapshot_id,
        **({"popularity": popularity.told()} if popularity.weight else {}),
        **({"own_choices": own.told()} if own.weight else {}),
    }


def promote(ws: Workspace, name: str, *, by: str, now: datetime, progress: Progress = silent) -> Moved:
    """Let serving use a release, after everything it needs was seen to be there.

    Artifacts must have the bytes they were released with, and the online store must hold the latest snapshot of
    every version, and of own choices where the index adds them. Then one ledger transaction moves the pointer.
    Promoting the live release changes nothing.

    Raises
    ------
    NotReadyError
        If the online store does not hold the latest snapshots.
    LakeError
        If an artifact was changed or is missing.
    BusyError
        If a version was refreshed while the store was read.
    ConfigError
        If a version of the release was retired.
    """
    release = releases.get(ws.ledger, name)
    verified = {view: _latest(ws, view) for view in release.snapshots}
    if release.index is not None and choices_view() in verified:
        _latest_choices(ws, release.index["version"])
    check_parts(ws, release, thorough=True)
    from jobs.online_check import check_online
    from jobs.store import open_store

    store = open_store(ws.home)
    for step, (view, snapshot) in enumerate(verified.items()):
        progress(f"promote {name}: read {view} back", step, len(verified))
        check_online(ws, snapshot, store)
    progress(f"promote {name}: read back", len(verified), len(verified))
    with ws.home.lock(LOCK):
        moved = [view for view, snapshot in verified.items() if _latest(ws, view) != snapshot]
        if moved:
            raise BusyError(f"{', '.join(moved)} was refreshed meanwhile. Run `headwater materialize`, promote again.")
        check_parts(ws, release)
        return _move(ws, "promote", release, by, now, {view: item.snapshot_id for view, item in verified.items()})


def rollback(ws: Workspace, to: str | None = None, *, by: str, now: datetime) -> Moved:
    """Let serving use an earlier release again: one write, nothing is computed.

    Parameters
    ----------
    to
        The release to go back to; the one before the live one by default. Named, the command may be repeated.

    Raises
    ------
    NotFoundError, NotReadyError
        If there is no such release, or it was never live.
    LakeError, ConfigError
        If one of its artifacts is gone, or a version was retired.
    """
    with ws.home.lock(LOCK):
        stack = releases.live_stack(releases.history(ws.ledger))
        if to is None and len(stack) < 2:
            raise NotReadyError("No release was live before this one; there is nothing to roll back to.")
        release = releases.get(ws.ledger, to or stack[-2])
        if release.name not in stack:
            raise NotReadyError(f"{release.name} was never live, or was dropped. Promote it instead.")
        check_parts(ws, release)
        return _move(ws, "rollback", release, by, now, {})


def drop(ws: Workspace, name: str, *, by: str, now: datetime) -> None:
    """Give up a release, so that its versions can be retired. Its record and history stay.

    Raises
    ------
    ConfigError
        If it is live.
    """
    release = releases.get(ws.ledger, name)
    with ws.home.lock(LOCK):
        live = releases.current_release(ws.ledger)
        if live is not None and live.name == name:
            raise ConfigError(f"{name} is live. Promote another release or roll back first.")
        if any(item.name == name for item in releases.usable(ws.ledger)):
            releases.move(ws.ledger, "drop", release.name, now, by, {})


def check_parts(ws: Workspace, release: Release, *, thorough: bool = False) -> None:
    """Check that a release can be served: versions alive, spaces unchanged, artifacts there.

    Parameters
    ----------
    thorough
        Whether to read every byte of the artifacts, which takes seconds for large ones.

    Raises
    ------
    ConfigError, LakeError, SpaceMismatchError
        What is wrong.
    """
    retired = sorted(release.versions.keys() & lifecycle.retirements(ws.ledger).keys())
    if retired:
        raise ConfigError(f"{release.name} needs {', '.join(retired)}, which is retired.")
    spaces = {version.version: version.space_id for version in ws.ledger.versions()}
    check_pins(release.versions, spaces, who=f"The release {release.name}")
    for part in [*release.consumers.values(), *([release.index] if release.index else [])]:
        folder = ws.home.root / part["artifact"]
        if not folder.is_dir():
            raise LakeError(f"{release.name} needs {folder}, which is gone. Restore it, or create a new release.")
        if thorough and folder_digest(folder) != part["digest"]:
            raise LakeError(f"{folder} was changed since {release.name} was made. Create a new release.")


def _move(ws: Workspace, action: str, release: Release, by: str, now: datetime, verified: dict[str, str]) -> Moved:
    live = releases.current_release(ws.ledger)
    before = live.name if live else None
    if before == release.name:
        return Moved(release, before, changed=False)
    releases.move(ws.ledger, action, release.name, now, by, verified)
    return Moved(release, before, changed=True)


def rows(ws: Workspace) -> list[dict[str, str]]:
    """Return every release as a row for a person."""
    moves = releases.history(ws.ledger)
    stack, kept = releases.live_stack(moves), {release.name for release in releases.usable(ws.ledger)}
    found = []
    for release in releases.every(ws.ledger):
        states = {"dropped": release.name not in kept, "can be rolled back to": release.name in stack}
        state = next((word for word, holds in states.items() if holds), "created")
        last = [item for item in moves if item.release == release.name]
        found.append(
            {
                "release": release.name,
                "state": "LIVE" if stack and stack[-1] == release.name else state,
                "versions": ", ".join(f"{version} ({space})" for version, space in release.versions.items()),
                "consumers": ", ".join(release.consumers) or "-",
                "index": release.index["snapshot_id"] if release.index else "-",
                "created": f"{release.created:%Y-%m-%d %H:%M}",
                "last move": f"{last[-1].action} {last[-1].at:%Y-%m-%d %H:%M} by {last[-1].by}" if last else "-",
            }
        )
    return found
