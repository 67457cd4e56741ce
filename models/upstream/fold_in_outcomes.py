"""Fold what was shown and chosen lately into the vectors of a model that was trained before.

Where a log has impressions, it says what was chosen out of what. Then the vectors of items, given those of users, and
after that the vectors of users, given those of items, are the most likely ones of a logistic regression per item and
per user, with the model's vector as the mean of its prior: the random effects of a generalized linear mixed model
(Zhang et al., GLMix: Generalized Linear Mixed Models For Large-Scale Response Prediction, KDD 2016). One Newton step
each, for the model is near (docs/adr/0098-outcomes-are-folded-in.md).

The intercepts of that regression, how much likelier a click is with this user or this item, are no product, and stand
in coordinates of their own (docs/adr/0100-rates-have-a-coordinate.md).

Legend: U users, I items, X rows being solved, Y the other side, P outcomes, E vector dim, R directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Entity
from models.upstream.fold_in import Folded
from models.upstream.solving import chunks, conjugate_gradients, pairs_of

STEPS = 4  # of conjugate gradients
CHUNK_FLOATS = 1 << 18  # vectors of the other side that stay in the cache
DIRECTIONS = 32  # in which vectors are moved: those in which they vary; more are hardly used, and cost as much
SCALE_ROWS, SCALE_STEPS = 1 << 20, 8  # outcomes that tell a scale, and Newton steps
LEAST_VARIANCE = 1e-3  # of a direction, in proportion to that of all
RATE_PRIOR = 5.0  # precision of a row's own rate, around what all rows of its kind tell: a deviation of 0.45 in logits


@dataclass(frozen=True)
class OutcomeFoldIn:
    """How outcomes are folded in.

    Attributes
    ----------
    prior
        Precision of the prior around the model's unit vector: with 100 a coordinate may differ by about 0.1, on average
        over the directions; more in those in which the model's vectors vary more.
    half_life_days
        After so many days an outcome counts half. Whoever reads outcomes sees to it.
    rate
        What a row's own rate adds to its vector, per logit, before the vector is scaled to length 1; with 0 nothing.
    even
        The same precision in every direction.
    after_click
        Event types that are the outcomes, of clicks; without any, clicks are the outcomes, of impressions. Whoever
        reads outcomes sees to it.
    """

    prior: float = 100.0
    half_life_days: float = 30.0
    rate: float = 0.3
    even: bool = False
    after_click: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.prior, self.half_life_days) <= 0:
            raise ConfigError("fold_in: prior and half_life_days must be above 0.")
        if self.rate < 0:
            raise ConfigError("fold_in: rate must not be below 0.")


@dataclass(frozen=True)
class Outcomes:
    """What happened or did not, sorted by the side that is solved.

    Attributes
    ----------
    row, other
        Positions int64 [P] on the side that is solved and on the other.
    happened
        1.0 where it did, float32 [P].
    offset
        Its logit as far as everything but the two vectors tells, float32 [P].
    weight
        What it counts, float32 [P].
    rated
        1.0 where the row's own rate shows too (an impression), 0.0 where its popularity is not asked, float32 [P].
    """

    row: Tensor
    other: Tensor
    happened: Tensor
    offset: Tensor
    weight: Tensor
    rated: Tensor

    @classmethod
    def by(
        cls, row: Tensor, other: Tensor, happened: Tensor, offset: Tensor, weight: Tensor, rated: Tensor
    ) -> Outcomes:
        """Sort outcomes by the side that is solved."""
        order = torch.argsort(row, stable=True)
        return cls(*(values[order] for values in (row, other, happened, offset, weight, rated)))

    def turned(self) -> Outcomes:
        """Return the same for the other side."""
        return Outcomes.by(self.other, self.row, self.happened, self.offset, self.weight, self.rated)

    def take(self, chosen: slice | Tensor) -> Outcomes:
        """Return some of them."""
        return Outcomes(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def of(self, rows: Tensor) -> Outcomes:
        """Return those of some rows [any], each by its position among `rows`."""
        place, at = pairs_of(self.row, rows)
        found = self.take(at)
        return Outcomes(place, found.other, found.happened, found.offset, found.weight, found.rated)


@dataclass(frozen=True)
class BothSides:
    """The outcomes of one moment, sorted by user and by item, and both sides' own rates, float32 [U] and [I]."""

    user: Outcomes
    item: Outcomes
    user_rates: Tensor
    item_rates: Tensor

    def of(self, entity: Entity) -> Outcomes:
        """Return them by the side that is solved."""
        return self.user if entity == "user" else self.item

    def rates(self, entity: Entity) -> Tensor:
        """Return an entity's own rates, in logits."""
        return self.user_rates if entity == "user" else self.item_rates


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


@dataclass(frozen=True)
class FoldedOutcomes(Folded):
    """The result, and the frame in which any row can be solved again."""

    frame: Frame


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
    items = solve_outcomes("item", items_IE, users_UE, outcomes.item, frame)
    users = solve_outcomes("user", users_UE, items, outcomes.user, frame)
    told_users = with_rates("user", users, outcomes.user_rates, config)
    told_items = with_rates("item", items, outcomes.item_rates, config)
    return FoldedOutcomes(functional.normalize(told_users), functional.normalize(told_items), users_UE, items, frame)


def frame_of(users_UE: Tensor, items_IE: Tensor, outcomes: Outcomes, config: OutcomeFoldIn) -> Frame:
    """Return what the model's vectors have in common; `outcomes` are by user."""
    directions = axes(users_UE, items_IE, config)
    scale = fit_scale(users_UE, items_IE, outcomes)
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
    """Return where the model's vectors vary most, users and items alike, beside the directions of rates.

    Orthonormal columns [E, R].
    """
    dim = users_UE.shape[1]
    covariances = [torch.cov(side.T) for side in (users_UE, items_IE) if len(side) > 1]
    spread_EE = sum((cov / cov.trace().clamp_min(1e-12) for cov in covariances), start=torch.zeros(dim, dim)).double()
    taken_E2 = (rate_directions(dim) if config.rate else torch.zeros(dim, 0)).double()
    taken_EE = taken_E2 @ taken_E2.T
    rest_EE = torch.eye(dim, dtype=torch.float64) - taken_EE
    # What is taken gets an eigenvalue below all that a covariance can have.
    found_EE = torch.linalg.eigh(rest_EE @ spread_EE @ rest_EE - taken_EE)[1]
    return found_EE[:, -min(DIRECTIONS, dim - taken_E2.shape[1]) :].float().contiguous()


def rate_directions(dim: int) -> Tensor:
    """Return the directions of users' and of items' own rates: orthonormal [E, 2], the same at all moments.

    Every float has a part in them, for a float that is 0 on one side would look like one that died.
    """
    at = torch.arange(dim)
    signs = torch.stack([1 - 2 * (at % 2), 1 - 2 * (at // 2 % 2)], dim=1).double()
    found, _ = torch.linalg.qr(signs)
    return (found * torch.sign((found * signs).sum(0))).float()


def with_rates(entity: Entity, vectors_XE: Tensor, rates_X: Tensor, config: OutcomeFoldIn) -> Tensor:
    """Return vectors with their own rates along the direction of their side, and nothing along the other's, [X, E].

    So products of users and items know nothing of them.
    """
    if not config.rate:
        return vectors_XE
    directions_E2 = rate_directions(vectors_XE.shape[1])
    wanted_X2 = torch.zeros(len(vectors_XE), 2)
    wanted_X2[:, 0 if entity == "user" else 1] = config.rate * rates_X
    return vectors_XE + (wanted_X2 - vectors_XE @ directions_E2) @ directions_E2.T


def fit_scale(users_UE: Tensor, items_IE: Tensor, outcomes: Outcomes) -> float:
    """Return the slope of the logits of outcomes in the products of the model's vectors less their means."""
    users, items = users_UE - users_UE.mean(0), items_IE - items_IE.mean(0)
    part = outcomes.take(slice(None, None, max(len(outcomes.row) // SCALE_ROWS, 1)))
    product = (users.index_select(0, part.row) * items.index_select(0, part.other)).sum(1).double()
    scale = 0.0
    for _ in range(SCALE_STEPS):
        chance = torch.sigmoid(part.offset + scale * product)
        gradient = (part.weight * (part.happened - chance) * product).sum()
        curve = (part.weight * chance * (1 - chance) * product.square()).sum()
        scale += float(gradient / curve.clamp_min(1e-12))
    return max(scale, 0.0)


def solve_outcomes(entity: Entity, prior_XE: Tensor, other_YE: Tensor, outcomes: Outcomes, frame: Frame) -> Tensor:
    """Return every row's vector after a Newton step from the prior's mean, float32 [X, E].

    The logit of an outcome is offset + scale * (x - centre) . (y - mean of all y) + rated * b, with a rate b of the
    row's own, and products within the frame's directions. What all vectors of a side share says who is active and what
    is popular, which the offset knows better. A row without outcomes keeps its prior.

    Parameters
    ----------
    prior_XE
        The model's unit vectors of the rows: of all of the entity, or of some.
    other_YE
        Vectors of all of the other entity.
    """
    found_XE = prior_XE.clone()
    dim = frame.directions.shape[1]
    other_YR = ((other_YE - other_YE.mean(0)) @ frame.directions) * frame.scale
    start_XR = (prior_XE - frame.centre(entity)) @ frame.directions
    precision = torch.cat([frame.prior(entity), torch.tensor([RATE_PRIOR])])
    for rows, pairs in chunks(outcomes.row, len(prior_XE), max(CHUNK_FLOATS // dim, 1)):
        part = outcomes.take(pairs)
        place, weight = part.row - rows.start, part.weight
        near = torch.empty(len(place), dim + 1)
        near[:, :dim] = other_YR.index_select(0, part.other)
        near[:, dim] = part.rated
        told = part.offset + (start_XR[rows].index_select(0, place) * near[:, :dim]).sum(1)
        chance = torch.sigmoid(told)
        count = rows.stop - rows.start
        nothing = torch.zeros(count, dim + 1)
        gradient = nothing.index_add(0, place, near * ((part.happened - chance) * weight)[:, None])
        curve = weight * chance * (1 - chance)
        diagonal = nothing.index_add(0, place, near.square() * curve[:, None]) + precision

        def times(x: Tensor, place: Tensor = place, near: Tensor = near, curve: Tensor = curve) -> Tensor:
            along = (x.index_select(0, place) * near).sum(1) * curve
            return (x * precision).index_add_(0, place, near * along[:, None])

        step = conjugate_gradients(times, partial(torch.mul, 1 / diagonal), gradient, nothing, STEPS)
        found_XE[rows] += step[:, :dim] @ frame.directions.T
    return found_XE
