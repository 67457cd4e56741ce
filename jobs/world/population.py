"""Who lives in a world: users with tastes that drift, items that are born and die, and what a catalogue says of them.

Legend: U users, I items, K categories, D latent dim, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jobs.world.config import DRIFT, POPULATION, WorldConfig

KNOT_DAYS = 7
SEGMENTS = 12
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
REGIONS = ("north", "east", "south", "west", "islands")
INCOMES = ("low", "middle", "high")
DEVICES = ("phone", "desktop", "tablet")
RAMP_DAYS = 2.0


@dataclass(frozen=True)
class Users:
    """Vectors are float32 [U, D] and of length 1, numbers float32 [U].

    Attributes
    ----------
    joined
        Day from which on the user is there; 0 or less for those that were there before.
    rate
        Sessions per day, in multiples of the mean user's.
    base, conversion_own
        The part of the taste that stays, and the part of the conversion taste that has nothing to do with clicks.
    policy_noise
        What the production ranker takes for the user's taste without reason.
    """

    joined: np.ndarray
    rate: np.ndarray
    base: np.ndarray
    conversion_own: np.ndarray
    policy_noise: np.ndarray
    click_bias: np.ndarray
    conversion_bias: np.ndarray
    thrift: np.ndarray
    evening: np.ndarray
    device: np.ndarray
    attributes: dict[str, np.ndarray]


@dataclass(frozen=True)
class Items:
    """Vectors are float32 [I, D] and of length 1, numbers float32 [I].

    Attributes
    ----------
    born, dies
        Days; before 0 for what was on sale already.
    weight
        How much the shop pushes the item while it is alive.
    price_z
        Standardized log price within the category.
    """

    category: np.ndarray
    brand: np.ndarray
    vector: np.ndarray
    click_quality: np.ndarray
    conversion_quality: np.ndarray
    offsite_quality: np.ndarray
    weight: np.ndarray
    price: np.ndarray
    price_z: np.ndarray
    born: np.ndarray
    dies: np.ndarray


@dataclass(frozen=True)
class Catalogue:
    """The items that can be shown on one day: sorted by category, with running weights.

    ``running[i]`` is the weight of the first i of `order`; category c takes running[edge[c]] to running[edge[c + 1]].
    """

    order: np.ndarray
    running: np.ndarray
    edge: np.ndarray

    def draw(self, uniform: np.ndarray, category: np.ndarray | None = None) -> np.ndarray:
        """Return one item per uniform number, by weight among all or within the given categories: int32, same shape."""
        whole = self.running[-1]
        if category is None:
            point = uniform * whole
        else:
            low, high = self.running[self.edge[category]], self.running[self.edge[category + 1]]
            empty = high <= low  # nothing of it is alive: draw from all
            point = np.where(empty, 0.0, low) + uniform * np.where(empty, whole, high - low)
        at = np.searchsorted(self.running, point, side="right") - 1
        return self.order[np.minimum(at, len(self.order) - 1)]


class Population:
    """Users and items of one world, drawn once; what changes with time is a function of the day alone."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        rng = config.generator(POPULATION)
        self.categories = min(60, max(8, config.items // 40))
        self.centres = _unit(rng, self.categories, config.dim)
        self.season_phase = rng.random(self.categories).astype(np.float32)
        self.items = _items(config, rng, self.centres)
        self.users = _users(config, rng)

    def season(self, day: float) -> np.ndarray:
        """Return how far each category is in season, -1 to 1: float32 [K]."""
        return np.sin(2 * np.pi * (day / 365 + self.season_phase)).astype(np.float32)

    def catalogue(self, day: int) -> Catalogue:
        """Return what is on sale on a day: born before it and not dead at its end."""
        items = self.items
        age = day - items.born
        alive = (age >= 0) & (items.dies >= day + 1)
        life = (1 - np.exp(-(age + 0.5) / RAMP_DAYS)) * np.exp(-age / (2 * self.config.item_life_days))
        season = np.exp(0.4 * self.season(day))[items.category]
        weight = np.where(alive, items.weight * life * season, 0.0).astype(np.float64)
        order = self._by_category[alive[self._by_category]]
        running = np.concatenate([[0.0], np.cumsum(weight[order])])
        edge = np.searchsorted(items.category[order], np.arange(self.categories + 1))
        return Catalogue(order.astype(np.int32), running, edge)

    @cached_property
    def _by_category(self) -> np.ndarray:
        return np.argsort(self.items.category, kind="stable")


class Tastes:
    """Every user's taste at any moment: what stays, and an Ornstein-Uhlenbeck walk with one knot a week.

    Only the two knots around the current moment are kept. Knots come one after the other, so moments have to be asked
    for in weeks that do not fall; a new object begins anew.
    """

    def __init__(self, population: Population) -> None:
        self._config, self._users = population.config, population.users
        self._memory = float(np.exp(-KNOT_DAYS / self._config.drift_days))
        self._at = 0
        first = self._noise(0)
        self._knots = (first, self._next(first, 1))

    def _noise(self, knot: int) -> np.ndarray:
        shape = (self._config.users, self._config.dim)
        noise = self._config.generator(DRIFT, knot).standard_normal(shape, dtype=np.float32)
        return noise * np.float32(self._config.dim**-0.5)

    def _next(self, last: np.ndarray, knot: int) -> np.ndarray:
        return self._memory * last + np.float32(np.sqrt(1 - self._memory**2)) * self._noise(knot)

    def at(self, day: int) -> None:
        """Go to the week of a day."""
        week = day // KNOT_DAYS
        if week < self._at:
            raise ValueError(f"Tastes are in week {self._at} and do not go back to {week}.")
        while self._at < week:
            self._at += 1
            self._knots = (self._knots[1], self._next(self._knots[1], self._at + 1))

    def of(self, user: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return tastes for clicking, of length 1, for users at moments (in days) of the current week: [N, D]."""
        share = np.float32(self._config.drift)
        along = np.clip(day / KNOT_DAYS - self._at, 0, 1).astype(np.float32)[:, None]
        # Between two knots the walk would shrink: keep its variance.
        scale = np.sqrt((1 - along) ** 2 + along**2 + 2 * along * (1 - along) * np.float32(self._memory))
        moving = ((1 - along) * self._knots[0][user] + along * self._knots[1][user]) / scale
        return unit(np.sqrt(1 - share) * self._users.base[user] + np.sqrt(share) * moving)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, float32 [N, D]."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return (vectors / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)


def _unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return unit(rng.standard_normal((rows, dim), dtype=np.float32))


def _correlated(rng: np.random.Generator, rows: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    first, other = rng.standard_normal((2, rows), dtype=np.float32)
    return first, correlation * first + np.float32(np.sqrt(1 - correlation**2)) * other


def _users(config: WorldConfig, rng: np.random.Generator) -> Users:
    count, dim = config.users, config.dim
    segment = rng.integers(SEGMENTS, size=count)
    base = unit(0.35**0.5 * _unit(rng, SEGMENTS, dim)[segment] + 0.65**0.5 * _unit(rng, count, dim))
    click, conversion = _correlated(rng, count, 0.3)
    thrift = rng.standard_normal(count, dtype=np.float32)
    # A Pareto tail: the most active hundredth makes a seventh of all sessions. Beyond the cap would be robots.
    rate = np.minimum(rng.pareto(1.8, count) + 0.15, 40).astype(np.float32)
    noisy_income = np.clip(np.rint(1 - thrift + 0.7 * rng.standard_normal(count)), 0, 2).astype(np.int8)
    return Users(
        joined=np.where(rng.random(count) < config.new_users, rng.random(count) * config.days, -1).astype(np.float32),
        rate=rate / rate.mean(),
        base=base,
        conversion_own=_unit(rng, count, dim),
        policy_noise=_unit(rng, count, dim),
        click_bias=0.45 * click,
        conversion_bias=0.50 * conversion,
        thrift=thrift,
        evening=rng.beta(2, 2, count).astype(np.float32),
        device=rng.choice(3, size=count, p=(0.62, 0.30, 0.08)).astype(np.int8),
        attributes={
            "age": _told_by(rng, segment, len(AGES)),
            "region": _told_by(rng, segment // 3, len(REGIONS)),
            "income": noisy_income,
        },
    )


def _told_by(rng: np.random.Generator, cause: np.ndarray, values: int) -> np.ndarray:
    """Return an attribute that follows its cause in six of ten users and is missing (-1) in one of ten."""
    told = rng.random(len(cause))
    value = np.where(told < 0.6, cause % values, rng.integers(values, size=len(cause)))
    return np.where(told > 0.9, -1, value).astype(np.int8)


def _items(config: WorldConfig, rng: np.random.Generator, centres: np.ndarray) -> Items:
    count, dim, categories = config.items, config.dim, len(centres)
    share = 1.0 / np.arange(1, categories + 1) ** 0.7
    category = rng.choice(categories, size=count, p=share / share.sum()).astype(np.int16)
    per_category = max(2, count // (20 * categories))
    brand = category.astype(np.int32) * per_category + np.minimum(
        (per_category * rng.random(count) ** 2).astype(np.int32), per_category - 1
    )
    brands = _unit(rng, categories * per_category, dim)
    own = _unit(rng, count, dim)
    vector = unit(0.45**0.5 * centres[category] + 0.15**0.5 * brands[brand] + 0.40**0.5 * own)
    click, conversion = _correlated(rng, count, 0.3)
    offsite_brand = rng.standard_normal(categories * per_category, dtype=np.float32)
    price_z = rng.standard_normal(count, dtype=np.float32)
    level = rng.normal(3.2, 0.8, categories)
    # As many are born on a day as die: what is alive at the start has a past of a life's length.
    before = rng.random(count) < config.item_life_days / (config.item_life_days + config.days)
    born = np.where(before, -rng.exponential(config.item_life_days, count), rng.random(count) * config.days)
    life = 3 + rng.exponential(config.item_life_days, count)
    return Items(
        category=category,
        brand=brand,
        vector=vector,
        click_quality=0.45 * click,
        conversion_quality=0.80 * conversion,
        offsite_quality=0.5 * offsite_brand[brand],
        weight=np.exp(1.3 * rng.standard_normal(count) + 0.3 * click).astype(np.float32),
        price=np.round(np.exp(level[category] + 0.5 * price_z), 2).astype(np.float32),
        price_z=price_z,
        born=born.astype(np.float32),
        # An exponential life has no memory: whoever is alive at the start has a whole one ahead.
        dies=(np.maximum(born, 0) + life).astype(np.float32),
    )
