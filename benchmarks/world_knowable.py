"""How much of a simulated world's possible gain in clicks anybody could have at a refresh: ROC-AUC on the last days.

The truth of a click knows the session's intent, a taste of this very hour, and tastes that no log of this length tells.
Here stands what is left of it step by step, down to a filter that knows the world's equations, every item's vector and
every bias to the last digit, and learns each user's taste from impressions, clicks and views up to the last refresh. A
model has to learn items, biases and equations as well, and should not come out above it: its share of the gain is a
ceiling for the embeddings of a log. It is an approximation (one Gaussian step per user and week), no proven bound.

    python -m benchmarks.world_knowable --users 10000 --items 3000 --days 120 --impressions 5500000 --seed 5   # minutes
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from jobs.world.config import SEARCH, WorldConfig, checked
from jobs.world.outcomes import sigmoid
from jobs.world.population import Population
from jobs.world.world import Block, World
from models.metrics import roc_auc

TEST_SHARE = 16 / 120  # of the days, at the end: the test period of the splits that `headwater simulate` writes
# Views are drawn from what a category or the shop offers and then by taste: near a softmax over the catalogue.
VIEW_SHARPNESS = 1.0
ROUND_USERS = 500
STEPS = (
    ("biases", "biases, qualities, place, season and price; no taste"),
    ("filtered", "and the taste as a filter knows it at the last refresh"),
    ("stays", "and the part of the taste that never changes"),
    ("refresh", "and the taste as it was at the last refresh"),
    ("moment", "and the taste of the moment"),
    ("truth", "and the session's intent: the truth"),
)


class TasteFilter:
    """What a log tells of every user's taste: a Gaussian over the part that stays and the part that moves.

    Legend: U users, D latent dim. The state [U, 2D] holds both parts, scaled so that their sum is the taste.
    """

    def __init__(self, config: WorldConfig) -> None:
        users, dim = config.users, config.dim
        self.sum_DS = np.concatenate([np.eye(dim), np.eye(dim)], axis=1)
        self.moving = np.arange(dim, 2 * dim)
        self.variance = config.drift / dim
        self.mean_US = np.zeros((users, 2 * dim))
        diagonal = np.concatenate([np.full(dim, (1 - config.drift) / dim), np.full(dim, self.variance)])
        self.cov_USS = np.tile(np.diag(diagonal), (users, 1, 1))

    def forget(self, memory: float) -> None:
        """Let the moving part go on for a while, after which it remembers this share of itself."""
        dim = len(self.moving)
        self.mean_US[:, dim:] *= memory
        self.cov_USS[:, dim:, :] *= memory
        self.cov_USS[:, :, dim:] *= memory
        self.cov_USS[:, self.moving, self.moving] += self.variance * (1 - memory**2)

    def learn(self, gradient_UD: np.ndarray, information_UDD: np.ndarray) -> None:
        """Add what was seen: gradient and Fisher information of its log likelihood in the taste at the mean."""
        cross_USD = self.cov_USS @ self.sum_DS.T
        taste_UDD = self.sum_DS @ cross_USD
        right = np.concatenate([information_UDD @ cross_USD.transpose(0, 2, 1), gradient_UD[:, :, None]], axis=2)
        solved = np.linalg.solve(np.eye(taste_UDD.shape[1]) + information_UDD @ taste_UDD, right)
        self.mean_US += (cross_USD @ solved[:, :, -1:])[:, :, 0]
        self.cov_USS -= cross_USD @ solved[:, :, :-1]

    @property
    def taste_UD(self) -> np.ndarray:
        """The mean of the taste."""
        return np.asarray(self.mean_US @ self.sum_DS.T)


class Seen:
    """Gradient and information of what users did since the last refresh."""

    def __init__(self, config: WorldConfig) -> None:
        self.gradient_UD = np.zeros((config.users, config.dim))
        self.information_UDD = np.zeros((config.users, config.dim, config.dim))
        self.views: list[tuple[np.ndarray, np.ndarray]] = []

    def impressions(self, user: np.ndarray, vector: np.ndarray, parts: Parts, gain: float, taste: np.ndarray) -> None:
        """Add impressions [N]; P(click) is P(looked at) times a sigmoid, so one without a click tells less."""
        liked = sigmoid(parts.rest + gain * np.einsum("nd,nd->n", taste, vector))
        chance = parts.examined * liked
        slope = gain * (parts.click - chance) * (1 - liked) / (1 - chance)
        curve = gain**2 * chance * (1 - liked) ** 2 / (1 - chance)
        order = np.argsort(user, kind="stable")
        who, start = np.unique(user[order], return_index=True)
        vector, slope, curve = vector[order], slope[order], curve[order]
        self.gradient_UD[who] += np.add.reduceat(slope[:, None] * vector, start)
        outer = curve[:, None, None] * (vector[:, :, None] * vector[:, None, :])
        self.information_UDD[who] += np.add.reduceat(outer, start)

    def choices(self, population: Population, day: int, taste_UD: np.ndarray) -> None:
        """Add the views, each a choice from the catalogue of a day."""
        items, config = population.items, population.config
        user, item = (np.concatenate(parts) for parts in zip(*self.views, strict=True))
        catalogue = population.catalogue(day)
        weight = np.full(config.items, 1e-9 * catalogue.running[-1])
        weight[catalogue.order] += np.diff(catalogue.running)
        gain, vector = VIEW_SHARPNESS * config.dim**0.5, items.vector.astype(np.float64)
        count = np.bincount(user, minlength=config.users)
        chosen = np.zeros_like(self.gradient_UD)
        np.add.at(chosen, user, vector[item])
        active = np.flatnonzero(count)
        for who in np.array_split(active, max(1, len(active) // ROUND_USERS)):
            score = np.log(weight) + 0.4 * items.click_quality + gain * (taste_UD[who] @ vector.T)
            share = np.exp(score - score.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            mean = share @ vector
            second = np.einsum("ui,id,ie->ude", share, vector, vector, optimize=True)
            spread = second - mean[:, :, None] * mean[:, None, :]
            self.gradient_UD[who] += gain * (chosen[who] - count[who, None] * mean)
            self.information_UDD[who] += gain**2 * count[who, None, None] * spread


class Parts:
    """A block's impressions [N] with the parts of their logits that a refresh could know."""

    def __init__(self, config: WorldConfig, world: World, block: Block) -> None:
        request, items = block.slots.request, world.population.items
        category = items.category[block.slots.item]
        self.user = block.requests.user[request]
        self.vector = items.vector[block.slots.item].astype(np.float64)
        self.examined, self.click = block.truth.examined, block.click_us >= 0
        self.taste = world.tastes.of(block.requests.user, block.requests.day)[request]
        chance = block.truth.click / self.examined
        self.logit = np.log(chance / (1 - chance))
        hidden = config.intent * (category == block.requests.intent[request])
        # Who searches says what for; in the feed nobody knows.
        told = hidden * (block.requests.surface[request] == SEARCH)
        gain = config.click_taste * config.dim**0.5
        self.rest = self.logit - gain * np.einsum("nd,nd->n", self.taste, self.vector) - hidden + told


def knowable(config: WorldConfig, refresh_days: int = 7) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the clicks of the test days [N] and the scores [N] of every step of `STEPS`."""
    world, gain = World(config), config.click_taste * config.dim**0.5
    population, everybody = world.population, np.arange(config.users)
    base = population.users.base * (1 - config.drift) ** 0.5
    tastes, seen = TasteFilter(config), Seen(config)
    memory = float(np.exp(-refresh_days / config.drift_days))
    first_test = round(config.days * (1 - TEST_SHARE))
    known = {"biases": np.zeros_like(base), "stays": base}
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for day in range(config.days):
        world.tastes.at(day)
        if day % refresh_days == 0:
            if seen.views:
                seen.choices(population, day - refresh_days // 2 - 1, tastes.taste_UD)
                tastes.learn(seen.gradient_UD, seen.information_UDD)
                tastes.forget(memory)
            seen = Seen(config)
            known["filtered"] = tastes.taste_UD
            known["refresh"] = world.tastes.of(everybody, np.full(config.users, float(day)))
        for block in world.day(day):
            parts = Parts(config, world, block)
            seen.impressions(parts.user, parts.vector, parts, gain, tastes.taste_UD[parts.user])
            seen.views.append((block.view_user, block.view_item))
            if day < first_test:
                continue
            found["click"].append(parts.click)
            found["truth"].append(parts.examined * sigmoid(parts.logit))
            for name, taste in (*((name, taste[parts.user]) for name, taste in known.items()), ("moment", parts.taste)):
                liked = gain * np.einsum("nd,nd->n", taste, parts.vector)
                found[name].append(parts.examined * sigmoid(parts.rest + liked))
    joined = {name: np.concatenate(values) for name, values in found.items()}
    return joined.pop("click"), joined


def main() -> None:
    """Print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("users", 1500), ("items", 600), ("days", 90), ("impressions", 600_000), ("seed", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--refresh-days", type=int, default=7)
    chosen = vars(parser.parse_args())
    refresh_days = chosen.pop("refresh_days")
    label, scores = knowable(checked(**chosen), refresh_days)
    print(f"{len(label):,} impressions of the last days, {int(label.sum()):,} clicks")
    auc = {name: roc_auc(label, scores[name]) for name, _ in STEPS}
    print("| what is known | ROC-AUC | share of what tastes and intent bring |\n|---|---|---|")
    for name, text in STEPS:
        share = (auc[name] - auc["biases"]) / (auc["truth"] - auc["biases"])
        print(f"| {text} | {auc[name]:.4f} | {share:.0%} |")


if __name__ == "__main__":
    main()
