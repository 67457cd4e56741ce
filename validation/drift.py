"""What moved between two snapshots of one version, told from the vectors of the same entities.

A schema check passes on a snapshot whose ids were shuffled or whose space was rotated; these numbers do not.
Shapes: S entities that both snapshots hold, D embedding dim, Q queries, K candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from validation.measures import FloatArray, RunningMoments, spread_of
from validation.tables import Summary

# With fewer pairs the statistics below are noise.
MIN_SAMPLE = 30
SEED = 20170807
PSI_BINS = 10
NEIGHBOURS = 10
QUERIES, CANDIDATES = 256, 2_048

STATISTICS = (
    "cosine_mean",
    "cosine_p01",
    "turned_share",
    "identity",
    "space_distance",
    "space_gain",
    "dimension_correlation_min",
    "neighbour_overlap",
    "psi_max",
    "rank_ratio",
    "unchanged_share",
)


def compare_vectors(now_SD: FloatArray, before_SD: FloatArray) -> Summary:
    """Compare the vectors of the same entities at two moments.

    Returns
    -------
    dict
        ``comparable``: entities with two usable vectors. ``cosine_mean``, ``cosine_p01``: of the same entity.
        ``turned_share``: entities whose vector points away from its previous one, both means removed.
        ``identity``: share of pairs in which the own previous vector is nearer than a random other's (ties
        one half), both means removed so that a narrow cone does not hide a shuffle.
        ``space_distance``: mean squared distance, 0 to 4; ``space_gain``: how much of it an orthogonal map
        takes off on entities it was not fitted on, near zero for drift and large for a rotated space
        (Schönemann 1966). ``dimension_correlation_min``: over dimensions; a flipped sign gives -1.
        ``neighbour_overlap``: shared part of the ten nearest neighbours. ``psi_max``: population stability
        index of the dimension that moved most. ``rank_ratio``: effective rank now over before.
        ``unchanged_share``: vectors equal bit for bit.
    """
    usable_S = _usable(now_SD) & _usable(before_SD)
    raw_now, raw_before = now_SD[usable_S], before_SD[usable_S]
    if len(raw_now) < MIN_SAMPLE:
        return {"comparable": len(raw_now), **dict.fromkeys(STATISTICS, float("nan"))}
    now, before = _unit(raw_now), _unit(raw_before)
    cosine_S = np.einsum("sd,sd->s", now, before)
    own_S, identity = _identity(now, before)
    distance, gain = _procrustes(now, before)
    return {
        "comparable": len(now),
        "cosine_mean": float(cosine_S.mean()),
        "cosine_p01": float(np.quantile(cosine_S, 0.01)),
        "turned_share": float((own_S < 0).mean()),
        "identity": identity,
        "space_distance": distance,
        "space_gain": gain,
        "dimension_correlation_min": _lowest_correlation(now, before),
        "neighbour_overlap": _neighbour_overlap(now, before),
        "psi_max": _psi_max(now, before),
        "rank_ratio": _effective_rank(now) / max(_effective_rank(before), 1e-9),
        "unchanged_share": float((raw_now == raw_before).all(axis=1).mean()),
    }


def _usable(vectors_SD: FloatArray) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        square_S = np.einsum("sd,sd->s", vectors_SD, vectors_SD)
    return np.isfinite(square_S) & (square_S > 0)


def _unit(vectors_SD: FloatArray) -> FloatArray:
    norm = np.linalg.norm(vectors_SD, axis=1, keepdims=True)
    return vectors_SD / np.maximum(norm, np.float32(1e-30))


def _identity(now_SD: FloatArray, before_SD: FloatArray, others: int = 2) -> tuple[FloatArray, float]:
    """Return the centred cosine of each entity with itself, and how often it beats a random other."""
    now = _unit(now_SD - now_SD.mean(axis=0))
    before = _unit(before_SD - before_SD.mean(axis=0))
    own_S = np.einsum("sd,sd->s", now, before)
    # Rolling a shuffled order gives every entity another one and never itself.
    order = np.random.default_rng(SEED).permutation(len(now))
    shuffled_SD, shuffled_own_S = now[order], own_S[order]
    wins = 0.0
    for step in range(1, others + 1):
        shift = 1 + (step * 7919) % (len(now) - 1)
        other_S = np.einsum("sd,sd->s", shuffled_SD, before[np.roll(order, shift)])
        tie_S = np.abs(shuffled_own_S - other_S) <= 1e-6
        wins += float(((shuffled_own_S > other_S) & ~tie_S).mean() + 0.5 * tie_S.mean())
    return own_S, wins / others


def _procrustes(now_SD: FloatArray, before_SD: FloatArray) -> tuple[float, float]:
    """Return the mean squared distance and what an orthogonal map, fitted on the other half, takes off it."""
    fit = np.random.default_rng(SEED).permutation(len(now_SD)) % 2 == 0
    left, _, right = np.linalg.svd(now_SD[fit].T @ before_SD[fit])
    now, before = now_SD[~fit], before_SD[~fit]
    distance = float(((now - before) ** 2).sum(axis=1).mean())
    return distance, distance - float(((now @ (left @ right) - before) ** 2).sum(axis=1).mean())


def _lowest_correlation(now_SD: FloatArray, before_SD: FloatArray) -> float:
    now, before = now_SD - now_SD.mean(axis=0), before_SD - before_SD.mean(axis=0)
    spread_D = np.sqrt(np.einsum("sd,sd->d", now, now) * np.einsum("sd,sd->d", before, before))
    # A dimension that does not vary has no correlation; dead dimensions have their own check.
    alive = spread_D > 1e-9 * len(now)
    correlation_D = np.einsum("sd,sd->d", now, before)[alive] / spread_D[alive]
    return float(correlation_D.min()) if len(correlation_D) else 0.0


def _neighbour_overlap(now_SD: FloatArray, before_SD: FloatArray) -> float:
    chosen = np.random.default_rng(SEED).permutation(len(now_SD))[:CANDIDATES]
    count = min(NEIGHBOURS, len(chosen) - 1)
    near = []
    for vectors_SD in (now_SD, before_SD):
        candidates_KD = vectors_SD[chosen]
        similarity_QK = candidates_KD[:QUERIES] @ candidates_KD.T
        np.fill_diagonal(similarity_QK, -np.inf)
        nearest = np.argpartition(similarity_QK, -count, axis=1)[:, -count:]
        mask_QK = np.zeros(similarity_QK.shape, bool)
        np.put_along_axis(mask_QK, nearest, True, axis=1)
        near.append(mask_QK)
    return float((near[0] & near[1]).sum(axis=1).mean() / count)


def _psi_max(now_SD: FloatArray, before_SD: FloatArray) -> float:
    edges_BD = np.quantile(before_SD, np.linspace(0, 1, PSI_BINS + 1)[1:-1], axis=0)
    largest = 0.0
    for column in range(before_SD.shape[1]):
        # Half a row in every bin keeps the logarithm finite without hiding an emptied bin.
        expected, actual = (
            np.bincount(np.searchsorted(edges_BD[:, column], values[:, column]), minlength=PSI_BINS) + 0.5
            for values in (before_SD, now_SD)
        )
        expected, actual = expected / expected.sum(), actual / actual.sum()
        largest = max(largest, float(((actual - expected) * np.log(actual / expected)).sum()))
    return largest


def _effective_rank(vectors_SD: FloatArray) -> float:
    moments = RunningMoments(vectors_SD.shape[1])
    moments.add(vectors_SD)
    return spread_of(moments).effective_rank
