"""Corrections for several comparisons: by hand, and by counting false finds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.bootstrap import Interval, bootstrap_lift
from models.multiplicity import holm, p_value, simultaneous


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.4]) == [0.8, None, 0.8]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_p_value_and_simultaneous_interval_say_the_same() -> None:
    found = Interval(2.5, (0.0, 0.0), 1.0)
    assert p_value(found) == pytest.approx(0.0124, abs=1e-4)
    assert simultaneous(found, 1) == pytest.approx((0.54, 4.46), abs=0.01)
    # Below zero for eight comparisons at 5% is a p-value above 0.05 / 8.
    assert simultaneous(found, 8)[0] < 0 < simultaneous(found, 4)[0] + 0.01
    assert p_value(Interval(0.0, (0.0, 0.0), 0.0)) is None
    assert p_value(Interval(0.0, (0.0, 0.0))) is None


def test_families_without_any_effect_are_seldom_found_to_have_one() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 10))
    plain = adjusted = 0
    for row in draws:
        values = [p_value(Interval(float(value), (0.0, 0.0), 1.0)) for value in row]
        plain += min(values) < 0.05  # type: ignore[type-var, operator]
        adjusted += min(holm(values)) < 0.05  # type: ignore[type-var, operator]
    assert plain / 2000 == pytest.approx(1 - 0.95**10, abs=0.04)
    assert adjusted / 2000 == pytest.approx(0.05, abs=0.02)


def test_error_of_a_lift_is_that_of_its_interval() -> None:
    generator = np.random.default_rng(1)
    user = np.repeat(np.arange(400), 20)
    taste = generator.normal(size=8000)
    label = (generator.random(8000) < 1 / (1 + np.exp(-taste))).astype(float)
    noisy = taste + generator.normal(size=8000)
    found = bootstrap_lift(label, np.ones(8000), user, noisy, {"better": taste})["better"].relative_auc_lift
    width = found.ci95[1] - found.ci95[0]
    assert math.isclose(found.error, width / 3.92, rel_tol=0.25)
