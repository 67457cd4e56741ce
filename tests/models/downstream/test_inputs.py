"""Specification, arrays and hashed crosses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from models.downstream.batches import SPARSE_ROWS, RankerTensors, table_layouts
from models.downstream.inputs import RankerSpec, hash_cross


def test_spec_survives_json(spec):
    assert RankerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cats": (("user", 3, 4), ("user", 3, 4))}, "used twice: user"),
        ({"cats": (("user", 0, 4),)}, "at least 1: user"),
        ({"nums": -1}, "at least 1: nums"),
        ({"pairs": (("user_v1", "item_v2"),)}, "needs embeddings item_v2"),
        ({"embeddings": (("user_v1", 8), ("item_v1", 4))}, "lengths 8 and 4"),
        ({"cats": (), "nums": 0, "crosses": (), "embeddings": (), "pairs": ()}, "no inputs"),
    ],
)
def test_spec_refuses(spec, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(spec, **change)


def test_with_embeddings_keeps_whole_pairs_only(spec):
    assert spec.with_embeddings(["user_v1"]).embeddings == (("user_v1", 8),)
    assert spec.with_embeddings(["user_v1"]).pairs == ()
    assert spec.with_embeddings(["item_v1", "user_v1"]) == spec
    with pytest.raises(ValueError, match="unknown embeddings user_v2; there are: user_v1, item_v1"):
        spec.with_embeddings(["user_v2"])


def _nan(shape: tuple[int, ...], value: float) -> np.ndarray:
    array = np.ones(shape, dtype=np.float32)
    array[0] = value
    return array


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("cats", np.zeros((20, 3), dtype=np.int32), "RankerData.cats: shape"),
        ("cats", np.full((20, 2), 61, dtype=np.int32), "'user' has indices 61 to 61, allowed: 0 to 60"),
        ("crosses", np.full((20, 1), -1), "'user_x_item' has indices -1 to -1"),
        ("label", _nan((20,), 0.5), "other than 0 and 1"),
        ("label", _nan((20,), np.nan), "other than 0 and 1"),
        ("weight", _nan((20,), 0.0), "finite and above 0"),
        ("weight", _nan((20,), np.nan), "finite and above 0"),
        ("nums", _nan((20, 2), np.inf), "infinite"),
        ("embeddings", {}, "no embedding 'user_v1'"),
    ],
)
def test_data_refuses(spec, make_log, field: str, value: Any, words: str):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(make_log(20), **{field: value}).check(spec)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ((np.zeros((5, 7), np.float32), np.zeros(20, int)), r"asks for \(any, 8\)"),
        ((np.zeros((5, 8), np.float32), np.full(20, 5)), "row indices 5 to 5"),
        ((np.full((5, 8), np.nan, np.float32), np.full(20, 1)), "1 vectors that are not finite"),
        (np.where(np.arange(8) == 0, np.nan, np.ones((20, 8), np.float32)), "20 vectors that are not finite"),
    ],
)
def test_data_refuses_embeddings(spec, make_log, vectors, words):
    data = make_log(20)
    broken = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": vectors})
    with pytest.raises(ValueError, match=words):
        broken.check(spec)


def test_an_unused_vector_may_be_broken(spec, make_log):
    data = make_log(20)
    table, index = data.embeddings["user_v1"]
    table = np.concatenate([np.full((1, 8), np.nan, np.float32), table])
    index = np.where(np.arange(20) < 5, -1, index + 1)
    data = dataclasses.replace(data, embeddings={**data.embeddings, "user_v1": (table, index)})
    batch = RankerTensors(data, spec).batch(torch.arange(20))
    assert batch.vectors[0].isfinite().all()
    assert batch.present[:, 0].tolist() == [0.0] * 5 + [1.0] * 15


def test_take_shares_tables(make_log):
    data = make_log(20)
    part = data.take(np.array([3, 5]))
    assert len(part) == 2
    assert part.embeddings["user_v1"][0] is data.embeddings["user_v1"][0]
    np.testing.assert_array_equal(part.nums, data.nums[[3, 5]])
    np.testing.assert_array_equal(part.embeddings["item_v1"][1], data.embeddings["item_v1"][1][[3, 5]])


def test_fields_of_one_dim_share_a_table_and_large_ones_are_sparse():
    spec = RankerSpec(cats=(("a", 10, 4), ("b", 20, 8), ("c", 30, 4)), crosses=(("d", SPARSE_ROWS + 1, 4),))
    small, large, wide = table_layouts(spec)
    assert (small.columns, small.offsets, small.rows, small.sparse) == ((0, 2), (0, 10), 40, False)
    assert (large.columns, large.rows, large.sparse) == ((3,), SPARSE_ROWS + 1, True)
    assert (wide.columns, wide.dim) == ((1,), 8)


def test_batch_gathers_what_a_loop_gathers(spec, make_log):
    data = make_log(50)
    batch = RankerTensors(data, spec).batch(torch.tensor([7, 3]))
    for position, row in enumerate((7, 3)):
        user, item = data.cats[row]
        assert batch.ids[0][position].tolist() == [user, 61 + item, 61 + 41 + data.crosses[row, 0]]
        for vectors, name in zip(batch.vectors, ("user_v1", "item_v1"), strict=True):
            table, index = data.embeddings[name]
            np.testing.assert_array_equal(vectors[position].numpy(), table[index[row]])


def test_hash_cross_spreads_and_keeps_zero_free():
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(300)))
    buckets = hash_cross(a, b, 1024)
    counts = np.bincount(buckets, minlength=1024)
    assert counts[0] == 0
    expected = len(a) / 1023
    # Chi-square of a uniform hash is 1022 +- 45; six deviations.
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 1022 + 6 * 45
    assert (hash_cross(a, b, 2**31) != hash_cross(b, a, 2**31))[a != b].all()
    np.testing.assert_array_equal(hash_cross(a.astype(np.int32), b, 1024), buckets)
    with pytest.raises(ValueError, match="at least 2"):
        hash_cross(a, b, 1)
