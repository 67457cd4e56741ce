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
(docs/adr/0103-rates-are-told-beside-tastes.md). What a user makes of a number of an item, such as its price, is a
product again, of a coordinate of either (docs/adr/0105-own-slopes-of-numbers.md).

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
from models.upstream.outcome_beside import own_beside
from models.upstream.outcome_frame import Frame, Own, frame_of, with_own
from models.upstream.outcome_settings import OutcomeFoldIn
from models.upstream.outcome_solving import Given, State, as_given, solve_outcomes, start
from models.upstream.outcomes import BothSides

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
    own
        Of each entity: what its rows have beside tastes.
    """

    frame: Frame
    before: dict[Entity, State]
    given: dict[Entity, Given]
    own: dict[Entity, Own]


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
    if config.rate and config.intercepts:
        sides = {entity: as_given(entity, model[entity], state[entity], frame, config) for entity in ENTITIES}
        own = own_beside(outcomes, sides, frame.scale, config)
    else:
        own = {entity: Own(outcomes.rates(entity), torch.zeros(len(model[entity]), 0)) for entity in ENTITIES}
    users, items = (published(entity, model[entity], state[entity], own[entity], frame, config) for entity in ENTITIES)
    return FoldedOutcomes(users, items, frame, before, given, own)


def published(entity: Entity, model_XE: Tensor, state: State, own: Own, frame: Frame, config: OutcomeFoldIn) -> Tensor:
    """Return what is published of rows in a state: unit vectors [X, E], with what they have beside tastes."""
    found_XE = model_XE + state.moved.sum(1) @ frame.directions.T
    return functional.normalize(with_own(entity, found_XE, own, config))
