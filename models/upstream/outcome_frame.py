"""What the vectors of a moment have in common when outcomes are folded in: means, directions, a scale, priors.

Legend: U users, I items, X rows of either, E vector dim, R directions, M numbers of items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from feature_repo.contracts.types import Entity
from models.upstream.outcome_settings import OutcomeFoldIn
from models.upstream.outcomes import Outcomes

DIRECTIONS = 32  # in which vectors are moved: those in which they vary
SCALE_ROWS, SCALE_STEPS = 1 << 20, 8  # outcomes that tell a scale, and Newton steps
LEAST_VARIANCE = 1e-3  # of a direction, in proportion to that of all


@dataclass(frozen=True)
class Frame:
    """What the model's vectors of a moment have in common, which solving any row takes.

    Attributes
    ----------
    user_centre, item_centre
        Means of the model's vectors [E].
    directions
        Orthonormal columns [E, R] within which vectors are moved.
    scale
        Logits that a product of two vectors is worth.
    user_prior, item_prior
        Precisions of the priors along the directions [R].
    """

    user_centre: Tensor
    item_centre: Tensor
    directions: Tensor
    scale: float
    user_prior: Tensor
    item_prior: Tensor

    def centre(self, entity: Entity) -> Tensor:
        """Return the mean of an entity's vectors [E]."""
        return self.user_centre if entity == "user" else self.item_centre

    def prior(self, entity: Entity) -> Tensor:
        """Return the precisions of the prior of an entity's vectors [R]."""
        return self.user_prior if entity == "user" else self.item_prior

    def along(self, entity: Entity, vectors_XE: Tensor) -> Tensor:
        """Return vectors less their kind's mean, along the directions [X, R]."""
        return (vectors_XE - self.centre(entity)) @ self.directions


class Own(NamedTuple):
    """What rows of an entity have beside tastes.

    rates
        How much likelier it happens with each of them, in logits [X].
    along
        Of items their numbers [X, M]; of users what a deviation of each of these is worth to them more than to all
        users, in logits [X, M].
    """

    rates: Tensor
    along: Tensor

    def take(self, rows: Tensor) -> Own:
        """Return those of some rows."""
        return Own(*(values[rows] for values in self))


def frame_of(users_UE: Tensor, items_IE: Tensor, outcomes: Outcomes, config: OutcomeFoldIn) -> Frame:
    """Return what the model's vectors have in common; `outcomes` are by user."""
    directions = axes(users_UE, items_IE, config)
    scale = fit_scale(users_UE, items_IE, outcomes, config.user.fades_days)
    user_prior, item_prior = (precisions(vectors_XE @ directions, config) for vectors_XE in (users_UE, items_IE))
    return Frame(users_UE.mean(0), items_IE.mean(0), directions, scale, user_prior, item_prior)


def precisions(vectors_XR: Tensor, config: OutcomeFoldIn) -> Tensor:
    """Return the prior's precision along each direction [R], from what the model's vectors have there [X, R].

    Where they vary much, much can be wrong: the variance of the prior is in proportion to theirs.
    """
    if config.even or len(vectors_XR) < 2:
        return torch.full((vectors_XR.shape[1],), config.prior)
    variance_R = vectors_XR.var(0)
    share_R = variance_R / variance_R.mean().clamp_min(1e-12)  # where all vectors are one, nothing moves
    return config.prior / share_R.clamp_min(LEAST_VARIANCE)


def axes(users_UE: Tensor, items_IE: Tensor, config: OutcomeFoldIn) -> Tensor:
    """Return where the model's vectors vary most, users and items alike, beside the directions that are taken.

    Orthonormal columns [E, R].
    """
    dim = users_UE.shape[1]
    covariances = [torch.cov(side.T) for side in (users_UE, items_IE) if len(side) > 1]
    spread_EE = sum((cov / cov.trace().clamp_min(1e-12) for cov in covariances), start=torch.zeros(dim, dim)).double()
    taken_EO = (own_directions(dim, len(config.numbers)) if config.rate else torch.zeros(dim, 0)).double()
    taken_EE = taken_EO @ taken_EO.T
    rest_EE = torch.eye(dim, dtype=torch.float64) - taken_EE
    # What is taken gets an eigenvalue below all that a covariance can have.
    found_EE = torch.linalg.eigh(rest_EE @ spread_EE @ rest_EE - taken_EE)[1]
    return found_EE[:, dim - min(DIRECTIONS, dim - taken_EO.shape[1]) :].float().contiguous()


def own_directions(dim: int, numbers: int = 0) -> Tensor:
    """Return the directions of users' own rates, of items' own, and of each number of items.

    Orthonormal [E, 2 + M], the same at all moments. Every float has a part in them, for a float that is 0 on one side
    would look like one that died: they are signs of Walsh functions.
    """
    at, masks = torch.arange(dim)[:, None], torch.arange(1, 3 + numbers)
    bits = torch.arange(int(masks.max()).bit_length())
    odd = ((((at & masks)[:, :, None] >> bits) & 1).sum(2)) % 2
    signs = (1 - 2 * odd).double()
    found, _ = torch.linalg.qr(signs)
    return (found * torch.sign((found * signs).sum(0))).float()


def with_own(entity: Entity, vectors_XE: Tensor, own: Own, config: OutcomeFoldIn) -> Tensor:
    """Return vectors with what rows have beside tastes along directions of its own, [X, E].

    A rate stands along the direction of its side, and the other side has nothing there: products of users and items
    know nothing of it. An item's number and what it is worth to a user stand along one direction: products hold it.
    """
    if not config.rate:
        return vectors_XE
    directions_EO = own_directions(vectors_XE.shape[1], own.along.shape[1])
    wanted_XO = torch.zeros(len(vectors_XE), directions_EO.shape[1])
    wanted_XO[:, 0 if entity == "user" else 1] = config.rate * own.rates
    wanted_XO[:, 2:] = (config.slope if entity == "user" else config.number) * own.along
    return vectors_XE + (wanted_XO - vectors_XE @ directions_EO) @ directions_EO.T


def fit_scale(users_UE: Tensor, items_IE: Tensor, outcomes: Outcomes, fades_days: float) -> float:
    """Return the slope of the logits of outcomes in the products of the model's vectors less their means."""
    users, items = users_UE - users_UE.mean(0), items_IE - items_IE.mean(0)
    part = outcomes.take(slice(None, None, max(len(outcomes.row) // SCALE_ROWS, 1)))
    product = (users.index_select(0, part.row) * items.index_select(0, part.other)).sum(1).double()
    weight = part.weight * torch.exp2(-part.age / fades_days)
    scale = 0.0
    for _ in range(SCALE_STEPS):
        chance = torch.sigmoid(part.offset + scale * product)
        gradient = (weight * (part.happened - chance) * product).sum()
        curve = (weight * chance * (1 - chance) * product.square()).sum()
        scale += float(gradient / curve.clamp_min(1e-12))
    return max(scale, 0.0)
