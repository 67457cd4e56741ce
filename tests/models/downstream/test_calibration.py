"""Calibration: it mends what it should, keeps the order, and is what serving reads."""

from __future__ import annotations

import numpy as np
import pytest

from models.downstream.artifact import load_ranker, save_ranker
from models.downstream.calibration import Calibration, fit_calibration
from models.downstream.ranker import Ranker, RankerConfig
from models.metrics import calibration, log_loss, roc_auc, sigmoid

METHODS = ["platt", "isotonic"]


def rows(
    count: int = 20_000, *, seed: int = 0, slope: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and log-odds that are `slope` times as sure and `shift` too high."""
    draw = np.random.default_rng(seed)
    true = draw.normal(-2.0, 1.0, size=count)
    return (draw.random(count) < sigmoid(true)).astype(np.float32), true * slope + shift


@pytest.mark.parametrize("method", METHODS)
def test_too_sure_and_too_high_scores_are_mended_on_later_rows(method):
    learned = fit_calibration(method, *rows(slope=2.0, shift=1.0))
    label, logits = rows(seed=1, slope=2.0, shift=1.0)
    mended = learned.apply(logits)
    assert calibration(label, logits).expected_error > 0.03
    assert calibration(label, mended).expected_error < 0.01
    assert log_loss(label, mended) < log_loss(label, logits) - 0.02
    assert roc_auc(label, mended) == pytest.approx(roc_auc(label, logits), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_it_rises_everywhere_and_survives_json(method):
    learned = fit_calibration(method, *rows(400))
    scores = np.linspace(-40, 40, 2001)
    assert (np.diff(learned.apply(scores)) > 0).all()
    again = Calibration.from_dict(learned.to_dict())
    np.testing.assert_array_equal(again.apply(scores), learned.apply(scores))


def test_platt_finds_slope_and_intercept():
    label, logits = rows(200_000, slope=2.0, shift=1.0)
    learned = fit_calibration("platt", label, logits)
    assert learned.slope == pytest.approx(0.5, abs=0.02)
    assert float(learned.apply(1.0)) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_rows(method):
    label, logits = rows(1000)
    weight = np.where(label > 0.5, 1.0, 3.0)
    repeated = np.repeat(np.arange(1000), weight.astype(int))
    one, other = (
        fit_calibration(method, label, logits, weight),
        fit_calibration(method, label[repeated], logits[repeated]),
    )
    inner = np.quantile(logits, np.linspace(0.5, 0.9, 50))  # how sure the outermost steps may be hangs on the rows
    np.testing.assert_allclose(one.apply(inner), other.apply(inner), atol=1e-6)


def test_scores_that_fall_with_the_labels_are_not_turned_around():
    label, logits = rows(2000)
    learned = fit_calibration("platt", label, -logits)
    assert learned.slope == 1.0
    assert sigmoid(learned.apply(-logits)).mean() == pytest.approx(label.mean(), rel=1e-3)


def test_a_served_ranker_is_calibrated(spec, tmp_path):
    learned = Calibration("platt", (0.0,), (0.25,), 0.5)
    spaces = {"user_v1": "aa", "item_v1": "aa"}
    config = RankerConfig(hidden=(4,), token_dim=4, pair_dim=2, numeric_dim=2)
    save_ranker(Ranker(spec, config), tmp_path, spaces, {"offset": -1.0, "calibration": learned.to_dict()})
    saved = load_ranker(tmp_path, spaces)
    np.testing.assert_allclose(saved.log_odds(np.array([3.0], np.float32)), [0.5 * 2.0 + 0.25])
