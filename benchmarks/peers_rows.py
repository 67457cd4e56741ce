"""The rows, labels and periods of a consumer's rankers, and a plain SVD to put in place of the embeddings.

Legend: N rows, D embedding dim, U users, I items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from benchmarks.smoothing import joined
from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.lake import read_json
from jobs.features.ranking import RankerEncoder, TrainingSet
from jobs.train_downstream import LABELS, seeds_in
from jobs.truth import oracle_logits
from jobs.workspace import Workspace
from models.downstream.inputs import RankerData, RankerSpec

RANK = 32
Vectors = tuple[np.ndarray, np.ndarray]  # table [V, D] and for each row its place or -1


@dataclass(frozen=True)
class Rows:
    """What a consumer's rankers learned from and are judged on; nothing here depends on a model.

    Attributes
    ----------
    data
        All rows from the upstream cut-off on, with the embeddings of the consumer's first version.
    known_train, known_valid
        Labels as they had arrived at the end of the training and of the validation period.
    chosen
        Training, validation and test rows, bool [N] each.
    views
        User and item view of the first version.
    """

    name: str
    task: str
    source: TrainingSet
    encoder: RankerEncoder
    data: RankerData
    known_train: np.ndarray
    known_valid: np.ndarray
    chosen: tuple[np.ndarray, np.ndarray, np.ndarray]
    views: tuple[str, str]

    def periods(self, embeddings: Mapping[str, Vectors]) -> tuple[RankerData, RankerData, RankerData]:
        """Return the training, validation and test rows with the given embeddings."""
        data = replace(self.data, embeddings=embeddings)
        train, valid, test = self.chosen
        return (
            replace(data, label=self.known_train).take(train),
            replace(data, label=self.known_valid).take(valid),
            data.take(test),
        )

    def spec(self, embeddings: Mapping[str, Vectors]) -> RankerSpec:
        """Return the baseline's inputs with pairs of embeddings, user and item of each beside one another, or none."""
        names = tuple((name, table.shape[1]) for name, (table, _) in embeddings.items())
        pairs = tuple((left, right) for (left, _), (right, _) in zip(names[::2], names[1::2], strict=True))
        return replace(self.encoder.spec({}), embeddings=names, pairs=pairs)

    @property
    def times(self) -> pl.Series:
        """When each row happened."""
        return self.source.frame["event_timestamp"].cast(pl.Datetime("us", "UTC"))


def rows_of(ws: Workspace, name: str) -> Rows:
    """Read a consumer's training set as `jobs.train_downstream` does.

    Raises
    ------
    NotReadyError
        If the consumer has no training set.
    """
    consumer, splits = ws.config.consumer(name), ws.splits
    folder = ws.home.training_sets / name
    if not (folder / "manifest.json").exists():
        raise NotReadyError(f"'{name}' has no training set in {ws.home.root}. Run `headwater run` there first.")
    source = TrainingSet(folder, LABELS[consumer.task])
    train = source.between(splits.upstream_end, splits.train_end)
    encoder = source.encoder(ws.log, (), train)  # the specification names the vectors
    user, item = (embedding_view(entity, consumer.versions[0]) for entity in ENTITIES)
    return Rows(
        name=name,
        task=consumer.task,
        source=source,
        encoder=encoder,
        data=source.data(encoder, {view: source.vectors(view) for view in (user, item)}),
        known_train=source.known_by(splits.train_end),
        known_valid=source.known_by(splits.valid_end),
        chosen=(train, source.between(splits.train_end, splits.valid_end), source.between(splits.valid_end, None)),
        views=(user, item),
    )


def oracle_of(ws: Workspace, rows: Rows) -> np.ndarray | None:
    """Return the logits of the true probabilities of the test rows; None where nobody knows them."""
    if ws.config.truth is None:
        return None
    ids = rows.source.frame["impression_id"].filter(pl.Series(rows.chosen[2]))
    return oracle_logits(ws.config.truth, rows.task, ids)


def our_logits(ws: Workspace, rows: Rows) -> dict[str, np.ndarray]:
    """Return the test logits [S, N] of the rankers that the home folder has.

    `none`, `v1` and `all`: without vectors, with the first version's, with all; and each other by its folder's name.

    Raises
    ------
    NotReadyError
        If they are not trained, or on another training set.
    """
    record = {consumer["name"]: consumer["record"] for consumer in ws.ledger.consumers()}.get(rows.name, {})
    folder = ws.home.root / record.get("artifact", "none")
    if not (folder / "consumer.json").exists():
        raise NotReadyError(f"'{rows.name}' is not trained in {ws.home.root}. Run `headwater run` there first.")
    known = read_json(folder / "consumer.json")
    if known["request"]["training_set"] != rows.source.manifest["request"]:
        raise NotReadyError(f"'{rows.name}' was trained on another training set. Run `headwater train-downstream`.")
    most = max((variant["views"] for variant in known["variants"]), key=len)
    seeds = range(seeds_in(folder))
    named = ["-".join(variant["views"]) for variant in known["variants"] if variant["views"]]
    places = dict(zip(named, named, strict=True)) | {"none": "none", "v1": "-".join(rows.views), "all": "-".join(most)}
    return {
        kind: np.stack([np.load(folder / place / f"seed-{seed}" / "test.npz")["logit"] for seed in seeds])
        for kind, place in places.items()
    }


def digest(*facts: Any) -> str:
    """Return a short name for facts: what is kept under it was made from the same ones."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def svd_vectors(ws: Workspace, rows: Rows) -> dict[str, Vectors]:
    """Return the vectors of a truncated SVD of user x item counts as they were known at each row's moment."""
    refreshes = svd_refreshes(ws)
    return {
        f"{entity}_svd": joined(refreshes[entity], rows.source.frame[join_key(entity)], rows.source, ws)
        for entity in ENTITIES
    }


def svd_refreshes(ws: Workspace) -> dict[str, list[tuple[datetime, pl.Series, np.ndarray]]]:
    """Return a plain SVD's vectors at every refresh moment, in one basis: ids and vectors, in order of time.

    The basis is the truncated SVD of log1p counts of all activity before the upstream cut-off, as the upstream trains
    before it. At each refresh users are folded in with their activity within `coverage`; items keep their factors of
    the cut-off, and new ones are folded in with the users who acted on them.
    """
    from scipy.sparse.linalg import svds

    from jobs.features.history import Activity

    activity, cutoff = Activity(ws.log, ws.config.history_actions), ws.splits.upstream_end
    shape = (ws.log.codes["user"].height, ws.log.codes["item"].height)
    past = _counts(activity.between(ws.log.start, cutoff), shape)
    _, _, factors = svds(past, k=min(RANK, min(past.shape) - 1), random_state=0)
    basis = np.ascontiguousarray(factors.T)
    known = np.asarray(past.getnnz(axis=0)) > 0
    found: dict[str, list[tuple[datetime, pl.Series, np.ndarray]]] = {entity: [] for entity in ENTITIES}
    for moment in ws.refresh_moments(cutoff, ws.splits.end):
        counts = _counts(activity.between(moment - ws.config.coverage, moment), shape)
        users = counts @ basis
        seen = np.asarray(counts.getnnz(axis=0)) >= 1
        folded = (counts.T @ users) / np.maximum((users**2).sum(axis=0), 1e-9)
        items = np.where(known[:, None], basis, folded)
        active = np.asarray(counts.getnnz(axis=1)) > 0
        for entity, vectors, chosen in (("user", users, active), ("item", items, known | seen)):
            ids = ws.log.codes[entity][join_key(entity)].filter(pl.Series(chosen))  # type: ignore[index]
            found[entity].append((moment, ids, vectors[chosen].astype(np.float32)))
    return found


def _counts(pairs: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> Any:
    from scipy.sparse import coo_matrix

    counts = coo_matrix((np.ones(len(pairs[0])), pairs), shape=shape).tocsr()
    counts.data = np.log1p(counts.data)
    return counts
