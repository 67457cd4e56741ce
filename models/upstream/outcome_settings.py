"""How outcomes are folded into vectors: the settings, as a space keeps them (docs/adr/0102-two-paces-of-a-taste.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity


@dataclass(frozen=True)
class Pace:
    """How the rows of one side change.

    Attributes
    ----------
    fades_days
        After so many days an outcome counts half.
    moving
        Share of the prior's variance that is of the part that moves; with 0 all of a vector stays.
    half_life_days
        So many days ago the moving part was half of what it is now.
    """

    fades_days: float = 30.0
    moving: float = 0.0
    half_life_days: float = 10.0

    def __post_init__(self) -> None:
        if min(self.fades_days, self.half_life_days) <= 0:
            raise ConfigError("fold_in: fades_days and half_life_days must be above 0.")
        if not 0 <= self.moving < 1:
            raise ConfigError("fold_in: moving must be at least 0 and below 1.")

    @property
    def precisions(self) -> Tensor:
        """Precision of each part in proportion to that of both together [1 or 2]."""
        return torch.tensor([1 / (1 - self.moving), 1 / self.moving] if self.moving else [1.0])

    def parts(self, age: Tensor) -> Tensor:
        """Return how much of each part there was so many days ago [any] -> [any, 1 or 2]."""
        moved = torch.exp2(-age / self.half_life_days)
        return torch.stack([torch.ones_like(age), moved] if self.moving else [torch.ones_like(age)], dim=-1)


@dataclass(frozen=True)
class OutcomeFoldIn:
    """How outcomes are folded in.

    Attributes
    ----------
    prior
        Precision of the prior around the model's unit vector: with 100 a coordinate may differ by about 0.1, on average
        over the directions; more in those in which the model's vectors vary more.
    rate
        What a row's own rate adds to its vector, per logit, before the vector is scaled to length 1; with 0 nothing.
    even
        The same precision in every direction.
    after_click
        Event types that are the outcomes, of clicks; without any, clicks are the outcomes, of impressions. Whoever
        reads outcomes sees to it.
    rounds
        How often items and then users are solved.
    doubt
        Share of the other side's variance that counts; with 0 its vectors are taken for true.
    intercepts
        Rows have an intercept among activities too, either side is given the other's, and rates are those beside what
        vectors tell.
    numbers
        Numeric attributes of items, of which each user has slopes of his own (needs rates and intercepts).
    numbers_since
        The moment whose catalogue says what is usual of these numbers, as ISO 8601; needed where there are any.
    slope
        What a user's slope of a number adds to his vector, per logit and deviation, before it is scaled to length 1.
    number
        What a number of an item adds to its vector, per deviation; with `slope` about one over what a product of
        vectors is worth in logits.
    user, item
        How either side changes.
    """

    prior: float = 100.0
    rate: float = 0.3
    even: bool = False
    after_click: tuple[str, ...] = ()
    rounds: int = 2
    doubt: float = 0.25
    intercepts: bool = True
    numbers: tuple[str, ...] = ()
    numbers_since: str = ""
    slope: float = 1.0
    number: float = 0.15
    user: Pace = Pace(60.0, 0.4, 5.0)
    item: Pace = Pace(30.0, 0.05, 10.0)

    def __post_init__(self) -> None:
        if self.prior <= 0 or self.rounds < 1:
            raise ConfigError("fold_in: prior must be above 0 and rounds at least 1.")
        if min(self.rate, self.doubt) < 0:
            raise ConfigError("fold_in: rate and doubt must not be below 0.")
        if self.numbers and not (self.rate and self.intercepts):
            raise ConfigError("fold_in: slopes of numbers need rates and intercepts.")
        if min(self.slope, self.number) <= 0:
            raise ConfigError("fold_in: slope and number must be above 0.")

    @classmethod
    def of(cls, told: dict[str, Any]) -> OutcomeFoldIn:
        """Return what a space's config says of it; a space goes on as it began, with what later ones do left out."""
        one = {"fades_days": told.get("half_life_days", 30.0), "moving": 0.0}
        began: dict[str, Any] = {
            "rate": 0.0,
            "even": True,
            "after_click": (),
            "rounds": 1,
            "doubt": 0.0,
            "intercepts": False,
            "numbers": (),
            "user": one,
            "item": one,
        }
        known = began | {name: value for name, value in told.items() if name != "half_life_days"}
        known |= {entity: Pace(**known[entity]) for entity in ENTITIES}
        return cls(**(known | {name: tuple(known[name]) for name in ("after_click", "numbers")}))

    def pace(self, entity: Entity) -> Pace:
        """Return how an entity's rows change."""
        return self.user if entity == "user" else self.item
