"""Retrieval: an item index over one snapshot, judged on what users chose later, beside the usual baselines.

What an item's popularity adds to its products, and that the user chose it before, is learned here, on choices from
before the moment it is used at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import choices_view, embedding_view
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import read_json, write_json
from jobs.own_choices import OwnChoices, choices_before, known_choices
from jobs.popularity import VIEW, Popularity
from jobs.retrieve_questions import (
    HORIZON,
    KS,
    Answered,
    Asked,
    Pair,
    actions_of,
    answered_before,
    ask,
    before,
    pair_before,
    question,
    surfaces_of,
)
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from models.downstream.baselines import RetrievalScore
    from models.downstream.retrieval import Own

WEIGHTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08)  # of popularity, against products of unit vectors
OWN_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)  # of own choices, against the same
LEARNED_FROM = 2_000  # users at most


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
    can be chosen there and the test period is left alone. Each time the weights of popularity and of own choices are
    learned on the 28 days before, or on as many as there are from a week on: no choice counts that had not happened
    when the index is used.

    Raises
    ------
    NotReadyError
        If no snapshot was published before the test period, or nobody chose anything in it.
    NotFoundError
        If the consumer names a version that is not registered.
    """
    consumer = ws.config.consumer(name)
    for pinned in consumer.versions:
        ws.ledger.version(pinned)
    version = consumer.versions[0]
    test = pair_before(ws, version, ws.splits.valid_end)
    if test is None:
        raise NotReadyError(
            f"No snapshot of {version} lies before {ws.splits.valid_end}. Run `headwater backfill` first."
        )
    # Own choices are tried where they are published, whether or not they come to weigh anything.
    published = [test.users, test.items, *filter(None, [choices_before(ws, test.users)])]
    answered = answered_before(ws, test)
    folder = ws.home.artifacts / _folder(name, published, answered)
    done = folder / "scores.json"
    reused = done.exists()
    if not reused:
        ws.use_threads()
        progress(f"{name}: build the index and its baselines", 0, 2)
        earlier = pair_before(ws, version, before(ws, test))
        learned = learn_added(ws, answered)
        scores = _score(ws, test, learned)
        if scores is None:
            raise NotReadyError(
                f"Nobody chose a known item within {HORIZON.days} days from {test.users.available_at}. "
                "Set other splits."
            )
        index = {key: scores["setup"][key] for key in ("index", "items", "snapshot")}
        write_json({**index, "space_id": scores["space_id"], **learned.added.told()}, folder / "index.json")
        progress(f"{name}: the same before the test period", 1, 2)
        validation = None
        if earlier is not None:
            validation = _score(ws, earlier, learn_added(ws, answered_before(ws, earlier)))
        write_json({**scores, "validation": validation}, done)
        progress(f"{name}: scored", 2, 2)
    views = [embedding_view(entity, version) for entity in ("user", "item")]
    added = Added.read(read_json(folder / "index.json"))
    views += [VIEW] if added.popularity.weight else []
    views += [choices_view()] if added.own.weight else []
    record = {
        "views": views,
        "artifact": str(folder.relative_to(ws.home.root)),
        "snapshot": test.items.snapshot_id,
        "owner": consumer.owner,
    }
    ws.ledger.put_consumer(name, consumer.task, list(consumer.versions), record)
    return Result(name, folder, read_json(done), reused)


def _folder(name: str, published: Sequence[Snapshot], answered: Answered | None) -> str:
    """Return the name of the artifact of some snapshots, also by how many days its weights are learned on if few."""
    made_of = "".join(snapshot.sha256[:8] for snapshot in published)
    short = f"-{answered.horizon.days}d" if answered is not None and answered.horizon < HORIZON else ""
    return f"{name}-{made_of}{short}"


@dataclass(frozen=True)
class Added:
    """What retrieval adds to the product of user and item; nothing by default."""

    popularity: Popularity = field(default_factory=Popularity)
    own: OwnChoices = field(default_factory=OwnChoices)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Added:
        """Return what :meth:`told` wrote; nothing is added where nothing was written."""
        return cls(Popularity.read(told.get("popularity")), OwnChoices.read(told.get("own_choices")))

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"popularity": self.popularity.told(), "own_choices": self.own.told()}

    def rank(self, ws: Workspace, pair: Pair, found: Asked, known: Own | None) -> np.ndarray:
        """Return the best items for those whom the question of a pair of snapshots is about, int [B, K].

        Parameters
        ----------
        known
            Their own choices, not weighed yet; None where none may be read.
        """
        offsets = self.popularity.offsets(ws, pair.items, found.item_ids)
        return found.question.rank(found.users, found.items, offsets, self.own.of(known))


@dataclass(frozen=True)
class Learned:
    """What found the most, and what did without own choices."""

    added: Added = field(default_factory=Added)
    without_own: Added = field(default_factory=Added)


def learn_added(ws: Workspace, answered: Answered | None) -> Learned:
    """Return the weights with which the most was found of what users chose after a pair of snapshots.

    Nothing is added where there is no such pair, or nobody chose anything. Of equal weights the least are taken.
    """
    from models.downstream.retrieval import build_index
    from models.metrics import recall_at_k

    found = None if answered is None else ask(ws, answered.pair, horizon=answered.horizon)
    if answered is None or found is None:
        return Learned()
    pair = answered.pair
    asked, most = found.question, len(found.question.asked)
    chosen = np.unique(np.linspace(0, most - 1, min(most, LEARNED_FROM)).astype(np.int64))
    some = replace(asked, asked=asked.asked[chosen], relevant=[asked.relevant[place] for place in chosen])
    # In a small catalogue a hundred items would be nearly all of them.
    k = min(max(KS), max(1, len(found.items) // 10))
    known = choices_of(ws, pair, replace(found, question=some))
    users = found.users[some.asked]
    recalls: dict[Added, float] = {}
    for weight in WEIGHTS:
        popularity = Popularity.of_actions(actions_of(ws), weight) if weight else Popularity()
        index = build_index(found.items, offsets=popularity.offsets(ws, pair.items, found.item_ids))
        nearest = index.search(users, max(KS))
        for own in map(OwnChoices, OWN_WEIGHTS if known is not None else OWN_WEIGHTS[:1]):
            mine = own.of(known)
            ranked = nearest[0] if mine is None else index.with_own(users, *nearest, mine)[0]
            recalls[Added(popularity, own)] = float(recall_at_k(ranked, some.relevant, (k,))[k].mean())
    alone = [added for added in recalls if not added.own.weight]
    return Learned(max(recalls, key=lambda added: recalls[added]), max(alone, key=lambda added: recalls[added]))


def choices_of(ws: Workspace, pair: Pair, found: Asked) -> Own | None:
    """Return the own choices of those who are asked about, [B, N], not weighed yet; None where none may be read."""
    return known_choices(ws, pair.users, found.user_ids.gather(found.question.asked), found.item_ids)


def _score(ws: Workspace, pair: Pair, learned: Learned) -> dict[str, Any] | None:
    """Score a pair of snapshots and the baselines; None where nobody chose a known item."""
    from models.downstream.baselines import als
    from models.downstream.retrieval import build_index

    found = ask(ws, pair)
    if found is None:
        return None
    asked, user_ids, users, item_ids, items = (found.question, found.user_ids, found.users, found.item_ids, found.items)
    factors = items.shape[1]
    ones = np.ones(len(asked.pairs[0]), np.float32)
    factorized = als(*asked.pairs, ones, (len(users), len(items)), asked.asked, max(KS), factors=factors)
    name = _name(ws, str(pair.users.version))
    known = choices_of(ws, pair, found)
    # Each further row has its weights learned with less to add.
    ours = {learned.added: name}
    if learned.without_own != Added():
        ours.setdefault(learned.without_own, f"{name}, popularity added")
    ours.setdefault(Added(), f"{name}, vectors alone")
    ranked = {
        **{label: each.rank(ws, pair, found, known) for each, label in ours.items()},
        f"popularity ({', '.join(actions_of(ws))})": asked.popular,
        f"ALS ({factors} factors, implicit)": factorized,
    }
    surfaces = []
    for surface in surfaces_of(ws):
        there = question(ws, user_ids, item_ids, pair.users.as_of, surface=surface)
        if there is not None:
            here = replace(found, question=there)
            positions = {
                name: learned.added.rank(ws, pair, here, choices_of(ws, pair, here)),
                f"popularity ({surface})": there.popular,
            }
            scored = {label: _row(label, there.score(ranking)) for label, ranking in positions.items()}
            surfaces += [{"surface": surface, "users": len(there.asked), **row} for row in scored.values()]
    return {
        "table": [_row(label, asked.score(positions)) for label, positions in ranked.items()],
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
            **learned.added.told(),
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
