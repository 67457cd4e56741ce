"""Retrieval: an item index over one snapshot, judged on what users chose later, beside the usual baselines.

What an item's popularity adds to its products is learned here, on choices from before the moment it is used at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from feature_repo.contracts.errors import NotReadyError, SpaceMismatchError
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import read_json, write_json
from jobs.popularity import VIEW, Popularity
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from models.downstream.retrieval import RetrievalScore

KS = (10, 50, 100)
HORIZON = timedelta(days=28)
WEIGHTS = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)  # of popularity, against products of unit vectors
LEARNED_FROM = 2_000  # users at most
SURFACE = "surface"  # the context column that says where an item was shown


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
    same items for the same users. The same is done for the last 28 days before the test period, so that settings
    can be chosen there and the test period is left alone. Each time the weight of popularity is learned on the 28
    days before: no choice counts that had not happened when the index is used.

    Raises
    ------
    NotReadyError
        If no snapshot was published before the test period, or nobody chose anything in it.
    """
    consumer = ws.config.consumer(name)
    version = consumer.versions[0]
    test = pair_before(ws, version, ws.splits.valid_end)
    if test is None:
        raise NotReadyError(
            f"No snapshot of {version} lies before {ws.splits.valid_end}. Run `headwater backfill` first."
        )
    folder = ws.home.artifacts / f"{name}-{test.users.sha256[:8]}{test.items.sha256[:8]}"
    done = folder / "scores.json"
    reused = done.exists()
    if not reused:
        ws.use_threads()
        progress(f"{name}: build the index and its baselines", 0, 2)
        earlier = pair_before(ws, version, before(ws, test))
        popularity = learn_popularity(ws, earlier)
        scores = _score(ws, test, popularity)
        if scores is None:
            raise NotReadyError(
                f"Nobody chose a known item within {HORIZON.days} days from {test.users.available_at}. "
                "Set other splits."
            )
        index = {key: scores["setup"][key] for key in ("index", "items", "snapshot")}
        facts = {"space_id": scores["space_id"], "popularity": popularity.told()}
        write_json({**index, **facts}, folder / "index.json")
        progress(f"{name}: the same before the test period", 1, 2)
        validation = None
        if earlier is not None:
            still_earlier = pair_before(ws, version, before(ws, earlier))
            validation = _score(ws, earlier, learn_popularity(ws, still_earlier))
        write_json({**scores, "validation": validation}, done)
        progress(f"{name}: scored", 2, 2)
    views = [embedding_view(entity, version) for entity in ("user", "item")]
    if Popularity.read(read_json(folder / "index.json").get("popularity")).weight:
        views.append(VIEW)
    record = {
        "views": views,
        "artifact": str(folder.relative_to(ws.home.root)),
        "snapshot": test.items.snapshot_id,
        "owner": consumer.owner,
    }
    ws.ledger.put_consumer(name, consumer.task, list(consumer.versions), record)
    return Result(name, folder, read_json(done), reused)


@dataclass(frozen=True)
class Pair:
    """The user and the item snapshot of one moment."""

    users: Snapshot
    items: Snapshot


def pair_before(ws: Workspace, version: str, until: datetime) -> Pair | None:
    """Return the last snapshots that could be read at `until`; None where there are none."""
    last = []
    for entity in ENTITIES:
        found = [s for s in ws.ledger.snapshots(embedding_view(entity, version), accepted=True) if s.as_of <= until]
        if not found:
            return None
        last.append(found[-1])
    users, items = last
    if users.space_id != items.space_id or users.as_of != items.as_of:
        raise SpaceMismatchError(
            f"{users.snapshot_id} and {items.snapshot_id} are of two spaces or moments. Refresh both for one as_of."
        )
    return Pair(users, items)


def before(ws: Workspace, pair: Pair) -> datetime:
    """Return the moment whose question had been answered when a pair of snapshots was made."""
    return pair.users.as_of - HORIZON - ws.config.availability_lag


def learn_popularity(ws: Workspace, pair: Pair | None) -> Popularity:
    """Return the weight of popularity with which the most was found of what users chose after a pair of snapshots.

    Nothing is added where there is no such pair, or nobody chose anything. Of equal weights the least is taken.
    """
    from models.metrics import recall_at_k

    found = None if pair is None else ask(ws, pair)
    if pair is None or found is None:
        return Popularity(0.0)
    asked, most = found.question, len(found.question.asked)
    chosen = np.unique(np.linspace(0, most - 1, min(most, LEARNED_FROM)).astype(np.int64))
    some = replace(asked, asked=asked.asked[chosen], relevant=[asked.relevant[place] for place in chosen])
    # In a small catalogue a hundred items would be nearly all of them.
    k = min(max(KS), max(1, len(found.items) // 10))
    tried = [Popularity.of_actions(actions_of(ws), weight) for weight in WEIGHTS]
    recalls = []
    for popularity in tried:
        ranked = some.rank(found.users, found.items, popularity.offsets(ws, pair.items, found.item_ids))
        recalls.append(float(recall_at_k(ranked, some.relevant, (k,))[k].mean()))
    return tried[int(np.argmax(recalls))]


@dataclass(frozen=True)
class Question:
    """What retrieval is asked as of one moment, and how well it was answered.

    Attributes
    ----------
    asked
        Positions among the user ids of those who chose something, int [B].
    relevant
        For each of them the positions of the items chosen within `HORIZON`.
    popular
        Items by how often they were chosen before the moment, int [B, K].
    pairs
        Positions of user and item of every choice before the moment, in order of time, int [E] each.
    ages
        Days from each of them to the moment, float [E].
    """

    asked: np.ndarray
    relevant: list[np.ndarray]
    popular: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray]
    ages: np.ndarray

    def rank(self, users: np.ndarray, items: np.ndarray, offsets: np.ndarray | None = None) -> np.ndarray:
        """Return the best items for those who are asked about, int [B, K]; users [U, D], items [I, D], offsets [I]."""
        from models.downstream.retrieval import build_index

        found, _ = build_index(items, offsets=offsets).search(users[self.asked], max(KS))
        return found

    def score(self, ranked: np.ndarray) -> RetrievalScore:
        """Return recall of a ranking [B, K], and its ratio to popularity."""
        from models.downstream.retrieval import score_retrieval

        return score_retrieval(ranked, self.relevant, KS, baseline=self.popular)


def question(
    ws: Workspace,
    user_ids: pl.Series,
    item_ids: pl.Series,
    as_of: datetime,
    past: timedelta | None = None,
    surface: str | None = None,
) -> Question | None:
    """Read from the log what the given users chose of the given items; None if nobody chose any.

    Choices before `as_of`, as far as `past` reaches (`coverage` by default), are for the baselines; choices within
    28 days from the moment at which a snapshot as of `as_of` can be read are to be found.

    Parameters
    ----------
    surface
        Only choices that came of an impression on it; None for all.
    """
    from models.downstream.retrieval import popularity

    positions = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"user_id": user_ids}).with_row_index("user")
    start = as_of + ws.config.availability_lag
    acted = ws.log.scan().filter(pl.col("event_type").is_in(list(actions_of(ws))))
    if surface is not None:
        acted = acted.select("event_timestamp", "user_id", "item_id", "impression_id").join(
            _shown_on(ws, surface), on="impression_id", how="semi"
        )

    def between(first: datetime, last: datetime) -> pl.DataFrame:
        found = acted.filter(pl.col("event_timestamp").is_between(first, last, closed="left"))
        chosen = found.select("user_id", "item_id", "event_timestamp").collect()
        return chosen.join(positions, on="item_id", maintain_order="left")

    chosen = between(start, start + HORIZON).select("user_id", "item").unique().join(rows, on="user_id")
    if chosen.height == 0:
        return None
    asked = chosen["user"].unique().sort()
    relevant = dict(chosen.sort("item").group_by("user").agg("item").iter_rows())
    before = between(as_of - (past or ws.config.coverage), as_of)
    counts = np.bincount(before["item"].to_numpy(), minlength=len(item_ids)).astype(np.float64)
    pairs = before.join(rows, on="user_id", maintain_order="left")
    return Question(
        asked=asked.to_numpy(),
        relevant=[np.array(relevant[user]) for user in asked.to_list()],
        popular=popularity(counts, len(asked), max(KS)),
        pairs=(pairs["user"].to_numpy(), pairs["item"].to_numpy()),
        ages=pairs.select((as_of - pl.col("event_timestamp")).dt.total_seconds() / 86_400).to_series().to_numpy(),
    )


def surfaces_of(ws: Workspace) -> list[str]:
    """Return where items were shown, by the context column of that name; empty where the log has none."""
    if SURFACE not in ws.log.context_columns.categorical:
        return []
    found = ws.log.scan().select(pl.col(SURFACE).drop_nulls().cast(pl.String).unique()).collect(engine="streaming")
    return found[SURFACE].sort().to_list()


def _shown_on(ws: Workspace, surface: str) -> pl.LazyFrame:
    """Return the ids of the impressions on a surface: the context belongs to the impression, not to what followed."""
    shown = (pl.col("event_type") == "impression") & (pl.col(SURFACE).cast(pl.String) == surface)
    return ws.log.scan().filter(shown).select("impression_id")


def actions_of(ws: Workspace) -> tuple[str, ...]:
    """Return the event types that retrieval has to foresee."""
    found = "conversion" if ws.log.record.counts.get("conversion") else "click"
    return ws.config.retrieval_actions or (found,)


@dataclass(frozen=True)
class Asked:
    """A pair of snapshots with the question that is asked of it; user ids and vectors [U, D], items [I, D]."""

    question: Question
    user_ids: pl.Series
    users: np.ndarray
    item_ids: pl.Series
    items: np.ndarray


def ask(ws: Workspace, pair: Pair, past: timedelta | None = None) -> Asked | None:
    """Return the question of a pair of snapshots (`past` as for :func:`question`); None where nobody chose anything."""
    from jobs.refresh import read_vectors

    user_ids, users = read_vectors(ws.home.root / pair.users.path, "user_id")
    item_ids, items = read_vectors(ws.home.root / pair.items.path, "item_id")
    asked = question(ws, user_ids, item_ids, pair.users.as_of, past)
    return None if asked is None else Asked(asked, user_ids, users, item_ids, items)


def _score(ws: Workspace, pair: Pair, popularity: Popularity) -> dict[str, Any] | None:
    """Score a pair of snapshots and the baselines; None where nobody chose a known item."""
    from models.downstream.retrieval import als, build_index

    found = ask(ws, pair)
    if found is None:
        return None
    asked, user_ids, users, item_ids, items = (found.question, found.user_ids, found.users, found.item_ids, found.items)
    offsets = popularity.offsets(ws, pair.items, item_ids)
    factors = items.shape[1]
    ones = np.ones(len(asked.pairs[0]), np.float32)
    factorized = als(*asked.pairs, ones, (len(users), len(items)), asked.asked, max(KS), factors=factors)
    own = _name(ws, str(pair.users.version))
    ranked = {
        own: asked.rank(users, items, offsets),
        **({} if offsets is None else {f"{own}, vectors alone": asked.rank(users, items)}),
        f"popularity ({', '.join(actions_of(ws))})": asked.popular,
        f"ALS ({factors} factors, implicit)": factorized,
    }
    surfaces = []
    for surface in surfaces_of(ws):
        there = question(ws, user_ids, item_ids, pair.users.as_of, surface=surface)
        if there is not None:
            positions = {own: there.rank(users, items, offsets), f"popularity ({surface})": there.popular}
            scored = {name: _row(name, there.score(found)) for name, found in positions.items()}
            surfaces += [{"surface": surface, "users": len(there.asked), **row} for row in scored.values()]
    return {
        "table": [_row(name, asked.score(positions)) for name, positions in ranked.items()],
        "by_surface": surfaces,
        "setup": {
            "as_of": pair.users.as_of.isoformat(),
            "horizon_days": HORIZON.days,
            "actions": list(actions_of(ws)),
            "users": len(asked.asked),
            "items": len(items),
            "relevant": sum(len(found) for found in asked.relevant),
            "index": build_index(items).kind,
            "snapshot": pair.items.snapshot_id,
            "popularity": popularity.told(),
        },
        "space_id": pair.users.space_id,
    }


def _name(ws: Workspace, version: str) -> str:
    """Return what the report calls retrieval by a version."""
    content = ws.ledger.space(ws.ledger.version(version).space_id).config.get("kind") == "content"
    return f"{'content' if content else 'DERM'} {version}"


def _row(name: str, score: RetrievalScore) -> dict[str, Any]:
    return {
        "model": name,
        **{f"recall_at_{at}": score.recall[at].value for at in KS},
        "ci95_at_100": list(score.recall[100].ci95),
        "ratio_to_popularity_at_100": score.ratio[100].value,
        "ratio_ci95": list(score.ratio[100].ci95),
    }
