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
from models import ranks
from models.read_ahead import read_ahead
from models.row_wise import RowWiseAdamW
from models.upstream.checkpoints import CheckpointStore
from models.upstream.files import weights_digest

Progress = Callable[[int, int, Mapping[str, float]], None]
_APART = 1 << 40  # between the random seeds of two ranks: what one hides of a history another may see


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
    table_optimizer
        Of the embedding tables. ``rowwise_adagrad`` keeps one number per row where ``adamw`` keeps two per float.
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
    table_optimizer: Literal["adamw", "rowwise_adagrad"] = "adamw"

    def __post_init__(self) -> None:
        every = 1 if self.checkpoint_every is None else self.checkpoint_every
        if min(self.epochs, self.log_every, every) < 1:
            raise ConfigError("epochs, log_every and checkpoint_every must be at least 1.")
        if self.ahead < 0:
            raise ConfigError("ahead is a number of batches: 0 or more.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; choose float32 or bfloat16.")
        if self.table_optimizer not in ("adamw", "rowwise_adagrad"):
            raise ConfigError(f"table_optimizer is {self.table_optimizer!r}; choose adamw or rowwise_adagrad.")
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

    In a process group (`models.ranks`) every rank calls this with its share of each batch: the ranks start from the
    weights of rank 0 and end with the same, and rank 0 writes the checkpoints, which any number of ranks takes up.

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
    ranks.same_weights(model)
    optimizer = build_optimizer(model, config)
    store = CheckpointStore(checkpoint_dir, _identity(model, config, per_epoch)) if checkpoint_dir else None
    state = _restored(store, model, optimizer, device)
    history, done, window = History(state["records"], state["step"]), state["step"], state["window"]
    model.train()
    several = ranks.world() > 1
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model) if several else model
    forward = torch.compile(wrapped, dynamic=True) if config.compile else wrapped
    wanted = _remaining(epoch_batches, done, per_epoch, config.epochs)
    with _reproducible(device), contextlib.closing(read_ahead(wanted, config.ahead)) as steps:
        for epoch, batch in steps:
            # Randomness is a function of seed and step: then there is no random state to carry along.
            torch.manual_seed(config.seed * 1_000_003 + done + ranks.rank() * _APART)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = forward(batch.to(device)).losses
            metrics = _step(model, optimizer, losses, done, total, config)
            done += 1
            window.append(metrics)
            if done % config.log_every == 0 or done == total:
                history.records.append({"step": done, "epoch": epoch, **_means(window)})
                window.clear()
            if store and ranks.rank() == 0 and (done % (config.checkpoint_every or per_epoch) == 0 or done == total):
                store.write(model, optimizer, {"step": done, "records": history.records, "window": window})
            if progress:
                progress(done, total, metrics)
    model.eval()
    history.seconds = time.perf_counter() - started
    return history


def _restored(
    store: CheckpointStore | None, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Return the state of the newest checkpoint, taken up by every rank; that of a fresh start where there is none."""
    fresh: dict[str, Any] = {"step": 0, "records": [], "window": []}
    if store is None:
        return fresh
    # Rank 0 looks first, for it sweeps up what a killed run left; the others read what it found.
    state = store.restore(model, optimizer) if ranks.rank() == 0 else None
    found = ranks.share(device, state and state["step"])
    if ranks.rank() > 0 and found is not None:
        state = store.restore(model, optimizer)
        if state is None or state["step"] != found:
            raise ConfigError(
                f"Rank 0 found a checkpoint at step {found} in {store.folder}, which rank {ranks.rank()} does not see: "
                "all ranks need the same home folder, on a shared file system where they are on several machines."
            )
    return state or fresh


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with its own learning rate for tables, or their own rule, and weight decay for matrices alone."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    own_rule = config.table_optimizer == "rowwise_adagrad"
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        table = id(parameter) in tables
        rate = config.embedding_learning_rate if table else config.learning_rate
        decay = 0.0 if table or parameter.ndim < 2 else config.weight_decay
        groups.setdefault((rate, decay, table and own_rule), []).append(parameter)
    kind = RowWiseAdamW if own_rule else torch.optim.AdamW
    return kind(
        [
            {"params": ps, "lr": rate, "peak": rate, "weight_decay": decay, **({"rowwise": True} if rowwise else {})}
            for (rate, decay, rowwise), ps in groups.items()
        ],
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
    metrics = ranks.averaged(dict(losses))
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
    for name, default in (("precision", "float32"), ("compile", False), ("table_optimizer", "adamw")):
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
