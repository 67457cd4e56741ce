"""Two real processes over gloo: their batches act as one batch of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from feature_repo.contracts.errors import ConfigError
from models import ranks
from tests.models import ranks_script

STEPS = 9  # of ranks_script.train
SCRIPT = Path(__file__).with_name("ranks_script.py")
ROOT = Path(__file__).parents[2]


def in_ranks(count: int, what: str, folder: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a scenario of the script in so many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), what, str(folder), *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = []
    for process in running:
        told = process.communicate()
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, *told))
    return ended


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def test_two_ranks_of_half_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    ranks_script.gradient(tmp_path)
    for done in in_ranks(2, "gradient", tmp_path):
        assert done.returncode == 0, done.stderr
    for case in ("plain", "uncertainty", "no pairs on rank 1", "nothing on rank 1", "esmm"):
        whole = tensors(tmp_path, f"{case}-1-0")
        assert any(float(gradient.abs().max()) > 1e-3 for gradient in whole.values())
        for rank in range(2):
            shared = tensors(tmp_path, f"{case}-2-{rank}")
            for name, gradient in whole.items():
                torch.testing.assert_close(shared[name], gradient, rtol=2e-4, atol=1e-5)


def trained(count: int, until: int, folder: Path) -> None:
    """Train up to a step and die, or to the end, in so many processes."""
    if count > 1:
        wanted = 0 if until == STEPS else ranks_script.KILLED
        for done in in_ranks(count, "fit", folder, str(until)):
            assert done.returncode == wanted, done.stderr
    elif until == STEPS:
        ranks_script.train(folder, until)
    else:
        with pytest.raises(ranks_script.Killed):
            ranks_script.train(folder, until)


def test_a_training_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """Killed after four steps of two ranks and gone on by one, or the other way round: as one process alone."""
    weights = {}
    for name, parts in {
        "alone": [(1, STEPS)],
        "two, one": [(2, 4), (1, STEPS)],
        "one, two": [(1, 4), (2, STEPS)],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for count, until in parts:
            trained(count, until, folder)
        weights[name] = tensors(folder, "weights")
        record = json.loads((folder / "history.json").read_text())
        assert [point["step"] for point in record["records"]] == list(range(1, STEPS + 1))
        assert record["resumed_from"] == (0 if len(parts) == 1 else 4)
    for name in ("two, one", "one, two"):
        for key, value in weights["alone"].items():
            torch.testing.assert_close(weights[name][key], value, rtol=2e-3, atol=2e-4)


def test_without_other_ranks_everything_stays_as_it_is() -> None:
    from models import ranks

    rows = torch.arange(3.0)
    assert (ranks.rank(), ranks.world()) == (0, 1)
    assert ranks.gathered(rows) is rows and ranks.share(torch.device("cpu"), 5) == 5
    assert float(ranks.mean(rows.sum(), torch.tensor(6.0))) == 0.5


@pytest.mark.parametrize("ranks", [0, -1])
def test_no_number_of_ranks(ranks: int) -> None:
    from feature_repo.contracts.errors import ConfigError
    from jobs.train_ranks import launch

    with pytest.raises(ConfigError, match="--ranks is"):
        launch(ranks, [])


def test_on_gpus_nccl_joins_and_each_rank_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: joined.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: joined.append("left"))
    for local in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        with ranks.joined("cuda"):
            assert devices[-1] == local
    assert joined == ["nccl", "left", "nccl", "left"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"cuda devices \(2\)"), ranks.joined("cuda"):
        pass
    assert joined == ["nccl", "left", "nccl", "left"] and devices == [0, 1]
