"""A snapshot against the previous one of the same version: which entities both hold, and their vectors.

Shapes: S sampled entities that both snapshots hold, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.errors import LakeError
from validation.drift import compare_spaces, compare_vectors
from validation.measures import FloatArray, list_block, null_mask
from validation.specs import SnapshotSpec
from validation.tables import Summary, iter_batches, read_column

SAMPLE = 4_096
SAMPLE_GROUPS = 32


def compare_snapshots(path: Path, ids: pa.Array, previous: Path, spec: SnapshotSpec, sample: int = SAMPLE) -> Summary:
    """Compare two snapshots of one version.

    Parameters
    ----------
    ids
        The id column of `path`, already read.
    sample
        Vectors are compared for at most this many common entities, spread evenly over the file.

    Returns
    -------
    dict
        Row ratio, coverage, new and vanished entities, and the vector statistics of
        :func:`validation.drift.compare_vectors`; those are NaN where too few can be compared.

    Raises
    ------
    LakeError
        If the previous snapshot cannot be read.
    """
    result, here, there = compare_ids(ids, read_previous(previous, f"{spec.entity}_id"))
    here, there = _sampled(path, here, there, sample)
    now_SD = gather_vectors(path, here, spec.dim)
    with _blaming(previous):
        before_SD = gather_vectors(previous, there, spec.dim)
    result["unchanged_share"] = float((now_SD == before_SD).all(axis=1).mean()) if len(here) else np.nan
    return result | compare_vectors(now_SD, before_SD, spec.smoothing)


def compare_anchor(path: Path, ids: pa.Array, anchor: Path, spec: SnapshotSpec, sample: int = SAMPLE) -> Summary:
    """Compare with an old snapshot of the same version: small steps in one direction add up there.

    Returns
    -------
    dict
        ``anchor_comparable``, and ``anchor_cosine_mean``, ``anchor_identity`` and ``anchor_space_gain`` as in
        :func:`validation.drift.compare_vectors`; those are NaN where too few can be compared.

    Raises
    ------
    LakeError
        If the old snapshot cannot be read.
    """
    here, there = match_ids(ids, read_previous(anchor, f"{spec.entity}_id"))
    here, there = _sampled(path, here, there, sample)
    with _blaming(anchor):
        before_SD = gather_vectors(anchor, there, spec.dim)
    return {f"anchor_{name}": value for name, value in compare_spaces(gather_vectors(path, here, spec.dim), before_SD)}


def norm_ratio(mean_raw_norm: float, previous: Path) -> Summary:
    """Return the mean norm before normalizing over that of the previous snapshot; unit vectors hide it."""
    norms = read_previous(previous, "norm").drop_null().to_numpy()
    norms = norms[np.isfinite(norms)]
    before = float(norms.mean(dtype=np.float64)) if len(norms) else np.nan
    return {"raw_norm_ratio": mean_raw_norm / before if before else np.nan}


def read_previous(path: Path, column: str) -> pa.Array:
    """Return a column of the previous snapshot; raises LakeError, so that the new file is not blamed."""
    with _blaming(path):
        return read_column(path, column)


@contextmanager
def _blaming(previous: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LakeError(
            f"The previous snapshot {previous} cannot be read ({error}); restore it, or name another one."
        ) from error


def compare_ids(ids: pa.Array, previous_ids: pa.Array) -> tuple[Summary, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return row ratio, coverage, new and vanished entities, and the common entities' rows in both files."""
    here, there = match_ids(ids, previous_ids)
    previous_rows = len(previous_ids)
    found = np.zeros(previous_rows, bool)
    found[there] = True
    common = int(found.sum())
    new = len(ids) - ids.null_count - len(here)
    summary: Summary = {
        "previous_rows": previous_rows,
        "row_ratio": len(ids) / previous_rows if previous_rows else np.nan,
        "coverage": common / previous_rows if previous_rows else np.nan,
        "new_entities": new,
        "new_share": new / len(ids) if len(ids) else np.nan,
        "vanished_entities": previous_rows - common,
    }
    return summary, here, there


def seconds_after(previous: Path, available_at: datetime) -> Summary:
    """Return how long after the previous snapshot's last row this one becomes readable (seconds)."""
    latest = pc.max(read_previous(previous, "event_timestamp")).as_py()
    return {"seconds_after_previous": np.nan if latest is None else (available_at - latest).total_seconds()}


def match_ids(ids: pa.Array, previous_ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the row numbers of the common entities in both files, in the order of the first file."""
    if ids.type != previous_ids.type:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = pc.index_in(ids, value_set=previous_ids, skip_nulls=True)
    here = np.flatnonzero(~null_mask(found))
    return here, found.drop_null().to_numpy().astype(np.int64)


def gather_vectors(path: Path, rows: npt.NDArray[np.int64], dim: int) -> FloatArray:
    """Return the vectors (S, D) at row numbers of a snapshot; NaN where one is null or not D long.

    Only row groups with a wanted row are read, as a stream; only the wanted rows stay in memory.
    """
    result_SD = np.full((len(rows), dim), np.nan, np.float32)
    order = np.argsort(rows, kind="stable")
    starts = _group_starts(path)
    groups = np.searchsorted(starts, rows[order], side="right") - 1
    # Only row groups that hold a wanted row are read, one after the other; rows count from the first of them.
    read = np.unique(groups)
    sizes = np.diff(starts)[read]
    before = np.cumsum(sizes) - sizes
    ordered = rows[order] - starts[groups] + before[np.searchsorted(read, groups)]
    start = 0
    for batch in iter_batches(path, ["embedding"], read.tolist()) if len(read) else ():
        low, high = np.searchsorted(ordered, [start, start + len(batch)])
        if high > low:
            block, _, whole_N = list_block(batch.column(0), dim)
            place_N = np.cumsum(whole_N) - 1
            local = ordered[low:high] - start
            good = whole_N[local]
            result_SD[order[low:high][good]] = block[place_N[local[good]]]
        start += len(batch)
    return result_SD


def _group_starts(path: Path) -> npt.NDArray[np.int64]:
    """Return the first row number of each row group, and the number of rows behind the last."""
    footer = pq.read_metadata(path)
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _sampled(
    path: Path, here: npt.NDArray[np.int64], there: npt.NDArray[np.int64], sample: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return at most `sample` common entities, even over the file, from at most `SAMPLE_GROUPS` of its row groups."""
    if len(here) <= sample:
        return here, there
    starts = _group_starts(path)
    groups = len(starts) - 1
    if groups > SAMPLE_GROUPS:
        chosen = np.unique(np.linspace(0, groups - 1, SAMPLE_GROUPS).astype(np.int64))
        inside = np.isin(np.searchsorted(starts, here, side="right") - 1, chosen)
        if inside.sum() >= sample:
            here, there = here[inside], there[inside]
    even = np.unique(np.linspace(0, len(here) - 1, sample).astype(np.int64))
    return here[even], there[even]
