"""Retrieval by ALS, BPR and item-kNN of `implicit`, searched before the test period, beside the published vectors.

Each of them also with what is popular and users' own choices added, as to ours. And by two rules that learn nothing:
what is chosen most, and one's own choices again before what is chosen most.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from benchmarks.peers_own import NOTHING, POPULARITY_WEIGHTS, WEIGHTS, Weights, dense_scores, rank, scale_of
from benchmarks.peers_rows import digest
from feature_repo.contracts.errors import NotReadyError
from feature_repo.lake import read_json, write_json
from jobs import retrieve, retrieve_questions
from jobs.popularity import Popularity
from jobs.retrieve_questions import HORIZON, Pair, Question
from jobs.workspace import Progress, Workspace
from models.bootstrap import bootstrap_mean
from models.downstream.retrieval import Own
from models.metrics import recall_at_k

K = 100
ADDED = "popularity and own choices added"
EVER = timedelta(days=36_500)
Setting = dict[str, Any]

SEARCH: dict[str, list[Setting]] = {
    "ALS": [
        {"past": past, "regularization": regularization, "alpha": alpha}
        for past in ("coverage", "all")
        for regularization, alpha in ((0.05, 10.0), (0.05, 1.0), (0.05, 40.0), (5.0, 10.0), (50.0, 10.0), (200.0, 10.0))
    ]
    # Choices fade as those that are folded into our vectors do, and so count for less against the confidence.
    + [{"past": "all", "half_life_days": 90.0, "regularization": 50.0, "alpha": alpha} for alpha in (10.0, 20.0, 40.0)]
    # Everything that users turned to, not only what is to be foreseen.
    + [
        {"past": "activity", "regularization": regularization, "alpha": alpha}
        for regularization, alpha in ((50.0, 1.0), (50.0, 10.0), (200.0, 1.0), (200.0, 10.0))
    ]
    + [{"past": "activity", "half_life_days": 30.0, "regularization": 50.0, "alpha": alpha} for alpha in (1.0, 10.0)],
    "BPR": [
        {"past": "coverage", "learning_rate": rate, "regularization": regularization}
        for rate, regularization in ((0.01, 0.01), (0.05, 0.01), (0.01, 0.1), (0.05, 0.1))
    ]
    + [{"past": "activity", "learning_rate": 0.05, "regularization": 0.01}],
    "item-kNN": [
        {"past": "coverage", "kind": kind, "K": neighbours}
        for kind in ("cosine", "tfidf", "bm25")
        for neighbours in (20, 200)
    ]
    + [{"past": "all", "half_life_days": 90.0, "kind": kind, "K": 20} for kind in ("cosine", "tfidf", "bm25")]
    + [{"past": "activity", "kind": kind, "K": 200} for kind in ("cosine", "tfidf", "bm25")]
    + [{"past": "activity", "half_life_days": 30.0, "kind": kind, "K": 200} for kind in ("cosine", "tfidf", "bm25")],
}


def model_of(peer: str, setting: Setting, factors: int, seed: int) -> Any:
    """Return an untrained model of `implicit`."""
    given = {key: value for key, value in setting.items() if key not in ("past", "kind", "half_life_days")}
    if peer == "ALS":
        from implicit.cpu.als import AlternatingLeastSquares

        return AlternatingLeastSquares(factors=factors, iterations=15, random_state=seed, num_threads=1, **given)
    if peer == "BPR":
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        return BayesianPersonalizedRanking(factors=factors, iterations=100, random_state=seed, num_threads=1, **given)
    from implicit import nearest_neighbours as near

    kinds = {"cosine": near.CosineRecommender, "tfidf": near.TFIDFRecommender, "bm25": near.BM25Recommender}
    return kinds[setting["kind"]](num_threads=1, **given)


@dataclass(frozen=True)
class Asked:
    """One moment's question, with the choices within `coverage` and those of all time, and our vectors.

    Attributes
    ----------
    activity
        The same question with all that users turned to within `coverage`, what our vectors are computed from.
    offsets, own
        What popularity, by item, and own choices, of those who are asked about, add to our products as it was learned
        before the moment; None for nothing.
    popular, chosen
        The same before it is weighed, log(1 + count) [I] and own choices of those who are asked about: what peers are
        given; None where nothing is published.
    """

    question: Question
    ever: Question
    activity: Question
    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray | None = None
    own: Own | None = None
    popular: np.ndarray | None = None
    chosen: Own | None = None

    @property
    def ours(self) -> np.ndarray:
        """Our recall@100 per user, [B]."""
        return self.recall(self.question.rank(self.users, self.items, self.offsets, self.own))

    def recall(self, ranked: np.ndarray) -> np.ndarray:
        """Return recall@100 per user of a ranking [B, K]."""
        found: np.ndarray = recall_at_k(ranked, self.question.relevant, (K,))[K]
        return found

    def again(self, past: str) -> np.ndarray:
        """Rank one's own items, most often chosen first, then the most popular, [B, K]."""
        users, items = (self.question if past == "coverage" else self.ever).pairs
        popular = np.bincount(self.question.pairs[1], minlength=len(self.items)) / (1.0 + len(users))  # below 1
        own = sparse.csr_array((np.ones(len(users)), (users, items)), shape=(len(self.users), len(self.items)))
        scores = (row.toarray().ravel() + popular for row in (own[[user]] for user in self.question.asked))
        return np.stack([np.argsort(-score, kind="stable")[:K] for score in scores])

    def peer(self, peer: str, setting: Setting, seed: int = 0) -> Scored:
        """Return what a peer with a setting, fitted on what was known, thinks of every item."""
        model = model_of(peer, setting, self.items.shape[1], seed)
        known = {"coverage": self.question, "all": self.ever, "activity": self.activity}[setting["past"]]
        half_life = setting.get("half_life_days")
        counts = np.ones(len(known.ages)) if half_life is None else np.exp2(-known.ages / half_life)
        shape = (len(self.users), len(self.items))
        users, items = known.pairs
        matrix = sparse.csr_matrix((counts.astype(np.float32), (users, items)), shape=shape)
        with threadpool_limits(1, user_api="blas"):
            model.fit(matrix, show_progress=False)
        scores = dense_scores(model, matrix, self.question.asked)
        # Of those who chose nothing a model knows nothing.
        cold = np.diff(matrix.indptr)[self.question.asked] == 0
        scale = scale_of(scores[~cold], K)
        scores[cold] = np.asarray(matrix.sum(axis=0)).ravel()
        return Scored(self, scores, scale)


@dataclass(frozen=True)
class Scored:
    """A fitted peer's scores of every item, float [B, I], and how large they are."""

    asked: Asked
    scores: np.ndarray
    scale: float

    def recall(self, weights: Weights = NOTHING) -> np.ndarray:
        """Return recall@100 per user [B], with so much of popularity and own choices added."""
        scaled = Weights(*(self.scale * weight for weight in weights))
        return self.asked.recall(rank(self.scores, K, scaled, self.asked.chosen, self.asked.popular))

    def search(self) -> dict[Weights, float]:
        """Return mean recall@100 of nothing added, of popularity, and of own choices beside the best of these."""
        found: dict[Weights, float] = {}

        def add(weights: Weights) -> None:
            found[weights] = float(self.recall(weights).mean())

        add(NOTHING)
        for weight in POPULARITY_WEIGHTS if self.asked.popular is not None else ():
            add(Weights(popularity=weight))
        for popularity in {0.0, max(found, key=lambda weights: found[weights]).popularity}:
            for weight in WEIGHTS if self.asked.chosen is not None else ():
                add(Weights(weight, popularity))
        return found


def asked(ws: Workspace, pair: Pair, horizon: timedelta = HORIZON) -> Asked:
    """Return what retrieval is asked at a pair of snapshots, exactly as `jobs.retrieve` asks it."""
    lately, ever = (retrieve_questions.ask(ws, pair, past, horizon) for past in (None, EVER))
    activity = None if lately is None else _activity(ws, pair, lately)
    if lately is None or ever is None or activity is None:
        raise NotReadyError(f"Nobody chose a known item within {horizon.days} days from {pair.users.as_of}.")
    added = retrieve.learn_added(ws, retrieve_questions.answered_before(ws, pair)).added
    chosen = retrieve.choices_of(ws, pair, lately)
    return Asked(
        lately.question,
        ever.question,
        activity,
        lately.users,
        lately.items,
        added.popularity.offsets(ws, pair.items, lately.item_ids),
        added.own.of(chosen),
        Popularity.of_actions(retrieve_questions.actions_of(ws), 1.0).offsets(ws, pair.items, lately.item_ids),
        chosen,
    )


def _activity(ws: Workspace, pair: Pair, found: retrieve_questions.Asked) -> Question | None:
    """Return the question with everything that makes up a user's history before it."""
    counts = ws.log.record.counts
    actions = ws.config.history_actions or tuple(name for name in counts if name != "impression" and counts[name])
    ids = found.user_ids, found.item_ids
    asked = retrieve_questions.question(ws, *ids, pair.users.as_of, actions=actions)
    return None if asked is None else replace(found.question, pairs=asked.pairs, ages=asked.ages)


def windows(ws: Workspace, version: str) -> tuple[Asked, Asked]:
    """Return the question at the start of the test period, and the one before it that our weights are learned on."""
    test = retrieve_questions.pair_before(ws, version, ws.splits.valid_end)
    earlier = None if test is None else retrieve_questions.answered_before(ws, test)
    if test is None or earlier is None:
        raise NotReadyError(f"{version} has no snapshots before the test period. Run `headwater backfill` first.")
    return asked(ws, test), asked(ws, earlier.pair, earlier.horizon)


Others = dict[str, Callable[[Asked], tuple[Scored, Setting]]]


def compare(
    ws: Workspace, version: str, folder: Path, seeds: int, progress: Progress, others: Others
) -> list[dict[str, Any]]:
    """Search every peer before the test period, judge it there; what is done lies in `folder`.

    Parameters
    ----------
    others
        Further peers by name, each with one setting: a function that fits one for a question, and says how.

    Returns
    -------
    list of dict
        Per method: recall@100 with its interval, and ours minus it with the interval of the difference.
    """
    test, valid = windows(ws, version)
    ours = test.ours
    found: dict[str, tuple[np.ndarray, Setting, int]] = {
        f"DERM {version}": (ours, {}, 1),
        "popularity": (test.recall(test.question.popular), {}, 1),
    }
    pasts = ("coverage", "all")
    longer = max(pasts, key=lambda past: float(valid.recall(valid.again(past)).mean()))
    found["own choices again"] = (test.recall(test.again(longer)), {"past": longer, "tried": len(pasts)}, 1)
    for peer in SEARCH:
        for name, (best, weights, chosen) in _search(peer, valid, folder / "search", progress).items():
            runs = [test.peer(peer, best, seed).recall(weights) for seed in range(1 if peer == "item-kNN" else seeds)]
            found[name] = (np.mean(runs, axis=0), chosen, len(runs))
    for peer, fit in others.items():
        (before, setting), (scored, told) = fit(valid), fit(test)
        tried = [(recall, setting, weights) for weights, recall in before.search().items()]
        for name, (_, weights, chosen) in _best(peer, tried).items():
            found[name] = (scored.recall(weights), chosen | told, 1)
    return [_row(name, recall, ours, setting, runs) for name, (recall, setting, runs) in found.items()]


def _search(
    peer: str, valid: Asked, folder: Path, progress: Progress
) -> dict[str, tuple[Setting, Weights, dict[str, Any]]]:
    """Return the best setting before the test period, the weights of what is added, and how it did there.

    The same with nothing added and with popularity and own choices, by name. Settings learn from the choices within
    `coverage`, which our vectors are computed from, or from those of all time; the best one is tried on those of all
    time in any case.
    """
    added = hashlib.sha256()
    for part in (valid.popular, None if valid.chosen is None else valid.chosen.added):
        added.update(b"" if part is None else part.tobytes())
    key = digest(WEIGHTS, POPULARITY_WEIGHTS, added.hexdigest())
    scores: list[tuple[Setting, dict[Weights, float]]] = []

    def score(setting: Setting, step: int) -> None:
        progress(f"{peer}: search before the test period", step, len(SEARCH[peer]) + 1)
        file = folder / f"{peer}-{key}-{json.dumps(setting, sort_keys=True)}.json".replace(" ", "")
        if not file.exists():
            started = time.monotonic()
            recalls = [[*weights, recall] for weights, recall in valid.peer(peer, setting).search().items()]
            write_json({"recall_at_100": recalls, "seconds": time.monotonic() - started}, file)
        found = read_json(file)["recall_at_100"]
        scores.append((setting, {Weights(own, popularity): recall for own, popularity, recall in found}))

    for step, setting in enumerate(SEARCH[peer]):
        score(setting, step)
    longer = max(scores, key=lambda pair: pair[1][NOTHING])[0] | {"past": "all"}
    if longer not in SEARCH[peer]:
        score(longer, len(SEARCH[peer]))
    tried = [(recall, setting, weights) for setting, recalls in scores for weights, recall in recalls.items()]
    return _best(peer, tried)


Tried = tuple[float, Setting, Weights]  # recall@100, of what


def _best(peer: str, tried: list[Tried]) -> dict[str, tuple[Setting, Weights, dict[str, Any]]]:
    """Return the best of what was tried, with nothing added and with something, by name."""
    found = {}
    for name, allowed in (
        (peer, [each for each in tried if not any(each[2])]),
        (f"{peer}, {ADDED}", [each for each in tried if any(each[2])]),
    ):
        if allowed:
            recall, best, weights = max(allowed, key=lambda each: each[0])
            told = {**best, "valid_recall_at_100": recall, "tried": len(allowed)}
            found[name] = best, weights, told | (weights._asdict() if any(weights) else {})
    return found


def _row(name: str, recall: np.ndarray, ours: np.ndarray, setting: Setting, seeds: int) -> dict[str, Any]:
    own, behind = bootstrap_mean(recall), bootstrap_mean(ours - recall)
    return {
        "model": name,
        "recall_at_100": own.value,
        "ci95": list(own.ci95),
        "ours_minus_it": behind.value,
        "ours_minus_it_ci95": list(behind.ci95),
        "users": len(recall),
        "seeds": seeds,
        "setting": setting,
    }
