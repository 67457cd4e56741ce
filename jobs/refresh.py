"""Refresh: infer -> stabilize -> gate -> publish, for one version at one `as_of`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import lifecycle
from feature_repo.contracts.errors import LakeError, NotReadyError, SpaceMismatchError
from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.contracts.types import Entity, Space, View
from feature_repo.lifecycle import Origin
from feature_repo.profile import reads_with_spark
from jobs import folding
from jobs.folding import Folding
from jobs.inference import INFERENCE_ROWS, SparkInference, in_process
from jobs.publication import Candidate, Publication, clocked, publish_together, published
from jobs.snapshot_gate import id_type_of, judge
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs.features.tables import Tables
    from models.upstream.derm import DERM
    from models.upstream.inputs import ItemBatch, UserBatch

SMOOTHED_WITH = "smoothed_with"  # in a snapshot's file: the snapshot whose vectors it was mixed with
EMBEDDING_FIELDS = {"embedding": "list<float>", "available_us": "int64"}


@dataclass(frozen=True)
class Result:
    """The snapshots of one refresh, one per entity."""

    version: str
    as_of: datetime
    publications: tuple[Publication, ...]


class Upstream:
    """A trained upstream model with its encodings, ready to infer every entity as of a moment.

    Parameters
    ----------
    ws
        The workspace.
    space
        The space whose model to load.
    like
        Another upstream of the same log: where its encodings are the same, the log is read once for both.
    """

    def __init__(self, ws: Workspace, space: Space, like: Upstream | None = None) -> None:
        from jobs.features.encode import Encoder
        from jobs.features.tables import Tables
        from models.upstream.derm import DERM

        folder = ws.home.root / space.artifact
        self.space, self.since = space, space.train_end
        # Stands in every snapshot's file: which model made it, of which log. A model may continue another's space.
        self.origin = {"made_by": space.space_id, "events": ws.log.fingerprint}
        self.model: DERM = DERM.load(folder)
        self._log = ws.log
        self._spark = SparkInference(ws.home, folder) if reads_with_spark() else None
        self._ids = {entity: ws.log.codes[entity][join_key(entity)] for entity in ENTITIES}
        encoder = Encoder.load(folder / "encoder.json")
        self.tables: Tables
        # Each entity's table of the last moment: the gate asks for it again, and so does every other version.
        self._read: dict[Entity, tuple[datetime, Any]]
        self._folding: Folding | None = None
        method = folding.of_space(space.config, ws.log, lambda: self.tables.activity, ws.config.coverage)
        if method is not None:
            self._folding = Folding(
                method,
                lambda entity, as_of: np.asarray(self._table(entity, as_of).code),
                lambda entity, as_of: self._run(entity, as_of, None),
            )
        if like is not None and like.tables.encoder == encoder:
            self.tables, self._read = like.tables, like._read
            return
        actions, coverage = ws.config.history_actions, ws.config.coverage
        self.tables, self._read = Tables(ws.log, encoder, actions, coverage, ws.config.min_item_events), {}

    def ids(self, entity: Entity, as_of: datetime) -> pl.Series:
        """Return the ids [N] that have a vector as of a moment, in the order of :meth:`infer`.

        Cold entities have none: users without a history, items with fewer than `min_item_events` events.
        """
        return self._ids[entity][self._table(entity, as_of).code]

    def _table(self, entity: Entity, as_of: datetime) -> Any:
        if entity not in self._read or self._read[entity][0] != as_of:
            table: Any = self.tables.users(as_of) if entity == "user" else self.tables.items(as_of)
            self._log.check_same()
            self._read[entity] = (as_of, table)
        return self._read[entity][1]

    def infer(
        self, entity: Entity, as_of: datetime, only: np.ndarray | None = None
    ) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Return ids [N], unit vectors float32 [N, D] and the norms of the model's before scaling float32 [N].

        Parameters
        ----------
        only
            Positions int64 [N] in :meth:`ids` to compute; None for all.
        """
        code = self._table(entity, as_of).code
        places = np.arange(len(code)) if only is None else only
        if self._folding is not None and only is None:
            vectors, norms = self._folding.vectors(entity, as_of)
        else:
            vectors, norms = self._run(entity, as_of, only)
            if self._folding is not None:
                vectors = self._folding.again(entity, as_of, places, vectors)
        return self._ids[entity][code[places]], vectors, norms

    def _run(self, entity: Entity, as_of: datetime, only: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the model's own unit vectors and norms of some positions, or of all."""
        from jobs.features.batches import item_batch, user_batch

        table = self._table(entity, as_of)
        places = np.arange(len(table.code)) if only is None else only
        count = len(places)
        cuts = (places[start : start + INFERENCE_ROWS] for start in range(0, count, INFERENCE_ROWS))
        batches: Iterator[UserBatch | ItemBatch] = (
            user_batch(self.tables, table, cut) if entity == "user" else item_batch(table, cut) for cut in cuts
        )
        # What the gate asks for again is computed here wherever the vectors come from: it is to find workers out.
        if self._spark is not None and only is None and count:
            return self._spark.vectors(entity, batches, count)
        return in_process(self.model, entity, batches, count, self.space.dim)


def load_upstream(ws: Workspace, space: Space, like: Upstream | None = None) -> Upstream:
    """Load the model of a space, of whatever kind it is; `like` as in :class:`Upstream`."""
    from jobs.content import ContentUpstream

    if space.config.get("kind") == "content":
        return ContentUpstream(ws, space)
    return Upstream(ws, space) if like is None or isinstance(like, ContentUpstream) else Upstream(ws, space, like)


def upstream_at(ws: Workspace, version: str, as_of: datetime) -> Upstream:
    """Load the model that makes a version's vectors as of a moment: its own, or the latest that continues it."""
    upstream = load_upstream(ws, lifecycle.model_at(ws.ledger, version, as_of))
    upstream.space = ws.ledger.space(ws.ledger.version(version).space_id)
    return upstream


def upstreams_of(ws: Workspace, version: str, like: Upstream | None = None) -> list[Upstream]:
    """Load the models that make a version's vectors, by the moment from which each is used (`since`).

    The first is the version's own. Those that continue it were trained on and stayed in its space: all of them give
    vectors of that space.
    """
    space = ws.ledger.space(ws.ledger.version(version).space_id)
    found: list[Upstream] = []
    for model in lifecycle.models_of(ws.ledger, version):
        upstream = load_upstream(ws, model, like or (found[0] if found else None))
        upstream.space = space
        found.append(upstream)
    return found


def stabilize(new: np.ndarray, old: np.ndarray, known: np.ndarray, keep: float) -> np.ndarray:
    """Smooth unit vectors over time and scale them to unit length again.

    Parameters
    ----------
    new
        float32 [N, D], this refresh's vectors.
    old
        float32 [N, D], the earlier day's vectors of the same entities; any value where unknown.
    known
        bool [N], which entities the earlier day had; the others keep their new vector.
    keep
        Share of the old vector; the paper keeps 0.8 (arXiv 2509.04337).

    Returns
    -------
    numpy.ndarray
        float32 [N, D] of unit length. Where old and new cancel out, the new vector stands.
    """
    mixed = keep * old.astype(np.float64) + (1.0 - keep) * new.astype(np.float64)
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    smooth = (mixed / np.maximum(length, 1e-12)).astype(np.float32)
    use = known & (length[:, 0] > 1e-6)
    return np.where(use[:, None], smooth, new)


def read_vectors(path: Path, key: str) -> tuple[pl.Series, np.ndarray]:
    """Return ids [N] and vectors float32 [N, D] of a published snapshot."""
    try:
        table = pq.read_table(path, columns=[key, "embedding"])
    except (OSError, pa.ArrowInvalid) as error:
        raise LakeError(f"Could not read the snapshot {path}: {error}. Refresh that moment again.") from error
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return pl.Series(pl.from_arrow(table[key])), values.reshape(table.num_rows, -1)


def aligned(ids: pl.Series, old_ids: pl.Series, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the old vectors in the order of `ids`, and which were known."""
    position = (
        pl.DataFrame({"id": ids})
        .join(pl.DataFrame({"id": old_ids}).with_row_index("at"), on="id", how="left", maintain_order="left")["at"]
        .cast(pl.Int64)
        .fill_null(-1)
        .to_numpy()
    )
    known = position >= 0
    return old[np.where(known, position, 0)], known


def why_not(ws: Workspace, version: str, as_of: datetime) -> str | None:
    """Return why a version cannot be refreshed as of a moment; None if it can, or its snapshots are there."""
    views = [embedding_view(entity, version) for entity in ENTITIES]
    retired = lifecycle.retirements(ws.ledger).get(version)
    if retired is not None:
        return f"{version} is retired since {retired.at:%Y-%m-%d} ({retired.why}): refresh a version that is in use."
    reason = None
    train_end = ws.ledger.space(ws.ledger.version(version).space_id).train_end
    horizon = min((moment for view, moment in lifecycle.horizons(ws.ledger).items() if view in views), default=None)
    if as_of < train_end:
        reason = (
            f"{version} was trained on events up to {train_end:%Y-%m-%d}: its vectors as of {as_of:%Y-%m-%d} would "
            f"know their future. Refresh it as of {train_end:%Y-%m-%d} or later."
        )
    elif horizon is not None and as_of < horizon:
        reason = f"{version} was pruned before {horizon:%Y-%m-%d}: refresh it as of that moment or later."
    if reason is not None and all(published(ws, view, as_of) for view in views):
        return None
    return reason


def run(
    ws: Workspace,
    version: str,
    as_of: datetime,
    *,
    upstream: Upstream | None = None,
    bridge: Origin | None = None,
    progress: Progress = silent,
) -> Result:
    """Compute, check and publish the vectors of a version as of one moment.

    A moment that is published already is left as it is.

    Parameters
    ----------
    ws
        Workspace with an ingested log and a trained version.
    version
        Name of the version, such as ``v1``.
    as_of
        Only events before it are read.
    upstream
        The version's loaded model, where the caller has it at hand.
    bridge
        What carries another model's vectors over, where `upstream` is no model of this version. Users and items are
        then published together or not at all.

    Raises
    ------
    SnapshotRefusedError
        If the gate refused a snapshot.
    NotReadyError
        If nothing was known of any entity at that moment, or the version cannot be refreshed for it.
    BusyError
        If another process refreshes this version.
    SpaceMismatchError
        If `upstream` is a model of another space.
    """
    space = ws.ledger.space(ws.ledger.version(version).space_id)
    reason = why_not(ws, version, as_of)
    if reason is not None:
        raise NotReadyError(reason)
    if upstream is not None and upstream.space.space_id != space.space_id:
        raise SpaceMismatchError(
            f"{version} is space {space.space_id}, but the model makes vectors of {upstream.space.space_id}: "
            "refresh the version that was registered for it, or carry its vectors over with `headwater version bridge`."
        )
    publications: list[Publication] = []
    waiting: list[Candidate] = []
    with ws.home.lock(f"refresh-{version}"):
        for step, entity in enumerate(ENTITIES):
            view = embedding_view(entity, version)
            progress(f"refresh {view} as of {as_of:%Y-%m-%d}", step, len(ENTITIES))
            done = published(ws, view, as_of)
            if done is not None:
                publications.append(Publication(done, 0.0, reused=True))
                continue
            if upstream is None:
                upstream = upstream_at(ws, version, as_of)
            waiting.append(candidate(ws, upstream, entity, version, as_of))
            if bridge is None:
                publications += _publish(ws, [waiting.pop()], as_of, space)
        if waiting:
            publications += _publish(ws, waiting, as_of, space, bridge)
    progress(f"refresh {version} as of {as_of:%Y-%m-%d}", len(ENTITIES), len(ENTITIES))
    return Result(version, as_of, tuple(publications))


def _publish(
    ws: Workspace, candidates: list[Candidate], as_of: datetime, space: Space, bridge: Origin | None = None
) -> list[Publication]:
    available_at = as_of + ws.config.availability_lag
    return publish_together(ws, candidates, as_of, space_id=space.space_id, available_at=available_at, origin=bridge)


def candidate(ws: Workspace, upstream: Upstream, entity: Entity, version: str, as_of: datetime) -> Candidate:
    """Return a version's smoothed vectors of one entity as of a moment, ready for the gate; nothing is written.

    They are mixed with what stands for an earlier day: refreshes of the same day do not compound.

    Raises
    ------
    NotReadyError
        If nothing was known of any entity at that moment.
    """
    view, smoothing = embedding_view(entity, version), ws.ledger.version(version).smoothing
    key = join_key(entity)
    ids, vectors, norms = upstream.infer(entity, as_of)
    if len(ids) == 0:
        raise NotReadyError(
            f"Nothing was known of any {entity} within {ws.config.coverage_days} days before {as_of}. "
            "Choose a later as_of or a longer coverage_days."
        )
    told = {"space_id": upstream.space.space_id, "version": version, **upstream.origin}
    earlier = lifecycle.earlier_days(ws.ledger, view, as_of)
    if earlier and smoothing is not None:
        old, known = aligned(ids, *read_vectors(ws.home.root / earlier[-1].path, key))
        vectors = stabilize(vectors, old, known, smoothing)
        told[SMOOTHED_WITH] = earlier[-1].snapshot_id
    available_at = as_of + ws.config.availability_lag
    table = clocked(vector_table(key, ids, vectors, norms), available_at).replace_schema_metadata(told)
    return Candidate(
        View(view, entity, version, id_type_of(ids), EMBEDDING_FIELDS, ws.config.ttl_days),
        table,
        gate=lambda staged: judge(ws, upstream, version, entity, staged, as_of),
    )


def vector_table(key: str, ids: pl.Series, vectors: np.ndarray, norms: np.ndarray) -> pa.Table:
    """Return ids [N], vectors [N, D] and norms [N] as a snapshot's first three columns."""
    count, dim = vectors.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * dim)
    embedding = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(vectors).reshape(-1)))
    key_type = pa.int64() if ids.dtype == pl.Int64 else pa.string()
    return pa.table({key: ids.to_arrow().cast(key_type), "embedding": embedding, "norm": pa.array(norms, pa.float32())})
