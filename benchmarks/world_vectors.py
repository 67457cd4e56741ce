"""How much of what tastes bring is in the published vectors of a simulated world: by version, and by how new items are.

What a click has besides the taste (place, biases, qualities, season, price) is taken from the truth; what is left is
told by one number, the product of the centred vectors of user and item, with the slope that fits these days best; by
one number of each where several versions are read together. So the figures say what vectors hold and nothing of
rankers. Read on the days between `train_end` and `valid_end`, before
the test period, with the snapshots that were readable when they began.

    python -m benchmarks.world_vectors --home world-home   # --users, --items ... of the world, as simulated
    python -m benchmarks.world_vectors --home world-home --ways   # v1's model and ways to fold outcomes in, first day
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import combinations

import numpy as np
import polars as pl
from scipy.optimize import minimize

from benchmarks.world_home import opened
from benchmarks.world_knowable import Parts
from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import ENTITIES, join_key
from jobs import folding
from jobs.refresh import Upstream, read_vectors
from jobs.retrieve_questions import pair_before
from jobs.workspace import Workspace
from jobs.world.config import WorldConfig
from jobs.world.outcomes import sigmoid
from jobs.world.world import World
from models.metrics import roc_auc
from models.upstream.outcome_frame import own_directions
from models.upstream.outcome_settings import OutcomeFoldIn, Pace


@dataclass(frozen=True)
class Shown:
    """Impressions [N] of some days: positions of user and item, clicks, and the parts of their true logits."""

    user: np.ndarray
    item: np.ndarray
    click: np.ndarray
    examined: np.ndarray
    rest: np.ndarray
    liked: np.ndarray
    born: np.ndarray

    def take(self, rows: np.ndarray) -> Shown:
        """Return the given rows."""
        return Shown(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def auc(self, liked: np.ndarray | float) -> float:
        """Return the ROC-AUC of what is known besides, and this of the taste [N]."""
        return roc_auc(self.click, self.examined * sigmoid(self.rest + liked))

    def share(self, products: np.ndarray) -> float:
        """Return the share of what tastes bring in ROC-AUC that products [N, M] bring, with the likeliest slopes."""
        spread = products.std(axis=0)
        scaled = products / np.where(spread > 0, spread, 1.0)

        def loss(slopes: np.ndarray) -> tuple[float, np.ndarray]:
            liked = sigmoid(self.rest + scaled @ slopes)
            chance = np.clip(self.examined * liked, 1e-7, 1 - 1e-7)
            happened = np.where(self.click, np.log(chance), np.log1p(-chance))
            change = (self.click - chance) * (1 - liked) / (1 - chance)  # of the log-likelihood with the logit
            return -float(happened.mean()), -(scaled * change[:, None]).mean(axis=0)

        start = np.full(scaled.shape[1], 1 / scaled.shape[1])
        slopes = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 3.0)] * len(start)).x
        none, all_of_it = self.auc(0.0), self.auc(self.liked)
        return (self.auc(scaled @ slopes) - none) / (all_of_it - none)


def shown(config: WorldConfig, first: int, last: int) -> list[Shown]:
    """Return the impressions of each of the days [first, last) of a world."""
    world, gain = World(config), config.click_taste * config.dim**0.5
    days: list[Shown] = []
    for day in range(first, last):
        world.tastes.at(day)
        found: list[Shown] = []
        for block in world.day(day):
            parts, item = Parts(config, world, block), block.slots.item
            liked = gain * np.einsum("nd,nd->n", parts.taste, parts.vector)
            born = world.population.items.born[item]
            found.append(Shown(parts.user, item, parts.click, parts.examined, parts.rest, liked, born))
        days.append(joined(found))
    return days


def joined(parts: list[Shown]) -> Shown:
    """Return impressions one after the other."""
    return Shown(*(np.concatenate([getattr(part, name) for part in parts]) for name in Shown.__dataclass_fields__))


Vectors = tuple[pl.Series, np.ndarray]  # ids [N] and vectors float32 [N, E]


def published(ws: Workspace, version: str, moment: datetime) -> tuple[Vectors, Vectors]:
    """Return the users' and the items' last vectors as of a moment or before."""
    pair = pair_before(ws, version, moment)
    if pair is None:
        raise NotReadyError(f"{version} has no snapshot before {moment}. Run `headwater backfill` first.")
    users, items = (
        read_vectors(ws.home.root / snapshot.path, join_key(entity))
        for snapshot, entity in zip((pair.users, pair.items), ENTITIES, strict=True)
    )
    return users, items


def of_tastes(vectors: tuple[Vectors, Vectors], config: OutcomeFoldIn | None) -> tuple[Vectors, Vectors]:
    """Return vectors without what folding in put beside tastes: the truth tells rates and prices here."""
    if config is None or not config.rate:
        return vectors
    beside = own_directions(vectors[0][1].shape[1], len(config.numbers)).numpy()
    users, items = ((ids, found - found @ beside @ beside.T) for ids, found in vectors)
    return users, items


def folded(ws: Workspace, version: str) -> OutcomeFoldIn | None:
    """Return how a version folds outcomes in; None where it does not."""
    told = ws.ledger.space(ws.ledger.version(version).space_id).config.get(folding.OUTCOMES_KEY)
    return None if told is None else OutcomeFoldIn.of(told)


COLUMNS = (
    "vectors",
    "share of what tastes bring",
    "items born before the cut-off",
    "after it",
    "rows with both vectors",
)
STILL = Pace(30.0, 0.0)
WAYS: dict[str, OutcomeFoldIn | None] = {
    "the model alone": None,
    "one round, one pace, the other side taken for true": OutcomeFoldIn.of({"rate": 0.3, "even": False}),
    "and two paces": OutcomeFoldIn(rounds=1, doubt=0.0, intercepts=False),
    "and the other side's variance, two rounds": OutcomeFoldIn(intercepts=False),
    "and intercepts: as it is": OutcomeFoldIn(),
    "one pace": OutcomeFoldIn(user=STILL, item=STILL),
    "one round": OutcomeFoldIn(rounds=1),
    "three rounds": OutcomeFoldIn(rounds=3),
    "the other side taken for true": OutcomeFoldIn(doubt=0.0),
    "all of its variance": OutcomeFoldIn(doubt=1.0),
    "prior half as narrow": OutcomeFoldIn(prior=50.0),
    "prior twice as narrow": OutcomeFoldIn(prior=200.0),
    "items in one pace": OutcomeFoldIn(item=STILL),
    "users' moving part half as much": OutcomeFoldIn(user=replace(OutcomeFoldIn().user, moving=0.2)),
    "users' moving part four times as slow": OutcomeFoldIn(user=replace(OutcomeFoldIn().user, half_life_days=20.0)),
}


def made(ws: Workspace, version: str, moment: datetime, config: OutcomeFoldIn | None) -> tuple[Vectors, Vectors]:
    """Return what a version's model makes of a moment, by itself or with outcomes folded in."""
    space = ws.ledger.space(ws.ledger.version(version).space_id)
    own = {key: value for key, value in space.config.items() if key not in (folding.KEY, folding.OUTCOMES_KEY)}
    told = {} if config is None else {folding.OUTCOMES_KEY: asdict(config)}
    upstream = Upstream(ws, replace(space, config={**own, **told}))
    users, items = (upstream.infer(entity, moment)[:2] for entity in ENTITIES)
    return users, items


Products = tuple[np.ndarray, np.ndarray]  # of impressions [N], and whether both vectors are there, bool [N]


def products(vectors: tuple[Vectors, Vectors], rows: Shown, config: WorldConfig) -> Products:
    """Return the products of centred vectors [N], 0 where one is missing, and whether both are there."""
    (users, known_users), (items, known_items) = centred(vectors, config)
    product = np.einsum("nd,nd->n", users[rows.user], items[rows.item])
    return product, known_users[rows.user] & known_items[rows.item]


def centred(vectors: tuple[Vectors, Vectors], config: WorldConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the vectors of all users, and of all items, less their mean [any, E], and which are there, bool [any]."""
    sides = []
    for (ids, found), count in zip(vectors, (config.users, config.items), strict=True):
        table, known = np.zeros((count, found.shape[1]), np.float32), np.zeros(count, bool)
        place = ids.cast(pl.Int64).to_numpy() - 1  # a world counts its users and items from 1
        table[place], known[place] = found - found.mean(axis=0), True
        sides.append((table, known))
    return sides


def main() -> None:
    """Print and keep one line per version, and one per several of them together; or one per way to fold in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), help="ways to try on the first day; all by default")
    parser.add_argument("--version", default="v1", help="whose model they are tried with")
    ws, config, table, chosen = opened(parser, "vectors")
    ways, tried = chosen["ways"], chosen["version"]
    table.kind = "vectors" if ways is None else "ways"
    first, last, cut = (
        (moment - config.start) // timedelta(days=1)
        for moment in (ws.splits.train_end, ws.splits.valid_end, ws.splits.upstream_end)
    )
    days = shown(config, first, last if ways is None else first + 1)
    rows = joined(days)
    old = rows.born < cut
    span = f"Days {first} to {first + len(days) - 1}" if len(days) > 1 else f"Day {first}"
    table.say(f"{span}: {len(rows.click):,} impressions, {int(rows.click.sum()):,} clicks.")
    table.say(f"ROC-AUC without the taste {rows.auc(0.0):.4f}, with it {rows.auc(rows.liked):.4f}.")
    table.say(f"Items born after the upstreams' cut-off have {1 - old.mean():.0%} of these impressions.")

    def tell(name: str, found: list[Products]) -> None:
        told = np.stack([product for product, _ in found], axis=1)
        there = np.all([there for _, there in found], axis=0)
        shares = [float(part.share(values)) for part, values in split(rows, told, old)]
        table.row(dict(zip(COLUMNS, [name, *shares, float(there.mean())], strict=True)))

    if ways is not None:
        for name in ways or WAYS:
            vectors = made(ws, tried, config.start + timedelta(days=first), WAYS[name])
            tell(name, [products(of_tastes(vectors, WAYS[name]), rows, config)])
    else:
        found = {upstream.version: read(ws, upstream.version, days, first, config) for upstream in ws.config.upstreams}
        for versions in together(list(found)):
            tell(" and ".join(versions), [found[version] for version in versions])
    table.write()


def read(ws: Workspace, version: str, days: list[Shown], first: int, config: WorldConfig) -> Products:
    """Return the products of a version's vectors of all days, each day with those that were there when it began."""
    moments = (config.start + timedelta(days=first + count) for count in range(len(days)))
    parts, how = zip(moments, days, strict=True), folded(ws, version)
    found = [products(of_tastes(published(ws, version, moment), how), part, config) for moment, part in parts]
    product, there = (np.concatenate(values) for values in zip(*found, strict=True))
    return product, there


def together(versions: list[str]) -> list[tuple[str, ...]]:
    """Return each version alone, then each two of them, and so on."""
    return [chosen for count in range(len(versions)) for chosen in combinations(versions, count + 1)]


def split(rows: Shown, told: np.ndarray, old: np.ndarray) -> list[tuple[Shown, np.ndarray]]:
    """Return all rows, those of old items and those of new ones, each with its products [N, M]."""
    return [(rows.take(chosen), told[chosen]) for chosen in (np.ones(len(old), bool), old, ~old)]


if __name__ == "__main__":
    main()
