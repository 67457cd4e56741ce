"""The activity sequence of a user as a few tokens.

Legend: U users, T activities, S = T + 1 with the null event, Q pooled tokens, D token dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.upstream.inputs import InputSpec, UserBatch
from models.upstream.layers import Transformer
from models.upstream.tokens import ItemTables, bag, embedding


class SequenceTokens(nn.Module):
    """Encode activities and pool them by learned queries.

    Order is told by age alone, never by position: padding then changes nothing, and a refresh may pass
    longer or shorter sequences than training did. A learned null event stands first, so that a user
    without any activity has something to attend to.
    """

    @dataclass(frozen=True)
    class Config:
        layers: int = 1  # transformer blocks before pooling; 0 pools the events as they are
        tokens: int = 4  # Q
        age_buckets: int = 32
        age_limit: float = 11.0  # log1p hours, about seven years; older is as old
        transformer: Transformer.Config = field(default_factory=Transformer.Config)

    def __init__(self, config: Config, spec: InputSpec, dim: int, row_dim: int) -> None:
        super().__init__()
        self.config = config
        self.row_in = nn.Linear(row_dim, dim, bias=False)
        self.attribute_in = nn.Linear(dim, dim, bias=False) if spec.item_cats else None
        self.actions = embedding(spec.actions, dim)
        self.ages = embedding(config.age_buckets, dim)
        self.null = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.blocks = nn.ModuleList(Transformer(config.transformer, dim) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(config.tokens, dim) * dim**-0.5)
        self.out = nn.Linear(dim, dim)

    def forward(self, users: UserBatch, items: ItemTables) -> Tensor:
        """Return tokens [U, Q, D]."""
        known_US = functional.pad(users.seq_item > 0, (1, 0), value=True)
        null_U1D = self.null.expand(users.seq_item.shape[0], 1, -1)
        events_USD = torch.cat([null_U1D, self._events(users, items)], dim=1)
        for block in self.blocks:
            events_USD = block(events_USD, known_US)
        events_USD = self.norm(events_USD)
        scores_UQS = (self.queries @ events_USD.transpose(1, 2)).masked_fill(~known_US[:, None, :], -torch.inf)
        share_UQS = torch.softmax(scores_UQS, dim=-1)
        return self.out(share_UQS @ events_USD)

    def _events(self, users: UserBatch, items: ItemTables) -> Tensor:
        """Embed what every activity was: item row, attributes, action and age, [U, T, D].

        A linear layer over concatenated embeddings is the sum of projected tables. Projecting the few
        thousand rows of the tables and summing them in one bag costs a tenth of the concatenation.
        """
        users_, length, fields = users.seq_cats.shape
        scaled = users.seq_age * (self.config.age_buckets / self.config.age_limit)
        age_UT = scaled.long().clamp(0, self.config.age_buckets - 1)
        tables = [self.actions.weight, self.ages.weight]
        columns = [users.seq_action.unsqueeze(-1), age_UT.unsqueeze(-1) + self.actions.num_embeddings]
        attributes = items.attributes
        if self.attribute_in is not None and attributes.table is not None:
            start = self.actions.num_embeddings + self.ages.num_embeddings
            tables.append(self.attribute_in(attributes.table.weight))
            columns.append(users.seq_cats + (attributes.offsets + start))
        index = torch.cat(columns, dim=-1).view(users_ * length, fields + 2)
        table = torch.cat(tables)
        return bag(index, table).view(users_, length, table.shape[1]) + self.row_in(items.rows(users.seq_item))
