"""The training loop with a model of two parameters: schedule, checkpoints, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from feature_repo.contracts.errors import ConfigError, HeadwaterError, LakeError
from models.training import TrainConfig, _identity, build_optimizer, fit, learning_rate_share
from models.upstream.files import weights_digest


@dataclass(frozen=True)
class Numbers:
    """A batch of codes."""

    codes: Tensor

    def to(self, device: torch.device) -> Numbers:
        return Numbers(self.codes.to(device))


class Toy(nn.Module):
    """A table and a dense layer with dropout between them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(10, width)
            self.drop = nn.Dropout(0.5)
            self.dense = nn.Linear(width, 1)

    def forward(self, batch: Numbers) -> SimpleNamespace:
        total = (self.dense(self.drop(self.table(batch.codes))) - 1.0).square().mean()
        return SimpleNamespace(losses={"total": total, "half": total / 2})


def batches(epoch: int) -> list[Numbers]:
    rng = torch.Generator().manual_seed(epoch)
    return [Numbers(torch.randint(0, 10, (8,), generator=rng)) for _ in range(5)]


CONFIG = TrainConfig(epochs=3, learning_rate=0.05, embedding_learning_rate=0.05, log_every=4)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_loss_falls_and_the_curve_says_so() -> None:
    model = Toy()
    seen: list[tuple[int, int]] = []
    history = fit(model, batches, config=CONFIG, progress=lambda done, total, metrics: seen.append((done, total)))
    assert seen == [(step, 15) for step in range(1, 16)]
    assert history.curve("step") == [4, 8, 12, 15] and history.curve("epoch") == [0, 1, 2, 2]
    assert history.curve("total")[-1] < history.curve("total")[0]
    assert history.curve("half")[0] == pytest.approx(history.curve("total")[0] / 2)
    assert not model.training


def test_the_callers_random_state_and_switches_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit(Toy(), batches, config=CONFIG)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_what_the_batches_draw_does_not_matter() -> None:
    quiet, noisy = Toy(), Toy()
    fit(quiet, batches, config=CONFIG)

    def drawing(epoch: int) -> Iterator[Numbers]:
        for batch in batches(epoch):
            torch.rand(7)
            yield batch

    fit(noisy, drawing, config=CONFIG, steps_per_epoch=5)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(quiet), weights_of(noisy), strict=True))


def test_learning_rate_warms_up_and_falls_to_the_floor() -> None:
    config = TrainConfig(warmup=0.1, floor=0.1)
    shares = [learning_rate_share(step, 100, config) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1.0 and shares == shares[:11] + sorted(shares[11:], reverse=True)
    assert shares[55] == pytest.approx(0.55) and shares[-1] == pytest.approx(0.1, abs=1e-3)


def test_only_dense_matrices_decay_and_tables_have_their_own_rate() -> None:
    model = Toy()
    optimizer = build_optimizer(model, replace(CONFIG, embedding_learning_rate=0.5, weight_decay=0.1))
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert settings[id(model.table.weight)] == (0.5, 0.0)
    assert settings[id(model.dense.weight)] == (0.05, 0.1)
    assert settings[id(model.dense.bias)] == (0.05, 0.0)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    model = Toy()
    history = fit(model, batches, config=CONFIG, checkpoint_dir=tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000015"]

    def none(epoch: int) -> list[Numbers]:
        raise AssertionError("no batch is needed")

    again = Toy()
    repeated = fit(again, none, config=CONFIG, steps_per_epoch=5, checkpoint_dir=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), weights_of(again), strict=True))
    assert repeated.records == history.records and repeated.resumed_from == 15


def test_a_checkpoint_half_written_is_not_read(tmp_path: Path) -> None:
    half = tmp_path / ".step-00000010.77.tmp"
    half.mkdir()
    (half / "state.json").write_text("{")
    history = fit(Toy(), batches, config=CONFIG, checkpoint_dir=tmp_path)
    assert history.resumed_from == 0 and not half.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(Toy(), batches, config=CONFIG, checkpoint_dir=tmp_path)
    for model, config in ((Toy(), replace(CONFIG, learning_rate=0.01)), (Toy(width=5), CONFIG)):
        with pytest.raises(ConfigError, match="another model or training config"):
            fit(model, batches, config=config, checkpoint_dir=tmp_path)
    # How often to checkpoint decides nothing.
    fit(Toy(), batches, config=replace(CONFIG, checkpoint_every=2), checkpoint_dir=tmp_path)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, file: str) -> None:
    fit(Toy(), batches, config=CONFIG, checkpoint_dir=tmp_path)
    path = next(tmp_path.iterdir()) / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LakeError, match="Remove it"):
        fit(Toy(), batches, config=CONFIG, checkpoint_dir=tmp_path)


def test_checkpoints_hold_no_pickle(tmp_path: Path) -> None:
    fit(Toy(), batches, config=CONFIG, checkpoint_dir=tmp_path)
    folder = next(tmp_path.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((folder / "state.json").read_text())["step"] == 15


def test_epochs_must_be_as_long_as_announced() -> None:
    with pytest.raises(ConfigError, match="gave 5 batches, but 6"):
        fit(Toy(), batches, config=CONFIG, steps_per_epoch=6)
    with pytest.raises(ConfigError, match="steps_per_epoch"):
        fit(Toy(), lambda epoch: iter(batches(epoch)), config=CONFIG)
    history = fit(Toy(), batches, config=CONFIG, steps_per_epoch=2)
    assert history.curve("step")[-1] == 6


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = Toy()
    with torch.no_grad():
        model.table.weight[3] = math.inf
    with pytest.raises(HeadwaterError, match="not finite at step"):
        fit(model, batches, config=CONFIG)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"log_every": 0}, {"checkpoint_every": 0}, {"warmup": 1.0}, {"ahead": -1}, {"precision": "int8"}],
)
def test_senseless_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **change)


def test_a_checkpoint_from_before_the_newer_settings_is_taken_up() -> None:
    """Their defaults are no part of what a run is: pinned is the identity that such a run had without them."""
    settings = {
        "epochs": 3,
        "learning_rate": 0.05,
        "embedding_learning_rate": 0.05,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "warmup": 0.05,
        "floor": 0.02,
        "gradient_clip": 1.0,
        "seed": 0,
        "checkpoint_every": None,
        "log_every": 4,
        "steps_per_epoch": 5,
    }
    model = Toy()
    before = weights_digest(model.state_dict(), json.dumps(settings, sort_keys=True))
    assert _identity(model, CONFIG, 5) == before == _identity(model, replace(CONFIG, ahead=2), 5)
    for change in ({"precision": "bfloat16"}, {"compile": True}):
        assert _identity(model, replace(CONFIG, **change), 5) != before  # type: ignore[arg-type]
