"""Content upstreams: items by their attributes alone, users by what they acted on. Nothing is learned from events.

Items that nobody has met yet have a vector; so has everyone who acted on an item whose attributes are known: the mean
of those items' vectors (docs/adr/0065-content-has-two-sides.md).

Legend: I items, U users, J items kept per user, E floats per vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import ENTITIES, join_key
from feature_repo.contracts.types import Entity, Space
from jobs.features.content import ContentFeatures
from jobs.refresh import Upstream
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from jobs import config as settings
    from jobs.features.history import Activity
    from models.upstream.content import Bags, ContentEmbedding

FEATURES_FILE = "content.json"
DIM = 64
TOP_ITEMS = 128


@dataclass(frozen=True)
class Fitted:
    """A factorized content model with the features that it reads, as `train_upstream.Fitted` for a trained one."""

    model: ContentEmbedding
    features: ContentFeatures
    rows: int
    curve: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write model and features where a refresh finds them."""
        self.model.save(folder)
        self.features.save(folder / FEATURES_FILE)


def fit_content(ws: Workspace, settings: settings.Upstream) -> Fitted:
    """Factorize the attributes of the items that were known before the cut-off.

    Raises
    ------
    ConfigError
        If it is to go on from other weights, which a factorization cannot, or items hardly differ.
    NotReadyError
        If the log came without item attributes, or no two items share any.
    """
    from models.upstream.content import ContentEmbedding

    if settings.start_from is not None:
        raise ConfigError(
            f"{settings.version} is a content embedding: it is factorized anew, not trained on. "
            f"Use `headwater version register --like {settings.version} --train-end TIME` without --warm-start."
        )
    columns = ws.log.attribute_columns("item")
    if not columns.categorical and not columns.numeric:
        raise NotReadyError(
            f"The log has no item attributes, and {settings.version} embeds nothing else. Ingest it with --items, or "
            "take the upstream out of config.yaml."
        )
    cutoff = settings.train_end or ws.splits.upstream_end
    items = _known_items(ws, cutoff)
    features = ContentFeatures.fit(items, columns)
    bags = features.bags(items)
    told = np.flatnonzero(bags.counts.numpy() > 0)
    if len(told) == 0:
        raise NotReadyError("No two items known before the upstream cut-off share any attribute. Ingest more items.")
    bags, dim = features.bags(items[told]), settings.content_dim or DIM
    model = ContentEmbedding.fit(bags, len(features.names), dim, settings.seed, cutoff=cutoff.isoformat())
    return Fitted(model, features, len(told))


class ContentUpstream(Upstream):
    """A content model, ready to infer every entity as of a moment.

    Parameters
    ----------
    ws
        The workspace.
    space
        The space whose model to load.
    """

    def __init__(self, ws: Workspace, space: Space) -> None:
        from models.upstream.content import ContentEmbedding

        folder = ws.home.root / space.artifact
        self.space, self.since = space, space.train_end
        self.origin = {"made_by": space.space_id, "events": ws.log.fingerprint}
        self._ws = ws
        self._content = ContentEmbedding.load(folder)
        self._features = ContentFeatures.load(folder / FEATURES_FILE)
        self._ids = {entity: ws.log.codes[entity][join_key(entity)] for entity in ENTITIES}
        self._timed = "event_timestamp" in ws.log.attributes("item").columns
        self._bags_of: tuple[datetime, Bags] | None = None
        self._read = {}

    def ids(self, entity: Entity, as_of: datetime) -> pl.Series:
        """Return the ids [N] that have a vector as of a moment, in the order of :meth:`infer`.

        Items with a known attribute; users who acted on such an item within `coverage_days`.
        """
        return self._ids[entity][self._table(entity, as_of).code]

    def infer(
        self, entity: Entity, as_of: datetime, only: np.ndarray | None = None
    ) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Return ids [N], unit vectors float32 [N, E] and their norms before scaling float32 [N].

        Parameters
        ----------
        only
            Positions int64 [N] in :meth:`ids` to compute; None for all.
        """
        table = self._table(entity, as_of)
        places = np.arange(len(table.code)) if only is None else only
        codes = table.code[places]
        if entity == "item":
            vectors, norms = self._items(as_of, codes)
        else:
            vectors, norms = self._users(as_of, table.item[places], table.weight[places])
        return self._ids[entity][codes], vectors, norms

    @cached_property
    def _activity(self) -> Activity:
        from jobs.features.history import Activity

        return Activity(self._ws.log, self._ws.config.history_actions)

    def _table(self, entity: Entity, as_of: datetime) -> _Table:
        if entity not in self._read or self._read[entity][0] != as_of:
            table = self._known_users(as_of) if entity == "user" else self._told_items(as_of)
            self._read[entity] = (as_of, table)
        found: _Table = self._read[entity][1]
        return found

    def _bags(self, as_of: datetime) -> Bags:
        """Return the features of all items by code; attributes without a time are read once."""
        if self._bags_of is None or (self._timed and self._bags_of[0] != as_of):
            self._bags_of = (as_of, self._features.bags(_known_items(self._ws, as_of)))
        return self._bags_of[1]

    def _told_items(self, as_of: datetime) -> _Table:
        _, norms = self._items(as_of, np.arange(len(self._ids["item"])))
        return _Table(np.flatnonzero(norms > 0), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))

    def _known_users(self, as_of: datetime) -> _Table:
        history = self._activity.before(
            as_of,
            length=1,
            interests=0,
            top_items=TOP_ITEMS,
            item_values=np.zeros((len(self._ids["item"]), 0), np.int32),
            coverage=self._ws.config.coverage,
        )
        _, norms = self._users(as_of, history.top_item, history.top_weight)
        known = norms > 1e-6  # whose tastes cancel out have none
        return _Table(history.user_code[known], history.top_item[known], history.top_weight[known])

    def _items(self, as_of: datetime, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unit vectors [I, E] and norms [I] of items by code; zeros where nothing is known of one."""
        import torch

        from models.upstream.content import Bags

        bags = self._bags(as_of)
        first, counts = bags.start.numpy()[codes], bags.counts.numpy()[codes]
        start = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(codes) else np.zeros(0, np.int64)
        places = torch.from_numpy(np.repeat(first - start, counts) + np.arange(int(counts.sum())))
        chosen = Bags(bags.feature[places], bags.share[places], torch.from_numpy(start.astype(np.int64)))
        vectors, norms = self._content.vectors(chosen)
        return vectors.numpy(), norms.numpy()

    def _users(self, as_of: datetime, item: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unit vectors [U, E] and norms [U] from the items that users acted on, [U, J], and their weights."""
        import torch
        from torch.nn import functional

        vectors, _ = self._items(as_of, np.arange(len(self._ids["item"])))
        if item.size == 0:
            return np.zeros((len(item), self.space.dim), np.float32), np.zeros(len(item), np.float32)
        safe, share = np.where(item >= 0, item, 0), np.where(item >= 0, weight, 0).astype(np.float32)
        sums = functional.embedding_bag(
            torch.from_numpy(safe), torch.from_numpy(vectors), mode="sum", per_sample_weights=torch.from_numpy(share)
        ).numpy()
        norms = np.linalg.norm(sums, axis=1)
        return sums / np.maximum(norms, 1e-12)[:, None], norms


@dataclass(frozen=True)
class _Table:
    """Entities of a moment by ascending code [N]; of users also the items that they acted on and weights, [N, J]."""

    code: np.ndarray
    item: np.ndarray
    weight: np.ndarray


def _known_items(ws: Workspace, as_of: datetime) -> pl.DataFrame:
    """Return the attributes of all items by code, null where none was known before the moment."""
    from jobs.features.encode import attributes_as_of

    return attributes_as_of(ws.log, "item", as_of)
