"""Fold what was chosen lately into the vectors of a model that was trained long ago.

A model trained months ago knows neither the items that came since nor who is bought together now. Between two trainings
its vectors are the prior of one or two rounds of weighted matrix factorization (Hu, Koren and Volinsky, Collaborative
Filtering for Implicit Feedback Datasets, ICDM 2008) on the choices of the last weeks: users given the model's items,
items given those users, users given those items. The prior keeps every vector near what the model says, so that the
space stays the model's (docs/adr/0090-choices-are-folded-in.md).

Legend: U users, I items, X rows being solved, Y the other side, P pairs, E vector dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Entity
from models.upstream.solving import chunks, conjugate_gradients, pairs_of

STEPS = 2  # of conjugate gradients: more change recall in the fourth digit
# Vectors of a chunk stay in the cache, and in memory that the allocator keeps: with 16 times as many a refresh takes
# five times as long.
CHUNK_PAIRS = 1 << 12
LEAST = 0.01  # a choice that counts less is not read any more


@dataclass(frozen=True)
class FoldIn:
    """How choices are folded in.

    Attributes
    ----------
    prior
        How many choices of today the model's own vector counts as much as.
    half_life_days
        After so many days a choice counts half. Whoever counts choices sees to it.
    confidence
        Weight of one choice against 1 of an item that was not chosen.
    rounds
        How often items and then users are solved.
    """

    prior: float = 5.0
    confidence: float = 10.0
    rounds: int = 2
    half_life_days: float = 30.0

    @property
    def reach_days(self) -> float:
        """Days after which a choice counts less than `LEAST`."""
        return self.half_life_days * math.log2(1 / LEAST)

    def __post_init__(self) -> None:
        if min(self.prior, self.confidence, self.half_life_days) <= 0 or self.rounds < 1:
            raise ConfigError("fold_in: prior, confidence and half_life_days must be above 0 and rounds at least 1.")


@dataclass(frozen=True)
class Choices:
    """Who chose what how often: positions of user and item int64 [P] each and counts float32 [P], sorted by user.

    Choices of long ago may count for less than one.
    """

    user: Tensor
    item: Tensor
    count: Tensor

    def by_item(self) -> Choices:
        """Return the same sorted by item, with the two sides exchanged."""
        order = torch.argsort(self.item, stable=True)
        return Choices(self.item[order], self.user[order], self.count[order])

    def of(self, rows: Tensor) -> Choices:
        """Return the choices of some rows (first side), each by its position among `rows`."""
        place, at = pairs_of(self.user, rows)
        return Choices(place, self.item[at], self.count[at])


@dataclass(frozen=True)
class Folded:
    """The result: unit vectors of users and items, float32 [U, E] and [I, E]."""

    users: Tensor
    items: Tensor


@dataclass(frozen=True)
class FoldedChoices(Folded):
    """The result, and what it takes to solve any row of it again.

    Attributes
    ----------
    for_items, for_users
        What the last solution of the items and of the users was given: users [U, E] and items [I, E] as solved.
    """

    for_items: Tensor
    for_users: Tensor

    def given(self, entity: Entity) -> Tensor:
        """Return what the last solution of an entity was given."""
        return self.for_users if entity == "user" else self.for_items


def fold_in(users_UE: Tensor, items_IE: Tensor, choices: Choices, config: FoldIn) -> FoldedChoices:
    """Return the vectors of users and items after the choices.

    Parameters
    ----------
    users_UE, items_IE
        The model's unit vectors.
    choices
        Of the window that counts.
    """
    by_item = choices.by_item()
    given, solved = users_UE, items_IE
    users = solve(users_UE, items_IE, choices, config)
    for _ in range(config.rounds):
        given = users
        solved = solve(items_IE, given, by_item, config)
        users = solve(users_UE, solved, choices, config)
    return FoldedChoices(functional.normalize(users), functional.normalize(solved), given, solved)


def solve(prior_XE: Tensor, other_YE: Tensor, choices: Choices, config: FoldIn) -> Tensor:
    """Return for every row x the minimum of a quadratic form, float32 [X, E].

    It is sum over all y of (x.y)^2, plus over chosen ones confidence * count * (1 - x.y)^2 + (1 - 2 x.y), plus
    prior * confidence * |x - x0|^2: by conjugate gradients, preconditioned with what all rows share. A row that
    chose nothing keeps its prior: that it was not seen says nothing.
    """
    weight = config.prior * config.confidence
    shared_EE = other_YE.T @ other_YE + weight * torch.eye(other_YE.shape[1])
    inverse_EE = torch.cholesky_inverse(torch.linalg.cholesky(shared_EE))
    solved_XE = torch.empty_like(prior_XE)
    for rows, pairs in chunks(choices.user, len(prior_XE), CHUNK_PAIRS):
        place = choices.user[pairs] - rows.start
        near_PE = other_YE.index_select(0, choices.item[pairs])
        extra_P = choices.count[pairs] * config.confidence
        start_XE = prior_XE[rows]

        def times(x_XE: Tensor, place: Tensor = place, near_PE: Tensor = near_PE, extra_P: Tensor = extra_P) -> Tensor:
            told_P = (x_XE.index_select(0, place) * near_PE).sum(1) * extra_P
            return (x_XE @ shared_EE).index_add_(0, place, near_PE * told_P[:, None])

        wanted_XE = (weight * start_XE).index_add_(0, place, near_PE * (1 + extra_P)[:, None])
        found_XE = conjugate_gradients(times, lambda rest_XE: rest_XE @ inverse_EE, wanted_XE, start_XE, STEPS)
        seen_X = torch.zeros(len(start_XE), dtype=torch.bool).index_fill_(0, place, True)
        solved_XE[rows] = torch.where(seen_X[:, None], found_XE, start_XE)
    return solved_XE
