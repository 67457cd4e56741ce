"""The layers of a ranker.

Shapes: B batch, F fields of one table, M numeric inputs, T bins or tokens, G embedding inputs, H token dim,
X width of the joined input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

# The logarithm of a float32 stays within 89; a value this low lies under every bin, and fills none.
BELOW_ALL = -1e4


class NumericInput(nn.Module):
    """Heavy-tailed numbers to features: standardized, and piecewise-linear bins over their quantiles.

    The bins let a linear layer draw any monotone or bumpy curve of a count (Gorishniy et al., On Embeddings
    for Numerical Features in Tabular Deep Learning, arXiv 2203.05556). NaN counts as missing: its
    features are zero and an indicator tells.

    Parameters
    ----------
    fields
        M.
    bins
        T; 0 for the standardized values alone.
    dim
        What the bins of all fields become together.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    shift: Tensor

    def __init__(self, fields: int, bins: int, dim: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("mean", torch.zeros(fields))
        self.register_buffer("std", torch.ones(fields))
        # One product with a block-diagonal matrix is several times faster than broadcasting over bins.
        self.register_buffer("spread", torch.zeros(fields, fields * bins))
        self.register_buffer("shift", torch.zeros(fields * bins))
        self.project = nn.Linear(fields * (bins + 1), dim)
        self.dim = fields + dim

    def set_statistics(self, nums: NDArray[np.float32]) -> None:
        """Learn mean, deviation and quantiles from training rows ``[N, M]``."""
        for column in range(nums.shape[1]):
            known = nums[~np.isnan(nums[:, column]), column].astype(np.float64)
            if len(known) == 0:
                continue
            values = np.sign(known) * np.log1p(np.abs(known))
            self.mean[column] = float(values.mean())
            self.std[column] = max(float(values.std()), 1e-6)
            if self.bins:
                edges = _bin_edges(values, self.bins)
                slope = 1.0 / np.maximum(np.diff(edges), 1e-6)
                block = slice(column * self.bins, (column + 1) * self.bins)
                self.spread[column, block] = torch.from_numpy(slope)
                self.shift[block] = torch.from_numpy(-edges[:-1] * slope)

    def forward(self, nums: Tensor) -> Tensor:
        """Return ``[B, M + dim]`` from ``[B, M]``."""
        absent = nums.isnan()
        values = torch.nan_to_num(nums)
        values = values.sign() * values.abs().log1p()
        standard = ((values - self.mean) / self.std).clamp(-5, 5).masked_fill(absent, 0.0)  # [B, M]
        below_all = torch.where(absent, BELOW_ALL, values)
        bins = torch.addmm(self.shift, below_all, self.spread).clamp_(0, 1)  # [B, M * T]
        known = torch.cat([bins, absent.to(nums.dtype)], dim=1)  # [B, M * (T + 1)]
        return torch.cat([standard, self.project(known)], dim=1)


def _bin_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return ``[bins + 1]`` increasing edges; plain quantiles of a count that is mostly 0 would be ties."""
    fine = np.unique(np.quantile(values, np.linspace(0.0, 1.0, 16 * bins + 1)))
    chosen = fine[np.round(np.linspace(0, len(fine) - 1, bins + 1)).astype(int)]
    return np.asarray(chosen, dtype=np.float64)


class IdDropout(nn.Module):
    """Turns ids of large vocabularies into "unknown" at random, so that the model does not live by them alone.

    Rows of one visit share user, time and outcome. A table of ids learns them by heart within one pass, and
    fails on the next day; with ids hidden half of the time the model also learns from what the id is like. And
    "unknown" gets a meaning, which new users and items need.

    Parameters
    ----------
    offsets, sizes
        First row and vocabulary size of each field of one table, ``[F]``; the first row means "unknown".
    rate
        Probability that an id is hidden.
    smallest
        Fields with fewer ids are left alone.
    """

    unknown: Tensor

    def __init__(self, offsets: Sequence[int], sizes: Sequence[int], rate: float, smallest: int) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"IdDropout: rate is {rate}; it must lie in [0, 1).")
        self.columns = [column for column, size in enumerate(sizes) if size >= smallest] if rate else []
        self.rate = rate
        self.generator: torch.Generator | None = None  # None: the global one
        self.register_buffer("unknown", torch.tensor(offsets)[self.columns], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ids ``[B, F]``, some hidden in training; else `ids`."""
        if not self.training or not self.columns:
            return ids
        shown = ids[:, self.columns]
        hidden = torch.rand(shown.shape, generator=self.generator, device=ids.device) < self.rate
        ids = ids.clone()
        ids[:, self.columns] = torch.where(hidden, self.unknown, shown)
        return ids


class Dropout(nn.Module):
    """Dropout whose rate is a multiple of 1/256: one random 64-bit integer decides eight elements.

    ``nn.Dropout`` draws one number per element, on one thread; on a CPU that was a tenth of a training step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None  # None: the global one
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate is {rate}; it must lie in [0, 1).")
        self.threshold = round(rate * 256)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with elements set to zero and the others scaled up, in training; else `x`."""
        if not self.training or self.threshold == 0:
            return x
        words = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * kept * (256 / (256 - self.threshold))


class TokenAttention(nn.Module):
    """Attention among the tokens of all embedding inputs: each may take from every other (Vaswani et al. 2017).

    A token knows by a learned vector which one it is. Where an embedding is missing, learned tokens stand in for it.

    Parameters
    ----------
    inputs
        For each token the embedding input that it is of, ``[T]``.
    dim
        H.
    heads
        Divide H.
    """

    def __init__(self, inputs: Sequence[int], dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"TokenAttention: {heads} heads do not divide tokens of {dim} floats.")
        self.inputs, self.heads = list(inputs), heads
        self.missing = nn.Parameter(torch.zeros(len(self.inputs), dim))
        self.place = nn.Parameter(torch.randn(len(self.inputs), dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Return tokens ``[B, T, H]``, each with what it took from the others; `present` is ``[B, G]``, 1 or 0."""
        here = present[:, self.inputs].unsqueeze(2)  # [B, T, 1]
        tokens = tokens * here + self.missing * (1 - here)
        batch, count, dim = tokens.shape
        parts = self.project(self.norm(tokens + self.place)).view(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [B, heads, T, H / heads] each
        mixed = functional.scaled_dot_product_attention(query, key, value)
        taken: Tensor = tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, dim))
        return taken


class CrossLayer(nn.Module):
    """``x0 * (U V x + b) + x``: a cross layer of DCN-v2 (Wang et al., arXiv 2008.13535)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        low_rank = 0 < rank < width
        self.down = nn.Linear(width, rank, bias=False) if low_rank else nn.Identity()
        self.up = nn.Linear(rank if low_rank else width, width)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Return ``[B, X]`` from the joined input and the previous layer's output, both ``[B, X]``."""
        # Not addcmul: its gradient multiplies by the factor 1, at the price of two more passes.
        crossed: Tensor = x + first * self.up(self.down(x))
        return crossed
