"""What the upstream model is trained on: contrastive pairs, clicks, conversions.

Legend: B rows, U distinct users, I distinct items, N positive pairs, E vector dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from models import ranks
from models.upstream.config import added
from models.upstream.inputs import TrainBatch

_PARTS = ("click", "conversion", "contrastive")
_HIDDEN = -1e9  # a logit that no softmax sees; finite, because -inf rows would have NaN gradients


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the losses.

    Attributes
    ----------
    click_weight, conversion_weight, contrastive_weight
        Weight of each part in the total; 0 leaves the part out of the total (it is still recorded).
    conversion
        ``clicked``: conversions given a click, trained on clicked rows. ``esmm``: over all impressions,
        p(click) * p(conversion | click) against click-and-conversion (arXiv 1804.07931).
    activity_weight
        Weight of an activity pair against 1 of a positive row in the contrastive loss.
    temperature, temperature_min, temperature_max
        Start and bounds of the learned softmax temperature.
    weighting
        ``fixed``: the weights stay as they are. ``uncertainty``: each is learned from its own start, as 1 / s^2 of
        a task with noise s (Kendall et al. 2018, arXiv 1705.07115); a part of weight 0 stays out.
    """

    click_weight: float = 1.0
    conversion_weight: float = 0.5
    contrastive_weight: float = 0.2
    conversion: Literal["clicked", "esmm"] = "clicked"
    activity_weight: float = 1.0
    temperature: float = 0.05
    temperature_min: float = 0.02
    temperature_max: float = 1.0
    weighting: Literal["fixed", "uncertainty"] = added("fixed")

    def __post_init__(self) -> None:
        if not 0 < self.temperature_min <= self.temperature <= self.temperature_max:
            raise ConfigError("The temperature must lie between its bounds, and all three above 0.")
        weights = (self.click_weight, self.conversion_weight, self.contrastive_weight)
        if min(*weights, self.activity_weight) < 0:
            raise ConfigError("Loss weights cannot be negative.")
        if sum(weights) == 0:
            raise ConfigError("All loss weights are 0: there is nothing to train on.")


class Losses(nn.Module):
    """All losses of the upstream model; holds the learned temperature, and the weights where they are learned."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        weights = {name: float(getattr(config, f"{name}_weight")) for name in _PARTS}
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(-math.log(weight))) for name, weight in weights.items() if weight > 0}
            if config.weighting == "uncertainty"
            else {}
        )

    def forward(
        self,
        batch: TrainBatch,
        user_UE: Tensor,
        item_IE: Tensor,
        click_logit_B: Tensor,
        conversion_logit_B: Tensor,
    ) -> dict[str, Tensor]:
        """Return scalars: click, conversion, contrastive, temperature and the weighted total of the three.

        Learned weights stand there too, as click_weight and so on. A part for which the batch has no example leaves
        the total and its weight alone.
        """
        config = self.config
        temperature = self._temperature()
        pair_user, pair_item, weight = self._pairs(batch)
        found = candidates(batch, item_IE, pair_user, pair_item)
        contrastive = contrastive_loss(
            user_UE,
            found.item_IE,
            pair_user,
            found.pair_item_N,
            temperature,
            item_log_q_I=found.log_q_I,
            user_key_U=batch.user_key,
            item_key_I=found.key_I,
            weight_N=weight,
            hits=found.hits,
        )
        # The head says what holds of all opportunities; among the rows that were kept clicks are more frequent.
        sampled_logit_B = click_logit_B if batch.click_shift is None else click_logit_B + batch.click_shift
        click_B = _both(batch.click_known, batch.click_trains)
        click = masked_bce(sampled_logit_B, batch.click, click_B)
        conversion_B = _both(batch.conversion_known, batch.conversion_trains)
        if config.conversion == "esmm":
            both_B = batch.click * batch.conversion
            conversion = esmm_loss(sampled_logit_B, conversion_logit_B, both_B, conversion_B)
        else:
            conversion_B = batch.click_known & conversion_B & (batch.click > 0.5)
            conversion = masked_bce(conversion_logit_B, batch.conversion, conversion_B)
        parts = {"click": click, "conversion": conversion, "contrastive": contrastive}
        recorded = {**parts, "temperature": temperature.detach()}
        if config.weighting == "fixed":
            total = (
                config.click_weight * click
                + config.conversion_weight * conversion
                + config.contrastive_weight * contrastive
            )
            return {"total": total, **recorded}
        examples = {"click": click_B.any(), "conversion": conversion_B.any(), "contrastive": weight.sum() > 0}
        present = {name: ranks.any_of(flag) for name, flag in examples.items()}
        total = click.new_zeros(())
        if ranks.world() > 1:  # DDP waits for a gradient of every parameter, of a part without weight, too
            total = 0.0 * (click + conversion + contrastive)
        for name, log_variance in self.log_variances.items():
            total = total + present[name] * (torch.exp(-log_variance) * parts[name] + 0.5 * log_variance)
            recorded[f"{name}_weight"] = torch.exp(-log_variance.detach())
        return {"total": total, **recorded}

    def _temperature(self) -> Tensor:
        """Clamp the parameter itself: clamping only its use would leave it without gradient at the bound."""
        if self.training:
            with torch.no_grad():
                self.log_temperature.clamp_(
                    math.log(self.config.temperature_min), math.log(self.config.temperature_max)
                )
        return self.log_temperature.exp()

    def _pairs(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows = batch.positive.nonzero().squeeze(1)
        pair_user = torch.cat([batch.user_index[rows], batch.pos_user_index])
        pair_item = torch.cat([batch.item_index[rows], batch.pos_item_index])
        weight = torch.ones(len(pair_user), device=pair_user.device)
        weight[len(rows) :] = self.config.activity_weight
        return pair_user, pair_item, weight


@dataclass(frozen=True)
class Candidates:
    """The items that users choose among: those of this batch, and of the other ranks' batches where there are several.

    `pair_item_N` are the positives as indices into them, `hits` pairs of other ranks with users of this one.
    """

    item_IE: Tensor
    log_q_I: Tensor
    key_I: Tensor
    pair_item_N: Tensor
    hits: tuple[Tensor, Tensor] | None = None


def candidates(batch: TrainBatch, item_IE: Tensor, pair_user_N: Tensor, pair_item_N: Tensor) -> Candidates:
    """Return the items of all ranks, each once by its key, as in one batch of one process."""
    if ranks.world() == 1:
        return Candidates(item_IE, batch.item_log_q, batch.item_key, pair_item_N)
    all_IE, key_I, log_q_I = (ranks.gathered(rows) for rows in (item_IE, batch.item_key, batch.item_log_q))
    distinct, place_I = torch.unique(key_I, return_inverse=True)
    # The first rank that has an item gives its vector.
    first = torch.full_like(distinct, len(key_I)).scatter_reduce_(
        0, place_I, torch.arange(len(key_I), device=key_I.device), "amin"
    )
    pair_user_key, pair_item_key = batch.user_key[pair_user_N], batch.item_key[pair_item_N]
    hit_user_key, hit_item_key = ranks.gathered(pair_user_key), ranks.gathered(pair_item_key)
    users, order = torch.sort(batch.user_key)
    at = torch.searchsorted(users, hit_user_key).clamp_max(max(0, len(users) - 1))
    own = users[at] == hit_user_key if len(users) else torch.zeros_like(hit_user_key, dtype=torch.bool)
    hits = order[at[own]], torch.searchsorted(distinct, hit_item_key[own])
    return Candidates(all_IE[first], log_q_I[first], distinct, torch.searchsorted(distinct, pair_item_key), hits)


def contrastive_loss(
    user_UE: Tensor,
    item_IE: Tensor,
    pair_user_N: Tensor,
    pair_item_N: Tensor,
    temperature: Tensor | float,
    *,
    item_log_q_I: Tensor,
    user_key_U: Tensor,
    item_key_I: Tensor,
    weight_N: Tensor | None = None,
    hits: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the in-batch sampled softmax loss of user-item pairs, a scalar.

    Every item of the batch is a candidate for every user. The logit of a candidate is
    ``user . item / temperature - log_q`` (Yi et al. 2019: popular items come up as negatives too often).
    Accidental hits are no negatives: neither another column with the item's key nor any item that is a
    positive of the same user, by key, in this batch.

    Parameters
    ----------
    user_UE, item_IE
        Vectors.
    pair_user_N, pair_item_N
        Positive pairs as indices into the rows of the vectors.
    temperature
        Scale of the softmax, above 0.
    item_log_q_I
        Log probability that the item is in a batch; a constant shift changes nothing.
    user_key_U, item_key_I
        Identities.
    weight_N
        Weight per pair; the loss is the weighted mean, over the pairs of all ranks. 0 for no pairs or all-zero weights.
    hits
        Further pairs that are no negatives, as indices like those of the pairs.
    """
    weight_N = torch.ones_like(pair_user_N, dtype=user_UE.dtype) if weight_N is None else weight_N
    if len(pair_user_N) == 0 and ranks.world() == 1:  # DDP waits for a gradient of the temperature from every rank
        return 0.0 * (user_UE.sum() + item_IE.sum())
    scaled_UE = user_UE / temperature
    positive_N = (scaled_UE[pair_user_N] * item_IE[pair_item_N]).sum(-1) - item_log_q_I[pair_item_N]
    more_user_N, more_item_N = hits or (pair_user_N[:0], pair_item_N[:0])
    hit_user_N, hit_item_N = torch.cat([pair_user_N, more_user_N]), torch.cat([pair_item_N, more_item_N])
    hit_UI = _hits(hit_user_N, hit_item_N, user_key_U, item_key_I)
    # All pairs of a user share one set of negatives: their sum is taken once per user, not per pair.
    negative_U = _NegativeSum.apply(scaled_UE, item_IE, item_log_q_I, hit_UI)
    loss_N = functional.softplus(negative_U[pair_user_N] - positive_N)
    return ranks.mean((loss_N * weight_N).sum(), weight_N.sum(), 1e-12)


def _hits(pair_user_N: Tensor, pair_item_N: Tensor, user_key_U: Tensor, item_key_I: Tensor) -> Tensor:
    """Return [U, I], True where the item's key is a positive of the user's key."""
    user_U, user_distinct = _by_key(user_key_U)
    item_I, item_distinct = _by_key(item_key_I)
    hit = torch.zeros(len(user_U), len(item_I), dtype=torch.bool, device=user_U.device)
    hit[user_U[pair_user_N], item_I[pair_item_N]] = True
    # A gather over [U, I] costs as much as the softmax: skipped where, as usual, every key occurs once.
    hit = hit if user_distinct else hit[user_U]
    return hit if item_distinct else hit[:, item_I]


def _by_key(key_N: Tensor) -> tuple[Tensor, bool]:
    """Return an index per entry that equal keys share, and whether all keys are distinct."""
    distinct, index_N = torch.unique(key_N, return_inverse=True)
    if len(distinct) == len(key_N):
        return torch.arange(len(key_N), device=key_N.device), True
    return index_N, False


class _NegativeSum(torch.autograd.Function):
    """log sum over unhidden items of exp(user . item - log_q), [U].

    Written out because [U, I] is by far the largest tensor of a training step: one buffer is filled,
    turned into probabilities in place and used for both gradients, where autograd would keep several.
    """

    @staticmethod
    def forward(ctx: Any, user_UE: Tensor, item_IE: Tensor, log_q_I: Tensor, hidden_UI: Tensor) -> Tensor:
        logit_UI = torch.addmm(-log_q_I, user_UE, item_IE.T).masked_fill_(hidden_UI, _HIDDEN)
        highest_U1 = logit_UI.amax(1, keepdim=True)
        weight_UI = logit_UI.sub_(highest_U1).exp_()
        sum_U1 = weight_UI.sum(1, keepdim=True)
        ctx.save_for_backward(user_UE, item_IE, weight_UI, sum_U1)
        return (highest_U1 + sum_U1.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_U: Tensor) -> tuple[Tensor, Tensor, None, None]:
        user_UE, item_IE, weight_UI, sum_U1 = ctx.saved_tensors
        share_U1 = gradient_U[:, None] / sum_U1
        return share_U1 * (weight_UI @ item_IE), weight_UI.T @ (share_U1 * user_UE), None, None


def _both(known_B: Tensor, trains_B: Tensor | None) -> Tensor:
    return known_B if trains_B is None else known_B & trains_B


def masked_bce(logit_B: Tensor, target_B: Tensor, known_B: Tensor) -> Tensor:
    """Return the mean binary cross entropy over rows whose label is known; 0 if none is."""
    target = torch.where(known_B, target_B, 0.0)  # an unknown label may be NaN
    known = known_B.to(logit_B.dtype)
    summed = functional.binary_cross_entropy_with_logits(logit_B, target, weight=known, reduction="sum")
    return ranks.mean(summed, known.sum())


def esmm_loss(click_logit_B: Tensor, conversion_logit_B: Tensor, both_B: Tensor, known_B: Tensor) -> Tensor:
    """Return the mean cross entropy of p(click) * p(conversion | click) over known rows; 0 if there are none.

    In log space throughout: with a, b the logits and p = s(a) s(b),
    ``1 - p = (exp(-a) + exp(-b) + exp(-a - b)) s(a) s(b)``, which no probability near 0 or 1 can break.
    """
    a, b = click_logit_B, conversion_logit_B
    log_p = functional.logsigmoid(a) + functional.logsigmoid(b)
    log_not_p = torch.logsumexp(torch.stack([-a, -b, -a - b]), dim=0) + log_p
    both = torch.where(known_B, both_B, 0.0)
    known = known_B.to(a.dtype)
    loss_B = -(both * log_p + (1.0 - both) * log_not_p)
    return ranks.mean((loss_B * known).sum(), known.sum())
