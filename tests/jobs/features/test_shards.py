"""What the ranks of a training read: together each batch of one process, nothing twice and nothing left out."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest

from jobs.features.batches import TrainingRows
from jobs.features.sampling import Sampling
from models.upstream.inputs import TrainBatch
from tests.jobs.features.test_batches import Ready, training  # noqa: F401 (a fixture)

ROWS = 100
SAMPLINGS = {
    "one stream": Sampling(),
    "joint, drawn, mixed": Sampling(sources="joint", negatives=0.5, conversion_rows=7, uniform_negatives=11),
    "alternating": Sampling(sources="alternating", conversion_share=0.3),
}


def rows_of(batch: TrainBatch) -> Counter[tuple[Any, ...]]:
    """Return the rows as plain values, each with how often it occurs."""
    sources = [
        [None] * len(batch.click) if mask is None else mask.tolist()
        for mask in (batch.click_trains, batch.conversion_trains)
    ]
    return Counter(
        zip(
            batch.user_key[batch.user_index].tolist(),
            batch.item_key[batch.item_index].tolist(),
            batch.click.tolist(),
            batch.conversion.tolist(),
            batch.positive.tolist(),
            *sources,
            strict=True,
        )
    )


def pairs_of(batch: TrainBatch) -> Counter[tuple[int, int]]:
    """Return the activity pairs, each with how often it occurs."""
    users, items = batch.user_key[batch.pos_user_index].tolist(), batch.item_key[batch.pos_item_index].tolist()
    return Counter(zip(users, items, strict=True))


def chances(batch: TrainBatch) -> dict[int, float]:
    """Return log q by the item's key."""
    return dict(zip(batch.item_key.tolist(), batch.item_log_q.tolist(), strict=True))


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_of_a_step_read_the_batch_of_one_process(training: Ready, name: str, world: int) -> None:  # noqa: F811
    folder = training.folder / f"shards-{name}"
    made = (
        TrainingRows(folder, positives="click", sampling=SAMPLINGS[name])
        if folder.exists()
        else training.written(folder.name, SAMPLINGS[name])
    )
    whole = list(islice(made.epoch(1, batch_rows=ROWS, seed=5), 12))
    shares = [list(islice(made.epoch(1, batch_rows=ROWS, seed=5, shard=(rank, world)), 12)) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sum((rows_of(part) for part in parts), Counter()) == rows_of(batch)
        assert sum((pairs_of(part) for part in parts), Counter()) == pairs_of(batch)
        # Whatever is a negative for one process is one for the ranks together, with the same chance.
        assert {key: q for part in parts for key, q in chances(part).items()} == chances(batch)
        sizes = [len(part.click) for part in parts]
        assert max(sizes) - min(sizes) <= 2
        for part in parts:
            assert (part.click_shift is None) == (batch.click_shift is None)
            assert part.click_shift is None or float(part.click_shift) == float(batch.click_shift)  # type: ignore[arg-type]
