"""Fit a ranker and predict with it.

A click log is learned in about one pass: after that, tables of ids remember rows instead of habits, and the
validation loss rises fast. When that happens depends on the log, so the moment to stop must not be tied to a
learning-rate schedule. Hence a constant rate, a running average of the weights that stands in for the decay,
and several looks at the validation rows per epoch. Small batches make the seeds agree.

Shapes: N rows, B batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.downstream.batches import RankerTensors, table_layouts
from models.downstream.inputs import Array, RankerData, RankerSpec
from models.downstream.ranker import Ranker, RankerConfig
from models.metrics import log_loss, roc_auc

_PREDICT_BATCH = 16_384
_AVERAGE_EVERY = 4  # steps; one update touches every row of every table


@dataclass(frozen=True)
class FitConfig:
    """How a ranker is trained: the same for every row of a lift table."""

    ranker: RankerConfig = field(default_factory=RankerConfig)
    batch_size: int = 2048
    max_epochs: int = 3
    evaluations_per_epoch: int = 4
    patience: int = 2  # evaluations without a better validation log loss before training ends
    learning_rate: float = 7e-4
    warmup_steps: int = 100
    averaging: float = 2.0  # the average covers about the last 1 / (1 + averaging) of the steps
    weight_decay: float = 1e-4
    table_weight_decay: float = 1e-2
    weighted: bool = False  # True: the loss uses the row weights, and the sampling offset is 0


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation rows."""

    epoch: float
    train_loss: float
    valid_log_loss: float
    valid_auc: float
    seconds: float


@dataclass(frozen=True)
class FittedRanker:
    """A trained ranker.

    Attributes
    ----------
    model
        With the averaged weights of the best evaluation, in evaluation mode.
    history
        One entry per evaluation: the learning curve.
    seconds
        Wall time of the whole fit.
    offset
        What to add to :func:`predict` so that probabilities hold for the log before down-sampling.
    """

    model: Ranker
    history: tuple[Evaluation, ...]
    seconds: float
    offset: float


def sampling_offset(label: Array, weight: Array) -> float:
    """Return what to add to the logits of a model trained unweighted on a down-sampled log.

    Keeping negatives with probability r multiplies the odds of every row by 1 / r, whatever its features
    are; so the log-odds move by one constant. With class-dependent rates it is log(mean weight of the
    positives / mean weight of the negatives), and exact where rates depend on the class alone.

    Parameters
    ----------
    label
        0 or 1, ``[N]``.
    weight
        1 / probability that the row was kept, ``[N]``.

    Raises
    ------
    ValueError
        If one of the classes has no rows.
    """
    positive = np.asarray(label) > 0.5
    if positive.all() or not positive.any():
        raise ValueError("sampling_offset: the rows hold one class only; positives and negatives are needed.")
    weights = np.asarray(weight, dtype=np.float64)
    return float(np.log(weights[positive].mean() / weights[~positive].mean()))


def fit_ranker(
    train: RankerData, valid: RankerData, spec: RankerSpec, config: FitConfig | None = None, seed: int = 0
) -> FittedRanker:
    """Train a ranker with early stopping on the validation log loss.

    Parameters
    ----------
    train, valid
        Rows before and after a moment in time. `valid` chooses the epoch, so it must not be the test period.
    spec
        The inputs to use; `train` and `valid` may hold more embeddings than it names.
    config
        Model shape and training budget.
    seed
        Of initial weights, order and dropout. The same seed, data, machine and number of threads give the
        same weights. The global random state is left as it was.

    Returns
    -------
    FittedRanker
        With the weights of the best evaluation.

    Raises
    ------
    ValueError
        If the data does not fit the specification, or holds one class only.
    """
    config = config or FitConfig()
    started = time.perf_counter()
    offset = 0.0 if config.weighted else sampling_offset(train.label, train.weight)
    train_tensors, valid_tensors = RankerTensors(train, spec), RankerTensors(valid, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Ranker(spec, config.ranker)
    model.set_statistics(train)
    return train_ranker(model, train_tensors, valid_tensors, config, offset, seed=seed, started=started)


def train_ranker(
    model: Ranker,
    train: RankerTensors,
    valid: RankerTensors,
    config: FitConfig,
    offset: float,
    *,
    seed: int = 0,
    rates: Mapping[str, float] | None = None,
    started: float | None = None,
) -> FittedRanker:
    """Train a ranker that is there already, as :func:`fit_ranker` does.

    Parameters
    ----------
    offset
        What to add to the logits before the validation log loss; see :func:`sampling_offset`.
    rates
        Beginning of parameter names to the factor of the learning rate that they get; 1 for all others.
    started
        `time.perf_counter()` from which the seconds count; now by default.
    """
    started = time.perf_counter() if started is None else started
    run = _Run(model, train, config, seed, rates or {})
    label, weight = valid.label.numpy(), valid.weight.numpy()
    best, best_state, stale = math.inf, model.state_dict(), 0
    history: list[Evaluation] = []
    for epoch, train_loss in run.parts():
        logits = predict_tensors(run.average, valid) + offset
        loss = log_loss(label, logits, weight)
        auc = roc_auc(label, logits, weight)
        history.append(Evaluation(epoch, train_loss, loss, auc, time.perf_counter() - started))
        if loss < best:
            best, best_state, stale = loss, copy.deepcopy(run.average.state_dict()), 0
        else:
            stale += 1
            if stale >= config.patience:
                break
    model.load_state_dict(best_state)
    return FittedRanker(model.eval(), tuple(history), time.perf_counter() - started, offset)


def predict(model: Ranker, data: RankerData) -> NDArray[np.float32]:
    """Return logits ``[N]``, without the sampling offset.

    Raises
    ------
    ValueError
        If the data does not fit the model's specification.
    """
    return predict_tensors(model, RankerTensors(data, model.spec))


@torch.inference_mode()
def predict_tensors(model: Ranker, tensors: RankerTensors) -> NDArray[np.float32]:
    """Return logits ``[N]``, without the sampling offset."""
    model.eval()
    rows = torch.arange(len(tensors)).split(_PREDICT_BATCH)
    return torch.cat([model(tensors.batch(chunk)) for chunk in rows]).numpy()


class _Run:
    """The optimizer steps of one fit, handed out in parts between two evaluations."""

    def __init__(
        self, model: Ranker, tensors: RankerTensors, config: FitConfig, seed: int, rates: Mapping[str, float]
    ) -> None:
        self.model, self.tensors, self.config = model, tensors, config
        self.average = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        model.draw_from(generator)
        self.orders = [torch.randperm(len(tensors), generator=generator) for _ in range(config.max_epochs)]
        self.steps_per_epoch = math.ceil(len(tensors) / config.batch_size)
        tables = list(zip(model.tables.parameters(), table_layouts(model.spec), strict=True))
        dense_tables = [weight for weight, layout in tables if not layout.sparse]
        sparse_tables = [weight for weight, layout in tables if layout.sparse]
        others = [weight for name, weight in model.named_parameters() if not name.startswith(("tables.", *rates))]
        rated = [
            {
                "params": [weight for name, weight in model.named_parameters() if name.startswith(start)],
                "weight_decay": config.weight_decay,
                "factor": factor,
            }
            for start, factor in rates.items()
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [
                    {"params": others, "weight_decay": config.weight_decay},
                    {"params": dense_tables, "weight_decay": config.table_weight_decay},
                    *rated,
                ],
                lr=config.learning_rate,
                fused=True,
            )
        ]
        if sparse_tables:
            self.optimizers.append(torch.optim.SparseAdam(sparse_tables, lr=config.learning_rate))

    def parts(self) -> Iterator[tuple[float, float]]:
        """Train on; after each part yield the epochs done so far and the mean training loss of the part."""
        shares = np.linspace(0, 1, self.config.evaluations_per_epoch + 1)[1:]
        cuts = set((shares * self.steps_per_epoch).round().astype(int).tolist())
        step = 0
        for epoch, order in enumerate(self.orders):
            losses: list[Tensor] = []
            self.model.train()
            for position, rows in enumerate(order.split(self.config.batch_size), start=1):
                step += 1
                self._set_learning_rate(step)
                losses.append(self._step(rows))
                if step % _AVERAGE_EVERY == 0 or position in cuts:
                    self._update_average(step // _AVERAGE_EVERY)
                if position in cuts:
                    yield epoch + position / self.steps_per_epoch, float(torch.stack(losses).mean())
                    losses = []
                    self.model.train()

    def _step(self, rows: Tensor) -> Tensor:
        label, weight = self.tensors.label.index_select(0, rows), None
        if self.config.weighted:
            weight = self.tensors.weight.index_select(0, rows)
            weight = weight / weight.mean()
        loss = F.binary_cross_entropy_with_logits(self.model(self.tensors.batch(rows)), label, weight)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self, updates: int) -> None:
        """Average with weights that grow with a power of time, so that the window grows with the run.

        Shamir and Zhang, Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and
        Optimal Averaging Schemes (ICML 2013), polynomial-decay averaging.
        """
        power = self.config.averaging
        share = min(1.0, (power + 1) / (updates + power))
        for mean, live in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(live, share)

    def _set_learning_rate(self, step: int) -> None:
        rate = self.config.learning_rate * min(1.0, step / max(1, self.config.warmup_steps))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
