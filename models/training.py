"""The training loop: seeded, resumable to the bit, nothing unpickled.

`fit` knows nothing of the model but that calling it with a batch gives an object whose `losses` maps names
to scalars, "total" being the one to minimize.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from feature_repo.contracts.errors import ConfigError, HeadwaterError
from models.read_ahead import read_ahead
from models.upstream.checkpoints import CheckpointStore
from models.upstream.files import weights_digest

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes
    ----------
    epochs
        Passes over the data.
    learning_rate, embedding_learning_rate
        Peaks of the schedule for dense layers and for embedding tables.
    weight_decay
        Of dense matrices; tables, biases, norms and scalars have none.
    warmup, floor
        Share of all steps for the linear warm-up, and share of the peak where the cosine ends.
    gradient_clip
        Largest norm of the whole gradient.
    seed
        Of everything random while training (dropout); the model has its own seed for its first weights.
    checkpoint_every
        Steps between checkpoints; None writes one per epoch. Has no influence on the result.
    log_every
        Steps per point of the learning curve.
    precision
        ``bfloat16``: the towers' matrix products in mixed precision (autocast); weights, norms, tables and losses stay
        float32. Pays on an accelerator and on processors with matrix units (docs/training.md).
    compile
        Whether torch compiles the model before the first step.
    ahead
        Batches that a thread reads ahead, which must then draw nothing from torch's random state; 0 reads each when
        it is wanted. Has no influence on the result.
    """

    epochs: int = 3
    learning_rate: float = 2e-3
    embedding_learning_rate: float = 4e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    warmup: float = 0.05
    floor: float = 0.02
    gradient_clip: float = 1.0
    seed: int = 0
    checkpoint_every: int | None = None
    log_every: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    ahead: int = 0

    def __post_init__(self) -> None:
        every = 1 if self.checkpoint_every is None else self.checkpoint_every
        if min(self.epochs, self.log_every, every) < 1:
            raise ConfigError("epochs, log_every and checkpoint_every must be at least 1.")
        if self.ahead < 0:
            raise ConfigError("ahead is a number of batches: 0 or more.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; choose float32 or bfloat16.")
        if not (0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise ConfigError("warmup and floor are shares: between 0 and 1.")


@dataclass
class History:
    """The learning curve: per `log_every` steps the step, epoch, learning rate and mean of every loss."""

    records: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int = 0  # step of the checkpoint this call went on from; 0 for a fresh start
    seconds: float = field(default=0.0, compare=False)  # of this call alone

    def curve(self, name: str) -> list[float]:
        """Return one column of the records, e.g. ``total``."""
        return [record[name] for record in self.records]


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    *,
    config: TrainConfig,
    steps_per_epoch: int | None = None,
    progress: Progress | None = None,
    checkpoint_dir: Path | None = None,
) -> History:
    """Train `model` in place and leave it in evaluation mode.

    Parameters
    ----------
    model
        Called with a batch; its result has `losses` with a "total". Freshly built: a checkpoint is only
        taken up by the same first weights and the same config.
    batches
        Gives the batches of an epoch (0, 1 ...); each has ``to(device)``. Must depend on the epoch alone
        (not on torch's random state), because a resumed run asks for the same epoch again and skips what
        it has seen.
    steps_per_epoch
        Batches of an epoch; None takes the length of ``batches(0)``, which must then have one.
    progress
        Called after each step with (steps done, steps in all, metrics of the step).
    checkpoint_dir
        Where checkpoints lie; None writes none. A run that finds one there continues from it and ends
        with the very weights of an undisturbed run (on the same kind of device, with the same number of
        threads). A run that was finished returns at once. Use one folder per training data: data are not compared.

    Raises
    ------
    ConfigError
        If the checkpoint belongs to another model or config, or an epoch is shorter than announced.
    HeadwaterError
        If the loss is no finite number any more.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    epoch_batches, per_epoch = _measured(batches, steps_per_epoch)
    total = per_epoch * config.epochs
    optimizer = build_optimizer(model, config)
    store = CheckpointStore(checkpoint_dir, _identity(model, config, per_epoch)) if checkpoint_dir else None
    state = (store and store.restore(model, optimizer)) or {"step": 0, "records": [], "window": []}
    history, done, window = History(state["records"], state["step"]), state["step"], state["window"]
    model.train()
    forward = torch.compile(model, dynamic=True) if config.compile else model
    wanted = _remaining(epoch_batches, done, per_epoch, config.epochs)
    with _reproducible(device), contextlib.closing(read_ahead(wanted, config.ahead)) as steps:
        for epoch, batch in steps:
            # Randomness is a function of seed and step: then there is no random state to carry along.
            torch.manual_seed(config.seed * 1_000_003 + done)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = forward(batch.to(device)).losses
            metrics = _step(model, optimizer, losses, done, total, config)
            done += 1
            window.append(metrics)
            if done % config.log_every == 0 or done == total:
                history.records.append({"step": done, "epoch": epoch, **_means(window)})
                window.clear()
            if store and (done % (config.checkpoint_every or per_epoch) == 0 or done == total):
                store.write(model, optimizer, {"step": done, "records": history.records, "window": window})
            if progress:
                progress(done, total, metrics)
    model.eval()
    history.seconds = time.perf_counter() - started
    return history


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with its own learning rate for tables and weight decay for dense matrices alone."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        rate = config.embedding_learning_rate if id(parameter) in tables else config.learning_rate
        decay = 0.0 if id(parameter) in tables or parameter.ndim < 2 else config.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": ps, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()],
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate_share(step: int, total: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate for a step: linear warm-up, then cosine to the floor."""
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, torch.Tensor],
    done: int,
    total: int,
    config: TrainConfig,
) -> dict[str, float]:
    share = learning_rate_share(done, total, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip).item()
    metrics = {name: loss.detach().item() for name, loss in losses.items()}
    if not (math.isfinite(metrics["total"]) and math.isfinite(norm)):
        raise HeadwaterError(
            f"The loss or its gradient is not finite at step {done + 1}: {metrics}, gradient norm {norm}. "
            "Look for infinite or huge numeric features, or lower the learning rate."
        )
    optimizer.step()
    return {**metrics, "gradient_norm": norm, "learning_rate": config.learning_rate * share}


def _measured(
    batches: Callable[[int], Iterable[Any]], steps_per_epoch: int | None
) -> tuple[Callable[[int], Iterable[Any]], int]:
    """Return `batches` and the steps of an epoch, without making the first epoch twice."""
    if steps_per_epoch is not None:
        return batches, steps_per_epoch
    first = batches(0)
    if not isinstance(first, Sized) or len(first) == 0:
        raise ConfigError("The first epoch is empty or has no length: give batches, or set steps_per_epoch.")
    kept = {0: first}
    return lambda epoch: kept.pop(epoch) if epoch in kept else batches(epoch), len(first)


def _remaining(
    batches: Callable[[int], Iterable[Any]], done: int, per_epoch: int, epochs: int
) -> Iterator[tuple[int, Any]]:
    """Give (epoch, batch) for every step after `done`; insist on equally long epochs."""
    for epoch in range(done // per_epoch, epochs):
        count = max(0, done - epoch * per_epoch)
        for batch in islice(batches(epoch), count, per_epoch):
            count += 1
            yield epoch, batch
        if count != per_epoch:
            raise ConfigError(
                f"Epoch {epoch} gave {count} batches, but {per_epoch} were announced. "
                "Every epoch needs the same number, or set steps_per_epoch to the smallest."
            )


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for metrics in window:
        for name, value in metrics.items():
            sums[name] += value
    return {name: value / len(window) for name, value in sums.items()}


def _identity(model: nn.Module, config: TrainConfig, per_epoch: int) -> str:
    """Hash all that decides the result but the data; how often to checkpoint and how far to read ahead do not."""
    settings = {**asdict(config), "checkpoint_every": None, "steps_per_epoch": per_epoch}
    del settings["ahead"]
    # Without what is at its default: a setting that came later ends no training that was under way.
    for name, default in (("precision", "float32"), ("compile", False)):
        if settings[name] == default:
            del settings[name]
    return weights_digest(model.state_dict(), json.dumps(settings, sort_keys=True))


@contextlib.contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels inside; the caller's random state and switches are as before afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.use_deterministic_algorithms(True)
            # Filling memory that is written anyway only costs time.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
