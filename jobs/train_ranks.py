"""One upstream training in several processes that torchrun started.

Rank 0 does all that a single process does: it learns the encodings, keeps checkpoints, registers the space. The other
ranks take part in what is large: each reads its own windows of the log from Parquet and writes their training rows, and
every batch of a single process is shared out among the ranks, so that a step is the same step whatever their number is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_repo.contracts.errors import ConfigError, HeadwaterError
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs.features.batches import Grid, Written
    from jobs.features.encode import Encoder
    from jobs.features.labels import Opportunities
    from jobs.features.sampling import Sampling
    from jobs.features.tables import Tables
    from jobs.train_upstream import Results
    from models.training import TrainConfig


T = TypeVar("T")
_ENDED = "Another rank ended; what it said stands above."
Count = Callable[[int, int], None]  # of windows: done, total


def _quiet(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Reading:
    """What a rank needs to know to read its windows of the log and write their training rows."""

    rows: Path
    encoder: Encoder
    grid: Grid
    since: datetime | None
    conversions: tuple[str, ...]
    catalogue: bool


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
        If another rank ended.
    """
    from jobs import train_upstream
    from jobs.prepare_upstream import training_device

    def train() -> Results:
        return train_upstream.Results(tuple(train_upstream.run(ws, version, progress=progress) for version in versions))

    return together(ws, training_device(ws.config.upstream(versions[0])), train)


def together(ws: Workspace, device: str, train: Callable[[], T]) -> T | None:
    """Run on rank 0 what trains upstreams, and return what it returns; the other ranks take part, and return None.

    Raises
    ------
    HeadwaterError
        If another rank ended.
    """
    from models import ranks

    ws.use_threads()
    with ranks.joined(device):
        if ranks.rank() > 0:
            _follow(ws, device)
            return None
        found = train()
        _share(device, None)
        return found


def lead(task: Task) -> None:
    """Tell the other ranks to take part in a training; does nothing where there are none."""
    _share(task.device, task)


def write_rows(
    reading: Reading, tables: Tables, opportunities: Opportunities, *, device: str, progress: Count
) -> list[Written]:
    """Write the training rows of all moments, together with the other ranks; return what each of them wrote."""
    _share(device, reading)
    return _write(reading, tables, opportunities, progress)


def _write(reading: Reading, tables: Tables, opportunities: Opportunities, progress: Count = _quiet) -> list[Written]:
    from jobs.features.batches import write_moments
    from models import ranks

    shard = (ranks.rank(), ranks.world())
    written = write_moments(
        reading.rows,
        tables,
        opportunities,
        reading.grid,
        catalogue=reading.catalogue,
        shard=shard,
        progress=progress,
    )
    try:
        return ranks.collected(written)
    except RuntimeError as error:
        raise HeadwaterError(_ENDED) from error


def _share(device: str, task: Reading | Task | None) -> Reading | Task | None:
    import torch

    from models import ranks

    found: Reading | Task | None = ranks.share(torch.device(device), task)
    return found


def _follow(ws: Workspace, device: str) -> None:
    while True:
        try:
            task = _share(device, None)
        except RuntimeError as error:
            raise HeadwaterError(_ENDED) from error
        if task is None:
            return
        if isinstance(task, Reading):
            _read_part(ws, task)
        else:
            _take_part(task)


def _read_part(ws: Workspace, task: Reading) -> None:
    from jobs.features.labels import Opportunities
    from jobs.features.tables import Tables
    from models import ranks

    if not task.rows.is_dir():
        raise ConfigError(
            f"Rank {ranks.rank()} does not see {task.rows}, which rank 0 made: all ranks need the same home folder, on "
            "a shared file system where they are on several machines."
        )
    tables = Tables(ws.log, task.encoder, ws.config.history_actions, ws.config.coverage)
    opportunities = Opportunities(ws.log, since=task.since, known_at=task.grid.until, conversions=task.conversions)
    _write(task, tables, opportunities)


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
