"""The user, item and interaction towers: tokens in, DHEN, tokens out.

Legend: U users, I items, B rows, F fields (tokens of one example), D token dim inside a tower,
M output tokens of E floats each; M * E is the dim of the published vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.upstream.dhen import DHEN
from models.upstream.inputs import ContextBatch, InputSpec, ItemBatch, UserBatch
from models.upstream.sequence import SequenceTokens
from models.upstream.tokens import CategoryTable, HistoryDropout, ItemTables, NumericTokens, RowDropout, bag


class UnitTokens(nn.Module):
    """Compress tokens [B, F, D] into M tokens of E floats, flattened and scaled to length 1.

    The tokens correct what the item tables say (see `ItemTables.common`): they start small.
    """

    def __init__(self, fields: int, dim: int, out: int) -> None:
        super().__init__()
        self.out = nn.Linear(fields * dim, out)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, tokens_BFD: Tensor, common_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors [B, M * E] and their lengths before scaling [B]."""
        raw = (common_BE + self.out(tokens_BFD.flatten(1))).float()
        norm_B = torch.linalg.vector_norm(raw, dim=-1).clamp_min(1e-6)
        return raw / norm_B[:, None], norm_B


class UserTower(nn.Module):
    """Activity sequence, interests, attributes and counts of a user to one unit vector."""

    @dataclass(frozen=True)
    class Config:
        numeric_tokens: int = 2
        history_dropout: float = 0.3
        sequence: SequenceTokens.Config = field(default_factory=SequenceTokens.Config)
        dhen: DHEN.Config = field(default_factory=DHEN.Config)

    def __init__(self, config: Config, spec: InputSpec, dim: int, out: int) -> None:
        super().__init__()
        self.cats = CategoryTable(spec.user_cats, dim)
        self.nums = NumericTokens(spec.user_nums, config.numeric_tokens, dim)
        self.sequence = SequenceTokens(config.sequence, spec, dim, out)
        self.row_in = nn.Linear(out, dim)
        self.history_dropout = HistoryDropout(config.history_dropout)
        fields = len(spec.user_cats) + self.nums.tokens + len(spec.item_cats) + config.sequence.tokens + 1
        self.dhen = DHEN(config.dhen, fields, dim)
        self.head = UnitTokens(fields, dim, out)

    def forward(self, users: UserBatch, tables: ItemTables) -> tuple[Tensor, Tensor]:
        """Return unit vectors [U, M * E] and their lengths before scaling [U]."""
        users = self.history_dropout(users)
        interests_UCD = tables.attributes.weighted_sums(users.interest_value, users.interest_weight)
        row_UE = bag(users.top_item, tables.rows.weight, users.top_weight)
        tokens = [
            self.cats(users.cats),
            self.nums(users.nums),
            interests_UCD,
            self.row_in(row_UE).unsqueeze(1),
            self.sequence(users, tables),
        ]
        return self.head(self.dhen(torch.cat(tokens, dim=1)), tables.common(row_UE, interests_UCD))


class ItemTower(nn.Module):
    """Id row, attributes and counts of an item to one unit vector."""

    @dataclass(frozen=True)
    class Config:
        numeric_tokens: int = 2
        row_dropout: float = 0.2
        dhen: DHEN.Config = field(default_factory=DHEN.Config)

    def __init__(self, config: Config, spec: InputSpec, dim: int, out: int) -> None:
        super().__init__()
        self.nums = NumericTokens(spec.item_nums, config.numeric_tokens, dim)
        self.row_in = nn.Linear(out, dim)
        self.row_dropout = RowDropout(config.row_dropout)
        fields = 1 + len(spec.item_cats) + self.nums.tokens
        self.dhen = DHEN(config.dhen, fields, dim)
        self.head = UnitTokens(fields, dim, out)

    def forward(self, items: ItemBatch, tables: ItemTables) -> tuple[Tensor, Tensor]:
        """Return unit vectors [I, M * E] and their lengths before scaling [I]."""
        row_IE, attributes_ICD = self.row_dropout(tables.rows(items.row)), tables.attributes(items.cats)
        tokens = [self.row_in(row_IE).unsqueeze(1), attributes_ICD, self.nums(items.nums)]
        return self.head(self.dhen(torch.cat(tokens, dim=1)), tables.common(row_IE, attributes_ICD))


class InteractionTower(nn.Module):
    """Output tokens of both towers, their products and the context to one hidden vector per row.

    It sees only what is published (unit vectors): whatever the click head learns about a user or an
    item has to pass through the vectors that consumers read.
    """

    @dataclass(frozen=True)
    class Config:
        numeric_tokens: int = 1
        hidden: int = 64
        dhen: DHEN.Config = field(default_factory=DHEN.Config)
        # Width of the tokens in here; None: as wide as the published ones. It is the one tower that runs per row.
        dim: int | None = None

    def __init__(self, config: Config, spec: InputSpec, out_tokens: int, out_dim: int) -> None:
        super().__init__()
        self.shape = (out_tokens, out_dim)
        dim = config.dim or out_dim
        # What is projected: user tokens, item tokens, their products.
        self.narrow = nn.ModuleList(nn.Linear(out_dim, dim) for _ in range(3)) if dim != out_dim else None
        self.cats = CategoryTable(spec.context_cats, dim)
        self.nums = NumericTokens(spec.context_nums, config.numeric_tokens, dim)
        fields = 3 * out_tokens + len(spec.context_cats) + self.nums.tokens
        self.dhen = DHEN(config.dhen, fields, dim)
        self.head = nn.Linear(fields * dim, config.hidden)
        self.width = config.hidden + out_tokens * out_tokens

    def forward(self, user_BE: Tensor, item_BE: Tensor, context: ContextBatch) -> Tensor:
        """Return [B, width]: hidden units, then the similarities of all pairs of user and item token."""
        # A unit vector has entries near dim ** -0.5; layers start best on entries near 1.
        scale = user_BE.shape[1] ** 0.5
        user_BME, item_BME = ((v * scale).unflatten(1, self.shape) for v in (user_BE, item_BE))
        pair = [user_BME, item_BME, user_BME * item_BME]
        if self.narrow is not None:
            pair = [narrow(tokens_BME) for narrow, tokens_BME in zip(self.narrow, pair, strict=True)]
        tokens = [*pair, self.cats(context.cats), self.nums(context.nums)]
        hidden_BH = functional.relu(self.head(self.dhen(torch.cat(tokens, dim=1)).flatten(1)))
        # A norm over a token of products takes away its mean, which is the similarity: it goes around.
        similar_BMM = user_BME @ item_BME.transpose(1, 2) / user_BME.shape[2] ** 0.5
        return torch.cat([hidden_BH, similar_BMM.flatten(1)], dim=1)
