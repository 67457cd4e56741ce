"""What users and items have of their own beside what vectors tell: rates, and users' slopes of items' numbers.

A user whom a log shows what he likes clicks more, and so is an item clicked that is shown to who likes it: that is
taste, and products tell it. What is left is fitted here: one slope of products, an intercept of each user and item
(docs/adr/0103-rates-are-told-beside-tastes.md), and how much more or less than others a user takes to an item for each
of its numbers, its price for instance: random slopes (docs/adr/0105-own-slopes-of-numbers.md). What all users make of
a number is a rate of the item.

Legend: U users, I items, M numbers, P outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity
from models.upstream.outcome_frame import Own
from models.upstream.outcome_settings import OutcomeFoldIn
from models.upstream.outcome_solving import CHUNK_FLOATS, OWN_PRIOR, Given
from models.upstream.outcomes import BothSides, Outcomes, age_steps, step_ages

SWEEPS = 4  # without slopes of numbers, and as many more with them
# Variances of users' slopes around what all have in common, within which they are fitted: 0.01 to 1 logit, squared.
SLOPE_VARIANCES = (1e-4, 1.0)
COMMON_PRIOR = 25.0  # precision of a slope that all users have in common: a deviation of 0.2


def own_beside(
    outcomes: BothSides, sides: dict[Entity, Given], scale: float, config: OutcomeFoldIn
) -> dict[Entity, Own]:
    """Return what users and items have of their own, given what their vectors tell.

    Parameters
    ----------
    outcomes
        Their rates are what offsets add up; what is fitted here is added.
    sides
        Either side as the other sees it.
    scale
        Logits that a product is worth.
    """
    part, numbers_IM = outcomes.user.take(outcomes.user.rated > 0), outcomes.item_numbers
    places: tuple[tuple[Entity, Tensor], ...] = (("user", part.row), ("item", part.other))
    numbers_PM = numbers_IM[part.other]
    product = products(part, sides, scale, config)
    # What all have in common: a slope of products, an intercept, and a slope of each number, which has a prior.
    told = torch.cat([product[:, None], torch.ones(len(product), 1), numbers_PM], dim=1)
    common = torch.zeros(told.shape[1]).index_fill_(0, torch.tensor([0]), 1.0)
    held = torch.tensor([1e-3, 1e-3] + [COMMON_PRIOR] * numbers_PM.shape[1])
    own = {entity: torch.zeros(len(side.parts)) for entity, side in sides.items()}
    slopes_UM = torch.zeros(len(own["user"]), numbers_PM.shape[1])

    def likelihood() -> tuple[Tensor, Tensor]:
        """Return the gradient of the log likelihood in each logit [P], and its curvature [P]."""
        logit = part.offset + told @ common + own["user"][part.row] + own["item"][part.other]
        chance = torch.sigmoid(logit + (slopes_UM[part.row] * numbers_PM).sum(1))
        return part.weight * (part.happened - chance), part.weight * chance * (1 - chance)

    def summed(values_P: Tensor, at: Tensor, like: Tensor) -> Tensor:
        return torch.zeros_like(like).index_add_(0, at, values_P)

    def sweep() -> None:
        gradient, curve = likelihood()
        hessian = (told * curve[:, None]).T @ told + torch.diag(held)
        pull = gradient @ told
        pull[2:] -= COMMON_PRIOR * common[2:]
        common.add_(torch.linalg.solve(hessian.double(), pull.double()).float())
        for entity, at in places:
            gradient, curve = likelihood()
            pull = summed(gradient, at, own[entity]) - OWN_PRIOR * own[entity]
            own[entity] = own[entity] + pull / (summed(curve, at, own[entity]) + OWN_PRIOR)

    for _ in range(SWEEPS):
        sweep()
    variances: list[float] = []
    for slope, number_P in zip(slopes_UM.T, numbers_PM.T, strict=True):
        gradient, curve = likelihood()
        pull, known = (summed(values, part.row, slope) for values in (gradient * number_P, curve * number_P.square()))
        # A user's gradient varies as its terms do, and more where slopes differ: by the square of what is known. What
        # is within two standard errors of nothing is nothing.
        terms = summed((gradient * number_P).square(), part.row, slope)
        more = pull.square().sum() - terms.sum() - 2 * (2 * terms.square().sum()).sqrt()
        variances.append(float((more / known.square().sum().clamp_min(1e-12)).clamp(*SLOPE_VARIANCES)))
    for _ in range(SWEEPS if variances else 0):
        sweep()
        for number, (variance, number_P) in enumerate(zip(variances, numbers_PM.T, strict=True)):
            gradient, curve = likelihood()
            slope = slopes_UM[:, number]
            known = summed(curve * number_P.square(), part.row, slope)
            pull = summed(gradient * number_P, part.row, slope) - slope / variance
            slopes_UM[:, number] = slope + pull / (known + 1 / variance)
    own["item"] = own["item"] + numbers_IM @ common[2:]
    along = {"user": slopes_UM, "item": numbers_IM}
    return {entity: Own(outcomes.rates(entity) + own[entity], along[entity]) for entity in ENTITIES}


def products(part: Outcomes, sides: dict[Entity, Given], scale: float, config: OutcomeFoldIn) -> Tensor:
    """Return what the vectors of users and items told of outcomes when these happened, in logits [P]."""
    step, ages = age_steps(part.age), step_ages()
    places: tuple[tuple[Entity, Tensor], ...] = (("user", part.row), ("item", part.other))
    product = torch.empty(len(part.row))
    for pairs in torch.arange(len(part.row)).split(CHUNK_FLOATS // sides["user"].parts.shape[-1]):
        user, item = (
            (sides[entity].parts[at[pairs]] * config.pace(entity).parts(ages)[step[pairs]][:, :, None]).sum(1)
            for entity, at in places
        )
        product[pairs] = scale * (user * item).sum(1)
    return product
