"""What is shown to whom: sessions, requests, and the slots that the production ranker fills.

Legend: S sessions, R requests, N impressions, C candidates, K slots, D latent dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jobs.world.config import HOME, SEARCH, SESSIONS, SURFACES, WorldConfig
from jobs.world.population import Catalogue, Population, Tastes

SECOND = 1_000_000
DAY_US = 86_400 * SECOND
PAGES = 0.4  # further pages of the home feed per session that begins there
# What the production ranker goes by beside its idea of the taste; the last is noise.
_POLICY = {"taste": 0.8, "click_quality": 0.35, "conversion_quality": 0.15, "noise": 0.6}
_SHARPNESS = 1.2  # of the choice of categories by taste


@dataclass(frozen=True)
class Requests:
    """Arrays [R]; `time_us` since the start of the world, `anchor` is the category asked for, -1 in the feed."""

    user: np.ndarray
    time_us: np.ndarray
    surface: np.ndarray
    anchor: np.ndarray
    intent: np.ndarray
    randomized: np.ndarray

    @staticmethod
    def joined(parts: list[Requests]) -> Requests:
        """Return the rows of all parts, one after the other."""
        return Requests(*(np.concatenate([getattr(p, n) for p in parts]) for n in Requests.__dataclass_fields__))

    def take(self, rows: np.ndarray) -> Requests:
        """Return the given rows."""
        return Requests(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @property
    def day(self) -> np.ndarray:
        """Days since the start of the world, with the part of the day."""
        return self.time_us / DAY_US


@dataclass(frozen=True)
class Slots:
    """Filled slots, arrays [N]: the request, the item, and the slot counted from 0."""

    request: np.ndarray
    item: np.ndarray
    slot: np.ndarray


def season_of(config: WorldConfig, day: int) -> float:
    """Return how busy a day is: weekends are, and there is a wave over the year; about 1 in the mean."""
    weekend = (config.start.weekday() + day) % 7 >= 5
    return (1.2 if weekend else 0.92) * (1 + 0.1 * math.sin(2 * math.pi * day / 365))


def sessions_of(population: Population, day: int, per_day: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the sessions of a day.

    Parameters
    ----------
    per_day
        Expected sessions on a day without season on which every user is there.

    Returns
    -------
    user, time_us
        [S] each, by time.
    """
    config, users = population.config, population.users
    rng = config.generator(SESSIONS, day)
    here = users.rate * (users.joined <= day)
    counts = rng.poisson(here * (season_of(config, day) * per_day / config.users))
    user = np.repeat(np.arange(config.users), counts)
    evening = rng.random(len(user)) < users.evening[user]
    hour = np.where(evening, rng.normal(20.5, 2.2, len(user)), rng.normal(12.5, 3.0, len(user))) % 24
    time_us = day * DAY_US + np.minimum((hour * 3600).astype(np.int64), 86_399) * SECOND
    order = np.argsort(time_us, kind="stable")
    return user[order], time_us[order]


class Exposure:
    """Turns sessions into filled slots.

    Parameters
    ----------
    population, tastes, catalogue
        The world on the day of the sessions.
    rng
        Random numbers of the block.
    """

    def __init__(self, population: Population, tastes: Tastes, catalogue: Catalogue, rng: np.random.Generator) -> None:
        self._population, self._tastes, self._catalogue, self._rng = population, tastes, catalogue, rng
        self._config: WorldConfig = population.config
        sizes = np.diff(catalogue.running[catalogue.edge])
        self._log_size = np.log(np.maximum(sizes, 1e-9)).astype(np.float32)

    def first_requests(self, user: np.ndarray, time_us: np.ndarray) -> Requests:
        """Return what the sessions begin with: a search for what the user is after, or pages of the home feed."""
        rng = self._rng
        intent = self._categories(self._tastes.of(user, time_us / DAY_US), 1)[:, 0]
        search = rng.random(len(user)) < self._config.search
        pages = 1 + np.where(search, 0, rng.poisson(PAGES, len(user)))
        session = np.repeat(np.arange(len(user)), pages)
        page = np.arange(len(session)) - np.repeat(np.cumsum(pages) - pages, pages)
        pause = (20 + rng.exponential(40, len(session))).astype(np.int64) * SECOND
        surface = np.where(search, SEARCH, HOME).astype(np.int8)[session]
        return Requests(
            user=user[session],
            time_us=time_us[session] + page * pause,
            surface=surface,
            anchor=np.where(surface == SEARCH, intent[session], -1).astype(np.int16),
            intent=intent[session],
            randomized=rng.random(len(session)) < self._config.randomized,
        )

    def fill(self, requests: Requests) -> Slots:
        """Choose the items of every request and put them in order; impressions come by request and slot."""
        found = []
        for code in range(len(SURFACES)):
            rows = np.flatnonzero(requests.surface == code)
            if len(rows):
                item, slot, valid = self._slate(requests.take(rows), code)
                at, column = np.nonzero(valid)
                found.append((rows[at], item[at, column], slot[column]))
        request, item, slot = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(request, kind="stable")
        return Slots(request[order], item[order], slot[order])

    def views(self, user: np.ndarray, time_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return views without promotion (user, item, time): what a user finds by taste alone."""
        rng, options = self._rng, 6
        counts = rng.poisson(self._config.views, len(user))
        session = np.repeat(np.arange(len(user)), counts)
        taste = self._tastes.of(user, time_us / DAY_US)[session]
        item = np.concatenate(
            [
                self._catalogue.draw(rng.random((len(session), options // 2)), self._categories(taste, options // 2)),
                self._catalogue.draw(rng.random((len(session), options // 2))),
            ],
            axis=1,
        )
        score = self._affinity(taste, item) + 0.4 * self._population.items.click_quality[item]
        best = np.argmax(score + rng.gumbel(size=score.shape).astype(np.float32), axis=1)
        pause = (rng.random(len(session)) * 600).astype(np.int64) * SECOND
        return user[session], item[np.arange(len(session)), best], time_us[session] + pause

    def _slate(self, requests: Requests, code: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return items [R, K], their slots [K], and which slots are filled [R, K]."""
        surface, rng, rows = SURFACES[code], self._rng, len(requests.user)
        share = np.float32(self._config.policy_knows)
        # The policy learned from the past: it knows a part of the taste and believes in something else as well.
        believed = (
            np.sqrt(share) * self._tastes.of(requests.user, requests.day)
            + np.sqrt(1 - share) * (self._population.users.policy_noise[requests.user])
        )
        item = self._candidates(requests, code, believed)
        items = self._population.items
        score = _POLICY["taste"] * self._affinity(believed, item)
        score += _POLICY["click_quality"] * items.click_quality[item]
        score += _POLICY["conversion_quality"] * items.conversion_quality[item]
        score += np.float32(_POLICY["noise"]) * rng.gumbel(size=score.shape).astype(np.float32)
        score[_repeats(item)] = -np.inf
        top = np.argsort(-score, axis=1, kind="stable")[:, : surface.slots]
        item, valid = np.take_along_axis(item, top, 1), np.isfinite(np.take_along_axis(score, top, 1))
        # Noise in place of the score, for what is shown as for what is not: the order tells nothing there.
        shuffled = np.where(valid, rng.random((rows, surface.slots)), np.inf)
        mixed = np.argsort(shuffled, axis=1, kind="stable")
        item = np.where(requests.randomized[:, None], np.take_along_axis(item, mixed, 1), item)
        return item, np.arange(surface.slots, dtype=np.int8), valid

    def _candidates(self, requests: Requests, code: int, believed: np.ndarray) -> np.ndarray:
        """Return items [R, C]: by popularity, and by category as the surface has it."""
        rng, rows, wanted = self._rng, len(requests.user), SURFACES[code].candidates
        if code == HOME:
            by_taste, popular = wanted * 5 // 12, wanted * 5 // 12
            anywhere = rng.integers(self._population.categories, size=(rows, wanted - by_taste - popular))
            category = np.concatenate([self._categories(believed, by_taste), anywhere], axis=1)
        else:
            popular = 0 if code == SEARCH else wanted // 4
            category = np.repeat(requests.anchor[:, None], wanted - popular, axis=1)
        return np.concatenate(
            [
                self._catalogue.draw(rng.random(category.shape), category),
                self._catalogue.draw(rng.random((rows, popular))),
            ],
            axis=1,
        )

    def _categories(self, taste: np.ndarray, count: int) -> np.ndarray:
        """Draw categories [N, count] by taste and by how much there is in them: int16."""
        logits = _SHARPNESS * np.float32(self._config.dim**0.5) * (taste @ self._population.centres.T) + self._log_size
        running = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)
        drawn = self._rng.random((len(taste), count), dtype=np.float32) * running[:, -1:]
        return (running[:, None, :-1] <= drawn[:, :, None]).sum(axis=2, dtype=np.int16)

    def _affinity(self, taste: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return how much each user likes each of its items, about standard normal over all items: [N, C]."""
        vectors = self._population.items.vector[item]
        return np.einsum("ncd,nd->nc", vectors, taste) * np.float32(self._config.dim**0.5)


def _repeats(item: np.ndarray) -> np.ndarray:
    """Return which entries were there earlier in their row: bool [R, C]."""
    order = np.argsort(item, axis=1, kind="stable")
    ranked = np.take_along_axis(item, order, 1)
    same = np.zeros(item.shape, bool)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    found = np.empty_like(same)
    np.put_along_axis(found, order, same, 1)
    return found
