"""How much there is to know in a simulated world: ROC-AUC of parts of the truth itself, on the second half of its days.

No model is trained. The parts: what could be known of biases and qualities alone; these and the taste for the item's
category; everything.

    python -m benchmarks.world_parts --users 4000 --items 1500 --days 90 --impressions 1000000 --seed 1
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from jobs.world.config import WorldConfig, checked
from jobs.world.world import Block, World
from models.metrics import roc_auc

CENTRE_SHARE = 0.45**0.5  # of an item's vector, see `population._items`


def main() -> None:
    """Print one line per part and outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("users", 4000), ("items", 1500), ("days", 90), ("impressions", 1_000_000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    config = checked(**vars(parser.parse_args()))
    world = World(config)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for day in range(config.days // 2, config.days):
        for block in world.day(day):
            for name, values in parts(config, world, block).items():
                found[name].append(values)
    joined = {name: np.concatenate(values) for name, values in found.items()}
    for outcome in ("click", "conversion"):
        label = joined[f"{outcome} label"]
        print(f"{outcome}: {len(label):,} rows, rate {label.mean():.4f}")
        for name in (name for name in joined if name.startswith(f"{outcome} by")):
            print(f"  {name:45} ROC-AUC {roc_auc(label, joined[name]):.4f}")


def parts(config: WorldConfig, world: World, block: Block) -> dict[str, np.ndarray]:
    """Return labels and scores of a block: clicks of all impressions [N], conversions of the clicked [M]."""
    users, items, clicks = world.population.users, world.population.items, block.clicks
    request, item = block.slots.request, block.slots.item
    user = block.requests.user[request]
    taste = world.tastes.of(block.requests.user, block.requests.day)[request]
    liked = np.einsum("nd,nd->n", taste, world.population.centres[items.category[item]]) * config.dim**0.5
    place = np.array(world.calibration.intercepts.click)[block.requests.surface[request]] + np.log(block.truth.examined)
    biases = place + users.click_bias[user] + items.click_quality[item]
    bought = (block.followed.onsite_us >= 0) | (block.followed.offsite_us >= 0)
    return {
        "click label": block.click_us >= 0,
        "click by biases, quality and place": biases,
        "click by these and taste for the category": biases + config.click_taste * CENTRE_SHARE * liked,
        "click by the truth": block.truth.click,
        "conversion label": bought,
        "conversion by biases and quality": (users.conversion_bias[user] + items.conversion_quality[item])[clicks],
        "conversion by the truth": block.truth.conversion()[clicks],
    }


if __name__ == "__main__":
    main()
