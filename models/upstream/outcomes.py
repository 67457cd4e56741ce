"""What was shown and chosen, sorted by the side whose vectors are solved, and by age.

Legend: U users, I items, P outcomes, M numbers of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from feature_repo.contracts.types import Entity
from models.upstream.solving import pairs_of

# Outcomes between two of these ages, in days, are taken for as old as the middle of them.
AGE_EDGES = torch.tensor([*range(11), 12, 14, 17, 20, 24, 29, 35, 42, 50, 60, 72, 86, 103, 124, 149, 179]).float()


@dataclass(frozen=True)
class Outcomes:
    """What happened or did not, sorted by the side that is solved and, of each of its rows, by age.

    Attributes
    ----------
    row, other
        Positions int64 [P] on the side that is solved and on the other.
    happened
        1.0 where it did, float32 [P].
    offset
        Its logit as far as everything but the two vectors tells, float32 [P].
    weight
        What it counts, were it of today, float32 [P].
    rated
        1.0 where the offset knows how much likelier it is with this row and the other (an impression), 0.0 where it
        does not (an activity among others), float32 [P].
    age
        Days since, float32 [P].
    """

    row: Tensor
    other: Tensor
    happened: Tensor
    offset: Tensor
    weight: Tensor
    rated: Tensor
    age: Tensor

    @classmethod
    def by(cls, row: Tensor, other: Tensor, *rest: Tensor) -> Outcomes:
        """Sort outcomes by the side that is solved; `rest` as the other attributes."""
        order = torch.argsort(row * len(AGE_EDGES) + age_steps(rest[-1]), stable=True)
        return cls(*(values[order] for values in (row, other, *rest)))

    def turned(self) -> Outcomes:
        """Return the same for the other side."""
        return Outcomes.by(self.other, self.row, self.happened, self.offset, self.weight, self.rated, self.age)

    def take(self, chosen: slice | Tensor) -> Outcomes:
        """Return some of them."""
        return Outcomes(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def of(self, rows: Tensor) -> Outcomes:
        """Return those of some rows [any], each by its position among `rows`."""
        place, at = pairs_of(self.row, rows)
        found = self.take(at)
        return Outcomes(place, found.other, found.happened, found.offset, found.weight, found.rated, found.age)


def age_steps(age: Tensor) -> Tensor:
    """Return between which of `AGE_EDGES` ages lie, int64 [any]."""
    return torch.bucketize(age, AGE_EDGES[1:], right=True)


def step_ages() -> Tensor:
    """Return what age an outcome of each step is taken for, in days [len(AGE_EDGES)]; of the last, where it begins."""
    return torch.cat([(AGE_EDGES[:-1] + AGE_EDGES[1:]) / 2, AGE_EDGES[-1:]])


@dataclass(frozen=True)
class BothSides:
    """The outcomes of one moment, sorted by user and by item, and what is known of their users and items.

    Both sides' own rates, float32 [U] and [I], and items' numbers in deviations from what is usual, float32 [I, M].
    """

    user: Outcomes
    item: Outcomes
    user_rates: Tensor
    item_rates: Tensor
    item_numbers: Tensor

    def of(self, entity: Entity) -> Outcomes:
        """Return them by the side that is solved."""
        return self.user if entity == "user" else self.item

    def rates(self, entity: Entity) -> Tensor:
        """Return an entity's own rates, in logits."""
        return self.user_rates if entity == "user" else self.item_rates
