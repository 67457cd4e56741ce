"""Synthetic batches for the upstream model's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from models.upstream import ContextBatch, InputSpec, ItemBatch, TrainBatch, UserBatch

Maker = Callable[..., TrainBatch]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def spec() -> InputSpec:
    return InputSpec(
        user_cats=(4, 3),
        user_nums=3,
        item_cats=(6, 20),
        item_nums=2,
        item_rows=50,
        actions=3,
        sequence_length=8,
        interests=4,
        top_items=6,
        context_cats=(5,),
        context_nums=1,
    )


@pytest.fixture
def make_batch() -> Maker:
    return random_batch


def random_batch(
    spec: InputSpec, *, rows: int = 64, users: int = 20, items: int = 30, pairs: int = 12, seed: int = 0
) -> TrainBatch:
    """Return a batch of random values that fits `spec`; about a third of the activity is padding."""
    rng = torch.Generator().manual_seed(seed)

    def ints(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=rng)

    def cats(sizes: tuple[int, ...], *shape: int) -> Tensor:
        columns = [ints(size, *shape) for size in sizes]
        return torch.stack(columns, -1) if columns else torch.zeros(*shape, 0, dtype=torch.int64)

    length, kept, fields = spec.sequence_length, spec.interests, len(spec.item_cats)
    real = torch.arange(length) < ints(length + 1, users, 1)  # some users have no activity at all
    values = cats(spec.item_cats, users, kept).transpose(1, 2)
    weights = torch.rand(users, fields, kept, generator=rng) * (values > 0)
    click = (torch.rand(rows, generator=rng) < 0.4).float()
    return TrainBatch(
        user=UserBatch(
            cats=cats(spec.user_cats, users),
            nums=torch.randn(users, spec.user_nums, generator=rng),
            seq_item=torch.where(real, 1 + ints(spec.item_rows - 1, users, length), 0),
            seq_cats=cats(spec.item_cats, users, length) * real[:, :, None],
            seq_action=ints(spec.actions, users, length) * real,
            seq_age=torch.rand(users, length, generator=rng) * 9 * real,
            interest_value=values,
            interest_weight=weights / weights.sum(-1, keepdim=True).clamp_min(1e-6),
            top_item=ints(spec.item_rows, users, spec.top_items),
            top_weight=torch.rand(users, spec.top_items, generator=rng),
        ),
        item=ItemBatch(
            row=ints(spec.item_rows, items),
            cats=cats(spec.item_cats, items),
            nums=torch.randn(items, spec.item_nums, generator=rng),
        ),
        context=ContextBatch(
            cats=cats(spec.context_cats, rows), nums=torch.randn(rows, spec.context_nums, generator=rng)
        ),
        user_index=ints(users, rows),
        item_index=ints(items, rows),
        click=click,
        click_known=torch.rand(rows, generator=rng) < 0.9,
        conversion=click * (torch.rand(rows, generator=rng) < 0.5),
        conversion_known=torch.rand(rows, generator=rng) < 0.9,
        user_key=torch.arange(users),
        item_key=torch.arange(items),
        item_log_q=-5 * torch.rand(items, generator=rng),
        positive=click > 0,
        pos_user_index=ints(users, pairs),
        pos_item_index=ints(items, pairs),
    )
