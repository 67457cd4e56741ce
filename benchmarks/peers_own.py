"""What users chose themselves, added to a peer's scores as it is added to our products.

Legend: B users that are asked about, I items, N own items of a user.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from models.downstream.retrieval import Own

# Against the score of a user's hundredth item, on average: peers have scales of their own.
WEIGHTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


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


def rank(scores: np.ndarray, k: int, own: Own | None = None, weight: float = 0.0) -> np.ndarray:
    """Return the K best items of each user, int [B, K]; -1 where there are fewer items.

    Parameters
    ----------
    scores
        float [B, I].
    own
        What is added, before it is weighed.
    weight
        On the scale of the scores.
    """
    total = scores.astype(np.float32, copy=True)
    if own is not None and weight:
        row, column = np.nonzero(own.positions >= 0)
        total[row, own.positions[row, column]] += weight * own.added[row, column]
    kept = min(k, scores.shape[1])
    best = np.argpartition(-total, kept - 1, axis=1)[:, :kept]
    order = np.argsort(-np.take_along_axis(total, best, axis=1), axis=1, kind="stable")
    ranked = np.full((len(scores), k), -1, np.int64)
    ranked[:, :kept] = np.take_along_axis(best, order, axis=1)
    return ranked
