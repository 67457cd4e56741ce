"""The index."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from models.downstream.baselines import popularity
from models.downstream.index_files import load_index, save_index
from models.downstream.retrieval import Own, build_index


@pytest.fixture
def vectors():
    draw = np.random.default_rng(0)
    return draw.normal(size=(20, 16)).astype(np.float32), draw.normal(size=(3000, 16)).astype(np.float32)


def test_flat_index_equals_brute_force(vectors):
    users, items = vectors
    index = build_index(items)
    positions, scores = index.search(users, 25)
    exact = users @ items.T
    best = np.argsort(-exact, axis=1)[:, :25]
    np.testing.assert_array_equal(positions, best)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, best, axis=1), rtol=1e-5)
    assert (index.kind, len(index)) == ("flat", 3000)


def test_hnsw_finds_nearly_all(vectors):
    users, items = vectors
    exact, _ = build_index(items).search(users, 100)
    found, _ = build_index(items, "hnsw").search(users, 100)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]) > 0.98


def test_many_items_get_the_approximate_index(vectors, monkeypatch):
    monkeypatch.setattr("models.downstream.retrieval._FLAT_ITEMS", 2999)
    assert build_index(vectors[1]).kind == "hnsw"


def test_fewer_items_than_k_are_filled_with_none(vectors):
    users, items = vectors
    positions, _ = build_index(items[:3]).search(users, 5)
    assert (positions[:, 3:] == -1).all() and (np.sort(positions[:, :3]) == [0, 1, 2]).all()
    assert popularity([1, 5], 2, 4).tolist() == [[1, 0, -1, -1]] * 2


def test_index_refuses(vectors):
    users, items = vectors
    with pytest.raises(ValueError, match="user vectors have 8 numbers, items 16"):
        build_index(items).search(users[:, :8], 3)
    with pytest.raises(ValueError, match="1 vectors of items are not finite"):
        build_index(np.where(np.arange(3000)[:, None] == 7, np.nan, items))
    with pytest.raises(ValueError, match="shape"):
        build_index(items[:0])
    with pytest.raises(ValueError, match="unknown kind 'ivf'"):
        build_index(items, "ivf")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_search_among_some_is_exact_and_leaves_the_others_out(kind: Literal["flat", "hnsw"]) -> None:
    draw = np.random.default_rng(5)
    items, users = draw.normal(size=(500, 8)).astype(np.float32), draw.normal(size=(3, 8)).astype(np.float32)
    among = np.sort(draw.choice(500, 40, replace=False))
    index = build_index(items, kind)
    positions, scores = index.search(users, 50, among)
    products = users @ items[among].T
    assert (positions[:, :40] == among[np.argsort(-products, axis=1)]).all() and (positions[:, 40:] == -1).all()
    assert scores[:, :40] == pytest.approx(-np.sort(-products, axis=1), abs=1e-5)
    assert (index.search(users, 5, np.zeros(0, np.int64))[0] == -1).all()


def test_tuning_searches_deeper_until_recall_is_reached_and_measures_it() -> None:
    draw = np.random.default_rng(6)
    items, users = draw.normal(size=(6_000, 48)).astype(np.float32), draw.normal(size=(40, 48)).astype(np.float32)
    index = build_index(items, "hnsw")
    index.depth = 20
    shallow, _ = index.search(users, 10)
    recall = index.tune(items, users, k=10, target=0.99)
    assert index.depth > 20 and recall >= 0.99
    exact = np.argsort(-(users @ items.T), axis=1)[:, :10]
    assert np.mean([np.isin(exact[row], shallow[row]).mean() for row in range(40)]) < 0.99
    found, _ = index.search(users, 10)
    assert recall == pytest.approx(np.mean([np.isin(exact[row], found[row]).mean() for row in range(40)]), abs=1e-3)
    flat = build_index(items)
    assert flat.tune(items, users) == 1.0


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_offsets_are_added_to_every_product(kind: Literal["flat", "hnsw"]) -> None:
    draw = np.random.default_rng(7)
    items, users = draw.normal(size=(400, 8)).astype(np.float32), draw.normal(size=(5, 8)).astype(np.float32)
    offsets = draw.exponential(3.0, 400).astype(np.float32)
    index = build_index(items, kind, offsets=offsets)
    sums = users @ items.T + offsets
    best = np.argsort(-sums, axis=1)[:, :20]
    positions, scores = index.search(users, 20)
    assert (positions == best).all() and (best != np.argsort(-(users @ items.T), axis=1)[:, :20]).any()
    assert scores == pytest.approx(np.take_along_axis(sums, best, axis=1), abs=1e-4)
    products = np.take_along_axis(users @ items.T, positions, axis=1)
    assert index.products(users, positions) == pytest.approx(products, abs=1e-4)
    among = np.arange(0, 400, 3)
    assert (index.search(users, 5, among)[0] == among[np.argsort(-sums[:, among], axis=1)[:, :5]]).all()
    assert index.tune(items, users, offsets=offsets, k=20) == 1.0
    assert build_index(items, kind).products(users, positions) == pytest.approx(products, abs=1e-4)
    with pytest.raises(ValueError, match="user vectors have 7 numbers, items 8"):
        index.search(users[:, :7], 3)


def test_an_index_keeps_its_offsets_on_disk(tmp_path: Path, vectors) -> None:
    users, items = vectors
    offsets = np.linspace(0, 40, len(items), dtype=np.float32)
    save_index(tmp_path / "index", np.arange(len(items)), items, space_id="a", notes={}, queries=users, offsets=offsets)
    loaded = load_index(tmp_path / "index")
    expected, _ = build_index(items, offsets=offsets).search(users, 10)
    assert (loaded.search(users, 10, space_id="a")[0] == expected).all()
    assert loaded.notes["offsets"] and loaded.notes["recall_at_100"] == 1.0


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
def test_own_items_are_ranked_as_if_every_item_had_been_scored(kind, offsets, filtered):
    rng = np.random.default_rng(3)
    users, items = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (7, 60))
    extra = rng.random(60).astype(np.float32) if offsets else None
    positions = np.stack([rng.choice(60, 9, replace=False) for _ in users])
    positions[2, 4:] = -1
    positions[5] = -1
    own = Own(positions, (2 * rng.random(positions.shape)).astype(np.float32))
    scores = users @ items.T + (extra if extra is not None else 0)
    for row, (places, added) in enumerate(zip(own.positions, own.added, strict=True)):
        scores[row, places[places >= 0]] += added[places >= 0]
    among = np.arange(0, 60, 2) if filtered else None
    if among is not None:
        scores[:, np.setdiff1d(np.arange(60), among)] = -np.inf
    index = build_index(items, kind, offsets=extra)
    found, told = index.search(users, 20, among, own)
    expected = np.argsort(-scores, axis=1)[:, :20]
    assert (found == expected).all()
    assert told == pytest.approx(np.take_along_axis(scores, expected, axis=1), abs=1e-5)
    assert index.products(users, found) == pytest.approx(np.take_along_axis(users @ items.T, found, axis=1), abs=1e-5)


def test_own_items_leave_places_empty_where_there_are_too_few():
    index = build_index(np.eye(3, dtype=np.float32))
    own = Own(np.array([[2, -1]]), np.ones((1, 2), np.float32))
    found, _ = index.search(np.eye(3, dtype=np.float32)[:1], 5, own=own)
    assert sorted(found[0, :3].tolist()) == [0, 1, 2] and found[0, 3:].tolist() == [-1, -1]
    assert index.products(np.ones((1, 3), np.float32), found)[0, 3:].tolist() == [0, 0]
    nobody = Own(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32))
    assert (index.search(np.eye(3)[:1], 3, own=nobody)[0] == index.search(np.eye(3)[:1], 3)[0]).all()
