"""What comes of an impression: the true probabilities, and clicks, carts and conversions drawn from them.

Legend: N impressions, M clicks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jobs.world.config import SURFACES
from jobs.world.exposure import DAY_US, SECOND, Requests, Slots
from jobs.world.population import Population, Tastes

HOUR_US = 3600 * SECOND
WINDOW_US = 28 * DAY_US  # an off-site conversion that arrives later is nobody's


@dataclass(frozen=True)
class Delay:
    """Time from a click to what follows it: a Weibull distribution, cut at the window, after a dead time."""

    dead_us: int
    scale_us: float
    shape: float

    def arrived(self, us: np.ndarray) -> np.ndarray:
        """Return the probability that it has arrived so many microseconds after the click."""
        waited = np.clip(us - self.dead_us, 0, WINDOW_US - self.dead_us) / self.scale_us
        return (-np.expm1(-(waited**self.shape)) / self._inside).astype(np.float32)

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """Return delays in microseconds, int64."""
        waited = self.scale_us * (-np.log1p(-uniform * self._inside)) ** (1 / self.shape)
        return (self.dead_us + waited).astype(np.int64)

    @property
    def _inside(self) -> float:
        return float(-np.expm1(-(((WINDOW_US - self.dead_us) / self.scale_us) ** self.shape)))


CART = Delay(5 * SECOND, 120 * SECOND, 0.7)
ONSITE = Delay(60 * SECOND, 1 * HOUR_US, 0.5)
OFFSITE = Delay(4 * HOUR_US, 3 * DAY_US, 0.8)  # reports come in batches


OFFSITE_SHARE = 0.7  # of what moves an on-site conversion


def payday(day: float) -> float:
    """Return what a day adds to the logit of a conversion: wages come at the end of a month."""
    return 0.2 * math.cos(2 * math.pi * (day - 27) / 30.4)


@dataclass(frozen=True)
class Intercepts:
    """What makes the rates come out as the settings want them: per surface for clicks, per stage for conversions."""

    click: tuple[float, ...]
    cart: float
    buy: float
    offsite: float


@dataclass(frozen=True)
class Truth:
    """Probabilities [N], float32.

    Attributes
    ----------
    examined
        P(the slot is looked at).
    click
        P(click), examination included.
    cart, buy
        P(cart | click) and P(on-site conversion | cart).
    offsite
        P(off-site conversion | click), whenever it arrives.
    """

    examined: np.ndarray
    click: np.ndarray
    cart: np.ndarray
    buy: np.ndarray
    offsite: np.ndarray

    def conversion(self) -> np.ndarray:
        """P(any conversion | click), whenever it arrives."""
        return 1 - (1 - self.cart * self.buy) * (1 - self.offsite)

    def conversion_within(self, left_us: np.ndarray) -> np.ndarray:
        """P(any conversion | click) that arrives within so many microseconds."""
        onsite = self.cart * self.buy * ONSITE.arrived(left_us)
        return 1 - (1 - onsite) * (1 - self.offsite * OFFSITE.arrived(left_us))


@dataclass(frozen=True)
class Scores:
    """The logits of a set of impressions without their intercepts, float32 [N]; `examined` is a probability."""

    surface: np.ndarray
    examined: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    offsite: np.ndarray

    def truth(self, intercepts: Intercepts) -> Truth:
        """Return the probabilities."""
        alpha = np.array(intercepts.click, np.float32)[self.surface]
        return Truth(
            examined=self.examined,
            click=self.examined * sigmoid(alpha + self.click),
            cart=sigmoid(np.float32(intercepts.cart) + self.conversion),
            buy=sigmoid(np.float32(intercepts.buy) + np.float32(0.5) * self.conversion),
            offsite=sigmoid(np.float32(intercepts.offsite) + self.offsite),
        )


def score(population: Population, tastes: Tastes, requests: Requests, slots: Slots) -> Scores:
    """Return what every filled slot has for it; the equations stand in docs/world.md."""
    config, items, users = population.config, population.items, population.users
    request, item = slots.request, slots.item
    user, surface, category = requests.user[request], requests.surface[request], items.category[slots.item]
    root = np.float32(config.dim**0.5)
    taste = tastes.of(requests.user, requests.day)
    vector = items.vector[item]
    liked = np.einsum("nd,nd->n", taste[request], vector) * root
    own = np.einsum("nd,nd->n", users.conversion_own[user], vector) * root
    wanted = np.float32(config.taste_correlation) * liked
    wanted += np.float32(np.sqrt(1 - config.taste_correlation**2)) * own
    dear = users.thrift[user] * items.price_z[item]
    day = float(requests.time_us.min() // DAY_US)
    click = users.click_bias[user] + items.click_quality[item] + np.float32(config.click_taste) * liked
    click += np.float32(config.intent) * (category == requests.intent[request])
    click += 0.3 * population.season(day)[category] - 0.15 * dear
    conversion = users.conversion_bias[user] + items.conversion_quality[item]
    conversion += np.float32(config.conversion_taste) * wanted - 0.35 * dear
    conversion += np.array([place.conversion for place in SURFACES], np.float32)[surface]
    conversion += np.float32(payday(day))
    examined = np.zeros((len(SURFACES), max(place.slots for place in SURFACES)), np.float32)
    for code, place in enumerate(SURFACES):
        examined[code, : place.slots] = place.examination
    return Scores(
        surface=surface,
        examined=examined[surface, slots.slot],
        click=click,
        conversion=conversion,
        offsite=OFFSITE_SHARE * conversion + items.offsite_quality[item],
    )


@dataclass(frozen=True)
class Followed:
    """What followed the clicks [M]: times in microseconds since the start of the world, -1 where nothing did."""

    cart_us: np.ndarray
    onsite_us: np.ndarray
    offsite_us: np.ndarray


def click_times(rng: np.random.Generator, truth: Truth, shown_us: np.ndarray) -> np.ndarray:
    """Draw the clicks: their times, -1 where there is none, [N]."""
    clicked = rng.random(len(shown_us), dtype=np.float32) < truth.click
    delay = ((2 + rng.exponential(15, len(shown_us))) * SECOND).astype(np.int64)
    return np.where(clicked, shown_us + delay, -1)


def follow(rng: np.random.Generator, truth: Truth, clicks: np.ndarray, click_us: np.ndarray) -> Followed:
    """Draw what follows the clicked impressions (positions [M]) after their clicks (times [M])."""
    draws = rng.random((6, len(clicks)))
    cart = draws[0] < truth.cart[clicks]
    onsite = cart & (draws[1] < truth.buy[clicks])
    offsite = draws[2] < truth.offsite[clicks]
    to_cart, to_purchase = CART.draw(draws[3]), ONSITE.draw(draws[4])
    # Who buys has it in the cart before.
    to_cart = np.where(onsite, np.minimum(to_cart, to_purchase // 2), to_cart)
    return Followed(
        cart_us=np.where(cart, click_us + to_cart, -1),
        onsite_us=np.where(onsite, click_us + to_purchase, -1),
        offsite_us=np.where(offsite, click_us + OFFSITE.draw(draws[5]), -1),
    )


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logit)), same type."""
    return 1 / (1 + np.exp(-logit))
