"""Fold what was shown and chosen lately into the vectors of a model that was trained before.

Where a log has impressions, it says what was chosen out of what. Then the vectors of items, given those of users, and
after that the vectors of users, given those of items, are the most likely ones of a logistic regression per item and
per user, with the model's vector as the mean of its prior: the random effects of a generalized linear mixed model
(Zhang et al., GLMix: Generalized Linear Mixed Models For Large-Scale Response Prediction, KDD 2016). One Newton step
each, for the model is near (docs/adr/0098-outcomes-are-folded-in.md).

Two things let it go round twice (docs/adr/0102-two-paces-of-a-taste.md). A vector has a part that stays and one that
moves: so many days ago the latter was but a share of what it is now. And what is not known of the other side counts:
its variance stands in the regression, as in mean field (Lim and Teh, Variational Bayesian Approach to Movie Rating
Prediction, KDD Cup and Workshop 2007).

How much likelier a click is with this user or this item is no product, and stands in coordinates of its own
(docs/adr/0100-rates-have-a-coordinate.md): given what the vectors tell, for who is shown what he likes clicks more
(docs/adr/0103-rates-are-told-beside-tastes.md).

Legend: U users, I items, X rows of either, E vector dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity
from models.upstream.fold_in import Folded
from models.upstream.outcome_frame import Frame, frame_of, with_rates
from models.upstream.outcome_settings import OutcomeFoldIn
from models.upstream.outcome_solving import CHUNK_FLOATS, OWN_PRIOR, Given, State, as_given, solve_outcomes, start
from models.upstream.outcomes import BothSides, Outcomes, age_steps, step_ages

SWEEPS = 4  # over rates beside what vectors tell
SOLVED: tuple[tuple[Entity, Entity], ...] = (("item", "user"), ("user", "item"))  # one after the other, given the other


@dataclass(frozen=True)
class FoldedOutcomes(Folded):
    """The result, and what it takes to solve any row of it again.

    Attributes
    ----------
    frame
        What all rows have in common.
    before, given
        Of each entity: how far its rows were before they were solved last, and what they were given.
    rates
        Of each entity: its own rates, in logits [U] and [I].
    """

    frame: Frame
    before: dict[Entity, State]
    given: dict[Entity, Given]
    rates: dict[Entity, Tensor]


def fold_in_outcomes(users_UE: Tensor, items_IE: Tensor, outcomes: BothSides, config: OutcomeFoldIn) -> FoldedOutcomes:
    """Return the vectors of users and items after the outcomes: items first, which the model knows least.

    Parameters
    ----------
    users_UE, items_IE
        The model's unit vectors.
    outcomes
        Of the window that counts.
    """
    frame = frame_of(users_UE, items_IE, outcomes.user, config)
    model: dict[Entity, Tensor] = {"user": users_UE, "item": items_IE}
    state = {entity: start(entity, len(vectors), frame, config) for entity, vectors in model.items()}
    before, given = dict(state), dict[Entity, Given]()
    for _ in range(config.rounds):
        for entity, other in SOLVED:
            before[entity] = state[entity]
            given[entity] = as_given(other, model[other], state[other], frame, config)
            state[entity] = solve_outcomes(
                entity, model[entity], before[entity], given[entity], outcomes.of(entity), frame, config
            )
    rates = {entity: outcomes.rates(entity) for entity in ENTITIES}
    if config.rate and config.intercepts:
        sides = {entity: as_given(entity, model[entity], state[entity], frame, config) for entity in ENTITIES}
        beside = rates_beside(outcomes.user, sides, frame.scale, config)
        rates = {entity: rates[entity] + beside[entity] for entity in ENTITIES}
    users, items = (
        published(entity, model[entity], state[entity], rates[entity], frame, config) for entity in ENTITIES
    )
    return FoldedOutcomes(users, items, frame, before, given, rates)


def rates_beside(
    outcomes: Outcomes, sides: dict[Entity, Given], scale: float, config: OutcomeFoldIn
) -> dict[Entity, Tensor]:
    """Return what to add to the rates that offsets add up, so that they are those beside what vectors tell.

    Logits, by entity: [U] and [I].

    A user whom a log shows what he likes clicks more, and so is an item clicked that is shown to who likes it: that is
    taste, and products tell it. One slope of them is fitted to where rates show, and users' and items' own rates.

    Parameters
    ----------
    outcomes
        By user.
    sides
        Either side as the other sees it.
    scale
        Logits that a product is worth.
    """
    part = outcomes.take(outcomes.rated > 0)
    places: tuple[tuple[Entity, Tensor], ...] = (("user", part.row), ("item", part.other))
    step, ages = age_steps(part.age), step_ages()
    product = torch.empty(len(part.row))
    for pairs in torch.arange(len(part.row)).split(CHUNK_FLOATS // sides["user"].parts.shape[-1]):
        user, item = (
            (sides[entity].parts[at[pairs]] * config.pace(entity).parts(ages)[step[pairs]][:, :, None]).sum(1)
            for entity, at in places
        )
        product[pairs] = scale * (user * item).sum(1)
    told = torch.stack([product, torch.ones_like(product)], dim=1)  # a slope, and what all have in common
    common, own = torch.tensor([1.0, 0.0]), {entity: torch.zeros(len(side.parts)) for entity, side in sides.items()}

    def slopes() -> tuple[Tensor, Tensor]:
        """Return the gradient of the log likelihood in each logit, and its curvature."""
        chance = torch.sigmoid(part.offset + told @ common + own["user"][part.row] + own["item"][part.other])
        return part.weight * (part.happened - chance), part.weight * chance * (1 - chance)

    for _ in range(SWEEPS):
        gradient, curve = slopes()
        hessian = (told * curve[:, None]).T @ told + 1e-3 * torch.eye(2)
        common = common + torch.linalg.solve(hessian.double(), (gradient @ told).double()).float()
        for entity, at in places:
            gradient, curve = slopes()
            pull = torch.zeros_like(own[entity]).index_add_(0, at, gradient) - OWN_PRIOR * own[entity]
            own[entity] = own[entity] + pull / (torch.zeros_like(pull).index_add_(0, at, curve) + OWN_PRIOR)
    return own


def published(
    entity: Entity, model_XE: Tensor, state: State, rates_X: Tensor, frame: Frame, config: OutcomeFoldIn
) -> Tensor:
    """Return what is published of rows in a state: unit vectors [X, E], with their own rates."""
    found_XE = model_XE + state.moved.sum(1) @ frame.directions.T
    return functional.normalize(with_rates(entity, found_XE, rates_X, config))
