"""How much of a world's possible gain could be known at a refresh."""

from __future__ import annotations

import numpy as np

from benchmarks.world_knowable import STEPS, TasteFilter, knowable
from jobs.world.config import checked
from models.metrics import roc_auc


def test_the_filter_adds_what_it_is_told_as_bayes_would() -> None:
    config = checked(users=20, items=100, days=2, dim=3)
    tastes, rng = TasteFilter(config), np.random.default_rng(0)
    tastes.forget(0.7)
    before_mean, before_cov = tastes.mean_US.copy(), tastes.cov_USS.copy()
    root = rng.normal(size=(20, 3, 3))
    gradient, information = rng.normal(size=(20, 3)), root @ root.transpose(0, 2, 1)
    tastes.learn(gradient, information)
    both = tastes.sum_DS
    precision = np.linalg.inv(before_cov) + both.T @ information @ both
    np.testing.assert_allclose(tastes.cov_USS, np.linalg.inv(precision), atol=1e-9)
    moved = np.linalg.solve(precision, (gradient @ both)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(tastes.mean_US, before_mean + moved, atol=1e-9)


def test_what_moves_is_forgotten_and_grows_uncertain_again() -> None:
    config = checked(users=20, items=100, days=2, dim=3)
    tastes = TasteFilter(config)
    fresh = tastes.cov_USS.copy()
    tastes.learn(np.ones((20, 3)), np.tile(np.eye(3) * 50, (20, 1, 1)))
    known, mean = tastes.cov_USS.copy(), tastes.mean_US.copy()
    tastes.forget(0.0)
    np.testing.assert_allclose(tastes.mean_US[:, :3], mean[:, :3])
    assert not tastes.mean_US[:, 3:].any()
    np.testing.assert_allclose(tastes.cov_USS[:, 3:, 3:], fresh[:, 3:, 3:])
    np.testing.assert_allclose(tastes.cov_USS[:, :3, :3], known[:, :3, :3])


def test_every_step_of_knowing_more_scores_better() -> None:
    label, scores = knowable(checked(users=80, items=120, days=42, impressions=120_000, seed=3))
    auc = {name: roc_auc(label, scores[name]) for name, _ in STEPS}
    assert auc["biases"] + 0.01 < auc["filtered"] < auc["refresh"] - 0.01
    assert auc["stays"] < auc["refresh"] < auc["moment"] < auc["truth"]
