"""The bridge: a new model's vectors, carried into an old version's space as that version's continued refresh.

The map is learned from published snapshots that both versions have of one moment, so the old model itself is not
needed any more. What it gives goes through smoothing and the gate as any refresh does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key, moment_stem
from feature_repo.contracts.types import Entity, Space
from feature_repo.lake import read_json, replacing_folder, write_json
from feature_repo.lifecycle import Origin
from jobs import refresh
from jobs.publication import Publication, published
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from models.bridge import Anchors, Bridge

MOMENTS = 3
ANCHOR_BACK = 9


@dataclass(frozen=True)
class Result:
    """What was published, and how well each entity's bridge carries vectors over (mean cosine, held out).

    `anchors` says the same of a later moment, of the chosen map with shares of each entity's own residual.
    """

    publications: tuple[Publication, ...]
    artifact: Path
    held_out: dict[str, dict[str, float]]
    kinds: dict[str, str]
    anchors: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Learned:
    """The bridge of one entity, and the residuals of the ids that the old space knew."""

    bridge: Bridge
    ids: pl.Series
    anchors: Anchors

    def carry(self, ids: pl.Series, vectors: np.ndarray) -> np.ndarray:
        """Return vectors [N, M] of the new space in the old one: unit, float32 [N, D]."""
        residuals, known = refresh.aligned(ids, self.ids, self.anchors.residuals)
        return self.anchors.add(self.bridge.map(vectors), residuals, known)


class Bridged:
    """An upstream of another space whose vectors come out in this one.

    Parameters
    ----------
    upstream
        The new model.
    space
        The old space.
    bridges
        One per entity.
    """

    def __init__(self, upstream: refresh.Upstream, space: Space, bridges: dict[Entity, Learned]) -> None:
        self.space = space
        self.origin = upstream.origin
        self._upstream, self._bridges = upstream, bridges

    def ids(self, entity: Entity, as_of: datetime) -> pl.Series:
        """Return the ids [N] that have a vector as of a moment."""
        return self._upstream.ids(entity, as_of)

    def infer(
        self, entity: Entity, as_of: datetime, only: np.ndarray | None = None
    ) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Return ids [N], unit vectors float32 [N, D] of the old space and norms float32 [N] in its scale."""
        ids, vectors, norms = self._upstream.infer(entity, as_of, only)
        learned = self._bridges[entity]
        return ids, learned.carry(ids, vectors), learned.bridge.map_norms(norms)


@dataclass(frozen=True)
class Pairs:
    """Vectors of the same entities in two spaces, of one or several moments.

    Attributes
    ----------
    ids
        [N], an entity stands once per moment.
    new, old
        float32 [N, M] and [N, D].
    new_norms, old_norms
        float32 [N], before scaling to length 1.
    """

    ids: np.ndarray
    new: np.ndarray
    old: np.ndarray
    new_norms: np.ndarray
    old_norms: np.ndarray


def common_moments(ws: Workspace, new: str, old: str, until: datetime | None = None) -> list[datetime]:
    """Return the moments, oldest first, of which both versions have snapshots of both entities that no bridge made.

    Raises
    ------
    NotFoundError
        If there is no such version.
    NotReadyError
        If there is no such moment.
    """
    for version in (old, new):
        ws.ledger.version(version)
    carried = lifecycle.bridged(ws.ledger)
    found: set[datetime] | None = None
    for view in [embedding_view(entity, version) for version in (new, old) for entity in ENTITIES]:
        own = [item for item in ws.ledger.snapshots(view, accepted=True) if item.snapshot_id not in carried]
        moments = {item.as_of for item in own if until is None or item.as_of <= until}
        found = moments if found is None else found & moments
    if not found:
        raise NotReadyError(
            f"{new} and {old} have no snapshots of one moment{f' up to {until:%Y-%m-%d}' if until else ''}. "
            "Run `headwater backfill`: both have to be refreshed side by side for a while."
        )
    return sorted(found)


def pairs(ws: Workspace, new: str, old: str, entity: Entity, moments: list[datetime]) -> Pairs:
    """Read the vectors of the entities that both versions know at the given moments."""
    parts: list[tuple[np.ndarray, ...]] = []
    for moment in moments:
        left, right = (_read(ws, entity, version, moment) for version in (new, old))
        both = left[0].join(right[0], on="id", suffix="_old").sort("id")
        rows, old_rows = both["at"].to_numpy(), both["at_old"].to_numpy()
        parts.append((both["id"].to_numpy(), left[1][rows], right[1][old_rows], left[2][rows], right[2][old_rows]))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _read(ws: Workspace, entity: Entity, version: str, moment: datetime) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    path = ws.home.snapshot_file(embedding_view(entity, version), moment)
    ids, vectors = refresh.read_vectors(path, join_key(entity))
    norms = pq.read_table(path, columns=["norm"])["norm"].to_numpy()
    return pl.DataFrame({"id": ids}).with_row_index("at"), vectors, norms


def run(
    ws: Workspace, new: str, into: str, as_of: datetime, *, refit: bool = False, progress: Progress = silent
) -> Result:
    """Publish the vectors of version `new`'s model as of a moment in the space of version `into`.

    Users and items are published together, or neither is: both gates speak before either is moved.
    The bridge that was learned first is kept, so that the continued version stays one space; `refit` learns another.

    Raises
    ------
    NotReadyError
        If the versions have no moment in common, or the new model was trained on events after `as_of`.
    ConfigError
        If both are one version, or `into` has a snapshot of its own of that moment.
    SnapshotRefusedError
        If the gate refuses what comes over the bridge.
    """
    if new == into:
        raise ConfigError(f"{new} needs no bridge into itself.")
    spaces = {version: ws.ledger.space(ws.ledger.version(version).space_id) for version in (new, into)}
    if as_of < spaces[new].train_end:
        end = spaces[new].train_end
        raise NotReadyError(f"{new} was trained on events up to {end:%Y-%m-%d}: choose that moment or a later one.")
    carried = lifecycle.bridged(ws.ledger)
    for entity in ENTITIES:
        done = published(ws, embedding_view(entity, into), as_of)
        if done is not None and done.snapshot_id not in carried:
            raise ConfigError(f"{into} has a snapshot of its own as of {as_of:%Y-%m-%d}: {done.snapshot_id}.")
    folder = _fitted(ws, new, into, as_of, refit, progress)
    bridges = _load(folder)
    upstream = Bridged(refresh.load_upstream(ws, spaces[new]), spaces[into], bridges)
    origin = Origin(str(folder.relative_to(ws.home.root)), spaces[new].space_id)
    result = refresh.run(ws, into, as_of, upstream=cast(Any, upstream), bridge=origin, progress=progress)
    return Result(
        result.publications,
        folder,
        {entity: learned.bridge.held_out for entity, learned in bridges.items()},
        {entity: learned.bridge.kind for entity, learned in bridges.items()},
        {entity: learned.anchors.scores for entity, learned in bridges.items()},
    )


def _load(folder: Path) -> dict[Entity, Learned]:
    from models.bridge import Anchors, Bridge

    found: dict[Entity, Learned] = {}
    for entity in ENTITIES:
        bridge, notes = Bridge.load(folder / f"{entity}.safetensors"), read_json(folder / f"{entity}-anchors.json")
        ids, residuals = refresh.read_vectors(folder / f"{entity}-anchors.parquet", "id")
        found[entity] = Learned(bridge, ids, Anchors(residuals, notes["share"], notes["scores"]))
    return found


def _fitted(ws: Workspace, new: str, into: str, as_of: datetime, refit: bool, progress: Progress) -> Path:
    """Return the folder of the bridge between two versions, learned now where there is none."""
    known = sorted(ws.home.artifacts.glob(f"bridge-{new}-{into}-*/bridge.json"))
    moments = common_moments(ws, new, into, as_of)
    folder = ws.home.artifacts / f"bridge-{new}-{into}-{moment_stem(moments[-1])}"
    if (known and not refit) or (folder / "bridge.json").exists():
        return folder if refit else known[0].parent
    ws.use_threads()
    with replacing_folder(folder) as staged:
        for step, entity in enumerate(ENTITIES):
            progress(f"learn the bridge of {entity}s from {new} into {into}", step, len(ENTITIES))
            _save(learn(ws, new, into, entity, moments), entity, staged)
        spaces = {version: ws.ledger.version(version).space_id for version in (new, into)}
        used = [moment.isoformat() for moment in moments[-MOMENTS:]]
        write_json({"from": new, "into": into, "spaces": spaces, "moments": used}, staged / "bridge.json")
    return folder


def learn(ws: Workspace, new: str, into: str, entity: Entity, moments: list[datetime]) -> Learned:
    """Learn the bridge of one entity: the map from the last moments, the residuals from the very last.

    How much of the residuals is kept is chosen on entities that the map was not fitted on: what would the residuals of
    an early moment have done for the last one?

    Parameters
    ----------
    moments
        Of which both versions have snapshots, oldest first.
    """
    from models.bridge import Anchors, choose_share, fit_bridge, held_out

    both = pairs(ws, new, into, entity, moments[-MOMENTS:])
    bridge = fit_bridge(both.new, both.old, (both.new_norms, both.old_norms), groups=both.ids)
    judges = np.unique(both.ids[held_out(both.ids)])
    first, last = (pairs(ws, new, into, entity, [moment]) for moment in (moments[-ANCHOR_BACK:][0], moments[-1]))
    _, at_first, at_last = np.intersect1d(first.ids, last.ids, return_indices=True)
    judged = np.isin(last.ids[at_last], judges)
    early, late = (first.new[at_first], first.old[at_first]), (last.new[at_last], last.old[at_last])
    share, scores = choose_share(bridge, early, late, judged)
    return Learned(bridge, pl.Series(last.ids), Anchors(last.old - bridge.map(last.new), share, scores))


def _save(learned: Learned, entity: Entity, folder: Path) -> None:
    learned.bridge.save(folder / f"{entity}.safetensors")
    residuals = learned.anchors.residuals
    rows = refresh.vector_table("id", learned.ids, residuals, np.linalg.norm(residuals, axis=1).astype(np.float32))
    pq.write_table(rows, folder / f"{entity}-anchors.parquet", compression="zstd")
    write_json({"share": learned.anchors.share, "scores": learned.anchors.scores}, folder / f"{entity}-anchors.json")
