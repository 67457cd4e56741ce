"""Training on from old weights without leaving their space: a loss that keeps vectors near the old model's.

Legend: U users, I items, E vector dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models.upstream.derm import DERM, Outputs
from models.upstream.inputs import TrainBatch


class Aligned(nn.Module):
    """A model that is trained on, beside a frozen copy of what it was; `losses` has ``alignment`` on top.

    Parameters
    ----------
    model
        Trained in place; its weights are those of the old model at first.
    old
        The old model, read only. It is no part of this module's parameters or state.
    weight
        Of one minus the mean cosine of new and old vectors of the same users and items, in the total.
    """

    def __init__(self, model: DERM, old: DERM, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigError("The weight of the alignment loss cannot be negative.")
        self.model, self.weight = model, weight
        # In a tuple, so that torch takes it for no submodule.
        self._old = (old.eval().requires_grad_(False),)

    def forward(self, batch: TrainBatch) -> Outputs:
        """Return the model's outputs, their total with the alignment loss."""
        found: Outputs = self.model(batch)
        with torch.no_grad():
            old = self._old[0]
            users_UE, _ = old.user_vectors(batch.user)
            items_IE, _ = old.item_vectors(batch.item)
        apart = (alignment_loss(found.user_vector, users_UE) + alignment_loss(found.item_vector, items_IE)) / 2
        losses = {**found.losses, "total": found.losses["total"] + self.weight * apart, "alignment": apart}
        return replace(found, losses=losses)


def alignment_loss(new_NE: Tensor, old_NE: Tensor) -> Tensor:
    """Return one minus the mean cosine of new and old vectors of the same entities, a scalar between 0 and 2."""
    return 1 - functional.cosine_similarity(new_NE, old_NE, dim=-1).mean()
