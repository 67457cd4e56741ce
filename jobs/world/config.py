"""The settings of a simulated world. Sizes are asked for; everything else has a default that docs/world.md explains."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from feature_repo.contracts.errors import ConfigError

# Raise it with every change that makes the same settings another world: half-written old ones are not gone on with.
GENERATOR = 2
SESSIONS_PER_BLOCK = 4096


@dataclass(frozen=True)
class Surface:
    """One place where items are shown.

    Attributes
    ----------
    candidates
        Items that the production ranker chooses from, C.
    slots
        Items that one request shows, K.
    decay
        P(slot k is looked at) = 1 / (1 + decay (k - 1)).
    ctr
        Clicks per impression that the surface's intercept is set for.
    conversion
        Added to the logit of a conversion: who searches is nearer to a purchase.
    """

    name: str
    candidates: int
    slots: int
    decay: float
    ctr: float
    conversion: float

    @property
    def examination(self) -> np.ndarray:
        """P(a slot is looked at): float32 [K]."""
        return (1.0 / (1.0 + self.decay * np.arange(self.slots))).astype(np.float32)


HOME, RELATED, SEARCH = 0, 1, 2
SURFACES = (
    Surface("home_feed", candidates=24, slots=8, decay=0.25, ctr=0.045, conversion=0.0),
    Surface("related_items", candidates=16, slots=4, decay=0.15, ctr=0.060, conversion=0.2),
    Surface("search", candidates=20, slots=6, decay=0.60, ctr=0.090, conversion=0.5),
)


class WorldConfig(BaseModel):
    """What a world is made of. Equal settings make equal worlds, to the byte."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(ge=20)
    items: int = Field(ge=100, description="ever alive, not at once")
    days: int = Field(ge=2, le=3650)
    seed: int = Field(0, ge=0)
    impressions: int | None = Field(None, ge=100, description="expected in all; null: two per user and day")
    start: AwareDatetime = datetime(2024, 1, 1, tzinfo=UTC)

    dim: int = Field(16, ge=2, description="of the latent space, D")
    drift: float = Field(0.35, ge=0, le=1, description="share of a taste's variance that moves")
    drift_days: float = Field(45, gt=0, description="days after which the moving part remembers 1/e of itself")
    taste_correlation: float = Field(0.5, ge=0, le=1, description="of the tastes for clicking and for converting")
    click_taste: float = Field(0.9, ge=0, description="weight of the taste in a click's logit")
    conversion_taste: float = Field(0.6, ge=0, description="weight of the taste in a conversion's logit")
    intent: float = Field(0.4, ge=0, description="added to a click's logit in the category of the session's intent")
    policy_knows: float = Field(0.5, ge=0, le=1, description="share of taste in what the production ranker goes by")
    randomized: float = Field(0.05, ge=0, le=1, description="share of requests whose slots are in random order")
    search: float = Field(0.25, ge=0, le=1, description="share of sessions that begin with a search")
    related: float = Field(0.5, ge=0, le=1, description="share of clicks that open a page with related items")
    item_life_days: float = Field(60, gt=0, description="mean life of an item")
    new_users: float = Field(0.3, ge=0, lt=1, description="share of users that join after the first day")
    views: float = Field(3.0, ge=0, description="unpromoted item views per session")
    cart_rate: float = Field(0.12, gt=0, lt=1, description="additions to the cart per click")
    onsite_rate: float = Field(0.026, gt=0, lt=1, description="on-site conversions per click")
    offsite_rate: float = Field(
        0.013, gt=0, lt=1, description="off-site conversions per click, some arrive weeks later"
    )

    @property
    def expected(self) -> int:
        """Expected number of impressions."""
        return self.impressions or 2 * self.users * self.days

    @property
    def end(self) -> datetime:
        """What would arrive from here on is not in the log."""
        return self.start + timedelta(days=self.days)

    def fingerprint(self) -> str:
        """Return what tells two worlds apart, 12 hex digits."""
        content = {"generator": GENERATOR, "surfaces": [vars(surface) for surface in SURFACES], **self.to_dict()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self.model_dump(mode="json")

    def generator(self, *place: int) -> np.random.Generator:
        """Return the random numbers of one place (stream, day, block): they depend on nothing drawn elsewhere."""
        return np.random.default_rng([self.seed, *place])


# Streams of random numbers; the rest of a place follows them.
POPULATION, DRIFT, SESSIONS, BLOCK, PILOT = range(5)


def checked(**values: Any) -> WorldConfig:
    """Return the settings; ConfigError names those that do not fit."""
    try:
        return WorldConfig(**values)
    except ValidationError as error:
        reasons = "\n".join(f"  - {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"No such world can be made:\n{reasons}") from error
