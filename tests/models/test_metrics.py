"""Metrics against scikit-learn and loops; intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as reference

from models.bootstrap import bootstrap_lift, bootstrap_mean, bootstrap_ratio, user_counts
from models.metrics import (
    calibration,
    hit_matrix,
    log_loss,
    normalized_entropy,
    recall_at_k,
    relative_lift,
    roc_auc,
    share_of_possible_gain,
    sigmoid,
)


def clicks(rows: int, *, seed: int = 0, users: int = 50, decimals: int = 2):
    """Return label, logits with many ties, weight, user."""
    draw = np.random.default_rng(seed)
    logits = np.round(draw.normal(size=rows) - 1, decimals)
    label = (draw.random(rows) < sigmoid(logits)).astype(np.float32)
    return label, logits, draw.uniform(0.1, 20, size=rows), draw.integers(users, size=rows)


def slow_auc(label, score, weight):
    above = total = 0.0
    for i in np.flatnonzero(np.asarray(label) > 0.5):
        for j in np.flatnonzero(np.asarray(label) < 0.5):
            pair = weight[i] * weight[j]
            total += pair
            above += pair * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    return above / total


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, 14, elements=st.sampled_from([0.0, 1.0])),
    arrays(np.float64, 14, elements=st.integers(-3, 3).map(float)),
    arrays(np.float64, 14, elements=st.floats(0.1, 50)),
)
def test_auc_equals_all_pairs(label, score, weight):
    label[:2] = 0, 1
    assert roc_auc(label, score, weight) == pytest.approx(slow_auc(label, score, weight), abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 2, 9])
def test_metrics_equal_scikit_learn(decimals):
    label, logits, weight, _ = clicks(5000, decimals=decimals)
    odds = sigmoid(logits)
    assert roc_auc(label, logits, weight) == pytest.approx(
        reference.roc_auc_score(label, logits, sample_weight=weight), abs=1e-12
    )
    assert roc_auc(label, logits) == pytest.approx(reference.roc_auc_score(label, logits), abs=1e-12)
    loss = reference.log_loss(label, odds, sample_weight=weight)
    assert log_loss(label, logits, weight) == pytest.approx(loss, abs=1e-12)
    rate = np.full(len(label), np.average(label, weights=weight))
    entropy = reference.log_loss(label, rate, sample_weight=weight)
    assert normalized_entropy(label, logits, weight) == pytest.approx(loss / entropy, abs=1e-12)


def test_weights_mean_repeated_rows():
    label, logits, _, _ = clicks(300)
    times = np.random.default_rng(1).integers(1, 6, size=300)
    repeated = [np.repeat(values, times) for values in (label, logits)]
    for metric in (roc_auc, log_loss, normalized_entropy):
        assert metric(label, logits, times) == pytest.approx(metric(*repeated), abs=1e-12)
    assert calibration(label, logits, times).ratio == pytest.approx(calibration(*repeated).ratio)


def test_knowing_the_rate_alone_is_a_normalized_entropy_of_one():
    label = np.repeat([0.0, 1.0], [30, 10])
    assert normalized_entropy(label, np.full(40, math.log(1 / 3))) == pytest.approx(1.0)


def test_logits_far_out_lose_nothing():
    assert log_loss([0.0, 1.0], [800.0, 800.0]) == pytest.approx(400.0)
    assert sigmoid([-800.0, 0.0, 800.0]).tolist() == [0.0, 0.5, 1.0]


def test_float32_scores_keep_their_ties():
    label, logits, weight, _ = clicks(2000)
    assert roc_auc(label, logits.astype(np.float32), weight) == pytest.approx(roc_auc(label, logits, weight), abs=1e-12)


@pytest.mark.parametrize(
    ("label", "score", "weight", "words"),
    [
        ([1, 1], [0.1, 0.2], None, "one class only"),
        ([0, 1], [0.1, 0.2], [0.0, 1.0], "one class only"),
        ([], [], None, "one class only"),
        ([0, 1], [0.1], None, "shapes differ"),
        ([0, 1], [0.1, np.nan], None, "1 of 2 scores are not finite"),
    ],
)
def test_metrics_refuse(label, score, weight, words):
    for metric in (roc_auc, log_loss, normalized_entropy, calibration):
        with pytest.raises(ValueError, match=words):
            metric(label, score, weight)


def test_calibration_of_the_truth_and_of_twice_the_odds():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=100_000) - 2
    label = draw.random(100_000) < sigmoid(logits)
    right, wrong = calibration(label, logits), calibration(label, logits + math.log(2))
    assert right.ratio == pytest.approx(1.0, abs=0.02) and right.expected_error < 0.005
    assert wrong.ratio > 1.5 and wrong.expected_error > 0.08


def test_calibration_bins_by_hand():
    logits = np.log([1 / 4, 1 / 4, 1.0, 4.0])
    table = calibration([0, 1, 0, 1], logits, [1.0, 1.0, 2.0, 4.0], bins=2)
    low, high = table.bins
    # The two equal predictions stay together; half of the weight ends after the third row.
    assert (low.low, low.high, low.weight) == pytest.approx((0.2, 0.5, 4.0))
    assert (low.predicted, low.observed) == pytest.approx((0.35, 0.25))
    assert (high.weight, high.predicted, high.observed) == pytest.approx((4.0, 0.8, 1.0))
    assert table.expected_error == pytest.approx((4 * 0.10 + 4 * 0.2) / 8)
    assert table.ratio == pytest.approx((0.35 * 4 + 0.8 * 4) / 5)


@pytest.mark.parametrize("bins", [1, 7, 5000])
def test_calibration_loses_no_weight(bins):
    label, logits, weight, _ = clicks(500)
    table = calibration(label, logits, weight, bins)
    assert sum(row.weight for row in table.bins) == pytest.approx(weight.sum())
    assert len(table.bins) <= bins
    assert all(row.low - 1e-12 <= row.predicted <= row.high + 1e-12 for row in table.bins)
    with pytest.raises(ValueError, match="bins is 0"):
        calibration(label, logits, weight, 0)


def test_bootstrap_equals_repeating_users_by_hand():
    label, logits, weight, user = clicks(400, users=20)
    draw = np.random.default_rng(4)
    baseline, treatment = (logits + draw.normal(size=(2, 400)) for _ in range(2))
    row = bootstrap_lift(label, weight, user, baseline, {"new": treatment}, resamples=30, seed=7)["new"]
    lifts, losses, entropies, ratios = [], [], [], []
    for counts in user_counts(20, 30, 7):
        rows = np.concatenate([np.tile(np.flatnonzero(user == u), int(n)) for u, n in enumerate(counts)])
        part = [(label[rows], scores[rows], weight[rows]) for scores in (*baseline, *treatment)]
        aucs = [roc_auc(*one) for one in part]
        lifts.append(np.mean([relative_lift(aucs[s], aucs[2 + s]) for s in range(2)]))
        losses.append(np.mean([log_loss(*part[2 + s]) - log_loss(*part[s]) for s in range(2)]))
        entropies.append(np.mean([normalized_entropy(*one) for one in part[2:]]))
        ratios.append(np.mean([calibration(*one).ratio for one in part[2:]]))
    ends = (0.025, 0.975)
    assert row.relative_auc_lift.ci95 == pytest.approx(np.quantile(lifts, ends), abs=1e-12)
    assert row.log_loss_change.ci95 == pytest.approx(np.quantile(losses, ends), abs=1e-12)
    assert row.normalized_entropy.ci95 == pytest.approx(np.quantile(entropies, ends), abs=1e-12)
    assert row.calibration.ci95 == pytest.approx(np.quantile(ratios, ends), abs=1e-12)


def test_bootstrap_values_are_the_plain_metrics():
    label, logits, weight, user = clicks(3000)
    noise = np.random.default_rng(1).normal(size=(3, 3000))
    baseline, treatment = logits + noise, logits + 0.5 * noise
    rows = bootstrap_lift(label, weight, user, baseline, {"new": treatment}, resamples=20)
    assert list(rows) == ["baseline", "new"]
    for name, logits_of in (("baseline", baseline), ("new", treatment)):
        for metric in (roc_auc, log_loss, normalized_entropy):
            expected = np.mean([metric(label, scores, weight) for scores in logits_of])
            field = {"roc_auc": "auc"}.get(metric.__name__, metric.__name__)
            assert getattr(rows[name], field).value == pytest.approx(expected, abs=1e-12)
        expected = np.mean([calibration(label, scores, weight).ratio for scores in logits_of])
        assert rows[name].calibration.value == pytest.approx(expected)
    lifts = [
        roc_auc(label, t, weight) / roc_auc(label, b, weight) - 1 for b, t in zip(baseline, treatment, strict=True)
    ]
    assert rows["new"].seed_auc_lifts == pytest.approx(lifts)
    assert rows["new"].relative_auc_lift.value == pytest.approx(np.mean(lifts))
    assert rows["baseline"].relative_auc_lift.ci95 == (0.0, 0.0)


def test_bootstrap_repeats_by_seed():
    label, logits, weight, user = clicks(1000)
    noisy = logits + np.random.default_rng(1).normal(size=1000)

    def row(seed):
        return bootstrap_lift(label, weight, user, noisy, {"new": logits}, resamples=50, seed=seed)["new"]

    assert row(0) == row(0)
    assert row(0).relative_auc_lift.ci95 != row(1).relative_auc_lift.ci95


def test_user_names_do_not_matter():
    label, logits, weight, user = clicks(1000)
    noisy = logits + np.random.default_rng(1).normal(size=1000)
    args = (noisy, {"new": logits})
    far = user * 10**15 - 10**17
    assert bootstrap_lift(label, weight, far, *args, resamples=20) == bootstrap_lift(
        label, weight, user, *args, resamples=20
    )


def test_interval_covers_the_truth_where_rows_of_a_user_agree():
    """Users differ in how well the treatment serves them, so an interval over rows would be far too short."""
    draw = np.random.default_rng(0)

    def log(users: int):
        user = np.repeat(np.arange(users), 20)
        taste = draw.normal(size=users)[user]
        baseline = draw.normal(size=len(user))
        label = (draw.random(len(user)) < sigmoid(baseline + 1.2 * taste - 1)).astype(float)
        return label, user, baseline, baseline + 0.6 * taste

    label, _, baseline, treatment = log(20_000)
    truth = relative_lift(roc_auc(label, baseline), roc_auc(label, treatment))
    covered = 0
    for _ in range(60):
        label, user, baseline, treatment = log(150)
        row = bootstrap_lift(label, np.ones(len(label)), user, baseline, {"new": treatment}, resamples=120)["new"]
        low, high = row.relative_auc_lift.ci95
        covered += low <= truth <= high
    # 57 expected of 60; fewer than 51 would happen once in a thousand times.
    assert covered >= 51


def test_no_difference_has_an_interval_around_zero():
    label, logits, weight, user = clicks(20_000, users=400)
    draw = np.random.default_rng(2)
    one, other = (logits + draw.normal(size=(3, 20_000)) for _ in range(2))
    low, high = bootstrap_lift(label, weight, user, one, {"same": other})["same"].relative_auc_lift.ci95
    assert low < 0 < high


def test_bootstrap_refuses():
    label, logits, weight, user = clicks(100)
    with pytest.raises(ValueError, match=r"'new' have shape \(2, 100\), expected \(1, 100\)"):
        bootstrap_lift(label, weight, user, logits, {"new": np.stack([logits, logits])})
    with pytest.raises(ValueError, match="no treatment may be named 'baseline'"):
        bootstrap_lift(label, weight, user, logits, {"baseline": logits})
    with pytest.raises(ValueError, match="99 users for 100 labels"):
        bootstrap_lift(label, weight, user[1:], logits, {})
    lonely = np.zeros(100)
    lonely[0] = 1
    with pytest.raises(ValueError, match="resamples hold one class only"):
        bootstrap_lift(lonely, weight, np.arange(100), logits, {})


def test_user_counts_are_whole_draws():
    counts = user_counts(30, 40, 0)
    assert counts.shape == (40, 30) and (counts.sum(axis=1) == 30).all()


def test_recall_against_sets():
    draw = np.random.default_rng(0)
    retrieved = np.stack([draw.permutation(50)[:20] for _ in range(30)])
    retrieved[3, 10:] = -1
    relevant = [draw.choice(60, size=draw.integers(0, 9), replace=False) for _ in range(30)]
    relevant[0] = np.array([], dtype=int)
    recall = recall_at_k(retrieved, relevant, (1, 10, 20))
    for k, values in recall.items():
        for user, items in enumerate(relevant):
            expected = len({*retrieved[user, :k]} & {*items}) / len(items) if len(items) else np.nan
            assert values[user] == pytest.approx(expected, nan_ok=True)


def test_recall_refuses():
    with pytest.raises(ValueError, match=r"k of \[100\] with 2 retrieved"):
        recall_at_k([[1, 2]], [[1]], (1, 100))
    with pytest.raises(ValueError, match="for 2 users"):
        recall_at_k([[1, 2]], [[1], [2]], (1,))


def test_nothing_retrieved_hits_nothing():
    assert not hit_matrix(np.full((2, 3), -1), [[], []]).any()
    assert not hit_matrix(np.full((2, 3), -1), [[0, 1], [2]]).any()


def test_bootstrap_of_means_and_ratios():
    draw = np.random.default_rng(0)
    below = draw.uniform(size=500)
    above = 2 * below + draw.normal(scale=0.1, size=500)
    mean, ratio = bootstrap_mean(below), bootstrap_ratio(above, below)
    width = mean.ci95[1] - mean.ci95[0]
    assert mean.value == pytest.approx(below.mean())
    assert width == pytest.approx(2 * 1.96 * below.std() / 500**0.5, rel=0.15)
    # Paired: the ratio is far better known than either mean.
    assert ratio.ci95[0] < 2 < ratio.ci95[1] and ratio.ci95[1] - ratio.ci95[0] < 0.05
    assert bootstrap_mean(below) == mean
    with pytest.raises(ValueError, match="one value per user"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="shapes"):
        bootstrap_ratio([1.0], [1.0, 2.0])


def test_share_of_possible_gain_places_a_model_between_baseline_and_oracle() -> None:
    assert share_of_possible_gain([0.70, 0.80, 0.76, 0.68], 0.70, 0.80) == pytest.approx([0.0, 1.0, 0.6, -0.2])
    assert np.isnan(share_of_possible_gain(0.75, 0.80, 0.80))


def test_the_lift_table_carries_the_share_with_its_interval_where_the_truth_is_known() -> None:
    rng = np.random.default_rng(5)
    user = rng.integers(400, size=20_000)
    known, hidden = rng.normal(size=(2, 20_000))
    label = rng.random(20_000) < sigmoid(known + hidden - 1.5)
    baseline = np.stack([known + 0.1 * rng.normal(size=20_000) for _ in range(2)])
    treatment = baseline + 0.5 * hidden
    arguments = (label, np.ones(20_000), user, baseline, {"half": treatment})
    table = bootstrap_lift(*arguments, oracle=known + hidden - 1.5, resamples=100)
    assert list(table) == ["baseline", "half", "oracle"]
    share = table["half"].share_of_possible_gain
    assert share is not None and table["baseline"].share_of_possible_gain is not None
    auc = {name: row.auc.value for name, row in table.items()}
    assert share.value == pytest.approx((auc["half"] - auc["baseline"]) / (auc["oracle"] - auc["baseline"]))
    assert 0.5 < share.ci95[0] < share.value < share.ci95[1] < 1
    assert table["baseline"].share_of_possible_gain.value == 0
    assert table["oracle"].share_of_possible_gain.value == 1  # type: ignore[union-attr]
    without = bootstrap_lift(*arguments, resamples=100)
    assert without["half"].share_of_possible_gain is None
    assert without["half"].relative_auc_lift == table["half"].relative_auc_lift, "an oracle changes no other number"
    with pytest.raises(ValueError, match="oracle"):
        bootstrap_lift(label, np.ones(20_000), user, baseline, {"oracle": treatment})
