"""How a good snapshot is damaged: building blocks of the table of faults.

Shapes: N rows, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Matrix = npt.NDArray[np.float32]
Expected = Literal["refused", "accepted"]
SEED = 11
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Material:
    """A good snapshot, and the other tables that a corruption may mix it up with.

    Attributes
    ----------
    good
        The snapshot's N rows.
    previous, month_ago
        Vectors (N, D) of the same entities in the previous snapshot and in one about a month older; the good
        snapshot's own where there is none.
    fresh
        What the model said of them before smoothing, (N, D).
    other_model
        What another model says of them, (N, D).
    other_entity
        Vectors (any, D) of the other kind of entity.
    cohort
        True (N,) for the entities of one group, 3 to 50% of all.
    popular
        Row of the most popular entity.
    smoothing
        Share of the previous vector.
    """

    good: pa.Table
    previous: Matrix
    month_ago: Matrix
    fresh: Matrix
    other_model: Matrix
    other_entity: Matrix
    cohort: npt.NDArray[np.bool_]
    popular: int
    smoothing: float

    @property
    def vectors(self) -> Matrix:
        """Return the good vectors (N, D)."""
        column = self.good.column("embedding").combine_chunks()
        return column.flatten().to_numpy().reshape(len(self.good), -1).copy()

    @property
    def id_name(self) -> str:
        """Return the name of the id column."""
        return str(self.good.column_names[0])


Change = Callable[[Material], pa.Table]


@dataclass(frozen=True)
class Fault:
    """One corruption, and what the gate has to say of it.

    Attributes
    ----------
    check
        The critical check that must fail, or two with "or" between them where it depends on how fast entities
        move or how alike two models are; for ``accepted`` there is none, and warnings are allowed.
    table
        Makes the bad table. None: the file itself is damaged by `file` after a good table was written.
    """

    name: str
    check: str
    table: Change | None = None
    file: Callable[[Path], None] | None = None
    expected: Expected = "refused"


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with one column replaced."""
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_matrix(table: pa.Table, vectors: npt.NDArray[Any], *, unit: bool = True) -> pa.Table:
    """Return the table with other vectors (N, D), scaled to unit length unless said otherwise."""
    if unit:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    return put(table, "embedding", pa.ListArray.from_arrays(offsets, pa.array(vectors.astype(np.float32).ravel())))


def rotation(dim: int, degrees: float | None = None) -> npt.NDArray[np.float64]:
    """Return an orthogonal matrix (D, D): any, or one that turns each pair of dimensions by an angle."""
    if degrees is None:
        return np.linalg.qr(np.random.default_rng(SEED).normal(size=(dim, dim)))[0]
    turn, angle = np.eye(dim), np.deg2rad(degrees)
    for first in range(0, dim - 1, 2):
        turn[first : first + 2, first : first + 2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def part_of(rows: int, share: float) -> npt.NDArray[np.int64]:
    return rng().permutation(rows)[: max(2, round(share * rows))]


def matrix(change: Callable[[Matrix, Material], npt.NDArray[Any]], *, unit: bool = True) -> Change:
    return lambda m: with_matrix(m.good, change(m.vectors, m), unit=unit)


def lists_of(change: Callable[[list[Any]], Any]) -> Change:
    def apply(m: Material) -> pa.Table:
        lists = m.good.column("embedding").to_pylist()
        change(lists)
        return put(m.good, "embedding", pa.array(lists, pa.list_(pa.float32())))

    return apply


def values_of(name: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    """Rewrite a column as Python values; ``id`` stands for the id column."""

    def apply(m: Material) -> pa.Table:
        column = m.id_name if name == "id" else name
        kind = m.good.schema.field(column).type
        return put(m.good, column, pa.array(change(m.good.column(column).to_pylist()), kind))

    return apply


def typed(name: str, kind: pa.DataType) -> Change:
    def apply(m: Material) -> pa.Table:
        column = m.id_name if name == "id" else name
        return put(m.good, column, m.good.column(column).cast(kind))

    return apply


def cell(row: int, value: float) -> Change:
    def change(vectors: Matrix, _: Material) -> Matrix:
        vectors[row, 3] = value
        return vectors

    return matrix(change, unit=False)


def scaled(share: float, factor: float) -> Change:
    def change(vectors: Matrix, _: Material) -> Matrix:
        vectors[part_of(len(vectors), share)] *= np.float32(factor)
        return vectors

    return matrix(change, unit=False)


def exchanged(share: float) -> Change:
    """Give some entities each other's vectors."""

    def change(vectors: Matrix, _: Material) -> Matrix:
        part = part_of(len(vectors), share)
        vectors[part] = vectors[np.roll(part, 1)]
        return vectors

    return matrix(change)


def half_from(other: Callable[[Material], Matrix]) -> Change:
    """Take every second row from somewhere else."""

    def change(vectors: Matrix, m: Material) -> Matrix:
        vectors[::2] = other(m)[::2]
        return vectors

    return matrix(change)


def before_smoothing(wrong: Callable[[Material], npt.NDArray[Any]]) -> Change:
    """Corrupt what the model said and smooth afterwards: smoothing hides most of it."""

    def change(_: Matrix, m: Material) -> npt.NDArray[Any]:
        return m.smoothing * m.previous.astype(np.float64) + (1 - m.smoothing) * wrong(m)

    return matrix(change)


def shuffled_fresh(share: float) -> Callable[[Material], npt.NDArray[Any]]:
    def wrong(m: Material) -> npt.NDArray[Any]:
        fresh, part = m.fresh.copy(), part_of(len(m.fresh), share)
        fresh[part] = fresh[np.roll(part, 1)]
        return fresh

    return wrong


def int8(vectors: Matrix, _: Material) -> npt.NDArray[Any]:
    step = np.abs(vectors).max() / 127
    return np.round(vectors / step) * step


def shift(delta: timedelta) -> Callable[[list[Any]], list[Any]]:
    return lambda moments: [moment + delta for moment in moments]


def zero_dimensions(count: int) -> Change:
    return matrix(lambda v, _: v * (np.arange(v.shape[1]) >= count))


def flip(columns: list[int]) -> Change:
    return matrix(lambda v, _: v * np.where(np.isin(np.arange(v.shape[1]), columns), -1, 1))


def swap(vectors: Matrix, _: Material) -> Matrix:
    first, second = np.argsort(vectors.var(axis=0))[-2:]
    vectors[:, [first, second]] = vectors[:, [second, first]]
    return vectors


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return apply


def zeroed_pages(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:100] + bytes(half - 100) + content[half:]


def alien(one: Any) -> Any:
    return one + 10**9 if isinstance(one, int) else f"{one}-alien"


def without(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    return table.filter(pa.array(~np.isin(np.arange(len(table)), rows)))
