"""A small click log with a known law, for the rankers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.downstream.inputs import RankerData, RankerSpec, hash_cross
from models.metrics import sigmoid

USERS, ITEMS, DIM = 60, 40, 8
SPEC = RankerSpec(
    cats=(("user", USERS + 1, 4), ("item", ITEMS + 1, 4)),
    nums=2,
    crosses=(("user_x_item", 512, 4),),
    embeddings=(("user_v1", DIM), ("item_v1", DIM)),
    pairs=(("user_v1", "item_v1"),),
)

MakeLog = Callable[..., RankerData]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def spec() -> RankerSpec:
    """Two ids, their cross, two numbers and one pair of embeddings."""
    return SPEC


@pytest.fixture
def make_log() -> MakeLog:
    """Return a log whose clicks follow two numbers and, by `affinity`, the dot of user and item vector."""

    def make(rows: int = 2000, *, seed: int = 0, affinity: float = 0.0, shuffled: bool = False) -> RankerData:
        world, draw = np.random.default_rng(99), np.random.default_rng(seed)
        user_vectors, item_vectors = (
            world.normal(size=(size, DIM)).astype(np.float32) / DIM**0.5 for size in (USERS, ITEMS)
        )
        user, item = draw.integers(USERS, size=rows), draw.integers(ITEMS, size=rows)
        nums = draw.normal(size=(rows, 2)).astype(np.float32)
        dots = (user_vectors[user] * item_vectors[item]).sum(axis=1)
        logits = -1.0 + 0.8 * nums[:, 0] - 0.5 * nums[:, 1] ** 2 + affinity * dots
        label = (draw.random(rows) < sigmoid(logits)).astype(np.float32)
        if shuffled:
            user_vectors, item_vectors = world.permutation(user_vectors), world.permutation(item_vectors)
        return RankerData(
            cats=np.stack([user + 1, item + 1], axis=1).astype(np.int32),
            crosses=hash_cross(user, item, 512)[:, None],
            nums=nums,
            embeddings={
                "user_v1": (user_vectors, user.astype(np.int32)),
                "item_v1": (item_vectors, item.astype(np.int32)),
            },
            label=label,
            weight=np.ones(rows, dtype=np.float32),
            user=user.astype(np.int64),
        )

    return make
