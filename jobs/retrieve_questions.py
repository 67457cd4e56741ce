"""What retrieval is asked: which items users chose after a snapshot could be read, and what had been chosen before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_repo.contracts.errors import SpaceMismatchError
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.contracts.types import Snapshot
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from models.downstream.baselines import RetrievalScore
    from models.downstream.retrieval import Own

KS = (10, 50, 100)
HORIZON = timedelta(days=28)
SHORTEST_HORIZON = timedelta(days=7)  # of a question that weights are learned on
SURFACE = "surface"  # the context column that says where an item was shown


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


@dataclass(frozen=True)
class Answered:
    """A pair of snapshots, and how long after it could be read choices are known that settings may be learned from."""

    pair: Pair
    horizon: timedelta


def answered_before(ws: Workspace, pair: Pair) -> Answered | None:
    """Return the last pair of the same version whose question had been answered when this one was made.

    Where refreshes do not go back so far, the first pair, with as much of an answer as there was then; None if that is
    less than a week.
    """
    version = str(pair.users.version)
    earlier = pair_before(ws, version, before(ws, pair))
    if earlier is not None:
        return Answered(earlier, HORIZON)
    moments = [{s.as_of for s in ws.ledger.snapshots(embedding_view(e, version), accepted=True)} for e in ENTITIES]
    first = pair_before(ws, version, min(moments[0] & moments[1]))
    if first is None:
        return None
    horizon = pair.users.as_of - ws.config.availability_lag - first.users.as_of
    return Answered(first, horizon) if horizon >= SHORTEST_HORIZON else None


@dataclass(frozen=True)
class Question:
    """What retrieval is asked as of one moment, and how well it was answered.

    Attributes
    ----------
    asked
        Positions among the user ids of those who chose something, int [B].
    relevant
        For each of them the positions of the items chosen within the horizon.
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

    def rank(
        self, users: np.ndarray, items: np.ndarray, offsets: np.ndarray | None = None, own: Own | None = None
    ) -> np.ndarray:
        """Return the best items for those who are asked about, int [B, K].

        Users are [U, D], items [I, D], offsets [I], what those who are asked about chose themselves [B, N].
        """
        from models.downstream.retrieval import build_index

        found, _ = build_index(items, offsets=offsets).search(users[self.asked], max(KS), own=own)
        return found

    def score(self, ranked: np.ndarray) -> RetrievalScore:
        """Return recall of a ranking [B, K], and its ratio to popularity."""
        from models.downstream.baselines import score_retrieval

        return score_retrieval(ranked, self.relevant, KS, baseline=self.popular)


def question(
    ws: Workspace,
    user_ids: pl.Series,
    item_ids: pl.Series,
    as_of: datetime,
    past: timedelta | None = None,
    surface: str | None = None,
    horizon: timedelta = HORIZON,
    actions: Sequence[str] | None = None,
) -> Question | None:
    """Read from the log what the given users chose of the given items; None if nobody chose any.

    Choices before `as_of`, as far as `past` reaches (`coverage` by default), are for the baselines; choices within
    `horizon` from the moment at which a snapshot as of `as_of` can be read are to be found.

    Parameters
    ----------
    surface
        Only choices that came of an impression on it; None for all.
    actions
        Event types that are choices; those that retrieval has to foresee by default.
    """
    from models.downstream.baselines import popularity

    positions = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"user_id": user_ids}).with_row_index("user")
    start = as_of + ws.config.availability_lag
    acted = ws.log.scan().filter(pl.col("event_type").is_in(list(actions or actions_of(ws))))
    if surface is not None:
        acted = acted.select("event_timestamp", "user_id", "item_id", "impression_id").join(
            _shown_on(ws, surface), on="impression_id", how="semi"
        )

    def between(first: datetime, last: datetime) -> pl.DataFrame:
        found = acted.filter(pl.col("event_timestamp").is_between(first, last, closed="left"))
        chosen = found.select("user_id", "item_id", "event_timestamp").collect()
        return chosen.join(positions, on="item_id", maintain_order="left")

    chosen = between(start, start + horizon).select("user_id", "item").unique().join(rows, on="user_id")
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


def ask(ws: Workspace, pair: Pair, past: timedelta | None = None, horizon: timedelta = HORIZON) -> Asked | None:
    """Return the question of a pair of snapshots; None where nobody chose anything. See :func:`question`."""
    from jobs.refresh import read_vectors

    user_ids, users = read_vectors(ws.home.root / pair.users.path, "user_id")
    item_ids, items = read_vectors(ws.home.root / pair.items.path, "item_id")
    asked = question(ws, user_ids, item_ids, pair.users.as_of, past, horizon=horizon)
    return None if asked is None else Asked(asked, user_ids, users, item_ids, items)
