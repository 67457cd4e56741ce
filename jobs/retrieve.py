"""Retrieval: an item index over one snapshot, judged on what users chose later, beside the usual baselines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_repo.contracts.errors import NotReadyError, SpaceMismatchError
from feature_repo.contracts.naming import embedding_view
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import read_json, write_json
from jobs.workspace import Progress, Workspace, silent

KS = (10, 50, 100)
HORIZON = timedelta(days=28)
ALS_FACTORS = 64


@dataclass(frozen=True)
class Result:
    """Where the index and its scores lie."""

    consumer: str
    folder: Path
    scores: dict[str, Any]
    reused: bool = False


def run(ws: Workspace, name: str, *, progress: Progress = silent) -> Result:
    """Build the item index of the snapshot at the start of the test period and score it.

    Relevant items are those a user acted on (``retrieval_actions``; by default converted, or clicked where the
    log has no conversions) within 28 days from the moment the snapshot could be read. Every method ranks the
    same items for the same users.

    Raises
    ------
    NotReadyError
        If no snapshot was published before the test period, or nobody chose anything in it.
    """
    consumer = ws.config.consumer(name)
    version = consumer.versions[0]
    users, items = (_snapshot(ws, embedding_view(entity, version)) for entity in ("user", "item"))
    if users.space_id != items.space_id or users.as_of != items.as_of:
        raise SpaceMismatchError(
            f"{users.snapshot_id} and {items.snapshot_id} are of two spaces or moments. Refresh both for one as_of."
        )
    folder = ws.home.artifacts / f"{name}-{users.sha256[:8]}{items.sha256[:8]}"
    done = folder / "scores.json"
    if not done.exists():
        ws.use_threads()
        progress(f"{name}: build the index and its baselines", 0, 1)
        scores = _score(ws, users, items, folder)
        write_json(scores, done)
        progress(f"{name}: scored", 1, 1)
        reused = False
    else:
        reused = True
    views = [embedding_view(entity, version) for entity in ("user", "item")]
    record = {"views": views, "artifact": str(folder.relative_to(ws.home.root)), "snapshot": items.snapshot_id}
    ws.ledger.put_consumer(name, consumer.task, list(consumer.versions), record)
    return Result(name, folder, read_json(done), reused)


def _snapshot(ws: Workspace, view: str) -> Snapshot:
    """Return the last snapshot that could be read when the test period began."""
    found = [s for s in ws.ledger.snapshots(view, accepted=True) if s.as_of <= ws.splits.valid_end]
    if not found:
        raise NotReadyError(f"No snapshot of {view} lies before {ws.splits.valid_end}. Run `headwater backfill` first.")
    return found[-1]


def _score(ws: Workspace, users: Snapshot, items: Snapshot, folder: Path) -> dict[str, Any]:
    from jobs.refresh import read_vectors
    from models.downstream.retrieval import als, build_index, popularity, score_retrieval

    user_ids, user_vectors = read_vectors(ws.home.root / users.path, "user_id")
    item_ids, item_vectors = read_vectors(ws.home.root / items.path, "item_id")
    positions = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"user_id": user_ids}).with_row_index("user")
    start, cutoff = users.available_at, users.as_of
    actions = ws.config.retrieval_actions or (("conversion",) if ws.log.record.counts.get("conversion") else ("click",))
    acted = pl.col("event_type").cast(pl.String).is_in(list(actions))
    chosen = (
        ws.log.events.filter(acted & pl.col("event_timestamp").is_between(start, start + HORIZON))
        .select("user_id", "item_id")
        .unique()
        .join(positions, on="item_id")
        .join(rows, on="user_id")
    )
    if chosen.height == 0:
        raise NotReadyError(f"Nobody chose a known item within {HORIZON.days} days from {start}. Set other splits.")
    asked = chosen["user"].unique().sort()
    relevant_by = dict(chosen.sort("item").group_by("user").agg("item").iter_rows())
    relevant = [np.array(relevant_by[user]) for user in asked.to_list()]

    k = max(KS)
    index = build_index(item_vectors)
    found, _ = index.search(user_vectors[asked.to_numpy()], k)
    past = ws.log.events.filter(
        pl.col("event_timestamp").is_between(cutoff - ws.config.coverage, cutoff, closed="left")
        & (pl.col("event_type") != "impression")
    )
    counts = _counts(past.filter(acted), positions)
    baselines = {f"popularity ({', '.join(actions)})": popularity(counts, len(asked), k)}
    pairs = past.filter(acted).select("user_id", "item_id").join(positions, on="item_id").join(rows, on="user_id")
    baselines[f"ALS ({ALS_FACTORS} factors, implicit)"] = als(
        pairs["user"].to_numpy(),
        pairs["item"].to_numpy(),
        np.ones(pairs.height, np.float32),
        (len(user_ids), len(item_ids)),
        asked.to_numpy(),
        k,
        factors=ALS_FACTORS,
    )
    reference = next(iter(baselines))
    table = []
    for what, ranked in {f"DERM {users.version}": found, **baselines}.items():
        score = score_retrieval(ranked, relevant, KS, baseline=baselines[reference])
        table.append(
            {
                "model": what,
                **{f"recall_at_{at}": score.recall[at].value for at in KS},
                "ci95_at_100": list(score.recall[100].ci95),
                "ratio_to_popularity_at_100": score.ratio[100].value,
                "ratio_ci95": list(score.ratio[100].ci95),
            }
        )
    write_json({"kind": index.kind, "items": len(item_ids), "snapshot": items.snapshot_id}, folder / "index.json")
    return {
        "table": table,
        "setup": {
            "as_of": users.as_of.isoformat(),
            "horizon_days": HORIZON.days,
            "actions": list(actions),
            "users": len(asked),
            "items": len(item_ids),
            "relevant": chosen.height,
            "index": index.kind,
        },
        "space_id": users.space_id,
    }


def _counts(events: pl.DataFrame, positions: pl.DataFrame) -> np.ndarray:
    """Count events per item position: float64 [I]."""
    counted = events.group_by("item_id").len("count")
    filled = positions.join(counted, on="item_id", how="left", maintain_order="left")["count"].fill_null(0)
    return filled.cast(pl.Float64).to_numpy()
