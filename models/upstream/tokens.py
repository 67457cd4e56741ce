"""From raw features to tokens: tables, numeric projections, interests.

Legend: B rows of any entity, C categorical and N numeric features, K interest values, D token dim.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.upstream.inputs import UserBatch


class CategoryTable(nn.Module):
    """One embedding table for several categorical features, each with its own rows.

    One table rather than one per feature: a lookup of all features is then a single gather.
    Index 0 (unknown) has a learned row, because not knowing an attribute says something.
    """

    offsets: Tensor

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        starts = [0, *accumulate(sizes)][:-1] if sizes else []
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.fields = len(sizes)
        self.dim = dim
        self.table = embedding(sum(sizes), dim) if sizes else None

    def forward(self, cats_BC: Tensor) -> Tensor:
        """Return tokens [B, C, D]."""
        if self.table is None:
            return cats_BC.new_zeros((*cats_BC.shape, self.dim), dtype=torch.float32)
        return self.table(cats_BC + self.offsets)

    def weighted_sums(self, values_BCK: Tensor, weights_BCK: Tensor) -> Tensor:
        """Return per feature the weighted sum of the embeddings of K values, [B, C, D]."""
        rows, fields, values = values_BCK.shape
        if self.table is None or values == 0:
            return weights_BCK.new_zeros(rows, fields, self.dim)
        index = (values_BCK + self.offsets[:, None]).reshape(rows * fields, values)
        weights = weights_BCK.reshape(rows * fields, values)
        return bag(index, self.table.weight, weights).view(rows, fields, self.dim)


class ItemTables(nn.Module):
    """What both towers know of items: a row per frequent item or hash bucket, and the attributes.

    Shared, so that "a user bought this type" and "the item is of this type" are the same embedding; and
    so is the projection of these embeddings into the output space. Before any training, a user's vector
    therefore points to the items that resemble what the user had.
    """

    # How much each source (id row, attributes) counts in the output has to change by factors within some
    # hundred steps; Adam moves a parameter by the learning rate alone, so it is stretched.
    _STRETCH = 30.0

    def __init__(self, rows: int, cats: tuple[int, ...], dim: int, out: int) -> None:
        super().__init__()
        self.rows = embedding(rows, out, padding_idx=0)
        self.attributes = CategoryTable(cats, dim)
        self.project = nn.Linear(len(cats) * dim, out, bias=False) if cats else None
        self.log_gain = nn.Parameter(torch.zeros(1 + len(cats)))

    def common(self, row_BE: Tensor, attributes_BCD: Tensor) -> Tensor:
        """Return what an item is, or the average of what a user had, in the output space: [B, out].

        Scaled to entries near 1, so that a user of many interests is heard as well as one of few.
        """
        gain_F = torch.exp(self._STRETCH * self.log_gain)
        common_BE = row_BE * gain_F[0]
        if self.project is not None:
            common_BE = common_BE + self.project((attributes_BCD * gain_F[1:, None]).flatten(1))
        return common_BE * (common_BE.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class NumericTokens(nn.Module):
    """Numeric features as a few tokens; none where there are no features."""

    def __init__(self, features: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = tokens if features else 0
        self.dim = dim
        if features:
            hidden = tokens * dim
            self.expand = nn.Linear(features, hidden)
            self.shrink = nn.Linear(hidden, hidden)

    def forward(self, nums_BN: Tensor) -> Tensor:
        """Return tokens [B, tokens, D]."""
        if not self.tokens:
            return nums_BN.new_zeros(nums_BN.shape[0], 0, self.dim)
        return self.shrink(functional.relu(self.expand(nums_BN))).view(-1, self.tokens, self.dim)


class HistoryDropout(nn.Module):
    """Hide activities and interests at random, so that a user is not known by the exact history of one week."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, users: UserBatch) -> UserBatch:
        """Return the users with some activities turned into padding and some interests without weight."""
        if not self.training or self.rate == 0.0:
            return users
        keep_UT = torch.rand(users.seq_item.shape, device=users.seq_item.device) >= self.rate
        keep_UCK = torch.rand(users.interest_weight.shape, device=users.seq_item.device) >= self.rate
        keep_UJ = torch.rand(users.top_weight.shape, device=users.seq_item.device) >= self.rate
        return replace(
            users,
            seq_item=users.seq_item * keep_UT,
            interest_weight=users.interest_weight * keep_UCK,
            top_weight=users.top_weight * keep_UJ,
        )


class RowDropout(nn.Module):
    """Zero whole embeddings, so that a tower learns to do without the ids that the long tail lacks."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows_BD: Tensor) -> Tensor:
        """Return [B, D]; not rescaled, because an item without a row must look the same as a dropped one."""
        if not self.training or self.rate == 0.0:
            return rows_BD
        keep_B1 = torch.rand(rows_BD.shape[0], 1, device=rows_BD.device) >= self.rate
        return rows_BD * keep_B1


def bag(index_NK: Tensor, table_VD: Tensor, weight_NK: Tensor | None = None) -> Tensor:
    """Return the (weighted) sums of K rows of a table, [N, D]; no gradient reaches the weights."""
    if index_NK.shape[1] == 0:
        return table_VD.new_zeros(len(index_NK), table_VD.shape[1])
    return _Bag.apply(index_NK, table_VD, weight_NK)


class _Bag(torch.autograd.Function):
    """torch's embedding_bag with a backward pass that takes a quarter of the time on a CPU."""

    @staticmethod
    def forward(ctx: Any, index_NK: Tensor, table_VD: Tensor, weight_NK: Tensor | None) -> Tensor:
        ctx.rows = len(table_VD)
        ctx.save_for_backward(index_NK, weight_NK)
        return functional.embedding_bag(index_NK, table_VD, mode="sum", per_sample_weights=weight_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[None, Tensor, None]:
        index_NK, weight_NK = ctx.saved_tensors
        gradient_VD = gradient_ND.new_zeros(ctx.rows, gradient_ND.shape[1])
        for k in range(index_NK.shape[1]):
            added = gradient_ND if weight_NK is None else gradient_ND * weight_NK[:, k, None]
            gradient_VD.index_add_(0, index_NK[:, k], added)
        return None, gradient_VD, None


def embedding(rows: int, dim: int, padding_idx: int | None = None) -> nn.Embedding:
    """Return a table whose embeddings have a norm near 1, the scale at which layers start well."""
    table = nn.Embedding(rows, dim, padding_idx=padding_idx)
    nn.init.normal_(table.weight, std=dim**-0.5)
    if padding_idx is not None:
        with torch.no_grad():
            table.weight[padding_idx].zero_()
    return table
