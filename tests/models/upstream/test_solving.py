"""Rows cut into runs and their pairs into segments: nothing is lost, nothing twice, little is padded."""

from __future__ import annotations

import pytest
import torch

from models.upstream.solving import chunks, segments


@pytest.mark.parametrize("longest", [1, 3, 50])
@pytest.mark.parametrize(
    "sizes", [[4], [1, 1, 1], [3, 7, 1, 2, 200], [5] * 40, [1] * 30 + [1000]], ids=lambda sizes: f"{len(sizes)} groups"
)
def test_segments_hold_every_pair_once(sizes: list[int], longest: int) -> None:
    group = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    at, there = segments(group, longest)
    assert at.shape == there.shape and at.shape[1] <= longest
    assert at[there].tolist() == list(range(len(group)))
    assert (group[at] == group[at[:, :1]]).all() and there[:, 0].all()
    # At most a segment per group is not full, and none is longer than what groups have on average.
    assert int((~there).sum()) < len(sizes) * at.shape[1] <= max(len(group), len(sizes))


def test_chunks_hold_every_row_and_pair_once() -> None:
    row = torch.repeat_interleave(torch.tensor([0, 3, 4, 9]), torch.tensor([5, 40, 2, 3]))
    found = list(chunks(row, 12, 10))
    assert [number for rows, _ in found for number in range(rows.start, rows.stop)] == list(range(12))
    assert [number for _, pairs in found for number in range(pairs.start, pairs.stop)] == list(range(len(row)))
    for rows, pairs in found:
        assert ((row[pairs] >= rows.start) & (row[pairs] < rows.stop)).all()
        assert pairs.stop - pairs.start <= 10 or rows.stop - rows.start == 1
