"""Integer hashing that gives the same numbers on every machine and with every library version.

Database and data-frame engines change their hash functions between releases; a sample or an id that depends
on one of them cannot be reproduced later. This is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
number generators", OOPSLA 2014) over numpy's unsigned integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(values: UInt64Array) -> UInt64Array:
    """Return the SplitMix64 output of every state in `values`, shape unchanged; a bijection on 64 bits."""
    # Wrapping is the point of the arithmetic here; numpy warns about it for scalars only.
    with np.errstate(over="ignore"):
        mixed = values + _GAMMA
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def hash_columns(*columns: npt.NDArray[np.int64]) -> UInt64Array:
    """Return one 64-bit hash per row over integer columns of equal length; the order of columns matters.

    Parameters
    ----------
    columns
        One or more int64 arrays of shape ``(N,)``.
    """
    assert columns, "a hash needs at least one column"
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            state = splitmix64(state + np.ascontiguousarray(column, dtype=np.int64).view(np.uint64))
    return state


def as_positive_int64(hashes: UInt64Array) -> npt.NDArray[np.int64]:
    """Return the upper 63 bits of `hashes` as non-negative int64, shape unchanged."""
    return (hashes >> np.uint64(1)).view(np.int64)


def keep_fraction(hashes: UInt64Array, fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows a reproducible sample keeps: each with probability `fraction`, decided by its hash.

    Parameters
    ----------
    hashes
        One hash per row, shape ``(N,)``.
    fraction
        Probability in [0, 1]. A row kept at a small fraction is also kept at every larger one.
    seed
        Another seed draws an independent sample.
    """
    assert 0.0 <= fraction <= 1.0, fraction
    salt = splitmix64(np.asarray([seed], dtype=np.int64).view(np.uint64))
    uniform = (splitmix64(hashes ^ salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(uniform < fraction)
