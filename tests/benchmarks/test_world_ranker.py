"""What keeps a ranker from the truth: the parts add up to it, and the regression foresees others' clicks alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.world_ranker import ADDED, foreseen, truth_parts
from jobs import simulate
from jobs.world.config import checked
from models.metrics import roc_auc

CONFIG = checked(users=400, items=100, days=6, impressions=60_000, seed=2)


def test_all_parts_together_are_nearly_the_truth(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    simulate.run(CONFIG, folder)
    parts = truth_parts(CONFIG, 4)
    truth = pl.read_parquet(sorted((folder / "truth").glob("*.parquet"))[4:])
    rows = truth.join(parts, on="impression_id", how="inner")
    assert len(rows) == len(parts) == len(truth) > 10_000
    chance = rows["p_click"].cast(pl.Float64).to_numpy()
    logit = np.log(chance / (1 - chance))
    every = np.stack([rows[name].cast(pl.Float64).to_numpy() for name in ADDED["and all of it"]], axis=1)
    inputs = np.c_[every, np.ones(len(every))]

    def explained(columns: np.ndarray) -> float:
        return float(1 - np.var(logit - columns @ np.linalg.lstsq(columns, logit, rcond=None)[0]) / np.var(logit))

    # What is left are the places' own rates; leaving out the taste leaves out most.
    assert explained(inputs) > 0.95 and explained(inputs[:, 1:]) < 0.6


def test_each_half_is_foreseen_by_the_other() -> None:
    draw = np.random.default_rng(0)
    user, told = draw.integers(50, size=20_000), draw.normal(size=(20_000, 2))
    logit = 1.5 * told[:, 0] - 0.5 * told[:, 1] - 1
    label = (draw.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(float)
    found = foreseen(told, label, user)
    assert np.corrcoef(found, logit)[0, 1] > 0.999 and found.mean() == pytest.approx(-1, abs=0.1)
    # What the users of a half did has no part in what is foreseen of them.
    even = user % 2 == 0
    turned = foreseen(told, np.where(even, 1 - label, label), user)
    assert np.array_equal(turned[even], found[even]) and roc_auc(label[~even], turned[~even]) < 0.3
