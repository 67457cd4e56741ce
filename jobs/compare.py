"""How far two versions are apart: the stability report of a retrain."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.contracts.types import Entity
from jobs.bridge import Pairs, common_moments, learn, pairs
from jobs.workspace import Progress, Workspace, silent

LARGEST = 20_000
LABELLED = ("ctr", "cvr")


@dataclass(frozen=True)
class Result:
    """The report.

    Attributes
    ----------
    as_of
        The latest moment of which both versions have snapshots.
    entities
        One row per entity: cosines are means over entities that no map was fitted on.
    consumers
        One row per live ranker of the old version, entity and way of feeding it the new vectors; empty where no
        ranker has enough labelled rows in the four weeks before.
    """

    as_of: datetime
    entities: list[dict[str, Any]]
    consumers: list[dict[str, Any]]


def run(ws: Workspace, old: str, new: str, as_of: datetime | None = None, *, progress: Progress = silent) -> Result:
    """Compare the vectors that two versions gave the same entities at one moment, and what old consumers make of them.

    Raises
    ------
    NotFoundError
        If there is no such version.
    NotReadyError
        If there is no moment of which both have snapshots, or too few common entities.
    """
    from models.bridge import cosine, effective_rank, neighbour_overlap, procrustes, unit

    ws.use_threads()
    moments = common_moments(ws, new, old, as_of)
    rows, fed = [], []
    for step, entity in enumerate(ENTITIES):
        progress(f"compare {entity} vectors of {old} and {new}", step, len(ENTITIES))
        now = pairs(ws, new, old, entity, moments[-1:])
        chosen = np.random.default_rng(0).permutation(len(now.ids))
        half, held = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        rotation = procrustes(now.new[half], now.old[half])
        # Learned a moment earlier, where there is one: at its own moment a bridge with residuals is exact.
        learned = learn(ws, new, old, entity, moments[:-1] or moments)
        carried = learned.carry(pl.Series(now.ids), now.new)
        same_dim = now.new.shape[1] == now.old.shape[1]
        some = chosen[:LARGEST]
        rows.append(
            {
                "entity": entity,
                "in both": len(now.ids),
                "cosine raw": float(cosine(now.new, now.old).mean()) if same_dim else None,
                "cosine aligned": float(cosine(now.new[held] @ rotation, now.old[held]).mean()),
                "cosine mapped": max(learned.bridge.held_out.values()),
                "cosine bridged": float(cosine(carried, now.old).mean()),
                "bridge": f"{learned.bridge.kind}, {learned.anchors.share:g} residual",
                "overlap@10": neighbour_overlap(now.new[some], now.old[some]),
                f"effective rank {old}": effective_rank(now.old),
                f"effective rank {new}": effective_rank(now.new),
            }
        )
        ways = {"aligned": unit(now.new @ rotation), "bridged": carried}
        if same_dim:
            ways = {"raw": now.new, **ways}
        fed += _consumers(ws, old, entity, now, ways, moments[-1])
    progress(f"compare {old} and {new}", len(ENTITIES), len(ENTITIES))
    return Result(moments[-1], rows, fed)


def _consumers(
    ws: Workspace, old: str, entity: Entity, now: Pairs, ways: dict[str, np.ndarray], as_of: datetime
) -> list[dict[str, Any]]:
    """Let the rankers of the old version score recent rows with its own vectors and with the new ones."""
    from jobs.canary import canaries
    from jobs.refresh import vector_table

    live = [item for item in ws.ledger.consumers() if old in item["versions"] and item["task"] in LABELLED]
    own = ws.home.snapshot_file(embedding_view(entity, old), as_of)
    found = []
    with TemporaryDirectory() as folder:
        for way, vectors in ways.items() if live else ():
            path = Path(folder) / f"{way}.parquet"
            pq.write_table(vector_table(join_key(entity), pl.Series(now.ids), vectors, now.new_norms), path)
            for canary in canaries(ws, old, entity, path, own, as_of):
                found.append(
                    {
                        "consumer": canary.consumer,
                        "entity": entity,
                        "new vectors": way,
                        "rows": canary.rows,
                        f"AUC with {old}": canary.before,
                        "AUC with the new": canary.now,
                        "noise": canary.noise,
                    }
                )
    return found
