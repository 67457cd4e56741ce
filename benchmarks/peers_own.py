"""What users chose themselves and what is popular, added to a peer's scores as both are added to our products.

Legend: B users that are asked about, I items, N own items of a user.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from models.downstream.retrieval import Own

# Against the score of a user's hundredth item, on average: peers have scales of their own.
WEIGHTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # of own choices
POPULARITY_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of log(1 + count)


class Weights(NamedTuple):
    """How much of both is added, against the score of a user's hundredth item."""

    own: float = 0.0
    popularity: float = 0.0


NOTHING = Weights()


def dense_scores(model: Any, matrix: sparse.csr_matrix, asked: np.ndarray) -> np.ndarray:
    """Return what a fitted model of `implicit` thinks of every item, float32 [B, I]; higher is better.

    Parameters
    ----------
    matrix
        Users by items that it was fitted on.
    asked
        Rows of it, int [B].
    """
    if hasattr(model, "user_factors"):
        return np.asarray(model.user_factors[asked] @ model.item_factors.T, np.float32)
    return np.asarray((matrix[asked] @ model.similarity).todense(), np.float32)


def scale_of(scores: np.ndarray, k: int) -> float:
    """Return the score of a user's k-th item, on average, above 0; scores float [B, I]."""
    k = min(k, scores.shape[1])
    return max(float(np.partition(scores, -k, axis=1)[:, -k].mean()), float(np.finfo(np.float32).tiny))


def rank(
    scores: np.ndarray,
    k: int,
    weights: Weights = NOTHING,
    own: Own | None = None,
    popular: np.ndarray | None = None,
) -> np.ndarray:
    """Return the K best items of each user, int [B, K]; -1 where there are fewer items.

    Parameters
    ----------
    scores
        float [B, I].
    weights
        On the scale of the scores.
    own, popular
        What is added, before it is weighed; `popular` float [I].
    """
    total = scores.astype(np.float32, copy=True)
    if popular is not None and weights.popularity:
        total += np.float32(weights.popularity) * popular
    if own is not None and weights.own:
        row, column = np.nonzero(own.positions >= 0)
        total[row, own.positions[row, column]] += weights.own * own.added[row, column]
    kept = min(k, scores.shape[1])
    best = np.argpartition(-total, kept - 1, axis=1)[:, :kept]
    order = np.argsort(-np.take_along_axis(total, best, axis=1), axis=1, kind="stable")
    ranked = np.full((len(scores), k), -1, np.int64)
    ranked[:, :kept] = np.take_along_axis(best, order, axis=1)
    return ranked
