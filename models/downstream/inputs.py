"""What a ranker reads: its specification and its arrays, in numpy and free of any model.

Shapes: N rows, C categorical fields, X crosses, M numeric inputs, E distinct vectors, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
EmbeddingInput = Array | tuple[Array, Array]


@dataclass(frozen=True)
class RankerSpec:
    """The inputs of a ranker, in the order of the columns of :class:`RankerData`.

    Parameters
    ----------
    cats
        One ``(name, vocabulary size, embedding dim)`` per categorical field; indices lie in ``[0, size)`` and 0
        means "unknown". For users and items a dim of 4 to 8 does: larger tables learn single visits by heart.
    nums
        Number of numeric inputs.
    crosses
        One ``(name, buckets, embedding dim)`` per hashed cross; see :func:`hash_cross`.
    embeddings
        One ``(name, dim)`` per dense embedding input.
    pairs
        ``(left, right)`` names of embeddings of the same space. Their elementwise product and their dot
        product become features. Embeddings of two spaces must never be paired.
    tokens
        ``(name, K)`` of embeddings that are K tokens side by side, each of dim / K floats; others are one token.

    Raises
    ------
    ValueError
        If a name is used twice, a size is not positive, a pair names an unknown embedding or two embeddings of
        different length, or tokens do not divide their embedding.
    """

    cats: tuple[tuple[str, int, int], ...] = ()
    nums: int = 0
    crosses: tuple[tuple[str, int, int], ...] = ()
    embeddings: tuple[tuple[str, int], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    tokens: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        tables = (*self.cats, *self.crosses)
        names = [name for name, _, _ in tables] + [name for name, _ in self.embeddings]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"RankerSpec: names used twice: {', '.join(twice)}. Give each field its own name.")
        sizes = [(name, min(size, dim)) for name, size, dim in tables] + list(self.embeddings)
        small = sorted({name for name, size in sizes if size < 1})
        if small or self.nums < 0:
            raise ValueError(f"RankerSpec: sizes and dims must be at least 1: {', '.join(small) or 'nums'}.")
        if not names and not self.nums:
            raise ValueError("RankerSpec: no inputs. Name at least one field.")
        dims = dict(self.embeddings)
        for left, right in self.pairs:
            missing = [name for name in (left, right) if name not in dims]
            if missing:
                raise ValueError(f"RankerSpec: pair ({left}, {right}) needs embeddings {', '.join(missing)}.")
            if dims[left] != dims[right]:
                raise ValueError(
                    f"RankerSpec: pair ({left}, {right}) has lengths {dims[left]} and {dims[right]}; "
                    "vectors of one space have one length. Pair embeddings of the same space only."
                )

        for name, count in self.tokens:
            if count < 1 or dims.get(name, 1) % count or name not in dims:
                raise ValueError(
                    f"RankerSpec: '{name}' of {dims.get(name, 0)} floats is no {count} tokens. "
                    "Name as many as its upstream gave it (out_tokens)."
                )

    def with_embeddings(self, names: Collection[str]) -> RankerSpec:
        """Return this specification with only the named embeddings, and the pairs that remain whole.

        The rows of a lift table differ by this and nothing else.

        Raises
        ------
        ValueError
            If a name is not among the embeddings.
        """
        unknown = sorted(set(names) - {name for name, _ in self.embeddings})
        if unknown:
            known = ", ".join(name for name, _ in self.embeddings)
            raise ValueError(f"RankerSpec: unknown embeddings {', '.join(unknown)}; there are: {known}.")
        return replace(
            self,
            embeddings=tuple(field for field in self.embeddings if field[0] in names),
            pairs=tuple(pair for pair in self.pairs if pair[0] in names and pair[1] in names),
            tokens=tuple(field for field in self.tokens if field[0] in names),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values: dict[str, Any] = {
            "cats": [list(field) for field in self.cats],
            "nums": self.nums,
            "crosses": [list(field) for field in self.crosses],
            "embeddings": [list(field) for field in self.embeddings],
            "pairs": [list(pair) for pair in self.pairs],
        }
        return values | ({"tokens": [list(field) for field in self.tokens]} if self.tokens else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RankerSpec:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            cats=tuple((name, int(size), int(dim)) for name, size, dim in values["cats"]),
            nums=int(values["nums"]),
            crosses=tuple((name, int(size), int(dim)) for name, size, dim in values["crosses"]),
            embeddings=tuple((name, int(dim)) for name, dim in values["embeddings"]),
            pairs=tuple((left, right) for left, right in values["pairs"]),
            tokens=tuple((name, int(count)) for name, count in values.get("tokens", ())),
        )


@dataclass(frozen=True)
class RankerData:
    """N rows as arrays. Holds at least what a specification names; further embeddings are ignored.

    Parameters
    ----------
    cats
        Indices ``[N, C]``, integer, each in ``[0, vocabulary size)``; 0 for unknown.
    crosses
        Indices ``[N, X]``, integer, each in ``[0, buckets)``; 0 for unknown.
    nums
        Values ``[N, M]``, float32; NaN means missing.
    embeddings
        Name to ``(table [E, D] float32, index [N])``: row n reads ``table[index[n]]`` and index -1 means
        missing; or name to a plain array ``[N, D]`` in which a row of NaN means missing.
    label
        0 or 1, float32 ``[N]``.
    weight
        1 / probability that the row was kept when the log was down-sampled, float32 ``[N]``; never a feature.
    user
        User code ``[N]``, int64: the unit that the bootstrap resamples; never a feature.
    """

    cats: Array
    crosses: Array
    nums: Array
    embeddings: Mapping[str, EmbeddingInput]
    label: Array
    weight: Array
    user: Array

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Array) -> RankerData:
        """Return the given rows (a boolean mask or positions); embedding tables are shared, not copied."""
        embeddings: dict[str, EmbeddingInput] = {
            name: (value[0], value[1][rows]) if isinstance(value, tuple) else value[rows]
            for name, value in self.embeddings.items()
        }
        return RankerData(
            self.cats[rows],
            self.crosses[rows],
            self.nums[rows],
            embeddings,
            self.label[rows],
            self.weight[rows],
            self.user[rows],
        )

    def check(self, spec: RankerSpec) -> None:
        """Check every array against a specification.

        Raises
        ------
        ValueError
            Naming the field, if a shape differs, an index lies outside its vocabulary, a label is not 0 or
            1, a weight is not positive, or an embedding is missing or not finite.
        """
        rows = len(self)
        shapes = {
            "cats": (self.cats, (rows, len(spec.cats))),
            "crosses": (self.crosses, (rows, len(spec.crosses))),
            "nums": (self.nums, (rows, spec.nums)),
            "weight": (self.weight, (rows,)),
            "user": (self.user, (rows,)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise ValueError(f"RankerData.{name}: shape {array.shape}, the specification has {shape}.")
        if rows == 0:
            raise ValueError("RankerData: no rows.")
        if not np.isin(self.label, (0.0, 1.0)).all():
            raise ValueError("RankerData.label: values other than 0 and 1.")
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise ValueError("RankerData.weight: must be finite and above 0 (1 / sampling probability).")
        if np.isinf(self.nums).any():
            raise ValueError("RankerData.nums: infinite values; write NaN for missing.")
        for array, fields in ((self.cats, spec.cats), (self.crosses, spec.crosses)):
            for column, (name, size, _) in enumerate(fields):
                low, high = int(array[:, column].min()), int(array[:, column].max())
                if low < 0 or high >= size:
                    raise ValueError(f"RankerData: '{name}' has indices {low} to {high}, allowed: 0 to {size - 1}.")
        for name, dim in spec.embeddings:
            self._check_embedding(name, dim)

    def _check_embedding(self, name: str, dim: int) -> None:
        if name not in self.embeddings:
            raise ValueError(f"RankerData: no embedding '{name}'; there are: {', '.join(self.embeddings)}.")
        table, index = gathered(self.embeddings[name])
        if table.ndim != 2 or table.shape[1] != dim or index.shape != (len(self),):
            raise ValueError(
                f"RankerData: embedding '{name}' has shapes {table.shape} and {index.shape}, "
                f"the specification asks for (any, {dim}) and ({len(self)},)."
            )
        low, high = int(index.min()), int(index.max())
        if low < -1 or high >= len(table):
            raise ValueError(
                f"RankerData: embedding '{name}' has row indices {low} to {high}, "
                f"allowed are -1 (missing) to {len(table) - 1}."
            )
        finite = np.asarray(np.isfinite(table).all(axis=1))
        if finite.all():
            return
        broken = int((~finite[np.unique(index[index >= 0])]).sum())
        if broken:
            raise ValueError(f"RankerData: embedding '{name}' has {broken} vectors that are not finite.")


def gathered(value: EmbeddingInput) -> tuple[Array, Array]:
    """Return an embedding input as ``(table [E, D], index [N])``; all-NaN rows of a plain array become -1."""
    if isinstance(value, tuple):
        return value
    missing = np.isnan(value).all(axis=1)
    return value, np.where(missing, -1, np.arange(len(value)))


_MIX = tuple(np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(values: Array) -> Array:
    """Return 64-bit integers with every input bit spread over all output bits (the splitmix64 finalizer)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def hash_cross(a: Array, b: Array, buckets: int) -> Array:
    """Return the bucket of every pair of indices: the same pair always, on every machine, the same bucket.

    Parameters
    ----------
    a, b
        Integer arrays ``[N]``. The order matters: (1, 2) and (2, 1) are different pairs.
    buckets
        Number of buckets, bucket 0 included, which stays free for "unknown".

    Returns
    -------
    Array
        int64 ``[N]`` in ``[1, buckets)``.

    Examples
    --------
    >>> hash_cross(np.array([1, 2, 1]), np.array([2, 1, 2]), 1000).tolist()
    [509, 588, 509]
    """
    if buckets < 2:
        raise ValueError(f"hash_cross: buckets is {buckets}; it must be at least 2.")
    left = np.asarray(a).astype(np.int64).view(np.uint64)
    right = np.asarray(b).astype(np.int64).view(np.uint64)
    mixed = _mix(_mix(left + _MIX[0]) + right)
    return (mixed % np.uint64(buckets - 1)).astype(np.int64) + 1
