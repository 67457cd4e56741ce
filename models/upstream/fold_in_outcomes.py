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

Legend: U users, I items, X rows being solved, Y the other side, P outcomes, E vector dim, R directions, S segments of
outcomes of one row and of about one age, L outcomes in each, K unknowns per row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity
from models.upstream.fold_in import Folded
from models.upstream.solving import chunks, pairs_of, segments

CHUNK_FLOATS = 1 << 18  # vectors of the other side that stay in the cache
LONGEST = 256  # segment
DIRECTIONS = 32  # in which vectors are moved: those in which they vary; more are hardly used, and cost as much
SCALE_ROWS, SCALE_STEPS = 1 << 20, 8  # outcomes that tell a scale, and Newton steps
LEAST_VARIANCE = 1e-3  # of a direction, in proportion to that of all
# Precision of a row's own intercepts around what all rows of its kind tell: a deviation of 0.45 in logits.
OWN_PRIOR = 5.0
NONE = 1e9  # precision of what is not there
SWEEPS = 4  # over rates beside what vectors tell
SOLVED: tuple[tuple[Entity, Entity], ...] = (("item", "user"), ("user", "item"))  # one after the other, given the other
# Outcomes between two of these ages, in days, are taken for as old as the middle of them.
AGE_EDGES = torch.tensor([*range(11), 12, 14, 17, 20, 24, 29, 35, 42, 50, 60, 72, 86, 103, 124, 149, 179]).float()


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
    user: Pace = field(default_factory=lambda: Pace(60.0, 0.4, 5.0))
    item: Pace = field(default_factory=lambda: Pace(30.0, 0.05, 10.0))

    def __post_init__(self) -> None:
        if self.prior <= 0 or self.rounds < 1:
            raise ConfigError("fold_in: prior must be above 0 and rounds at least 1.")
        if min(self.rate, self.doubt) < 0:
            raise ConfigError("fold_in: rate and doubt must not be below 0.")

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
            "user": one,
            "item": one,
        }
        known = began | {name: value for name, value in told.items() if name != "half_life_days"}
        known |= {entity: Pace(**known[entity]) for entity in ENTITIES}
        return cls(**(known | {"after_click": tuple(known["after_click"])}))

    def pace(self, entity: Entity) -> Pace:
        """Return how an entity's rows change."""
        return self.user if entity == "user" else self.item


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

    def along(self, entity: Entity, vectors_XE: Tensor) -> Tensor:
        """Return vectors less their kind's mean, along the directions [X, R]."""
        return (vectors_XE - self.centre(entity)) @ self.directions


class State(NamedTuple):
    """How far rows have come from the model's vectors.

    moved
        What each part adds along the directions [X, 1 or 2, R]: the part that stays, and the one that moves, as of now.
    own
        Their own intercepts, in logits, among impressions, beside what the offset knows of them, and among activities:
        who turns to much that he likes does so to less of all the rest [X, 2].
    variance
        What they may vary by along the directions, both parts together, as of now [X, R].
    """

    moved: Tensor
    own: Tensor
    variance: Tensor

    def take(self, rows: Tensor) -> State:
        """Return those of some rows."""
        return State(*(values[rows] for values in self))


class Given(NamedTuple):
    """The other side, as solving a row sees it.

    Its parts [Y, 1 or 2, R], less their means, their variance [Y, R], and its own intercepts [Y, 2].
    """

    parts: Tensor
    variance: Tensor
    own: Tensor


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


def start(entity: Entity, rows: int, frame: Frame, config: OutcomeFoldIn) -> State:
    """Return the state of rows of which the model alone tells."""
    prior = frame.prior(entity)
    parts = len(config.pace(entity).precisions)
    return State(torch.zeros(rows, parts, len(prior)), torch.zeros(rows, 2), (1 / prior).expand(rows, -1))


def as_given(entity: Entity, model_YE: Tensor, state: State, frame: Frame, config: OutcomeFoldIn) -> Given:
    """Return an entity as the other sees it; what all its rows share says what is active or popular, not what it is."""
    parts = state.moved.clone()
    parts[:, 0] += frame.along(entity, model_YE)
    return Given(parts - parts.mean(0), state.variance, state.own * config.intercepts)


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


def solve_outcomes(
    entity: Entity,
    model_XE: Tensor,
    state: State,
    given: Given,
    outcomes: Outcomes,
    frame: Frame,
    config: OutcomeFoldIn,
) -> State:
    """Return the state of rows a Newton step after another.

    The logit of an outcome is offset + scale * x . y + b + c, with x and y as they were at its age, less the means of
    their sides, within the frame's directions, and the intercepts of the row and of the other. What all vectors of a
    side share says who is active and what is popular, which the offset knows better. As y is not known, half the curve
    of the outcome's loss times the variance of scale * x . y is added to that loss. A row without outcomes keeps its
    prior.

    Parameters
    ----------
    model_XE
        The model's unit vectors of the rows: of all of the entity, or of some.
    state
        Of the same rows, where the step begins.
    given
        All of the other entity.
    """
    own, theirs = config.pace(entity), config.pace("item" if entity == "user" else "user")
    parts, width = state.moved.shape[1:]
    own_prior = torch.tensor([OWN_PRIOR, OWN_PRIOR if config.intercepts else NONE])
    prior_K = torch.cat([*(frame.prior(entity) * share for share in own.precisions), own_prior])
    base_XR = frame.along(entity, model_XE)
    steps, ages = age_steps(outcomes.age), step_ages()
    own_shares, their_shares, fading = own.parts(ages), theirs.parts(ages), torch.exp2(-ages / own.fades_days)
    found = State(*(values.clone() for values in state))
    for rows, pairs in chunks(outcomes.row, len(model_XE), max(CHUNK_FLOATS // width, 1)):
        part, step_P, count = outcomes.take(pairs), steps[pairs], rows.stop - rows.start
        place_P = part.row - rows.start
        matrix = torch.zeros(count, len(prior_K), len(prior_K))
        wanted = torch.zeros(count, len(prior_K))
        if len(place_P):
            at, there = segments(place_P * len(ages) + step_P, LONGEST)
            place, step, other = place_P[at[:, 0]], step_P[at[:, 0]], part.other[at]
            shares = own_shares[step]
            near = torch.empty(*at.shape, width + 2)
            torch.sum(
                given.parts.index_select(0, other.flatten()).view(*at.shape, -1, width)
                * (frame.scale * their_shares[step])[:, None, :, None],
                dim=2,
                out=near[..., :width],
            )
            near[..., width], near[..., width + 1] = part.rated[at], 1 - part.rated[at]
            x = base_XR[rows][place] + (state.moved[rows][place] * shares[:, :, None]).sum(1)
            along = torch.cat([x, state.own[rows][place]], dim=1)
            offset = part.offset[at] + (given.own[other] * near[..., width:]).sum(-1)
            chance = torch.sigmoid(offset + torch.bmm(near, along[:, :, None])[:, :, 0])
            weight = part.weight[at] * fading[step, None] * there
            curve = weight * chance * (1 - chance)
            square = torch.bmm(near.transpose(1, 2), near * curve[:, :, None])
            pull = torch.bmm((weight * (part.happened[at] - chance))[:, None], near)[:, 0]
            if config.doubt:
                unsure = given.variance.index_select(0, other.flatten()).view(*at.shape, width)
                unsure = torch.bmm(curve[:, None], unsure)[:, 0] * (config.doubt * frame.scale**2)
                square[:, :width, :width] += torch.diag_embed(unsure)
                pull[:, :width] -= unsure * x
            _add(matrix, wanted, place, square, pull, shares)
        matrix += torch.diag(prior_K)
        moved = torch.cat([state.moved[rows].flatten(1), state.own[rows]], dim=1)
        wanted -= moved * prior_K
        root = torch.linalg.cholesky(matrix)
        moved = moved + torch.cholesky_solve(wanted[:, :, None], root)[:, :, 0]
        inverse = torch.cholesky_inverse(root)[:, :-2, :-2].reshape(count, parts, width, parts, width)
        found.moved[rows] = moved[:, :-2].view(count, parts, width)
        found.own[rows] = moved[:, -2:]
        found.variance[rows] = torch.diagonal(inverse.sum((1, 3)), dim1=1, dim2=2)
    return found


def _add(matrix: Tensor, wanted: Tensor, place: Tensor, square: Tensor, pull: Tensor, shares: Tensor) -> None:
    """Add the sums of segments to the equations of their rows, each part of a vector by its share at their age.

    Parameters
    ----------
    matrix, wanted
        Of the rows [X, K, K] and [X, K], added to.
    place
        Row of each segment, int64 [S].
    square, pull
        Sums of segments over the directions and the row's own intercepts [S, R + 2, R + 2] and [S, R + 2].
    shares
        [S, 1 or 2].
    """
    width = pull.shape[1] - 2
    spans = [slice(part * width, (part + 1) * width) for part in range(shares.shape[1])]

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(matrix), *values.shape[1:]).index_add_(0, place, values)

    for left, span in enumerate(spans):
        share = shares[:, left]
        wanted[:, span] += summed(pull[:, :width] * share[:, None])
        beside = summed(square[:, :width, width:] * share[:, None, None])
        matrix[:, span, -2:] += beside
        matrix[:, -2:, span] += beside.transpose(1, 2)
        for right in range(left, len(spans)):
            block = summed(square[:, :width, :width] * (share * shares[:, right])[:, None, None])
            matrix[:, span, spans[right]] += block
            if right > left:
                matrix[:, spans[right], span] += block
    wanted[:, -2:] += summed(pull[:, width:])
    matrix[:, -2:, -2:] += summed(square[:, width:, width:])
