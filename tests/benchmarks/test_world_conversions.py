"""What published vectors tell of conversions: the measure itself."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.world_conversions import Clicked, clicked, expected_auc, foreseen, inputs
from jobs.world.config import checked
from models.metrics import roc_auc

CONFIG = checked(users=400, items=100, days=6, impressions=60_000, seed=2)


def test_expected_auc_is_what_drawn_outcomes_come_to() -> None:
    draw = np.random.default_rng(0)
    chance = draw.beta(1, 6, 20_000)
    score = np.log(chance) + draw.normal(size=len(chance))
    drawn = [roc_auc(draw.random(len(chance)) < chance, score) for _ in range(20)]
    assert expected_auc(score, chance) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20**0.5)
    assert expected_auc(np.zeros(len(chance)), np.full(len(chance), 0.3)) == pytest.approx(0.5)


def test_days_hold_the_clicks_with_their_true_probabilities() -> None:
    first, second = clicked(CONFIG, 4, 6)
    assert len(first.user) > 100 and len(second.user) > 100
    assert first.item.max() < CONFIG.items and 0 < first.chance.min() < first.chance.max() < 1


def test_vectors_that_know_the_truth_foresee_it_and_strangers_are_the_mean() -> None:
    (day,) = clicked(CONFIG, 5, 6)
    logit = np.log(day.chance / (1 - day.chance))
    draw = np.random.default_rng(1)
    user_part, item_part = draw.normal(size=CONFIG.users), draw.normal(size=CONFIG.items)
    told = user_part[day.user] + item_part[day.item]

    def tell(values: np.ndarray) -> tuple[pl.Series, np.ndarray]:
        vectors = np.stack([values, draw.normal(size=len(values))], axis=1).astype(np.float32)
        return pl.Series(np.arange(1, len(values) + 1)), vectors

    given = inputs((tell(user_part), tell(item_part)), day, CONFIG)
    found = foreseen(given, told, day.user)
    assert np.corrcoef(found, told)[0, 1] > 0.95
    assert abs(np.corrcoef(foreseen(given, logit[::-1], day.user), told)[0, 1]) < 0.5
    ids, vectors = tell(user_part)
    missing = inputs(
        ((ids[1:], vectors[1:]), tell(item_part)), Clicked(*(part[:0] for part in vars(day).values())), CONFIG
    )
    assert missing.shape == (0, given.shape[1])
    stranger = Clicked(np.array([0]), np.array([0]), np.array([0]), np.array([0.1]))
    row = inputs(((ids[1:], vectors[1:]), tell(item_part)), stranger, CONFIG)
    assert row[0, 3:5].tolist() == [0.0, 0.0] and row[0, 7:9].tolist() == [0.0, 1.0]
