"""DERM: decoupled user and item towers under an interaction tower (arXiv 2509.04337).

Legend: B rows, U distinct users, I distinct items, E = dim of the published vectors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feature_repo.contracts.errors import ConfigError
from models.upstream import config as config_io
from models.upstream.files import load_model, save_model, weights_digest
from models.upstream.inputs import (
    InputSpec,
    ItemBatch,
    TrainBatch,
    UserBatch,
    check_context,
    check_items,
    check_users,
)
from models.upstream.losses import LossConfig, Losses
from models.upstream.tokens import ItemTables
from models.upstream.towers import InteractionTower, ItemTower, UserTower


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives; `losses` holds scalars, "total" the one to minimize."""

    click_logit: Tensor  # [B]
    conversion_logit: Tensor  # [B], of the conversion given a click
    user_vector: Tensor  # [U, E], length 1
    item_vector: Tensor  # [I, E], length 1
    user_norm: Tensor  # [U], length before scaling
    item_norm: Tensor  # [I]
    losses: dict[str, Tensor]


class DERM(nn.Module):
    """The upstream model. Built from its config alone: equal configs give equal initial weights."""

    @dataclass(frozen=True)
    class Config:
        """Everything the model is built from.

        Attributes
        ----------
        dim
            Width of the tokens inside the user and item tower.
        out_tokens, out_dim
            The published vectors are `out_tokens` tokens of `out_dim` floats, flattened.
        click_rate, conversion_rate
            Expected share of clicks among rows and of conversions among clicks: where the heads start.
        seed
            Of the initial weights.
        """

        inputs: InputSpec
        dim: int = 32
        out_tokens: int = 4
        out_dim: int = 16
        click_rate: float = 0.1
        conversion_rate: float = 0.1
        seed: int = 0
        user: UserTower.Config = field(default_factory=UserTower.Config)
        item: ItemTower.Config = field(default_factory=ItemTower.Config)
        interaction: InteractionTower.Config = field(default_factory=InteractionTower.Config)
        losses: LossConfig = field(default_factory=LossConfig)

        def __post_init__(self) -> None:
            if not (0 < self.click_rate < 1 and 0 < self.conversion_rate < 1):
                raise ConfigError("click_rate and conversion_rate must lie between 0 and 1.")

        def to_dict(self) -> dict[str, Any]:
            """Return plain JSON values."""
            return config_io.to_dict(self)

        @classmethod
        def from_dict(cls, values: dict[str, Any]) -> DERM.Config:
            """Read what :meth:`to_dict` wrote; raise ConfigError on anything else."""
            return config_io.from_dict(cls, values, "model")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        spec, out = config.inputs, config.out_tokens * config.out_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.items = ItemTables(spec.item_rows, spec.item_cats, config.dim, out)
            self.user_tower = UserTower(config.user, spec, config.dim, out)
            self.item_tower = ItemTower(config.item, spec, config.dim, out)
            self.interaction = InteractionTower(config.interaction, spec, config.out_tokens, config.out_dim)
            self.heads = nn.Linear(self.interaction.width, 2)
            self.losses = Losses(config.losses)
        with torch.no_grad():
            rates = (config.click_rate, config.conversion_rate)
            self.heads.bias.copy_(torch.tensor([math.log(rate / (1 - rate)) for rate in rates]))

    @property
    def dim(self) -> int:
        """Floats per published vector."""
        return self.config.out_tokens * self.config.out_dim

    def user_vectors(self, users: UserBatch) -> tuple[Tensor, Tensor]:
        """Return unit vectors [U, E] and their lengths before scaling [U].

        Raises
        ------
        ConfigError
            If the batch does not fit the model's InputSpec.
        """
        check_users(users, self.config.inputs)
        return self.user_tower(users, self.items)

    def item_vectors(self, items: ItemBatch) -> tuple[Tensor, Tensor]:
        """Return unit vectors [I, E] and their lengths before scaling [I]; raises as :meth:`user_vectors`."""
        check_items(items, self.config.inputs)
        return self.item_tower(items, self.items)

    def forward(self, batch: TrainBatch) -> Outputs:
        """Return logits, vectors and losses of a batch; raises as :meth:`user_vectors`."""
        check_context(batch.context, self.config.inputs)
        user_UE, user_norm_U = self.user_vectors(batch.user)
        item_IE, item_norm_I = self.item_vectors(batch.item)
        user_BE = user_UE.index_select(0, batch.user_index)
        item_BE = item_IE.index_select(0, batch.item_index)
        hidden_BH = self.interaction(user_BE, item_BE, batch.context).float()
        # Under autocast too, a softmax over thousands of candidates and the losses stay in full precision.
        with torch.autocast(hidden_BH.device.type, enabled=False):
            click_B, conversion_B = self.heads(hidden_BH).unbind(-1)
            losses = self.losses(batch, user_UE, item_IE, click_B, conversion_B)
        return Outputs(click_B, conversion_B, user_UE, item_IE, user_norm_U, item_norm_I, losses)

    def save(self, folder: Path) -> None:
        """Write weights and config into `folder`, each beside its place and renamed, the config last."""
        save_model(folder, self.config.to_dict(), self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> DERM:
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises
        ------
        LakeError
            If a file is missing or the weights are not those the config was written with.
        """
        config, weights = load_model(folder)
        model = cls(cls.Config.from_dict(config))
        model.load_state_dict(weights)
        return model.eval()


def space_id(weights: Mapping[str, Tensor], config: dict[str, Any], data_fingerprint: str) -> str:
    """Return the 16 hex digits that identify a trained model's vector space.

    Parameters
    ----------
    weights
        The state dict; names, types, shapes and bytes all count, their order does not.
    config
        JSON values of the model's config.
    data_fingerprint
        Of the data it was trained on.
    """
    return weights_digest(weights, json.dumps(config, sort_keys=True), data_fingerprint)[:16]
