"""Which entities a person should look at: those with broken rows, and those that moved farthest.

Shapes: S entities of both snapshots, D embedding dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from validation.comparison import gather_vectors, match_ids, read_previous
from validation.drift import unsmooth
from validation.measures import measure_vectors, null_mask
from validation.tables import duplicates, iter_batches, read_column

LIMIT = 20


@dataclass(frozen=True)
class Offenders:
    """Entities with one fault: how many, and the first of their ids."""

    reason: str
    count: int
    ids: tuple[Any, ...]


def broken_rows(path: Path, id_name: str, dim: int, limit: int = LIMIT) -> list[Offenders]:
    """Return the entities of a snapshot whose rows are broken, by reason; none where every row is whole.

    Raises
    ------
    pyarrow.ArrowException, OSError, KeyError
        If the file cannot be read.
    """
    ids = read_column(path, id_name)
    masks: dict[str, list[np.ndarray]] = {}
    for batch in iter_batches(path, ["embedding", "norm"]):
        found = measure_vectors(batch.column("embedding"), dim)
        whole = (found.length_N == dim) & ~found.is_null_N
        raw = batch.column("norm").to_numpy(zero_copy_only=False)
        for reason, mask in {
            "no vector": found.is_null_N,
            "a vector of another length": (found.length_N != dim) & ~found.is_null_N,
            "NaN or infinite values": found.nonfinite_N > 0,
            "a vector of zeros": whole & (found.max_abs_N == 0),
            "a length far from 1": whole & (found.nonfinite_N == 0) & ~(np.abs(found.norm_N - 1) <= 0.01),
            "no usable norm": ~(np.isfinite(raw) & (raw > 0)),
        }.items():
            masks.setdefault(reason, []).append(mask)
    table = {reason: np.concatenate(parts) for reason, parts in masks.items()}
    table |= {"no id": null_mask(ids), "an id that occurs twice": duplicates(ids)[0]}
    return [
        Offenders(reason, int(mask.sum()), tuple(ids.take(pa.array(np.flatnonzero(mask)[:limit])).to_pylist()))
        for reason, mask in table.items()
        if mask.any()
    ]


def farthest(
    path: Path, previous: Path, id_name: str, dim: int, smoothing: float | None = None, limit: int = LIMIT
) -> list[tuple[Any, float]]:
    """Return the entities that moved farthest since the previous snapshot, with their cosine, farthest first.

    With a `smoothing` above one half the cosine is that of the vector before smoothing, which hides steps.
    """
    ids = read_column(path, id_name)
    here, there = match_ids(ids, read_previous(previous, id_name))
    now_SD, before_SD = gather_vectors(path, here, dim), gather_vectors(previous, there, dim)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        length_S = np.linalg.norm(now_SD, axis=1) * np.linalg.norm(before_SD, axis=1)
        cosine_S = np.einsum("sd,sd->s", now_SD, before_SD) / length_S
        if smoothing is not None and smoothing > 0.5:
            now_SD = now_SD / np.linalg.norm(now_SD, axis=1, keepdims=True)
            before_SD = before_SD / np.linalg.norm(before_SD, axis=1, keepdims=True)
            fresh_SD, _ = unsmooth(now_SD, before_SD, smoothing)
            cosine_S = np.einsum("sd,sd->s", fresh_SD, before_SD)
    order = np.argsort(np.nan_to_num(cosine_S, nan=-2.0), kind="stable")[:limit]
    return [(ids[int(here[at])].as_py(), float(cosine_S[at])) for at in order]
