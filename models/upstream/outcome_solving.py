"""One step of the logistic regressions of all users, or of all items, given the other side.

Legend: X rows being solved, Y the other side, E vector dim, R directions, S segments of outcomes of one row and of
about one age, L outcomes in each, K unknowns per row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feature_repo.contracts.types import Entity
from models.upstream.outcome_frame import Frame
from models.upstream.outcome_settings import OutcomeFoldIn
from models.upstream.outcomes import Outcomes, age_steps, step_ages
from models.upstream.solving import chunks, segments

CHUNK_FLOATS = 1 << 18  # vectors of the other side that stay in the cache
LONGEST = 256  # segment
# Precision of a row's own intercepts around what all rows of its kind tell: a deviation of 0.45 in logits.
OWN_PRIOR = 5.0
NONE = 1e9  # precision of what is not there


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


def solve_outcomes(
    entity: Entity,
    model_XE: Tensor,
    state: State,
    given: Given,
    outcomes: Outcomes,
    frame: Frame,
    config: OutcomeFoldIn,
) -> State:
    """Return the state of rows one Newton step later.

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
