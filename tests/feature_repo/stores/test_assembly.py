"""Columns assembled from batches are those that Arrow combines, whatever the lists look like."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.stores.assembly import assembled

SCHEMA = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32()), "name": pa.string()})
EVEN = st.lists(st.floats(width=32), min_size=2, max_size=2)
ANY = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=3))


def batches_of(vectors: list[Any], cuts: list[int]) -> list[pa.RecordBatch]:
    rows = pa.table(
        {"id": range(len(vectors)), "vector": vectors, "name": [str(row) for row in range(len(vectors))]}, SCHEMA
    )
    edges = [0, *sorted(min(cut, len(vectors)) for cut in cuts), len(vectors)]
    return [
        batch for start, stop in itertools.pairwise(edges) for batch in rows.slice(start, stop - start).to_batches()
    ]


@settings(deadline=None, max_examples=300)
@given(st.lists(EVEN, max_size=9), st.lists(st.one_of(EVEN, ANY), max_size=6), st.lists(st.integers(0, 15), max_size=4))
def test_assembled_batches_are_the_table_they_were_cut_from(first: list[Any], then: list[Any], cuts: list[int]) -> None:
    batches = batches_of(first + then, cuts)
    expected = pa.Table.from_batches(batches, SCHEMA)
    found = assembled(iter(batches), SCHEMA, len(first + then))
    assert found.schema.equals(SCHEMA) and found.num_rows == len(first + then)
    found.validate(full=True)
    # Texts, because NaN is not NaN.
    assert str(found.to_pylist()) == str(expected.to_pylist())
    assert all(column.num_chunks <= 1 for column in found.columns)


def test_every_bit_of_a_number_is_kept() -> None:
    bits = np.array([0x7F800001, 0xFFC12345, 0x80000000, 1], np.uint32).view(np.float32)  # NaNs of two kinds, -0, tiny
    vectors = pa.ListArray.from_arrays(np.array([0, 2, 4], np.int32), pa.array(bits))
    batches = [pa.record_batch([vectors.slice(row, 1)], names=["vector"]) for row in range(2)]
    found = assembled(batches, batches[0].schema, 2)["vector"].chunk(0).flatten().to_numpy()
    np.testing.assert_array_equal(found.view(np.uint32), bits.view(np.uint32))


def test_vectors_are_held_once() -> None:
    rows, dim, step = 40_000, 64, 1_000
    schema = pa.schema({"vector": pa.list_(pa.float32())})

    def batches() -> Any:
        for _ in range(0, rows, step):
            numbers = pa.array(np.zeros(step * dim, np.float32)).take(pa.array(np.arange(step * dim)))  # Arrow's memory
            lists = pa.ListArray.from_arrays(np.arange(step + 1, dtype=np.int32) * dim, numbers)
            yield pa.record_batch([lists], schema)

    def most(made: Callable[[], pa.Table]) -> float:
        """Return how many times the vectors' size Arrow held at once."""
        pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            assert made().num_rows == rows
        finally:
            pa.set_memory_pool(before)
        return pool.max_memory() / (rows * dim * 4)

    assert most(lambda: assembled(batches(), schema, rows)) < 1.2
    assert most(lambda: pa.Table.from_batches(batches(), schema).combine_chunks()) > 1.9


def test_rows_without_columns_are_counted() -> None:
    assert assembled([batch.select([]) for batch in batches_of([None] * 5, [2])], pa.schema([]), 5).num_rows == 5


@pytest.mark.parametrize("rows", [0, 3])
def test_no_batch_is_an_empty_table(rows: int) -> None:
    assert assembled([], SCHEMA, rows).equals(SCHEMA.empty_table())
