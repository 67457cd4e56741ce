"""Baselines of retrieval and their scores."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

from feature_repo.contracts.errors import MissingExtraError
from models.downstream.baselines import als, popularity, score_retrieval


def test_popularity_breaks_ties_by_position():
    assert popularity([3, 7, 7, 1], 2, 3).tolist() == [[1, 2, 0]] * 2


def tastes(seed: int):
    """Return the purchases of 60 users, each of whom buys from one of 4 shelves of 10 items."""
    draw = np.random.default_rng(seed)
    users = np.repeat(np.arange(60), 15)
    return users, (users % 4) * 10 + draw.integers(10, size=len(users))


def test_als_finds_the_shelf_without_warnings_and_repeats():
    users, items = tastes(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = als(users, items, np.ones(len(users)), (62, 41), np.arange(62), 10, factors=8, seed=1)
    assert ((found[:60] // 10) == (np.arange(60) % 4)[:, None]).mean() > 0.95
    best = popularity(np.bincount(items, minlength=41), 2, 10)
    np.testing.assert_array_equal(found[60:], best)
    again = als(users, items, np.ones(len(users)), (62, 41), np.arange(62), 10, factors=8, seed=1)
    np.testing.assert_array_equal(found, again)


def test_als_says_nothing_of_the_threads_of_blas(monkeypatch):
    threads = pytest.importorskip("threadpoolctl")
    monkeypatch.setattr("implicit.utils._checked_blas_config", False)  # it warns once per process
    users, items = tastes(0)
    with threads.threadpool_limits(2, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        als(users, items, np.ones(len(users)), (62, 41), np.arange(62), 10, factors=8)


def test_als_with_fewer_items_than_k():
    users, items = tastes(0)
    found = als(users, items, np.ones(len(users)), (60, 40), np.array([5]), 50, factors=8)
    assert found.shape == (1, 50) and (found[:, 40:] == -1).all() and len(np.unique(found[:, :40])) == 40


def test_als_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[demo\]'"):
        als([0], [0], [1.0], (1, 1), [0], 1)


def test_score_against_brute_force_and_baseline():
    users, items = tastes(0)
    later_users, later = tastes(1)
    relevant = [np.unique(later[later_users == user]) for user in range(60)] + [np.array([], dtype=int)]
    query = np.append(np.arange(60), 0)
    found = als(users, items, np.ones(len(users)), (60, 40), query, 10, factors=8)
    best = popularity(np.bincount(items, minlength=40), 61, 10)
    score = score_retrieval(found, relevant, (1, 5, 10), baseline=best)
    for k in (1, 5, 10):
        one_by_one = [len({*found[user, :k]} & {*relevant[user]}) / len(relevant[user]) for user in range(60)]
        plain = [len({*best[user, :k]} & {*relevant[user]}) / len(relevant[user]) for user in range(60)]
        assert score.recall[k].value == pytest.approx(np.mean(one_by_one))
        assert score.ratio[k].value == pytest.approx(np.mean(one_by_one) / np.mean(plain))
    assert score.users == 60
    low, high = score.ratio[10].ci95
    assert 1.5 < low < score.ratio[10].value < high
    assert score_retrieval(found, relevant, (10,)).ratio == {}
    with pytest.raises(ValueError, match="no user has a relevant item"):
        score_retrieval(found, [[] for _ in range(61)], (10,))
