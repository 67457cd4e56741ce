"""Row-wise Adagrad for tables beside AdamW for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from feature_repo.contracts.errors import ConfigError
from models.training import TrainConfig, build_optimizer, fit

CONFIG = TrainConfig(table_optimizer="rowwise_adagrad", embedding_learning_rate=0.5, learning_rate=0.1, weight_decay=0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.dense = nn.Embedding(6, 4), nn.Linear(4, 1)

    def forward(self, batch: Any) -> Any:
        loss = (self.dense(self.table(batch.rows)).squeeze(1) - batch.wanted).square().mean()
        return type("Out", (), {"losses": {"total": loss}})


class Batch:
    def __init__(self, rows: list[int], wanted: list[float]) -> None:
        self.rows, self.wanted = torch.tensor(rows), torch.tensor(wanted)

    def to(self, device: Any) -> Batch:
        return self


BATCHES = [Batch([0, 2, 2], [1.0, -1.0, 0.5]), Batch([2, 3], [0.2, 2.0]), Batch([0, 5], [1.0, 1.0])]


def test_each_row_is_divided_by_the_root_of_its_summed_mean_squares() -> None:
    model = Model()
    optimizer = build_optimizer(model, CONFIG)
    table, sums = model.table.weight.detach().clone(), torch.zeros(6)
    for batch in BATCHES:
        optimizer.zero_grad()
        model(batch).losses["total"].backward()
        assert model.table.weight.grad is not None
        gradient = model.table.weight.grad.clone()
        optimizer.step()
        for row in range(6):
            if gradient[row].any():
                sums[row] += (gradient[row] ** 2).mean()
                table[row] -= 0.5 * gradient[row] / sums[row].sqrt()
        torch.testing.assert_close(model.table.weight.detach(), table)
    state = optimizer.state[model.table.weight]
    assert set(state) == {"row_sum"} and state["row_sum"].shape == (6,)
    torch.testing.assert_close(state["row_sum"], sums)
    assert {"exp_avg", "exp_avg_sq"} <= set(optimizer.state[model.dense.weight])


def test_rows_that_no_batch_names_stay_to_the_bit_and_dense_layers_learn_as_with_adamw() -> None:
    model, plain = Model(), Model()
    before = model.table.weight.detach().clone()
    for one, settings in ((model, CONFIG), (plain, TrainConfig(learning_rate=0.1, weight_decay=0))):
        optimizer = build_optimizer(one, settings)
        one(BATCHES[0]).losses["total"].backward()
        optimizer.step()
    assert torch.equal(model.table.weight[[1, 3, 4, 5]], before[[1, 3, 4, 5]])
    assert not torch.equal(model.table.weight[[0, 2]], before[[0, 2]])
    assert torch.equal(model.dense.weight, plain.dense.weight)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = TrainConfig(epochs=4, checkpoint_every=1, table_optimizer="rowwise_adagrad")
    whole, half = Model(), Model()
    fit(whole, lambda epoch: BATCHES, config=settings)

    def die(done: int, total: int, metrics: Any) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(half, lambda epoch: BATCHES, config=settings, progress=die, checkpoint_dir=tmp_path)
    again = Model()
    history = fit(again, lambda epoch: BATCHES, config=settings, checkpoint_dir=tmp_path)
    assert history.resumed_from == 5
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())
    # The other rule is another training.
    with pytest.raises(ConfigError, match="another model or training config"):
        fit(Model(), lambda epoch: BATCHES, config=TrainConfig(epochs=4), checkpoint_dir=tmp_path)


def test_no_such_rule() -> None:
    with pytest.raises(ConfigError, match="table_optimizer is 'sgd'"):
        TrainConfig(table_optimizer="sgd")  # type: ignore[arg-type]
