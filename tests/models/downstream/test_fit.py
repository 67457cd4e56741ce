"""Training: determinism, early stopping, what embeddings may and may not bring, calibration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.bootstrap import bootstrap_lift
from models.downstream.batches import SPARSE_ROWS, table_layouts
from models.downstream.fit import FitConfig, fit_ranker, predict, sampling_offset
from models.downstream.ranker import Ranker, RankerConfig
from models.metrics import calibration, log_loss, roc_auc

SMALL = RankerConfig(hidden=(32, 16), token_dim=8, pair_dim=8, numeric_dim=16, cross_rank=16)
QUICK = FitConfig(ranker=SMALL, batch_size=256, max_epochs=8, learning_rate=3e-3, warmup_steps=10)


def assert_same_weights(one, other):
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone(spec, make_log):
    train, valid = make_log(1500), make_log(500, seed=1)
    config = dataclasses.replace(QUICK, max_epochs=1)
    before = torch.random.get_rng_state()
    first = fit_ranker(train, valid, spec, config, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12345)
    assert_same_weights(first.model, fit_ranker(train, valid, spec, config, seed=3).model)
    other = fit_ranker(train, valid, spec, config, seed=4)
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


def test_large_tables_learn_through_sparse_gradients(spec, make_log):
    wide = dataclasses.replace(spec, crosses=(("user_x_item", SPARSE_ROWS + 1, 4),))
    train, valid = make_log(1500), make_log(500, seed=1)
    config = dataclasses.replace(QUICK, max_epochs=1)
    fitted = fit_ranker(train, valid, wide, config, seed=3)
    assert_same_weights(fitted.model, fit_ranker(train, valid, wide, config, seed=3).model)
    torch.manual_seed(3)
    untrained = Ranker(wide, config.ranker)
    (column,) = (i for i, layout in enumerate(table_layouts(wide)) if layout.sparse)
    name = f"tables.{column}.weight"
    moved = (fitted.model.state_dict()[name] != untrained.state_dict()[name]).any(dim=1).numpy()
    seen = np.unique(train.crosses)
    assert moved[seen].mean() > 0.5
    moved[seen] = False
    assert not moved[1:].any()


def test_the_best_evaluation_is_kept_and_training_stops_after_it(spec, make_log):
    # Labels without any law: every step after the first is memory.
    train, valid = make_log(1000), make_log(1000, seed=1)
    draw = np.random.default_rng(5)
    train, valid = (
        dataclasses.replace(data, label=draw.integers(2, size=1000).astype(np.float32)) for data in (train, valid)
    )
    config = dataclasses.replace(QUICK, max_epochs=30, learning_rate=1e-2, patience=2)
    fitted = fit_ranker(train, valid, spec, config)
    losses = [look.valid_log_loss for look in fitted.history]
    assert len(losses) < 30 * config.evaluations_per_epoch
    assert int(np.argmin(losses)) == len(losses) - 1 - config.patience
    kept = log_loss(valid.label, predict(fitted.model, valid) + fitted.offset, valid.weight)
    assert kept == pytest.approx(min(losses), abs=1e-7)


def test_history_counts_epochs_and_seconds(spec, make_log):
    config = dataclasses.replace(QUICK, max_epochs=2, evaluations_per_epoch=2, patience=99)
    fitted = fit_ranker(make_log(1000), make_log(500, seed=1), spec, config)
    assert [look.epoch for look in fitted.history] == [0.5, 1.0, 1.5, 2.0]
    seconds = [look.seconds for look in fitted.history]
    assert seconds == sorted(seconds) and fitted.seconds >= seconds[-1]
    assert not fitted.model.training


def test_learns_what_is_planted_in_the_numbers(spec, make_log):
    plain = spec.with_embeddings(())
    test = make_log(4000, seed=2)
    fitted = fit_ranker(make_log(6000), make_log(2000, seed=1), plain, QUICK)
    truth = 0.8 * test.nums[:, 0] - 0.5 * test.nums[:, 1] ** 2
    best = roc_auc(test.label, truth)
    assert best - 0.02 < roc_auc(test.label, predict(fitted.model, test)) < best + 0.005


def test_a_planted_embedding_lifts_and_a_shuffled_one_does_not(spec, make_log):
    """Users and items of the test rows are known, so that ids alone could not carry the affinity so far."""
    config = dataclasses.replace(QUICK, max_epochs=5)

    def logits(shuffled: bool, names: tuple[str, ...]) -> np.ndarray:
        train, valid, test = (
            make_log(rows, seed=seed, affinity=3.0, shuffled=shuffled) for seed, rows in enumerate((5000, 2000, 5000))
        )
        fits = [fit_ranker(train, valid, spec.with_embeddings(names), config, seed) for seed in range(2)]
        return np.stack([predict(fitted.model, test) for fitted in fits])

    test = make_log(5000, seed=2, affinity=3.0)
    pair = ("user_v1", "item_v1")
    treatments = {"planted": logits(False, pair), "shuffled": logits(True, pair)}
    rows = bootstrap_lift(test.label, test.weight, test.user, logits(False, ()), treatments, resamples=100)
    assert rows["planted"].relative_auc_lift.ci95[0] > 0.05
    assert abs(rows["shuffled"].relative_auc_lift.value) < 0.01


def down_sampled(data, rate: float, seed: int):
    kept = (data.label > 0) | (np.random.default_rng(seed).random(len(data)) < rate)
    weight = np.where(data.label > 0, 1.0, 1.0 / rate).astype(np.float32)
    return dataclasses.replace(data, weight=weight).take(kept)


@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_hold_for_the_log_before_down_sampling(spec, make_log, weighted):
    plain = spec.with_embeddings(())
    train, valid = (down_sampled(make_log(rows, seed=seed), 0.1, seed) for seed, rows in ((0, 12_000), (1, 6000)))
    whole = make_log(6000, seed=2)
    config = dataclasses.replace(QUICK, weighted=weighted)
    fitted = fit_ranker(train, valid, plain, config)
    assert fitted.offset == (0.0 if weighted else pytest.approx(np.log(0.1), abs=1e-6))
    logits = predict(fitted.model, whole)
    assert calibration(whole.label, logits + fitted.offset).ratio == pytest.approx(1.0, abs=0.12)
    part = down_sampled(whole, 0.1, 3)
    thinned = predict(fitted.model, part) + fitted.offset
    assert log_loss(part.label, thinned, part.weight) == pytest.approx(
        log_loss(whole.label, logits + fitted.offset), abs=0.03
    )


def test_sampling_offset_by_hand():
    assert sampling_offset(np.array([1, 0, 0]), np.array([1.0, 10.0, 10.0])) == pytest.approx(-np.log(10))
    assert sampling_offset(np.array([1, 0]), np.array([2.0, 2.0])) == 0.0
    with pytest.raises(ValueError, match="one class only"):
        sampling_offset(np.ones(3), np.ones(3))


def test_more_embeddings_than_asked_for_are_ignored(spec, make_log):
    train, valid = make_log(600), make_log(300, seed=1)
    config = dataclasses.replace(QUICK, max_epochs=1)
    plain = spec.with_embeddings(())
    bare = dataclasses.replace(train, embeddings={})
    one = fit_ranker(train, valid, plain, config).model
    assert_same_weights(one, fit_ranker(bare, valid, plain, config).model)
