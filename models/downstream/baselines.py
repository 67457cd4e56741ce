"""Plain baselines of retrieval, and the recall of whatever was retrieved.

Shapes: I items, U users, B users of one retrieval, K retrieved, E interactions.
Everything here speaks of item positions, rows of the item vectors, never of item ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from feature_repo.contracts.errors import MissingExtraError
from models.bootstrap import Interval, bootstrap_mean, bootstrap_ratio
from models.metrics import Floats, Integers, recall_at_k


def popularity(counts: ArrayLike, users: int, k: int) -> Integers:
    """Return the most popular items, the same for every user.

    Parameters
    ----------
    counts
        How often each item was chosen, ``[I]``.
    users
        B.
    k
        K; where there are fewer items, positions are filled with -1.

    Returns
    -------
    Integers
        Positions ``[B, K]``, best first; ties in order of position.
    """
    order = np.argsort(-np.asarray(counts, dtype=np.float64), kind="stable")[:k]
    row = np.full(k, -1, dtype=np.int64)
    row[: len(order)] = order
    return np.tile(row, (users, 1))


def als(
    users: ArrayLike,
    items: ArrayLike,
    strength: ArrayLike,
    shape: tuple[int, int],
    query: ArrayLike,
    k: int,
    *,
    factors: int = 64,
    iterations: int = 15,
    regularization: float = 0.05,
    alpha: float = 10.0,
    seed: int = 0,
) -> Integers:
    """Return the items that matrix factorization ranks first: weighted ALS by the `implicit` library.

    Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets (ICDM 2008).

    Parameters
    ----------
    users, items
        Positions of each interaction, ``[E]``; repeats add up.
    strength
        Of each interaction, ``[E]``, e.g. 1; the confidence is 1 + alpha x strength.
    shape
        (U, I).
    query
        Positions of the users to serve, ``[B]``. Users without interactions get the most popular items.
    k
        K; where there are fewer items, positions are filled with -1.

    Returns
    -------
    Integers
        Positions ``[B, K]``, best first. Items that the user already has are not left out.

    Raises
    ------
    MissingExtraError
        If `implicit` is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise MissingExtraError(
            f"The ALS baseline needs '{error.name}': pip install 'headwater[demo]', or leave the baseline out."
        ) from error
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # it warns of more, though `recommended` fits with one
        model = AlternatingLeastSquares(
            factors=factors,
            iterations=iterations,
            regularization=regularization,
            alpha=alpha,
            random_state=seed,
        )
    return recommended(model, users, items, strength, shape, query, k)


def recommended(
    model: Any,
    users: ArrayLike,
    items: ArrayLike,
    strength: ArrayLike,
    shape: tuple[int, int],
    query: ArrayLike,
    k: int,
) -> Integers:
    """Fit a model of the `implicit` library and return the items that it ranks first; arguments as for :func:`als`."""
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    matrix = csr_matrix((np.asarray(strength, dtype=np.float32), (np.asarray(users), np.asarray(items))), shape=shape)
    asked = np.asarray(query, dtype=np.int64)
    # Its own threads and those of BLAS get in each other's way: many times slower, and it warns.
    with threadpool_limits(1, user_api="blas"):
        model.fit(matrix, show_progress=False)
        found, _ = model.recommend(asked, matrix[asked], N=min(k, shape[1]), filter_already_liked_items=False)
    positions = np.full((len(asked), k), -1, dtype=np.int64)
    positions[:, : found.shape[1]] = found
    cold = np.diff(matrix.indptr)[asked] == 0
    positions[cold] = popularity(np.asarray(matrix.sum(axis=0)).ravel(), int(cold.sum()), k)
    return positions


@dataclass(frozen=True)
class RetrievalScore:
    """Recall of one retrieval, and how it compares with a baseline for the same users.

    Attributes
    ----------
    recall
        k to the mean over users.
    ratio
        k to recall / recall of the baseline, on the same resamples of users; empty without a baseline.
    users
        Users with at least one relevant item: those that count.
    """

    recall: Mapping[int, Interval]
    ratio: Mapping[int, Interval]
    users: int


def score_retrieval(
    retrieved: ArrayLike,
    relevant: Sequence[ArrayLike],
    ks: Sequence[int] = (10, 50, 100),
    *,
    baseline: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalScore:
    """Score retrieved items against what the users chose later.

    Parameters
    ----------
    retrieved
        Item positions ``[B, K]``, best first, -1 for none.
    relevant
        For each user the positions of the items chosen in the test period, without repeats. Users without
        any are left out.
    ks
        Each at most K.
    baseline
        Another retrieval ``[B, K]`` for the same users, e.g. :func:`popularity`.

    Raises
    ------
    ValueError
        If shapes differ, or no user has a relevant item.
    """
    counted = np.array([len(np.asarray(items)) > 0 for items in relevant], dtype=bool)
    if not counted.any():
        raise ValueError("score_retrieval: no user has a relevant item in the test period.")

    def recalls(positions: ArrayLike) -> dict[int, Floats]:
        return {k: values[counted] for k, values in recall_at_k(positions, relevant, ks).items()}

    own = recalls(retrieved)
    other = {} if baseline is None else recalls(baseline)
    return RetrievalScore(
        {k: bootstrap_mean(values, resamples=resamples, seed=seed) for k, values in own.items()},
        {k: bootstrap_ratio(own[k], other[k], resamples=resamples, seed=seed) for k in other},
        int(counted.sum()),
    )
