"""What vectors hold of tastes: all of it by the tastes' own products, and two halves together more than either."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.world_vectors import joined, of_tastes, shown, together
from jobs.world.config import checked
from models.upstream.outcome_frame import own_directions
from models.upstream.outcome_settings import OutcomeFoldIn

CONFIG = checked(users=400, items=100, days=6, impressions=60_000, seed=2)


def test_a_share_is_that_of_the_products_with_their_likeliest_slopes() -> None:
    rows = joined(shown(CONFIG, 3, 6))
    draw = np.random.default_rng(0)
    noise = draw.normal(size=len(rows.click))
    half = 0.5 * rows.liked + rows.liked.std() * noise
    other = rows.liked - half
    assert rows.share(3.0 * rows.liked[:, None]) == pytest.approx(1, abs=0.01)
    assert rows.share(noise[:, None]) == pytest.approx(0, abs=0.03)
    alone = [rows.share(part[:, None]) for part in (half, other)]
    assert max(alone) < 0.7 and rows.share(np.stack([half, other], axis=1)) == pytest.approx(1, abs=0.01)


def test_versions_are_read_alone_and_together() -> None:
    assert together(["v1", "v2", "v3"])[2:5] == [("v3",), ("v1", "v2"), ("v1", "v3")] and len(together(["a"])) == 1


def test_what_stands_beside_tastes_is_taken_out_of_what_was_folded_in_alone() -> None:
    draw = np.random.default_rng(0)
    ids = pl.Series([1, 2, 3])
    vectors = tuple((ids, draw.standard_normal((3, 32)).astype(np.float32)) for _ in range(2))
    told = of_tastes(vectors, OutcomeFoldIn(numbers=("price",)))  # type: ignore[arg-type]
    directions = own_directions(32, 1).numpy()
    for (_, left), (_, whole) in zip(told, vectors, strict=True):
        assert np.abs(left @ directions).max() < 1e-5
        assert np.allclose(left + whole @ directions @ directions.T, whole, atol=1e-5)
    # A model alone, and what was folded in before there were rates, have tastes along them.
    for config in (None, OutcomeFoldIn(rate=0.0, intercepts=False)):
        assert of_tastes(vectors, config) is vectors  # type: ignore[arg-type]
