"""What keeps a click ranker of a simulated world from the truth: what some of the truth beside its logit brings.

A logistic regression reads a ranker's logits (the mean of its seeds) and what `ADDED` names, and foresees each half of
the users' clicks of the test period by the other half's. So a part that the ranker knows already brings nothing. A
diagnosis of rankers that are done: nothing is chosen by it.

    python -m benchmarks.world_ranker --home world-home   # after `headwater run`; --users, --items ... as simulated
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from datetime import timedelta

import numpy as np
import polars as pl

from benchmarks.world_home import opened
from benchmarks.world_knowable import Parts
from jobs.evaluate import Scored
from jobs.world.config import WorldConfig
from jobs.world.tables import impression_ids
from jobs.world.world import World
from models.metrics import roc_auc

TASTE, BIASES = "taste", ("user", "item")
# What the regression reads beside the logit, by what the table says of it.
ADDED: dict[str, tuple[str, ...]] = {
    "the ranker alone": (),
    "and the user's bias": ("user",),
    "and the item's quality": ("item",),
    "and both": BIASES,
    "and price and season": ("price", "season"),
    "and the session's intent": ("intent",),
    "and the taste of the moment": (TASTE,),
    "and taste and the user's bias": (TASTE, "user"),
    "and taste and the item's quality": (TASTE, "item"),
    "and taste and both": (TASTE, *BIASES),
    "and all of it": (TASTE, *BIASES, "price", "season", "intent", "place"),
}
STEPS, RIDGE = 12, 1e-3


def truth_parts(config: WorldConfig, first: int) -> pl.DataFrame:
    """Return the parts of the true logits of the impressions from a day on, with their ids."""
    world, gain = World(config), config.click_taste * config.dim**0.5
    users, items = world.population.users, world.population.items
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for day in range(first, config.days):
        world.tastes.at(day)
        count = 0
        for block in world.day(day):
            parts, item = Parts(config, world, block), block.slots.item
            ids = impression_ids(day, count, len(item))
            count += len(ids)
            category = items.category[item]
            values = {
                "impression_id": ids,
                "user": users.click_bias[parts.user],
                "item": items.click_quality[item],
                "price": users.thrift[parts.user] * items.price_z[item],
                "season": world.population.season(float(day))[category],
                "intent": category == block.requests.intent[block.slots.request],
                "place": np.log(parts.examined),
                TASTE: gain * np.einsum("nd,nd->n", parts.taste, parts.vector),
            }
            for name, value in values.items():
                found[name].append(value)
    return pl.DataFrame({name: np.concatenate(values) for name, values in found.items()})


def foreseen(told: np.ndarray, label: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Return logits [N] of a logistic regression on `told` [N, M], of each half of the users by the other half."""
    spread = told.std(axis=0)
    inputs = np.c_[(told - told.mean(axis=0)) / np.where(spread > 0, spread, 1.0), np.ones(len(told))]
    found, even = np.empty(len(told)), user % 2 == 0
    for half in (even, ~even):
        rows, happened, weights = inputs[~half], label[~half], np.zeros(inputs.shape[1])
        for _ in range(STEPS):
            chance = 1 / (1 + np.exp(-rows @ weights))
            gradient = rows.T @ (happened - chance) - RIDGE * weights
            hessian = (rows * (chance * (1 - chance))[:, None]).T @ rows + RIDGE * np.eye(len(weights))
            weights = weights + np.linalg.solve(hessian, gradient)
        found[half] = inputs[half] @ weights
    return found


def main() -> None:
    """Print one line per part, and one column per ranker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ws, config, table, _ = opened(parser, "ranker")
    (consumer,) = (found for found in ws.ledger.consumers() if found["task"] == "ctr")
    scored = Scored.read(ws, consumer, ws.home.root / consumer["record"]["artifact"], ws.config.truth)
    label, _, user = scored.facts
    assert scored.oracle is not None
    first = (ws.splits.valid_end - config.start) // timedelta(days=1)
    # A request near midnight is of the day on which its session began.
    parts = truth_parts(config, first - 1)
    rows = scored.rows.select("impression_id").join(parts, on="impression_id", how="left", maintain_order="left")
    rankers = {"none": scored.baseline, **scored.treatments}
    plain = np.mean([roc_auc(label, logit) for logit in scored.baseline])
    truth = roc_auc(label, scored.oracle)
    seeds = len(scored.baseline)
    table.say(
        f"{len(label):,} impressions; mean ROC-AUC of {seeds} plain rankers {plain:.4f}, of the truth {truth:.4f}."
    )
    for text, names in ADDED.items():
        shares = {}
        for ranker, logits in rankers.items():
            told = np.stack([logits.mean(axis=0), *(rows[name].cast(pl.Float64).to_numpy() for name in names)], axis=1)
            shares[ranker] = float((roc_auc(label, foreseen(told, label, user)) - plain) / (truth - plain))
        table.row({"of the possible gain": text, **shares})
    table.write()


if __name__ == "__main__":
    main()
