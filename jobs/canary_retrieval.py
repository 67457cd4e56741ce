"""Canaries of retrieval: does the item index still find what users chose lately, with the new snapshot in it?

The other entity's vectors are those of its newest published snapshot, so a difference of the two recalls comes
from the snapshot alone. As with rankers, neither recall says how good retrieval is; their difference says whether
users and items still meet. Popularity, which a consumer may add, is left out: it would hide what happened to vectors.

Legend: U users who chose something, I items, D embedding dim, K retrieved.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_repo.contracts.naming import embedding_view, join_key
from feature_repo.contracts.types import Entity
from jobs.canary import MIN_POSITIVES, RESAMPLES, WINDOW
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from validation.evidence import Canary

K = 100
MAX_USERS = 1_000


def retrieval_canaries(
    ws: Workspace, version: str, entity: Entity, path: Path, previous: Path, as_of: datetime
) -> tuple[Canary, ...]:
    """Look for what users chose in the four weeks before `as_of`, with the previous snapshot and with the new one.

    A retrieval consumer is live when the ledger holds its artifact and it is built on the version. Without a
    published snapshot of the other entity, or with fewer than 50 users who chose a known item, there is no canary.

    Parameters
    ----------
    path, previous
        The staged snapshot, which passed all other checks, and the one before.
    """
    from validation.evidence import Canary

    live = [
        record["name"]
        for record in ws.ledger.consumers()
        if record["task"] == "retrieval" and record["versions"][0] == version and "artifact" in record["record"]
    ]
    found = _recalls(ws, version, entity, path, previous, as_of) if live else None
    if found is None:
        return ()
    before, now, noise, users, k = found
    return tuple(Canary(name, users, before, now, noise, f"recall@{k}", "users") for name in live)


def _recalls(
    ws: Workspace, version: str, entity: Entity, path: Path, previous: Path, as_of: datetime
) -> tuple[float, float, float, int, int] | None:
    """Return recall before and now, the standard error of their difference over resampled users, users and K."""
    from jobs.refresh import read_vectors
    from models.bootstrap import bootstrap_mean
    from models.downstream.retrieval import build_index
    from models.metrics import recall_at_k

    other: Entity = "item" if entity == "user" else "user"
    published = [s for s in ws.ledger.snapshots(embedding_view(other, version), accepted=True) if s.as_of <= as_of]
    if not published:
        return None
    own, before, now = aligned_pair(path, previous, entity)
    partner = read_vectors(ws.home.root / published[-1].path, join_key(other))
    users, items = (own, partner[0]) if entity == "user" else (partner[0], own)
    asked, relevant = _choices(ws, users, items, as_of)
    if len(asked) < MIN_POSITIVES:
        return None
    # In a small catalogue a hundred items would be nearly all of them.
    k = min(K, max(1, len(items) // 10))
    recall = []
    for vectors in (before, now):
        user_vectors, item_vectors = (vectors, partner[1]) if entity == "user" else (partner[1], vectors)
        ranked, _ = build_index(item_vectors).search(user_vectors[asked], k)
        recall.append(recall_at_k(ranked, relevant, [k])[k])
    low, high = bootstrap_mean(recall[0] - recall[1], resamples=RESAMPLES).ci95
    # A 95% interval is 2 x 1.96 standard errors wide.
    return float(recall[0].mean()), float(recall[1].mean()), (high - low) / 3.92, len(asked), k


def aligned_pair(path: Path, previous: Path, entity: Entity) -> tuple[pl.Series, np.ndarray, np.ndarray]:
    """Return ids [N] that both snapshots know, and their vectors before and now, float32 [N, D] each.

    Who is covered has checks of its own.
    """
    from jobs.refresh import aligned, read_vectors

    ids, now = read_vectors(path, join_key(entity))
    before, known = aligned(ids, *read_vectors(previous, join_key(entity)))
    return ids.filter(pl.Series(known)), before[known], now[known]


def _choices(ws: Workspace, users: pl.Series, items: pl.Series, as_of: datetime) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the positions [U] of users who chose a known item lately, and for each the positions of those items."""
    from jobs.retrieve_questions import actions_of

    chosen = (
        ws.log.window(as_of - WINDOW, as_of)
        .filter(pl.col("event_type").is_in(list(actions_of(ws))))
        .select("user_id", "item_id")
        .unique()
        .collect()
        .join(pl.DataFrame({"user_id": users}).with_row_index("user"), on="user_id")
        .join(pl.DataFrame({"item_id": items}).with_row_index("item"), on="item_id")
    )
    grouped = chosen.sort("item").group_by("user").agg("item").sort("user")
    if grouped.height > MAX_USERS:
        grouped = grouped.sample(MAX_USERS, seed=int(as_of.timestamp())).sort("user")
    return grouped["user"].to_numpy().astype(np.int64), [row.to_numpy() for row in grouped["item"]]
