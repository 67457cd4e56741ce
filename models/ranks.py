"""Training in several processes: what one rank knows of the others, and how their batches act as one.

Every function is the identity where there is one process. A loss that is a mean over a batch is made a rank's share
such that the mean of the shares is the mean over the whole batch: DistributedDataParallel takes the mean of gradients.

Legend: W ranks, N rows of one rank (each has its own number), M rows of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feature_repo.contracts.errors import ConfigError

# Ranks wait while rank 0 counts a log, and for the slowest to read its share. A dead one is noticed by its closed
# connection, not by this.
PATIENCE = timedelta(hours=12)
# Gathers of a step have a group of their own: backward runs them while DDP sends gradients through the main one.
_gathers: list[Any] = []


def launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if _several() else 0


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _several() else 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun started: nccl for cuda, each on a device of its own, gloo otherwise.

    Raises
    ------
    ConfigError
        If this machine has fewer cuda devices than processes.
    """
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started more processes here than there are cuda devices ({torch.cuda.device_count()}): "
                "lower --nproc-per-node, or set `device: cpu`."
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    _gathers.append(dist.new_group())
    try:
        yield
    finally:
        _gathers.clear()
        dist.destroy_process_group()


def total(count: Tensor) -> Tensor:
    """Return the sum of a number over all ranks; without gradient."""
    if not _several():
        return count
    summed = count.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean(summed: Tensor, weight: Tensor, least: float = 1.0) -> Tensor:
    """Return this rank's share of sum / weight over all ranks: the mean of the shares is the mean over all rows."""
    return summed * world() / total(weight).clamp_min(least)


def any_of(flag: Tensor) -> Tensor:
    """Return whether a flag is set on any rank."""
    return total(flag.long()) > 0


def gathered(rows_N: Tensor) -> Tensor:
    """Return the rows [M, ...] of all ranks in their order; gradients go back to the rank that gave a row."""
    return rows_N if not _several() else _Gather.apply(rows_N)


def share(device: torch.device, value: Any = None) -> Any:
    """Return the value that rank 0 gives; any other rank waits for it."""
    if not _several():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0, device=device if device.type == "cuda" else torch.device("cpu"))
    return held[0]


def collected(value: Any) -> list[Any]:
    """Return the values that all ranks give, in their order."""
    if not _several():
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def same_weights(model: nn.Module) -> None:
    """Give every rank the weights of rank 0."""
    if _several():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def averaged(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the ranks; all of them have the same names."""
    if not metrics:
        return {}
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()])
    if _several():
        dist.all_reduce(values)
        values /= world()
    return dict(zip(metrics, values.tolist(), strict=True))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    """Rows of every rank, one after the other; backward sums what all ranks found out about one's own rows."""

    @staticmethod
    def forward(ctx: Any, rows_N: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=rows_N.device) for _ in range(world())]
        dist.all_gather(counts, torch.tensor([len(rows_N)], device=rows_N.device), group=_gathers[0])
        sizes = [int(count) for count in counts]
        # Ranks have different numbers of rows, and a collective wants the same: the rest is filled up.
        padded = rows_N.new_zeros((max(sizes), *rows_N.shape[1:]))
        padded[: len(rows_N)] = rows_N
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=_gathers[0])
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(rows_N))
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor) -> Tensor:
        gradient_M = gradient_M.contiguous()
        dist.all_reduce(gradient_M, group=_gathers[0])
        return gradient_M[ctx.own]
