"""The three interaction modules a DHEN layer chooses from. Each maps tokens [B, F, D] to tokens [B, F, D].

Legend: B batch, F fields (tokens per example), D token dim, H hidden width, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError


class MaskNet(nn.Module):
    """Parallel instance-guided mask blocks (Wang et al. 2021, arXiv 2102.07619).

    Each block multiplies the tokens (normalized by the layer around it) by a mask made from the example
    itself, which is how a feed-forward network gets multiplicative feature crosses.
    """

    @dataclass(frozen=True)
    class Config:
        blocks: int = 2
        hidden: int = 64  # H of each block
        guide: int = 64  # bottleneck of the mask generator

    def __init__(self, config: Config, fields: int, dim: int) -> None:
        super().__init__()
        width = fields * dim
        self.guide = nn.Linear(width, config.blocks * config.guide)
        self.masks = nn.ModuleList(nn.Linear(config.guide, width) for _ in range(config.blocks))
        self.hiddens = nn.ModuleList(nn.Linear(width, config.hidden, bias=False) for _ in range(config.blocks))
        self.hidden_norm = nn.LayerNorm(config.hidden)
        self.out = nn.Linear(config.blocks * config.hidden, width)

    def forward(self, tokens_BFD: Tensor) -> Tensor:
        """Return [B, F, D]."""
        flat = tokens_BFD.flatten(1)
        guides = functional.relu(self.guide(flat)).chunk(len(self.masks), dim=-1)
        blocks = [
            functional.relu(self.hidden_norm(hidden(flat * mask(guide))))
            for guide, mask, hidden in zip(guides, self.masks, self.hiddens, strict=True)
        ]
        return self.out(torch.cat(blocks, dim=-1)).view_as(tokens_BFD)


class Transformer(nn.Module):
    """One pre-norm transformer block; tokens that `mask` hides are never attended to."""

    @dataclass(frozen=True)
    class Config:
        heads: int = 2
        ratio: float = 2.0  # feed-forward width over D

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        if dim % config.heads:
            raise ConfigError(f"A transformer of {config.heads} heads needs a dim divisible by it, not {dim}.")
        self.heads = config.heads
        hidden = int(dim * config.ratio)
        self.attention_norm = nn.LayerNorm(dim)
        # No bias: a bias on the keys cannot change a softmax, so it would only be a dead parameter.
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.mix = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, hidden)
        self.shrink = nn.Linear(hidden, dim)

    def forward(self, tokens_BFD: Tensor, mask_BF: Tensor | None = None) -> Tensor:
        """Return [B, F, D]; `mask_BF` is True where a token may be attended to, at least once per row."""
        rows, fields, dim = tokens_BFD.shape
        split = self.qkv(self.attention_norm(tokens_BFD)).view(rows, fields, 3, self.heads, dim // self.heads)
        query_BNFd, key_BNFd, value_BNFd = split.permute(2, 0, 3, 1, 4)
        mask = None if mask_BF is None else mask_BF[:, None, None, :]
        mixed_BNFd = functional.scaled_dot_product_attention(query_BNFd, key_BNFd, value_BNFd, attn_mask=mask)
        tokens_BFD = tokens_BFD + self.mix(mixed_BNFd.transpose(1, 2).reshape(rows, fields, dim))
        return tokens_BFD + self.shrink(functional.relu(self.expand(self.feed_norm(tokens_BFD))))


class MLP(nn.Module):
    """A two-layer perceptron over all tokens of an example at once."""

    @dataclass(frozen=True)
    class Config:
        hidden: int = 128  # H

    def __init__(self, config: Config, fields: int, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(fields * dim, config.hidden)
        self.shrink = nn.Linear(config.hidden, fields * dim)

    def forward(self, tokens_BFD: Tensor) -> Tensor:
        """Return [B, F, D]."""
        hidden_BH = functional.relu(self.expand(tokens_BFD.flatten(1)))
        return self.shrink(hidden_BH).view_as(tokens_BFD)
