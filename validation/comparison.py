"""A snapshot against the previous one of the same version: coverage, drift, identity and space.

Schema checks pass on a snapshot whose ids were shuffled or whose space was rotated; the numbers here do not.
Shapes: S sampled entities that both snapshots hold, D embedding dim.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.measures import FloatArray, list_block, null_mask

SAMPLE = 4_096
MIN_SAMPLE = 30
BATCH_ROWS = 65_536
SEED = 20170807


def compare_snapshots(
    path: Path, ids: pa.Array, previous: Path, previous_ids: pa.Array, dim: int, sample: int = SAMPLE
) -> dict[str, float | int | str]:
    """Compare two snapshots of one version.

    Parameters
    ----------
    ids, previous_ids
        The id columns of both files, already read.
    sample
        Vectors are compared for at most this many common entities, spread evenly over the file.

    Returns
    -------
    dict
        Row ratio, coverage, new and vanished entities, and the vector statistics of
        :func:`compare_vectors`. Those are NaN when fewer than two entities can be compared.
    """
    here, there = _match(ids, previous_ids)
    previous_rows = len(previous_ids)
    common = len(np.unique(there))
    result: dict[str, float | int | str] = {
        "previous_rows": previous_rows,
        "row_ratio": len(ids) / previous_rows if previous_rows else np.nan,
        "coverage": common / previous_rows if previous_rows else np.nan,
        "new_entities": len(ids) - ids.null_count - len(here),
        "vanished_entities": previous_rows - common,
    }
    if len(here) > sample:
        chosen = np.linspace(0, len(here) - 1, sample).astype(np.int64)
        here, there = here[chosen], there[chosen]
    now_SD = gather_vectors(path, here, dim)
    before_SD = gather_vectors(previous, there, dim)
    return result | compare_vectors(now_SD, before_SD)


def _match(ids: pa.Array, previous_ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the row numbers of the common entities in both files, in the order of the first file."""
    if ids.type != previous_ids.type:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = pc.index_in(ids, value_set=previous_ids, skip_nulls=True)
    here = np.flatnonzero(~null_mask(found))
    return here, found.drop_null().to_numpy().astype(np.int64)


def gather_vectors(path: Path, rows: npt.NDArray[np.int64], dim: int) -> FloatArray:
    """Return the vectors (S, D) at row numbers of a snapshot; NaN where one is null or not D long.

    The file is streamed; only the wanted rows stay in memory.
    """
    result_SD = np.full((len(rows), dim), np.nan, np.float32)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    start = 0
    with pq.ParquetFile(path, memory_map=True, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["embedding"]):
            low, high = np.searchsorted(ordered, [start, start + len(batch)])
            if high > low:
                block, _, whole_N = list_block(batch.column(0), dim)
                place_N = np.cumsum(whole_N) - 1
                local = ordered[low:high] - start
                good = whole_N[local]
                result_SD[order[low:high][good]] = block[place_N[local[good]]]
            start += len(batch)
    return result_SD


def compare_vectors(now_SD: FloatArray, before_SD: FloatArray) -> dict[str, float | int | str]:
    """Compare the vectors of the same entities at two moments.

    Returns
    -------
    dict
        ``comparable`` (entities with two usable vectors); ``cosine_mean``, ``cosine_p01`` (same entity);
        ``identity`` (share of pairs in which the own previous vector is nearer than a random other's, ties
        one half, after removing both means so that a narrow cone does not hide a shuffle);
        ``space_distance`` (mean squared distance, 0 to 4) and ``space_gain`` (how much of it an orthogonal
        map takes away on entities it was not fitted on: near zero for drift, large for a rotated space;
        Schönemann 1966); ``dimension_correlation_min`` (over dimensions: a flipped sign gives -1);
        ``unchanged_share`` (vectors equal bit for bit).
    """
    usable = np.isfinite(now_SD).all(axis=1) & np.isfinite(before_SD).all(axis=1)
    usable &= (np.abs(now_SD).max(axis=1, initial=0) > 0) & (np.abs(before_SD).max(axis=1, initial=0) > 0)
    raw_now_SD, raw_before_SD = now_SD[usable], before_SD[usable]
    if len(raw_now_SD) < 2:
        names = ("cosine_mean", "cosine_p01", "identity", "space_distance", "space_gain")
        nan = dict.fromkeys((*names, "dimension_correlation_min", "unchanged_share"), float("nan"))
        return {"comparable": len(raw_now_SD), **nan}
    unit_now_SD, unit_before_SD = _unit(raw_now_SD), _unit(raw_before_SD)
    cosine_S = np.einsum("sd,sd->s", unit_now_SD, unit_before_SD)
    distance, gain = _procrustes(unit_now_SD, unit_before_SD)
    return {
        "comparable": len(raw_now_SD),
        "cosine_mean": float(cosine_S.mean()),
        "cosine_p01": float(np.quantile(cosine_S, 0.01)),
        "identity": _identity(unit_now_SD, unit_before_SD),
        "space_distance": distance,
        "space_gain": gain,
        "dimension_correlation_min": _lowest_correlation(unit_now_SD, unit_before_SD),
        "unchanged_share": float((raw_now_SD == raw_before_SD).all(axis=1).mean()),
    }


def _unit(vectors_SD: FloatArray) -> FloatArray:
    norm = np.linalg.norm(vectors_SD, axis=1, keepdims=True)
    return vectors_SD / np.maximum(norm, np.float32(1e-30))


def _identity(now_SD: FloatArray, before_SD: FloatArray, others: int = 2) -> float:
    now = _unit(now_SD - now_SD.mean(axis=0))
    before = _unit(before_SD - before_SD.mean(axis=0))
    own_S = np.einsum("sd,sd->s", now, before)
    # Rolling a shuffled order gives every entity another one and never itself.
    order = np.random.default_rng(SEED).permutation(len(now))
    shuffled_SD, own_S = now[order], own_S[order]
    wins = 0.0
    for step in range(1, others + 1):
        shift = 1 + (step * 7919) % (len(now) - 1) if len(now) > 2 else 1
        other_S = np.einsum("sd,sd->s", shuffled_SD, before[np.roll(order, shift)])
        wins += float((own_S > other_S + 1e-6).mean() + 0.5 * (np.abs(own_S - other_S) <= 1e-6).mean())
    return wins / others


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
