"""One world: calibrated once, then read day by day, each day in blocks of sessions with random numbers of their own.

A day depends on settings, seed and day alone, so days can be made in any run and come out the same.

Legend: S sessions, N impressions, M clicks, V views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jobs.world.config import BLOCK, PILOT, RELATED, SESSIONS_PER_BLOCK, SURFACES, WorldConfig
from jobs.world.exposure import DAY_US, SECOND, Exposure, Requests, Slots, season_of, sessions_of
from jobs.world.outcomes import (
    OFFSITE_SHARE,
    Followed,
    Intercepts,
    Scores,
    Truth,
    click_times,
    follow,
    payday,
    score,
    sigmoid,
)
from jobs.world.population import Catalogue, Population, Tastes

PILOT_SESSIONS = 3 * SESSIONS_PER_BLOCK


@dataclass(frozen=True)
class Calibration:
    """What a pilot of the world gave: the intercepts, and how many impressions a session has."""

    intercepts: Intercepts
    impressions_per_session: float


@dataclass(frozen=True)
class Block:
    """Some sessions of one day with all that came of them; times in microseconds since the start of the world.

    Attributes
    ----------
    requests, slots, truth
        What was shown, and the true probabilities of the N slots.
    click_us
        [N], -1 where there is no click.
    clicks, followed
        Positions [M] of the clicked slots, and what followed them.
    view_user, view_item, view_us
        [V], views without promotion.
    """

    requests: Requests
    slots: Slots
    truth: Truth
    click_us: np.ndarray
    clicks: np.ndarray
    followed: Followed
    view_user: np.ndarray
    view_item: np.ndarray
    view_us: np.ndarray


class World:
    """A population with its calibration.

    Parameters
    ----------
    config
        Settings of the world.
    calibration
        What an earlier run found; None runs the pilot.
    """

    def __init__(self, config: WorldConfig, calibration: Calibration | None = None) -> None:
        self.config = config
        self.population = Population(config)
        self.tastes = Tastes(self.population)
        self.calibration = calibration or self._pilot()

    def day(self, day: int) -> Iterator[Block]:
        """Yield the blocks of a day by time. Days have to be asked for in order; any may be left out."""
        self.tastes.at(day)
        catalogue = self.population.catalogue(day)
        user, time_us = sessions_of(self.population, day, self._sessions_per_day)
        for number, start in enumerate(range(0, len(user), SESSIONS_PER_BLOCK)):
            rows = slice(start, start + SESSIONS_PER_BLOCK)
            yield self._block(catalogue, user[rows], time_us[rows], self.config.generator(BLOCK, day, number))

    @cached_property
    def _sessions_per_day(self) -> float:
        """Expected sessions on a day without season if everybody were there, so that the total comes out as asked."""
        config, users = self.config, self.population.users
        joining = np.bincount(np.ceil(np.maximum(users.joined, 0)).astype(np.int64), users.rate, config.days + 1)
        there = np.cumsum(joining)[: config.days] / config.users
        busy = sum(season_of(config, day) * there[day] for day in range(config.days))
        return float(config.expected / self.calibration.impressions_per_session / busy)

    def _block(self, catalogue: Catalogue, user: np.ndarray, time_us: np.ndarray, rng: np.random.Generator) -> Block:
        exposure = Exposure(self.population, self.tastes, catalogue, rng)
        shown = self._shown(exposure, exposure.first_requests(user, time_us), rng)
        further = related_requests(self.config, rng, shown, self.population.items.category)
        if len(further.user):
            shown = shown.followed_by(self._shown(exposure, further, rng))
        clicks = np.flatnonzero(shown.click_us >= 0)
        followed = follow(rng, shown.truth, clicks, shown.click_us[clicks])
        return Block(
            shown.requests, shown.slots, shown.truth, shown.click_us, clicks, followed, *exposure.views(user, time_us)
        )

    def _shown(self, exposure: Exposure, requests: Requests, rng: np.random.Generator) -> Shown:
        slots = exposure.fill(requests)
        truth = score(self.population, self.tastes, requests, slots).truth(self.calibration.intercepts)
        return Shown(requests, slots, truth, click_times(rng, truth, requests.time_us[slots.request]))

    def _pilot(self) -> Calibration:
        """Find the intercepts with which sessions of the first day have the rates that the settings ask for."""
        config, population = self.config, self.population
        rng = config.generator(PILOT)
        weight = population.users.rate / population.users.rate.sum()
        user = rng.choice(config.users, size=PILOT_SESSIONS, p=weight.astype(np.float64) / weight.sum(dtype=np.float64))
        time_us = np.sort(rng.integers(86_400, size=PILOT_SESSIONS)) * SECOND
        exposure = Exposure(population, self.tastes, population.catalogue(0), rng)
        requests = exposure.first_requests(user, time_us)
        slots = exposure.fill(requests)
        scores = score(population, self.tastes, requests, slots)
        click = [_click_intercept(scores, code) for code in range(len(SURFACES))]
        first = scores.truth(Intercepts(tuple(click), 0.0, 0.0, 0.0))
        shown = Shown(requests, slots, first, click_times(rng, first, requests.time_us[slots.request]))
        further = related_requests(config, rng, shown, population.items.category)
        more = exposure.fill(further)
        more_scores = score(population, self.tastes, further, more)
        click[RELATED] = _click_intercept(more_scores, RELATED)
        second = more_scores.truth(Intercepts(tuple(click), 0.0, 0.0, 0.0))
        clicked = np.concatenate([first.click, second.click]).astype(np.float64)
        # The rates are meant for a month's mean, and the first day is near payday.
        conversion = np.concatenate([scores.conversion, more_scores.conversion]).astype(np.float64) - payday(0)
        offsite = np.concatenate([scores.offsite, more_scores.offsite]).astype(np.float64) - OFFSITE_SHARE * payday(0)
        cart = _solve(conversion, clicked, config.cart_rate)
        carted = clicked * sigmoid(cart + conversion)
        buy = _solve(0.5 * conversion, carted, min(config.onsite_rate / config.cart_rate, 0.999))
        intercepts = Intercepts(tuple(click), cart, buy, _solve(offsite, clicked, config.offsite_rate))
        # A related page may lead to clicks, but not to a further related page.
        return Calibration(intercepts, float((len(slots.item) + len(more.item)) / PILOT_SESSIONS))


@dataclass(frozen=True)
class Shown:
    """Requests with their slots, probabilities and clicks."""

    requests: Requests
    slots: Slots
    truth: Truth
    click_us: np.ndarray

    def followed_by(self, other: Shown) -> Shown:
        """Return both, the other's requests counted on."""
        moved = replace(other.slots, request=other.slots.request + len(self.requests.user))
        return Shown(
            Requests.joined([self.requests, other.requests]),
            Slots(*(np.concatenate([getattr(self.slots, n), getattr(moved, n)]) for n in Slots.__dataclass_fields__)),
            Truth(*(np.concatenate([getattr(self.truth, n), getattr(other.truth, n)]) for n in vars(self.truth))),
            np.concatenate([self.click_us, other.click_us]),
        )


def related_requests(config: WorldConfig, rng: np.random.Generator, shown: Shown, category: np.ndarray) -> Requests:
    """Return the pages that clicks opened: related items of the clicked one's category, seconds after the click."""
    opened = np.flatnonzero((shown.click_us >= 0) & (rng.random(len(shown.click_us)) < config.related))
    request, anchor = shown.slots.request[opened], category[shown.slots.item[opened]]
    pause = ((3 + rng.exponential(20, len(opened))) * SECOND).astype(np.int64)
    return Requests(
        user=shown.requests.user[request],
        time_us=shown.click_us[opened] + pause,
        surface=np.full(len(opened), RELATED, np.int8),
        anchor=anchor,
        intent=shown.requests.intent[request],
        randomized=rng.random(len(opened)) < config.randomized,
    )


def _click_intercept(scores: Scores, code: int) -> float:
    rows = scores.surface == code
    if not rows.any():
        return 0.0
    return _solve(scores.click[rows].astype(np.float64), scores.examined[rows].astype(np.float64), None, code)


def _solve(logit: np.ndarray, weight: np.ndarray, rate: float | None, code: int = 0) -> float:
    """Return the intercept with which the weighted mean probability is `rate`, or a surface's CTR by examination."""
    whole = len(logit) if rate is None else weight.sum()
    aim = SURFACES[code].ctr if rate is None else rate
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (weight * sigmoid(middle + logit)).sum() < aim * whole else (low, middle)
    return 0.5 * (low + high)


def span_us(config: WorldConfig) -> int:
    """Return the length of the world in microseconds."""
    return config.days * DAY_US
