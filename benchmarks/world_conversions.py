"""How much of what makes a click convert is in the published vectors of a simulated world, by version and together.

The clicks of the days between `train_end` and `valid_end`, before the test period, each with the vectors that were
readable when its day began. A ridge regression on the surface, both vectors and their elementwise product foresees the
true logit of a conversion, for each fifth of the users by the others. True probabilities in place of rare outcomes, so
a few thousand clicks tell much; but a ranker has outcomes alone and does not come so far.

    python -m benchmarks.world_conversions --home world-home   # --users, --items ... of the world, as simulated
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from benchmarks.world_home import opened
from benchmarks.world_vectors import Vectors, centred, published, together
from jobs.world.config import SURFACES, WorldConfig
from jobs.world.world import World

FOLDS, RIDGE = 5, 100.0


@dataclass(frozen=True)
class Clicked:
    """The clicks [N] of a day: positions of user, item and surface, and the true probability of a conversion."""

    user: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    chance: np.ndarray


def clicked(config: WorldConfig, first: int, last: int) -> list[Clicked]:
    """Return the clicks of each of the days [first, last) of a world."""
    world = World(config)
    days: list[Clicked] = []
    for day in range(first, last):
        world.tastes.at(day)
        parts = []
        for block in world.day(day):
            request, clicks = block.slots.request[block.clicks], block.clicks
            of = (block.requests.user[request], block.slots.item[clicks], block.requests.surface[request])
            parts.append((*of, block.truth.conversion()[clicks].astype(np.float64)))
        days.append(Clicked(*(np.concatenate(values) for values in zip(*parts, strict=True))))
    return days


def inputs(vectors: tuple[Vectors, Vectors], rows: Clicked, config: WorldConfig) -> np.ndarray:
    """Return what the regression reads of the rows [N, any]; a vector that is missing is the mean of all."""
    surface = np.eye(len(SURFACES))[rows.surface]
    (users, known_users), (items, known_items) = centred(vectors, config)
    user, item = users[rows.user].astype(np.float64), items[rows.item].astype(np.float64)
    there = np.stack([known_users[rows.user], known_items[rows.item]], axis=1)
    product = user * item
    return np.concatenate([surface, user, item, there, product, product.sum(axis=1, keepdims=True)], axis=1)


def foreseen(given: np.ndarray, logit: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Return the logits [N] that a ridge regression foresees, each by the rows of other users."""
    scaled = (given - given.mean(axis=0)) / (given.std(axis=0) + 1e-9)
    found = np.zeros(len(logit))
    for fold in range(FOLDS):
        own = user % FOLDS == fold
        x, mean = scaled[~own], logit[~own].mean()
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (logit[~own] - mean))
        found[own] = mean + scaled[own] @ weights
    return found


def expected_auc(score: np.ndarray, chance: np.ndarray) -> float:
    """Return the ROC-AUC of scores [N] over all outcomes of rows that convert with these probabilities [N]."""
    order = np.argsort(score, kind="stable")
    yes = chance[order]
    no = 1 - yes
    return float((yes * (np.cumsum(no) - no / 2)).sum() / (yes.sum() * no.sum()))


def main() -> None:
    """Print and keep one line per version, and one per several of them together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ws, config, table, _ = opened(parser, "conversions")
    first, last = (
        (moment - config.start) // timedelta(days=1) for moment in (ws.splits.train_end, ws.splits.valid_end)
    )
    days = clicked(config, first, last)
    user, chance = (np.concatenate([getattr(day, name) for day in days]) for name in ("user", "chance"))
    logit = np.log(chance / (1 - chance))
    table.say(f"Days {first} to {last - 1}: {len(user):,} clicks, {chance.sum():,.0f} conversions expected of them.")
    table.say(f"Expected ROC-AUC of the truth {expected_auc(logit, chance):.4f}.")
    moments = [config.start + timedelta(days=day) for day in range(first, last)]
    read = {
        upstream.version: np.concatenate(
            [inputs(published(ws, upstream.version, at), day, config) for at, day in zip(moments, days, strict=True)]
        )
        for upstream in ws.config.upstreams
    }
    for versions in together(list(read)):
        told, name = foreseen(np.hstack([read[version] for version in versions]), logit, user), " and ".join(versions)
        share = 1 - float(np.square(logit - told).sum() / np.square(logit - logit.mean()).sum())
        auc = expected_auc(told, chance)
        table.row({"vectors": name, "share of the variance of the true logit": share, "expected ROC-AUC": auc})
    table.write()


if __name__ == "__main__":
    main()
