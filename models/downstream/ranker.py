"""The ranker: every input to one vector, then DCN-v2 beside an MLP, then one logit.

Shapes: B batch, F fields of one table, M numeric inputs, T bins, G embedding inputs, D embedding dim,
H token dim, K tokens of one embedding input, X width of the joined input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.downstream.batches import RankerBatch, table_layouts
from models.downstream.inputs import RankerData, RankerSpec, gathered
from models.downstream.layers import CrossLayer, Dropout, IdDropout, NumericInput, TokenAttention

# Means and quantiles of this many training rows are as good as of all of them.
_STATISTICS_ROWS = 50_000


@dataclass(frozen=True)
class RankerConfig:
    """The shape of a ranker. Two rankers that are compared share it; only their inputs differ."""

    cross_layers: int = 2
    cross_rank: int = 32  # 0: full-rank cross layers
    hidden: tuple[int, ...] = (96, 48)
    token_dim: int = 32  # H: what one token of an embedding input becomes
    pair_dim: int = 16  # what one elementwise product becomes
    numeric_bins: int = 8  # T; 0: standardized values only
    numeric_dim: int = 32  # what the binned numeric inputs become together
    embedding_dropout: float = 0.1
    id_dropout: float = 0.5
    id_dropout_size: int = 1000  # vocabularies from this size on
    table_init: float = 0.01
    attention_heads: int = 0  # 0: tokens stand side by side; else each may take from the others
    centred: bool = False  # products and dots of vectors less their mean; see docs/adr/0064

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RankerConfig:
        """Read what ``dataclasses.asdict`` wrote."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})


class Ranker(nn.Module):
    """A pointwise click or conversion ranker.

    Parameters
    ----------
    spec
        The inputs.
    config
        The shape.

    Notes
    -----
    An embedding input becomes a token, or as many as the specification says, each with a projection of its own, then
    LayerNorm. Where it is missing the tokens and the products it takes part in are zero, and an indicator is 0 instead
    of 1: to the layers above that is a learned vector in its place.
    """

    embedding_scale: Tensor

    def __init__(self, spec: RankerSpec, config: RankerConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        layouts = table_layouts(spec)
        self.tables = nn.ModuleList(nn.Embedding(layout.rows, layout.dim, sparse=layout.sparse) for layout in layouts)
        for table in self.tables:
            nn.init.normal_(table.get_parameter("weight"), std=config.table_init)
        self.id_dropouts = nn.ModuleList(
            IdDropout(layout.offsets, layout.sizes, config.id_dropout, config.id_dropout_size) for layout in layouts
        )
        self.numeric = NumericInput(spec.nums, config.numeric_bins, config.numeric_dim) if spec.nums else None
        names = [name for name, _ in spec.embeddings]
        self.pairs = tuple((names.index(left), names.index(right)) for left, right in spec.pairs)
        self.register_buffer("embedding_scale", torch.ones(len(names)))
        # By position of the embedding; without `centred` there are none, as in rankers of before.
        self._means = {
            position: f"embedding_mean_{position}" for pair in self.pairs for position in pair if config.centred
        }
        for position, buffer in self._means.items():
            self.register_buffer(buffer, torch.zeros(spec.embeddings[position][1]))
        self.dropout = Dropout(config.embedding_dropout)
        counts = dict(spec.tokens)
        self.token_counts = tuple(counts.get(name, 1) for name in names)  # K of each embedding input
        self.tokens = nn.ModuleList(
            nn.Linear(dim // count, count * config.token_dim)
            for (_, dim), count in zip(spec.embeddings, self.token_counts, strict=True)
        )
        self.token_norms = nn.ModuleList(nn.LayerNorm(config.token_dim) for _ in names)
        self.products = nn.ModuleList(
            nn.Linear(spec.embeddings[left][1], config.pair_dim, bias=False) for left, _ in self.pairs
        )
        width = sum(layout.dim * len(layout.columns) for layout in layouts)
        width += self.numeric.dim if self.numeric is not None else 0
        width += sum(self.token_counts) * config.token_dim + len(names) + len(self.pairs) * (config.pair_dim + 1)
        self.crosses = nn.ModuleList(CrossLayer(width, config.cross_rank) for _ in range(config.cross_layers))
        layers: list[nn.Module] = []
        for size_in, size_out in zip((width, *config.hidden), config.hidden, strict=False):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.head = nn.Linear(width + (config.hidden[-1] if config.hidden else width), 1)
        inputs = [position for position, count in enumerate(self.token_counts) for _ in range(count)]
        heads = config.attention_heads if names else 0
        self.attention = TokenAttention(inputs, config.token_dim, heads) if heads else None

    def draw_from(self, generator: torch.Generator) -> None:
        """Take the randomness of training from a generator of its own instead of the global one."""
        self.dropout.generator = generator
        for dropout in self.id_dropouts:
            assert isinstance(dropout, IdDropout)
            dropout.generator = generator

    def set_statistics(self, data: RankerData) -> None:
        """Learn scales of numeric inputs and embeddings, means of embeddings, and the base rate, from training rows."""
        rows = np.random.default_rng(0).permutation(len(data))[:_STATISTICS_ROWS]
        if self.numeric is not None:
            self.numeric.set_statistics(data.nums[rows])
        for position, (name, _) in enumerate(self.spec.embeddings):
            table, index = gathered(data.embeddings[name])
            used = index[rows][index[rows] >= 0]
            mean_square = float(np.mean(np.square(table[used], dtype=np.float64))) if len(used) else 0.0
            self.embedding_scale[position] = 1.0 / np.sqrt(mean_square) if mean_square > 0 else 1.0
            if position in self._means and len(used):
                mean = np.mean(table[used], axis=0, dtype=np.float64)
                self.get_buffer(self._means[position]).copy_(torch.from_numpy(mean))
        rate = float(np.clip(np.mean(data.label, dtype=np.float64), 1e-6, 1 - 1e-6))
        with torch.no_grad():
            self.head.bias.fill_(float(np.log(rate / (1 - rate))))

    def forward(self, batch: RankerBatch) -> Tensor:
        """Return logits ``[B]``."""
        first = self.join(batch)
        x = first
        for layer in self.crosses:
            x = layer(first, x)
        logits: Tensor = self.head(torch.cat([x, self.mlp(first)], dim=1))
        return logits.squeeze(1)

    def join(self, batch: RankerBatch) -> Tensor:
        """Return all inputs side by side, ``[B, X]``."""
        lookups = zip(self.tables, self.id_dropouts, batch.ids, strict=True)
        parts = [table(dropout(ids)).flatten(1) for table, dropout, ids in lookups]
        if self.numeric is not None:
            parts.append(self.numeric(batch.nums))
        parts.append(self.dropout(self.embed(batch)))
        parts.append(batch.present)
        return torch.cat(parts, dim=1)

    def embed(self, batch: RankerBatch) -> Tensor:
        """Return the tokens, products and dots of the embedding inputs side by side, ``[B, any]``."""
        here = batch.present.unsqueeze(2)  # [B, G, 1]
        parts = [batch.present[:, :0]]
        # Scales go into the weights, and zeros into the results: both are smaller than the vectors.
        for position, (project, norm) in enumerate(zip(self.tokens, self.token_norms, strict=True)):
            weight = project.get_parameter("weight") * self.embedding_scale[position]
            bias, count = project.get_parameter("bias"), self.token_counts[position]
            if count == 1:
                token = norm(F.linear(batch.vectors[position], weight, bias))  # [B, H]
            else:
                given = batch.vectors[position].unflatten(1, (count, -1))  # [B, K, D / K]
                own = weight.unflatten(0, (count, -1))  # [K, H, D / K]
                token = norm(torch.einsum("bkd,khd->bkh", given, own) + bias.unflatten(0, (count, -1))).flatten(1)
            parts.append(token * here[:, position])  # [B, K * H]
        if self.attention is not None:
            tokens = torch.cat(parts, dim=1).unflatten(1, (-1, self.config.token_dim))
            parts = [self.attention(tokens, batch.present).flatten(1)]
        for (left, right), project in zip(self.pairs, self.products, strict=True):
            scale = self.embedding_scale[left] * self.embedding_scale[right]
            both = here[:, left] * here[:, right]  # [B, 1]
            product = self._centred(batch, left) * self._centred(batch, right)  # [B, D]
            parts.append(F.linear(product, project.get_parameter("weight") * scale) * both)
            # Scaled entries have mean square 1, so the dot of unrelated vectors grows with the root of D.
            parts.append(product.sum(1, keepdim=True) * (both * scale / product.shape[1] ** 0.5))
        return torch.cat(parts, dim=1)

    def _centred(self, batch: RankerBatch, position: int) -> Tensor:
        """Return the vectors of an embedding, ``[B, D]``, less the mean of the training rows if that is asked for."""
        mean = self.mean(position)
        return batch.vectors[position] if mean is None else batch.vectors[position] - mean

    def mean(self, position: int) -> Tensor | None:
        """Return what is subtracted from an embedding before products, ``[D]``, if anything is."""
        return self.get_buffer(self._means[position]) if position in self._means else None
