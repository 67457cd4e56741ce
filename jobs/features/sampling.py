"""Which rows of which moment stand together in a batch: one stream for both heads, or a data source for each.

Legend: B rows of one moment, P its activity pairs, N the items known at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from feature_repo.contracts.errors import ConfigError
from jobs.features.slices import Slice

Kind = Literal["all", "click", "conversion"]


@dataclass(frozen=True)
class Sampling:
    """How an epoch is drawn.

    Attributes
    ----------
    sources
        None: one stream of opportunities trains both heads. Otherwise the click head learns from all opportunities
        and the conversion head from clicked ones that are drawn by themselves: ``joint`` puts rows of both into every
        batch, ``alternating`` makes batches of one or the other.
    negatives
        Share of opportunities without a click that an epoch keeps, drawn anew for each; the click loss accounts for it.
    conversion_rows
        Clicked rows per batch. None: alternating, as many as other batches have; joint, each once per epoch.
    conversion_share
        Share of the steps that an alternating epoch gives to the conversion source, whose rows then come as often as
        that takes. None: each once.
    uniform_negatives
        Items per batch drawn uniformly from those known at its moment, as further negatives of the contrastive loss
        (Yang et al. 2020, mixed negative sampling).
    """

    sources: Literal["joint", "alternating"] | None = None
    negatives: float = 1.0
    conversion_rows: int | None = None
    conversion_share: float | None = None
    uniform_negatives: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.negatives <= 1:
            raise ConfigError("negatives is the share of rows without a click to keep: above 0 and at most 1.")
        if self.conversion_share is not None and (self.sources != "alternating" or not 0 < self.conversion_share < 1):
            raise ConfigError("conversion_share is a share of steps between 0 and 1, of `sources: alternating` alone.")
        if self.conversion_rows is not None and (self.sources is None or self.conversion_rows < 1):
            raise ConfigError("conversion_rows needs `sources: joint` or `alternating`, and at least one row.")
        if self.uniform_negatives < 0:
            raise ConfigError("uniform_negatives cannot be negative.")

    def first(self, part: Slice) -> int:
        """Return how many rows an epoch takes of a moment's first source."""
        if self.negatives == 1.0:
            return len(part.user)
        clicked = int(np.count_nonzero(part.click))
        return clicked + self._kept(len(part.user) - clicked)

    def log_share(self, part: Slice) -> float | None:
        """Return the log share of a moment's rows without a click that an epoch keeps; None where it keeps all."""
        without = len(part.user) - int(np.count_nonzero(part.click))
        if self.negatives == 1.0 or without == 0:
            return None
        return float(np.log(self._kept(without) / without))

    def _kept(self, without: int) -> int:
        return min(without, max(1, round(self.negatives * without)))


@dataclass(frozen=True)
class Cut:
    """What one batch is made of: rows of the first source, clicked rows of the conversion source, activity pairs."""

    slice: int
    kind: Kind
    rows: np.ndarray
    clicked: np.ndarray
    pairs: np.ndarray


_NONE = np.zeros(0, np.int64)


def plan(parts: Sequence[Slice], sampling: Sampling, batch_rows: int, rng: np.random.Generator) -> list[Cut]:
    """Return the batches of one epoch, in the order of the moments."""
    found: list[Cut] = []
    for index, part in enumerate(parts):
        rows, pieces = _first(part, sampling, rng), _pieces(sampling.first(part), batch_rows)
        chunks = np.array_split(rows, pieces)
        pairs = np.array_split(rng.permutation(len(part.pair_user)), pieces)
        clicked = [_NONE] * pieces
        if sampling.sources == "joint":
            clicked = _joined(part, sampling.conversion_rows, pieces, rng)
        kind: Kind = "click" if sampling.sources == "alternating" else "all"
        found += [Cut(index, kind, *cut) for cut in zip(chunks, clicked, pairs, strict=True)]
    if sampling.sources == "alternating":
        found += _conversion_cuts(parts, sampling, batch_rows, len(found), rng)
    return found


def steps(parts: Sequence[Slice], sampling: Sampling, batch_rows: int) -> int:
    """Return the batches of an epoch: the same number in each."""
    first = sum(_pieces(sampling.first(part), batch_rows) for part in parts)
    return first + (_conversion_steps(parts, sampling, batch_rows, first) if sampling.sources == "alternating" else 0)


def _pieces(rows: int, batch_rows: int) -> int:
    return max(1, round(rows / batch_rows))


def _first(part: Slice, sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of the first source in random order."""
    if sampling.negatives == 1.0:
        return rng.permutation(len(part.user))
    clicked = np.flatnonzero(part.click)
    without = np.flatnonzero(part.click == 0)
    kept = rng.choice(without, sampling.first(part) - len(clicked), replace=False)
    return rng.permutation(np.concatenate([clicked, kept]))


def _joined(part: Slice, count: int | None, pieces: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the clicked rows of each batch: each once, or as many as asked for, in turns."""
    clicked = np.flatnonzero(part.click)
    if count is None or len(clicked) == 0:
        return np.array_split(rng.permutation(clicked), pieces)
    count = min(count, len(clicked))  # no row twice in a batch
    rounds = -(-count * pieces // len(clicked))
    turns = np.concatenate([rng.permutation(clicked) for _ in range(rounds)])
    return [np.unique(turns[count * i : count * (i + 1)]) for i in range(pieces)]


def _conversion_pieces(part: Slice, sampling: Sampling, batch_rows: int) -> int:
    clicked = int(np.count_nonzero(part.click))
    return _pieces(clicked, sampling.conversion_rows or batch_rows) if clicked else 0


def _conversion_steps(parts: Sequence[Slice], sampling: Sampling, batch_rows: int, first: int) -> int:
    once = sum(_conversion_pieces(part, sampling, batch_rows) for part in parts)
    if sampling.conversion_share is None or once == 0:
        return once
    return max(1, round(first * sampling.conversion_share / (1 - sampling.conversion_share)))


def _conversion_cuts(
    parts: Sequence[Slice], sampling: Sampling, batch_rows: int, first: int, rng: np.random.Generator
) -> list[Cut]:
    """Return the batches of clicked rows: whole passes, and of the last one as many as are still wanted."""
    wanted = _conversion_steps(parts, sampling, batch_rows, first)
    found: list[Cut] = []
    while len(found) < wanted:
        once: list[Cut] = []
        for index, part in enumerate(parts):
            if pieces := _conversion_pieces(part, sampling, batch_rows):
                rows = np.array_split(rng.permutation(np.flatnonzero(part.click)), pieces)
                once += [Cut(index, "conversion", _NONE, chunk, _NONE) for chunk in rows]
        chosen = np.sort(rng.permutation(len(once))[: wanted - len(found)])
        found += [once[position] for position in chosen]
    return found
