"""What solving very many small systems takes, each from the pairs of one row: runs of rows, segments of them of one
length, and conjugate gradients.

Legend: X rows being solved, P pairs sorted by row, N rows asked about, E unknowns per row, S segments, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def pairs_of(row: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of some rows, for each the position of its row among `asked` and its own: int64 [any] both.

    Parameters
    ----------
    row
        Row of each pair, ascending int64 [P].
    asked
        int64 [N].
    """
    starts = torch.searchsorted(row, asked)
    sizes = torch.searchsorted(row, asked, right=True) - starts
    place = torch.repeat_interleave(torch.arange(len(asked)), sizes)
    within = torch.arange(len(place)) - torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
    return place, starts[place] + within


def chunks(row: Tensor, rows: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Cut `rows` rows into runs of about `limit` pairs, and give each with its pairs; `row` as in :func:`pairs_of`."""
    ends = torch.searchsorted(row.contiguous(), torch.arange(rows), right=True)
    first = pair = 0
    while first < rows:
        last = int(torch.searchsorted(ends, pair + limit, right=True))
        last = min(max(last, first + 1), first + limit, rows)
        yield slice(first, last), slice(pair, int(ends[last - 1]))
        first, pair = last, int(ends[last - 1])


def segments(group: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Cut runs of pairs of one group into segments of one length, about that of most groups, so that they stack up.

    Parameters
    ----------
    group
        Of each pair, int64 [P]; those of one group are side by side.
    longest
        A segment is never longer.

    Returns
    -------
    at, there
        Positions of pairs int64 [S, L], all of a segment of one group, and which are there, bool [S, L]; where one is
        not the segment ends, and the position is of any pair.
    """
    _, sizes = torch.unique_consecutive(group, return_counts=True)
    length = min(max(len(group) // max(len(sizes), 1), 1), longest)
    parts = (sizes + length - 1) // length
    ends = torch.repeat_interleave(torch.cumsum(sizes, 0), parts)
    number = torch.arange(len(ends)) - torch.repeat_interleave(torch.cumsum(parts, 0) - parts, parts)
    first = ends - torch.repeat_interleave(sizes, parts) + number * length
    at = first[:, None] + torch.arange(length)
    there = at < ends[:, None]
    return torch.where(there, at, first[:, None]), there


def conjugate_gradients(
    times: Callable[[Tensor], Tensor],
    nearly_solve: Callable[[Tensor], Tensor],
    wanted_XE: Tensor,
    start_XE: Tensor,
    steps: int,
) -> Tensor:
    """Return for every row about the x [X, E] with times(x) = wanted, after some steps from a start.

    Parameters
    ----------
    times
        Multiplies each row by its own positive definite matrix.
    nearly_solve
        The preconditioner: divides by something like it.
    """
    x = start_XE.clone()
    rest = wanted_XE - times(x)
    step = nearly_solve(rest)
    size = (rest * step).sum(1, keepdim=True)
    direction = step
    for _ in range(steps):
        moved = times(direction)
        length = size / (direction * moved).sum(1, keepdim=True).clamp_min(1e-20)
        x = x + length * direction
        rest = rest - length * moved
        step = nearly_solve(rest)
        before, size = size, (rest * step).sum(1, keepdim=True)
        direction = step + size / before.clamp_min(1e-20) * direction
    return x
