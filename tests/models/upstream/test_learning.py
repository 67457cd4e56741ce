"""The upstream model learns what is planted, ends the same twice, and resumes to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import presets
from models.training import History, TrainConfig, fit
from models.upstream import DERM, InputSpec, TrainBatch

TASTES = 6


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


@pytest.fixture
def taste_spec() -> InputSpec:
    return InputSpec(
        user_cats=(3,),
        user_nums=1,
        item_cats=(TASTES + 1,),
        item_nums=1,
        item_rows=61,
        actions=2,
        sequence_length=6,
        interests=3,
        top_items=5,
    )


def tastes(make_batch: Callable[..., TrainBatch], spec: InputSpec, seed: int) -> TrainBatch:
    """Users like one kind of item, seen in their interests alone; they click what they like, mostly."""
    batch = make_batch(spec, rows=512, users=100, items=60, pairs=100, seed=seed)
    rng = torch.Generator().manual_seed(seed + 1)
    liked = torch.randint(1, TASTES + 1, (100,), generator=rng)
    kind = torch.arange(60) % TASTES + 1
    value, weight = torch.zeros(100, 1, 3, dtype=torch.int64), torch.zeros(100, 1, 3)
    value[:, 0, 0], weight[:, 0, 0] = liked, 1.0
    match = liked[batch.user_index] == kind[batch.item_index]
    click = (torch.rand(512, generator=rng) < torch.where(match, 0.9, 0.05)).float()
    pair_item = torch.randint(0, 10, (100,), generator=rng) * TASTES + liked - 1
    return replace(
        batch,
        user=replace(batch.user, interest_value=value, interest_weight=weight),
        item=replace(batch.item, row=1 + torch.arange(60), cats=kind[:, None]),
        click=click,
        click_known=torch.ones(512, dtype=torch.bool),
        positive=click > 0,
        item_log_q=torch.zeros(60),
        pos_user_index=torch.arange(100),
        pos_item_index=pair_item,
    )


def auc(score: torch.Tensor, label: torch.Tensor) -> float:
    positive, negative = score[label > 0], score[label == 0]
    return (positive[:, None] > negative[None, :]).float().mean().item()


def trained(
    batches: list[TrainBatch],
    spec: InputSpec,
    train: TrainConfig,
    folder: Path | None = None,
    kill_after: int | None = None,
    weighting: str = "fixed",
) -> tuple[DERM, History]:
    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == kill_after:
            raise Killed

    config = presets.debug().model(spec)
    model = DERM(replace(config, losses=replace(config.losses, weighting=weighting)))  # type: ignore[arg-type]
    history = fit(model, lambda epoch: batches, config=train, progress=progress, checkpoint_dir=folder)
    return model, history


def assert_same_bits(first: DERM, second: DERM) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_it_learns_a_planted_taste(taste_spec: InputSpec, make_batch: Callable[..., TrainBatch]) -> None:
    batches = [tastes(make_batch, taste_spec, seed) for seed in range(20)]
    train = TrainConfig(epochs=5, learning_rate=1e-2, embedding_learning_rate=1e-2)
    model, history = trained(batches, taste_spec, train)
    total = history.curve("total")
    assert total[-1] < 0.8 * total[0]
    held_out = tastes(make_batch, taste_spec, 1000)
    with torch.no_grad():
        out = model(held_out)
    assert auc(out.click_logit, held_out.click) > 0.8
    # The vectors alone carry it too: that is what retrieval and consumers get.
    similarity = (out.user_vector[held_out.user_index] * out.item_vector[held_out.item_index]).sum(1)
    assert auc(similarity, held_out.click) > 0.8


def test_two_runs_give_the_same_weights(spec: InputSpec, make_batch: Callable[..., TrainBatch]) -> None:
    batches = [make_batch(spec, seed=seed) for seed in range(4)]
    train = TrainConfig(epochs=2)
    (first, curve), (second, again) = (trained(batches, spec, train) for _ in range(2))
    assert_same_bits(first, second)
    assert curve == again
    third, _ = trained(batches, spec, replace(train, seed=1))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize("kill_after", [1, 3, 4, 7, 8])
def test_a_killed_run_ends_with_the_same_weights_and_curve(
    spec: InputSpec, make_batch: Callable[..., TrainBatch], tmp_path: Path, kill_after: int
) -> None:
    batches = [make_batch(spec, seed=seed) for seed in range(4)]
    train = TrainConfig(epochs=2, checkpoint_every=3, log_every=2)
    undisturbed, curve = trained(batches, spec, train)
    with pytest.raises(Killed):
        trained(batches, spec, train, tmp_path / "checkpoint", kill_after)
    resumed, again = trained(batches, spec, train, tmp_path / "checkpoint")
    assert_same_bits(undisturbed, resumed)
    assert again.records == curve.records
    assert again.resumed_from == (8 if kill_after == 8 else kill_after // 3 * 3)


@pytest.mark.parametrize(
    ("change", "weighting"),
    [
        ({"precision": "bfloat16"}, "fixed"),
        ({"ahead": 3}, "fixed"),
        ({"precision": "bfloat16", "ahead": 2}, "uncertainty"),
    ],
)
def test_a_killed_run_ends_the_same_in_every_way_of_training(
    spec: InputSpec, make_batch: Callable[..., TrainBatch], tmp_path: Path, change: dict, weighting: str
) -> None:
    batches = [make_batch(spec, seed=seed) for seed in range(4)]
    train = TrainConfig(epochs=2, checkpoint_every=3, log_every=2, **change)
    undisturbed, curve = trained(batches, spec, train, weighting=weighting)
    with pytest.raises(Killed):
        trained(batches, spec, train, tmp_path / "checkpoint", 5, weighting)
    resumed, again = trained(batches, spec, train, tmp_path / "checkpoint", weighting=weighting)
    assert_same_bits(undisturbed, resumed)
    assert again.records == curve.records and again.resumed_from == 3


def test_reading_ahead_changes_no_bit_and_mixed_precision_few(
    spec: InputSpec, make_batch: Callable[..., TrainBatch]
) -> None:
    batches = [make_batch(spec, seed=seed) for seed in range(4)]
    plain, curve = trained(batches, spec, TrainConfig(log_every=1))
    ahead, same = trained(batches, spec, TrainConfig(log_every=1, ahead=2))
    assert_same_bits(plain, ahead)
    assert same.records == curve.records
    mixed, near = trained(batches, spec, TrainConfig(log_every=1, precision="bfloat16"))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), mixed.parameters(), strict=True))
    assert near.curve("total") == pytest.approx(curve.curve("total"), rel=0.05)
    assert all(value.dtype == torch.float32 for value in mixed.state_dict().values() if value.is_floating_point())


def test_vectors_and_losses_are_full_precision_under_autocast(
    spec: InputSpec, make_batch: Callable[..., TrainBatch]
) -> None:
    model, batch = DERM(presets.debug().model(spec)), make_batch(spec)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert {out.user_vector.dtype, out.item_vector.dtype, out.click_logit.dtype} == {torch.float32}
    torch.testing.assert_close(out.user_vector.norm(dim=1), torch.ones(20))
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())


def test_what_is_compiled_trains_the_model_itself(
    spec: InputSpec, make_batch: Callable[..., TrainBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself takes longer than a test may; it is measured in docs/training.md."""
    asked: list[torch.nn.Module] = []

    def compiled(model: torch.nn.Module, *, dynamic: bool) -> Callable[..., object]:
        assert dynamic  # no two batches have the same number of users
        asked.append(model)
        return lambda batch: model(batch)

    monkeypatch.setattr(torch, "compile", compiled)
    batches = [make_batch(spec, seed=seed) for seed in range(2)]
    plain, _ = trained(batches, spec, TrainConfig(epochs=1))
    assert not asked
    model, _ = trained(batches, spec, TrainConfig(epochs=1, compile=True))
    assert asked == [model]
    assert_same_bits(plain, model)
