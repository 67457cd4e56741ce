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
QUERIES, CANDIDATES = 128, 1_024
PSI_ROWS = 2_048

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
)


def compare_vectors(now_SD: FloatArray, before_SD: FloatArray, smoothing: float | None = None) -> Summary:
    """Compare the vectors of the same entities at two moments.

    Parameters
    ----------
    smoothing
        Share of the old vector in the new one. Above one half, what is said of entities and of the space
        is said of the vectors before smoothing, and ``smoothing_violations`` counts the vectors that
        smoothing cannot have made. Neighbours, PSI and rank are those of the vectors that readers get.

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
    """
    usable_S = _usable(now_SD) & _usable(before_SD)
    now, before = _unit(now_SD[usable_S]), _unit(before_SD[usable_S])
    if len(now) < MIN_SAMPLE:
        return {"comparable": len(now), **dict.fromkeys(STATISTICS, float("nan"))}
    fresh, found = now, {"comparable": len(now)}
    if smoothing is not None and smoothing > 0.5:
        fresh, found["smoothing_violations"] = unsmooth(now, before, smoothing)
    cosine_S = np.einsum("sd,sd->s", fresh, before)
    own_S, identity = _identity(fresh, before)
    distance, gain = _procrustes(fresh, before)
    correlation = _lowest_correlation(fresh, before)
    if fresh is not now:
        # What was changed after smoothing shows in what is stored, what was changed before it in the fresh vectors.
        gain = max(gain, _procrustes(now, before)[1])
        correlation = min(correlation, _lowest_correlation(now, before))
    return {
        **found,
        "cosine_mean": float(cosine_S.mean()),
        "cosine_p01": float(np.quantile(cosine_S, 0.01)),
        "turned_share": float((own_S < 0).mean()),
        "identity": identity,
        "space_distance": distance,
        "space_gain": gain,
        "dimension_correlation_min": correlation,
        "neighbour_overlap": _neighbour_overlap(now, before),
        "psi_max": _psi_max(now, before),
        "rank_ratio": _effective_rank(now) / max(_effective_rank(before), 1e-9),
    }


def compare_spaces(now_SD: FloatArray, before_SD: FloatArray) -> list[tuple[str, float]]:
    """Return the few statistics of :func:`compare_vectors` that hold over a long time, by name."""
    usable_S = _usable(now_SD) & _usable(before_SD)
    now, before = _unit(now_SD[usable_S]), _unit(before_SD[usable_S])
    names = ("comparable", "cosine_mean", "identity", "space_gain")
    if len(now) < MIN_SAMPLE:
        return list(zip(names, (len(now), np.nan, np.nan, np.nan), strict=True))
    cosine = float(np.einsum("sd,sd->s", now, before).mean())
    values = (len(now), cosine, _identity(now, before)[1], _procrustes(now, before)[1])
    return list(zip(names, values, strict=True))


def unsmooth(now_SD: FloatArray, before_SD: FloatArray, keep: float) -> tuple[FloatArray, int]:
    """Take smoothing off again: return what the model really said, and how many vectors it cannot have said.

    A stored vector is s = unit(k o + (1 - k) n) of the previous one o and the fresh one n, all of unit length.
    Smoothing hides a bad refresh, as s stays near o whatever n is; but n can be had back, since
    (1 - k) n = L s - k o has length 1 - k. Of the two n that solve it, the one nearer to o is taken, which is
    the true one unless n had turned by well over a right angle (cosine below -(1 - k) / k). Where the angle
    between s and o is wider than any n could have turned it, the vector is no smoothed one, and s itself is
    returned.

    Parameters
    ----------
    now_SD, before_SD
        Vectors of unit length.
    keep
        Share k of the old vector, above one half (below, any angle is possible).
    """
    cosine_S = np.einsum("sd,sd->s", now_SD, before_SD)
    lowest = np.sqrt(1 - ((1 - keep) / keep) ** 2)
    # A hundredth of slack: vectors may have been rounded to bytes. Wrong ones are far beyond it.
    wrong_S = cosine_S < lowest - 0.01
    root_S = np.sqrt(np.maximum((keep * cosine_S) ** 2 - (2 * keep - 1), 0))
    fresh_SD = ((keep * cosine_S + root_S)[:, None] * now_SD - keep * before_SD) / np.float32(1 - keep)
    return np.where(wrong_S[:, None], now_SD, _unit(fresh_SD)), int(wrong_S.sum())


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
    step = -(-len(now_SD) // PSI_ROWS)
    now_SD, before_SD = now_SD[::step], before_SD[::step]
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
