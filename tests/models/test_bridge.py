"""Maps between spaces: what is a rotation is found exactly, what is not is learned, and held-out entities decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_repo.contracts.errors import NotFoundError, NotReadyError
from models.bridge import Bridge, cosine, effective_rank, fit_bridge, neighbour_overlap, procrustes, unit


def space(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(7).normal(size=(dim, dim)))[0].astype(np.float32)


def test_a_rotation_is_found() -> None:
    old = space(300, 12)
    new = old @ rotation(12).T
    found = procrustes(new, old)
    assert np.allclose(found @ found.T, np.eye(12), atol=1e-5)
    assert cosine(new @ found, old).min() > 0.9999
    assert abs(cosine(new, old).mean()) < 0.5


def test_maps_between_dims_keep_lengths_where_they_can() -> None:
    old = space(300, 8)
    wide = np.concatenate([old, np.zeros((300, 4), np.float32)], axis=1) @ rotation(12)
    found = procrustes(wide, old)
    assert found.shape == (12, 8) and cosine(wide @ found, old).min() > 0.9999


def test_the_learned_map_wins_where_no_matrix_does() -> None:
    new = space(4000, 6)
    old = unit(np.abs(new) @ rotation(6) + 0.3 * new)
    bridge = fit_bridge(new, old)
    assert bridge.kind == "learned"
    assert bridge.held_out["learned"] > bridge.held_out["linear"] + 0.05 > bridge.held_out["procrustes"]
    fresh = space(200, 6, seed=5)
    assert cosine(bridge.map(fresh), unit(np.abs(fresh) @ rotation(6) + 0.3 * fresh)).mean() > 0.9


def test_rows_of_one_entity_never_fall_on_both_sides() -> None:
    """Old vectors that are noise per entity can be remembered only where an entity is on both sides."""
    new, old = space(60, 40), space(60, 40, seed=1)
    groups = np.repeat(np.arange(60), 5)
    bridge = fit_bridge(new[groups], old[groups], groups=groups)
    assert bridge.entities == 60 and max(bridge.held_out.values()) < 0.35


def test_a_bridge_survives_the_disk_and_brings_norms_along(tmp_path: Path) -> None:
    new = space(500, 6)
    old = unit(np.abs(new) + 0.1 * new)
    norms = np.random.default_rng(0).lognormal(0, 0.2, 500).astype(np.float32)
    bridge = fit_bridge(new, old, (norms, 10 * norms**2))
    bridge.save(tmp_path / "user.safetensors")
    again = Bridge.load(tmp_path / "user.safetensors")
    assert (again.kind, again.held_out, again.entities) == (bridge.kind, bridge.held_out, 500)
    assert np.array_equal(again.map(new), bridge.map(new))
    assert np.allclose(np.linalg.norm(again.map(new), axis=1), 1, atol=1e-5)
    assert np.allclose(again.map_norms(norms), 10 * norms**2, rtol=1e-3)
    with pytest.raises(NotFoundError, match="version bridge"):
        Bridge.load(tmp_path / "item.safetensors")


def test_too_few_common_entities_are_refused() -> None:
    with pytest.raises(NotReadyError, match="Only 49 entities"):
        fit_bridge(space(49, 4), space(49, 4, seed=1))


def test_neighbours_and_rank_do_not_see_rotations() -> None:
    old = space(400, 8)
    turned = old @ rotation(8)
    assert neighbour_overlap(turned, old) == pytest.approx(1, abs=0.01)
    assert neighbour_overlap(space(400, 8, seed=3), old) < 0.1
    assert effective_rank(turned) == pytest.approx(effective_rank(old), rel=1e-4)
    assert effective_rank(old) == pytest.approx(8, abs=0.2)
    flat = old.copy()
    flat[:, 2:] = 0
    assert effective_rank(flat) == pytest.approx(2, abs=0.1)
