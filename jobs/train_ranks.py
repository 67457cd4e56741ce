"""One upstream training in several processes that torchrun started.

Rank 0 does all that a single process does: it reads the log, writes the rows, keeps checkpoints, registers the space.
The other ranks take part in its training steps. Every batch of a single process is shared out among the ranks, so that
a step is the same step whatever their number is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import ConfigError, HeadwaterError
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs.features.sampling import Sampling
    from jobs.train_upstream import Results
    from models.training import TrainConfig


@dataclass(frozen=True)
class Task:
    """What a rank needs to know of a training that rank 0 prepared."""

    rows: Path
    positives: str
    sampling: Sampling
    model: dict[str, Any]
    train: TrainConfig
    batch_rows: int
    seed: int
    steps: int
    device: str
    checkpoints: Path | None


def launch(ranks: int, arguments: Sequence[str]) -> None:
    """Become torchrun with so many processes on this machine that run a headwater command.

    Raises
    ------
    ConfigError
        If that is no number of processes.
    """
    if ranks < 1:
        raise ConfigError(f"--ranks is {ranks}: give the number of processes, at least 1.")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # One thread each unless told otherwise, as torchrun does, without its page of warning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "jobs.cli", *arguments])


def run_all(ws: Workspace, versions: Sequence[str], *, progress: Progress = silent) -> Results | None:
    """Train the upstreams of several versions, one after the other; None on every rank but 0.

    Raises
    ------
    ConfigError, NotReadyError
        As :func:`jobs.train_upstream.run`, on rank 0.
    HeadwaterError
        On the other ranks, if rank 0 ended.
    """
    from jobs import train_upstream
    from jobs.prepare_upstream import training_device
    from models import ranks

    device = training_device(ws.config.upstream(versions[0]))
    ws.use_threads()
    with ranks.joined(device):
        if ranks.rank() > 0:
            _follow(device)
            return None
        found = train_upstream.Results(
            tuple(train_upstream.run(ws, version, progress=progress) for version in versions)
        )
        _share(device, None)
        return found


def lead(task: Task) -> None:
    """Tell the other ranks to take part in a training; does nothing where there are none."""
    _share(task.device, task)


def _share(device: str, task: Task | None) -> Task | None:
    import torch

    from models import ranks

    found: Task | None = ranks.share(torch.device(device), task)
    return found


def _follow(device: str) -> None:
    while True:
        try:
            task = _share(device, None)
        except RuntimeError as error:
            raise HeadwaterError("Rank 0 ended; what it said stands above.") from error
        if task is None:
            return
        _take_part(task)


def _take_part(task: Task) -> None:
    from jobs.features.batches import TrainingRows
    from models import ranks
    from models.training import fit
    from models.upstream.derm import DERM

    rows = TrainingRows(task.rows, positives=task.positives, sampling=task.sampling)
    shard = (ranks.rank(), ranks.world())
    fit(
        DERM(DERM.Config.from_dict(task.model)).to(task.device),
        lambda epoch: rows.epoch(epoch, batch_rows=task.batch_rows, seed=task.seed, shard=shard),
        config=task.train,
        steps_per_epoch=task.steps,
        checkpoint_dir=task.checkpoints,
    )
