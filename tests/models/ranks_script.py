"""What one rank does in tests/models/test_ranks.py."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from models import presets, ranks
from models.training import TrainConfig, fit
from models.upstream import InputSpec, TrainBatch
from models.upstream.derm import DERM
from models.upstream.losses import LossConfig
from tests.models.upstream.conftest import random_batch

KILLED = 7
SPEC = InputSpec((4, 3), 3, (6, 20), 2, 50, 3, 8, 4, 6, (5,), 1)


class Killed(BaseException):
    """A training that ends in the middle."""


def whole(seed: int, *, pairs: int = 12) -> TrainBatch:
    """Return the batch of one process."""
    return random_batch(SPEC, rows=60, users=20, items=30, pairs=pairs, seed=seed)


def part(
    batch: TrainBatch, rank: int, world: int, pairs_of: int | None = None, all_of: int | None = None
) -> TrainBatch:
    """Return a rank's share: its rows and pairs, with the users and items they need, each once."""
    if world == 1:
        return batch
    rows = torch.arange(rank, len(batch.click), world)
    pairs = torch.arange(rank, len(batch.pos_user_index), world)
    # Items that no row refers to are negatives, too: each is some rank's.
    spare = torch.arange(rank, len(batch.item_key), world)
    if all_of is not None:
        rows, pairs, spare = (
            torch.arange(len(every)) if rank == all_of else torch.zeros(0, dtype=torch.int64)
            for every in (batch.click, batch.pos_user_index, batch.item_key)
        )
    if pairs_of is not None:
        pairs = torch.arange(len(batch.pos_user_index)) if rank == pairs_of else pairs[:0]
    users, user_at = torch.unique(torch.cat([batch.user_index[rows], batch.pos_user_index[pairs]]), return_inverse=True)
    wanted = torch.cat([batch.item_index[rows], batch.pos_item_index[pairs], spare])
    items, item_at = torch.unique(wanted, return_inverse=True)
    count = len(rows)
    return replace(
        batch,
        user=take(batch.user, users),
        item=take(batch.item, items),
        context=take(batch.context, rows),
        user_index=user_at[:count],
        item_index=item_at[:count],
        pos_user_index=user_at[count:],
        pos_item_index=item_at[count : count + len(pairs)],
        user_key=batch.user_key[users],
        item_key=batch.item_key[items],
        item_log_q=batch.item_log_q[items],
        **{
            name: getattr(batch, name)[rows]
            for name in ("click", "click_known", "conversion", "conversion_known", "positive")
        },
    )


def take(features: Any, rows: torch.Tensor) -> Any:
    return type(features)(**{field.name: getattr(features, field.name)[rows] for field in fields(features)})


def model(losses: LossConfig | None = None, hidden: float = 0.0) -> DERM:
    """Return the debug model without what is random."""
    config = presets.debug().model(SPEC)
    quiet = replace(config.user, history_dropout=hidden), replace(config.item, row_dropout=hidden)
    return DERM(replace(config, user=quiet[0], item=quiet[1], losses=losses or config.losses))


def gradient(folder: Path) -> None:
    """Write the gradient after one backward pass of several cases."""
    cases: dict[str, tuple[LossConfig, int | None, int | None]] = {
        "plain": (LossConfig(contrastive_weight=1.0, activity_weight=0.5), None, None),
        "uncertainty": (LossConfig(weighting="uncertainty", contrastive_weight=0.0), None, None),
        "no pairs on rank 1": (LossConfig(contrastive_weight=1.0), 0, None),
        "nothing on rank 1": (LossConfig(contrastive_weight=1.0), None, 0),
        "esmm": (LossConfig(conversion="esmm"), None, None),
    }
    for name, (losses, pairs_of, all_of) in cases.items():
        trained = model(losses).train()
        several = ranks.world() > 1
        forward = torch.nn.parallel.DistributedDataParallel(trained) if several else trained
        batch = whole(3)
        if pairs_of is not None:
            batch = replace(batch, positive=torch.zeros_like(batch.positive))
        found = forward(part(batch, ranks.rank(), ranks.world(), pairs_of, all_of)).losses
        found["total"].backward()
        held = {key: value.grad for key, value in trained.named_parameters() if value.grad is not None}
        held["loss"] = torch.tensor(ranks.averaged({"total": found["total"]})["total"])
        safetensors.torch.save_file(held, folder / f"{name}-{ranks.world()}-{ranks.rank()}.safetensors")


def train(folder: Path, until: int) -> None:
    """Train nine steps with a checkpoint at each; die after `until` of them."""
    trained = model()
    if ranks.rank() > 0:
        with torch.no_grad():
            for value in trained.parameters():
                value.add_(1.0)  # the weights are rank 0's, whatever the others began with

    def stop(done: int, total: int, metrics: Any) -> None:
        if done == until < total:
            raise Killed

    history = fit(
        trained,
        lambda epoch: [part(whole(10 * epoch + step), ranks.rank(), ranks.world()) for step in range(3)],
        config=TrainConfig(epochs=3, checkpoint_every=1, log_every=1),
        progress=stop,
        checkpoint_dir=folder / "checkpoint",
    )
    if ranks.rank() == 0:
        safetensors.torch.save_file(trained.state_dict(), folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps(asdict(history)))


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    with ranks.joined("cpu") if ranks.launched() else contextlib.nullcontext():
        try:
            gradient(folder) if what == "gradient" else train(folder, int(sys.argv[3]))
        except Killed:
            os._exit(KILLED)


if __name__ == "__main__":
    main()
