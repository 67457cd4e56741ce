"""Numbers of a batch of vectors, and the running second moments from which collapse is read.

Shapes: N rows of a batch, U usable rows (right length, every value finite), D embedding dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class VectorMeasures:
    """What one batch of vectors looks like, row by row, and its usable vectors as one block.

    Norm and largest value are NaN where a vector is null or not D long: they cannot be compared there.
    """

    length_N: npt.NDArray[np.int32]
    norm_N: FloatArray
    nonfinite_N: npt.NDArray[np.int32]
    max_abs_N: FloatArray
    is_null_N: npt.NDArray[np.bool_]
    usable_UD: FloatArray


def null_mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return True (N,) where an element is null."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), bool)


def list_block(vectors: pa.ListArray, dim: int) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the vectors of the right length as a matrix without making one Python object per row.

    Returns
    -------
    block
        Float32 matrix (rows of the right length, `dim`); a view of the file's buffer where all rows fit.
    length_N
        Length of each list, 0 where it is null.
    whole_N
        True where the row is in `block`.
    """
    offsets = vectors.offsets.to_numpy()
    is_null_N = null_mask(vectors)
    length_N = np.where(is_null_N, 0, np.diff(offsets)).astype(np.int64)
    whole_N = (length_N == dim) & ~is_null_N
    # Null elements become NaN here and are therefore counted as not finite.
    values = vectors.values.to_numpy(zero_copy_only=False)
    if whole_N.all():
        start = offsets[0]
        block = values[start : start + len(vectors) * dim].reshape(-1, dim)
    else:
        block = values[offsets[:-1][whole_N, None] + np.arange(dim)]
    return block, length_N, whole_N


def measure_vectors(vectors: pa.ListArray, dim: int) -> VectorMeasures:
    """Measure one batch of ``list<float32>`` vectors.

    Parameters
    ----------
    vectors
        N lists; nulls and wrong lengths are allowed and reported.
    dim
        The declared D.
    """
    block, length_N, whole_N = list_block(vectors, dim)
    rows = len(vectors)
    norm_N = np.full(rows, np.nan, np.float32)
    max_abs_N = np.full(rows, np.nan, np.float32)
    nonfinite_N = np.zeros(rows, np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("nd,nd->n", block, block)
        norm_N[whole_N] = np.sqrt(square)
        max_abs_N[whole_N] = np.maximum(block.max(axis=1), -block.min(axis=1)) if len(block) else []
    usable = np.isfinite(square)
    if not usable.all():
        # Squares overflow for huge but finite values, so suspicious rows are looked at value by value.
        counts = np.zeros(len(block), np.int32)
        counts[~usable] = (~np.isfinite(block[~usable])).sum(axis=1)
        nonfinite_N[whole_N] = counts
        block = block[usable]
    return VectorMeasures(
        length_N=length_N.astype(np.int32),
        norm_N=norm_N,
        nonfinite_N=nonfinite_N,
        max_abs_N=max_abs_N,
        is_null_N=null_mask(vectors),
        usable_UD=block,
    )


def hash_rows(block_UD: FloatArray) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each row's exact bits; equal rows have equal hashes."""
    dim = block_UD.shape[1]
    bits = np.ascontiguousarray(block_UD).view(np.uint32).astype(np.uint64)
    # Fixed odd multipliers: the same file always gets the same hashes.
    weights = np.random.default_rng(20170807).integers(0, 2**63, dim, dtype=np.uint64)
    mixed = bits @ (weights * np.uint64(2) + np.uint64(1))
    return mixed ^ (mixed >> np.uint64(29))


class RunningMoments:
    """Mean and covariance of a stream of vectors in O(D²) memory.

    Vectors are shifted by the mean of the first batch before they are squared, so that a space whose
    vectors barely differ does not drown in rounding (the covariance of a constant must come out as zero).
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._dim = dim
        self._shift_D: FloatArray | None = None
        self._sum_D = np.zeros(dim)
        self._gram_DD = np.zeros((dim, dim))

    def add(self, block_UD: FloatArray) -> None:
        """Add usable vectors."""
        if len(block_UD) == 0:
            return
        if self._shift_D is None:
            self._shift_D = block_UD.mean(axis=0, dtype=np.float64).astype(np.float32)
        shifted = block_UD - self._shift_D
        self.count += len(block_UD)
        self._sum_D += shifted.sum(axis=0, dtype=np.float64)
        self._gram_DD += shifted.T @ shifted

    def merge(self, other: RunningMoments) -> None:
        """Add the vectors of another stream."""
        if other._shift_D is None:
            return
        if self._shift_D is None:
            self._shift_D = other._shift_D
        step_D = other._shift_D.astype(np.float64) - self._shift_D
        crossed_DD = np.outer(step_D, other._sum_D)
        self.count += other.count
        self._sum_D += other._sum_D + other.count * step_D
        self._gram_DD += other._gram_DD + crossed_DD + crossed_DD.T + other.count * np.outer(step_D, step_D)

    def mean_D(self) -> npt.NDArray[np.float64]:
        """Return the mean vector; NaN before the first vector."""
        if self._shift_D is None:
            return np.full(self._dim, np.nan)
        return self._shift_D.astype(np.float64) + self._sum_D / self.count

    def covariance_DD(self) -> npt.NDArray[np.float64]:
        """Return the covariance matrix; NaN before the first vector."""
        if self.count == 0:
            return np.full((self._dim, self._dim), np.nan)
        centre = self._sum_D / self.count
        return self._gram_DD / self.count - np.outer(centre, centre)


@dataclass(frozen=True)
class Spread:
    """How a set of vectors fills its space.

    Attributes
    ----------
    effective_rank
        exp(entropy of the covariance spectrum), between 1 and D (Roy & Vetterli 2007, on eigenvalues);
        0 where all vectors are equal.
    dead_dimensions
        Dimensions whose variance is under a millionth of the mean variance.
    """

    effective_rank: float
    total_variance: float
    min_variance: float
    dead_dimensions: int
    mean_vector_norm: float
    eigenvalues_D: npt.NDArray[np.float64]
    variances_D: npt.NDArray[np.float64]


def spread_of(moments: RunningMoments) -> Spread:
    """Read collapse from second moments; NaN everywhere when there was no usable vector."""
    covariance_DD = moments.covariance_DD()
    mean_norm = float(np.linalg.norm(moments.mean_D()))
    dim = len(covariance_DD)
    if moments.count == 0 or not np.isfinite(covariance_DD).all():
        nan_D = np.full(dim, np.nan)
        return Spread(np.nan, np.nan, np.nan, dim, np.nan, nan_D, nan_D)
    variances_D = np.clip(np.diag(covariance_DD), 0.0, None)
    eigenvalues_D = np.clip(np.linalg.eigvalsh(covariance_DD), 0.0, None)[::-1]
    total = float(variances_D.sum())
    if total <= 1e-10 * (mean_norm**2 + total):
        return Spread(0.0, total, float(variances_D.min()), dim, mean_norm, eigenvalues_D, variances_D)
    share = eigenvalues_D / eigenvalues_D.sum()
    share = share[share > 0]
    return Spread(
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
        total_variance=total,
        min_variance=float(variances_D.min()),
        dead_dimensions=int((variances_D < 1e-6 * total / dim).sum()),
        mean_vector_norm=mean_norm,
        eigenvalues_D=eigenvalues_D,
        variances_D=variances_D,
    )
