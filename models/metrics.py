"""Ranking and retrieval metrics. Numpy in, numbers out; their intervals are in `bootstrap.py`.

Shapes: N rows, B users of one retrieval, K retrieved.

Every metric takes logits, so that none is lost to rounding, and row weights (1 / probability that the row was
kept), so that a down-sampled log is judged as the log it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def sigmoid(logits: ArrayLike) -> Floats:
    """Return probabilities, float64, same shape."""
    values = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -values))


def roc_auc(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the weighted area under the ROC curve; tied pairs count one half.

    Parameters
    ----------
    label
        0 or 1, ``[N]``.
    score
        Any monotone score, ``[N]``.
    weight
        Row weights, ``[N]``; None for 1.

    Raises
    ------
    ValueError
        If lengths differ, a score is not finite, or one class has no weight.

    Examples
    --------
    >>> roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    labels, scores, weights = checked_rows(label, score, weight)
    return RankedScores(labels, scores, weights).auc()


def log_loss(label: ArrayLike, logits: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the weighted mean of the binary cross entropy, in nats.

    Raises
    ------
    ValueError
        As :func:`roc_auc`.
    """
    labels, scores, weights = checked_rows(label, logits, weight)
    return float(np.average(row_log_loss(labels, scores), weights=weights))


def normalized_entropy(label: ArrayLike, logits: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return log loss / entropy of the weighted base rate: below 1 is better than knowing the rate alone.

    As in He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014).

    Raises
    ------
    ValueError
        As :func:`roc_auc`.
    """
    labels, scores, weights = checked_rows(label, logits, weight)
    rate = np.average(labels, weights=weights)
    return float(np.average(row_log_loss(labels, scores), weights=weights) / entropy(rate))


def relative_lift(baseline: float, treatment: float) -> float:
    """Return treatment / baseline - 1."""
    return treatment / baseline - 1.0


def share_of_possible_gain(value: ArrayLike, baseline: ArrayLike, oracle: ArrayLike) -> Floats:
    """Return (value - baseline) / (oracle - baseline): 0 is the baseline, 1 is all that can be known.

    NaN where the oracle is not above the baseline, as there is no gain to take a share of.

    Examples
    --------
    >>> float(share_of_possible_gain(0.75, 0.70, 0.80).round(3))
    0.5
    """
    below = np.asarray(baseline, dtype=np.float64)
    possible = np.asarray(oracle, dtype=np.float64) - below
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(possible > 0, (np.asarray(value, dtype=np.float64) - below) / possible, np.nan)


@dataclass(frozen=True)
class CalibrationBin:
    """Rows with similar predictions: their weight, mean prediction and observed rate."""

    low: float
    high: float
    weight: float
    predicted: float
    observed: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Attributes
    ----------
    ratio
        Mean prediction / observed rate; 1 is right on average.
    expected_error
        Mean over all weight of |prediction - observed rate| of the row's bin.
    """

    ratio: float
    expected_error: float
    bins: tuple[CalibrationBin, ...]


def calibration(label: ArrayLike, logits: ArrayLike, weight: ArrayLike | None = None, bins: int = 20) -> Calibration:
    """Return the calibration over bins of (nearly) equal weight; equal predictions share one bin.

    Raises
    ------
    ValueError
        As :func:`roc_auc`, or if `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"calibration: bins is {bins}; it must be at least 1.")
    labels, scores, weights = checked_rows(label, logits, weight)
    order = np.argsort(scores, kind="stable")
    predicted, labels, weights = sigmoid(scores[order]), labels[order], weights[order]
    middle = (np.cumsum(weights) - 0.5 * weights) / weights.sum()
    first = np.concatenate([[True], np.diff(scores[order]) > 0])  # first row of each tie
    of_tie = np.minimum((middle[first] * bins).astype(np.int64), bins - 1)
    of_row = of_tie[np.cumsum(first) - 1]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(of_row) > 0]))
    mass = np.add.reduceat(weights, starts)
    mean = np.add.reduceat(weights * predicted, starts) / mass
    rate = np.add.reduceat(weights * labels, starts) / mass
    ends = np.append(starts[1:], len(labels)) - 1
    table = tuple(
        CalibrationBin(*(float(value) for value in row))
        for row in zip(predicted[starts], predicted[ends], mass, mean, rate, strict=True)
    )
    ratio = np.average(predicted, weights=weights) / np.average(labels, weights=weights)
    return Calibration(float(ratio), float(np.average(np.abs(mean - rate), weights=mass)), table)


class RankedScores:
    """Scores sorted once, so that the AUC under any other row weights takes one cumulative sum.

    ``AUC = sum over positives of w (weight of negatives below + half of those tied) / (W+ W-)``.
    """

    def __init__(self, labels: Floats, scores: Floats, weights: Floats) -> None:
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        positive = labels[order] > 0.5
        self._positive, self._negative = order[positive], order[~positive]
        self._positive_weight, self._negative_weight = weights[self._positive], weights[self._negative]
        # For each positive, how many negatives lie strictly below it, and below or level with it.
        negatives = ranked[~positive]
        self._below = np.searchsorted(negatives, ranked[positive], side="left")
        self._level = np.searchsorted(negatives, ranked[positive], side="right")

    def by_user(self, users: NDArray[np.int64]) -> None:
        """Remember the user of each row, for :meth:`resampled_auc`."""
        self._positive_user, self._negative_user = users[self._positive], users[self._negative]
        self._running = np.zeros(len(self._negative) + 1)

    def auc(self) -> float:
        """Return the AUC under the given weights."""
        running = np.concatenate([[0.0], np.cumsum(self._negative_weight)])
        return self._area(self._positive_weight, running)

    def resampled_auc(self, counts: Floats) -> float:
        """Return the AUC when user u is there ``counts[u]`` times; NaN if a class is left empty."""
        np.cumsum(counts[self._negative_user] * self._negative_weight, out=self._running[1:])
        return self._area(counts[self._positive_user] * self._positive_weight, self._running)

    def _area(self, positive_weight: Floats, running: Floats) -> float:
        beneath = running[self._below] + running[self._level]
        whole = positive_weight.sum() * running[-1]
        return float(0.5 * (positive_weight @ beneath) / whole) if whole > 0 else float("nan")


def recall_at_k(retrieved: ArrayLike, relevant: Sequence[ArrayLike], ks: Sequence[int]) -> dict[int, Floats]:
    """Return per-user recall: the share of a user's relevant items among the first k retrieved.

    Parameters
    ----------
    retrieved
        Item positions ``[B, K]``, best first; -1 fills a short list. An item at most once per row.
    relevant
        For each of the B users the positions of the relevant items, without repeats.
    ks
        Each at most K.

    Returns
    -------
    dict
        k to ``[B]``; NaN for users without relevant items.

    Raises
    ------
    ValueError
        If lengths differ, or a k exceeds what was retrieved.
    """
    positions = np.asarray(retrieved, dtype=np.int64)
    if positions.ndim != 2 or len(positions) != len(relevant):
        raise ValueError(f"recall_at_k: retrieved has shape {positions.shape} for {len(relevant)} users.")
    wrong = [k for k in ks if not 1 <= k <= positions.shape[1]]
    if wrong:
        raise ValueError(f"recall_at_k: k of {wrong} with {positions.shape[1]} retrieved; retrieve more.")
    hits = hit_matrix(positions, relevant)
    sizes = np.array([len(np.asarray(items)) for items in relevant], dtype=np.float64)
    sizes[sizes == 0] = np.nan
    return {k: hits[:, :k].sum(axis=1) / sizes for k in ks}


def hit_matrix(retrieved: Integers, relevant: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    """Return which of the retrieved items ``[B, K]`` are relevant to their user."""
    lists = [np.asarray(items, dtype=np.int64) for items in relevant]
    flat = np.concatenate([*lists, np.empty(0, dtype=np.int64)])
    owner = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    stride = max(int(flat.max(initial=0)), int(retrieved.max(initial=0))) + 1
    wanted = owner * stride + flat
    keys = np.arange(len(retrieved))[:, None] * stride + retrieved
    return np.isin(keys, wanted) & (retrieved >= 0)


def checked_rows(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Return label, score and weight ``[N]`` as float64; ValueError as :func:`roc_auc`."""
    labels, scores = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    weights = np.ones(len(labels)) if weight is None else np.asarray(weight, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or labels.shape != weights.shape:
        shapes = f"label {labels.shape}, score {scores.shape}, weight {weights.shape}"
        raise ValueError(f"Metrics: shapes differ: {shapes}.")
    if not np.isfinite(scores).all():
        broken = int((~np.isfinite(scores)).sum())
        raise ValueError(f"Metrics: {broken} of {len(scores)} scores are not finite.")
    positive = labels > 0.5
    if not weights[positive].sum() > 0 or not weights[~positive].sum() > 0:
        raise ValueError("Metrics: one class only; rows of both labels with positive weight are needed.")
    return labels, scores, weights


def row_log_loss(labels: Floats, logits: Floats) -> Floats:
    """Return the binary cross entropy of each row ``[N]``, in nats."""
    return np.logaddexp(0.0, logits) - labels * logits


def entropy(rate: Floats | float) -> Floats | float:
    """Return the entropy of a coin that lands heads at this rate, in nats."""
    return -(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate))
