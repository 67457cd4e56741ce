"""The evaluation can tell: on rows made here, shuffled labels and ids show nothing, and a leak shows too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality_homes import Rows, scores
from benchmarks.quality_sanity import (
    dealt_aucs,
    judge_ids,
    judge_labels,
    judge_leak,
    shuffled_ids,
    shuffled_labels,
)
from models.downstream.fit import FitConfig
from models.downstream.inputs import RankerData, RankerSpec
from models.metrics import roc_auc

USERS, ITEMS, DIM, COUNT = 300, 80, 8, 12_000
VIEWS = ("user_embedding_v1", "item_embedding_v1")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Clicks by taste: the baseline sees an attribute that tells a little, the vectors tell tastes."""
    generator = np.random.default_rng(0)
    tables = [generator.normal(size=(size, DIM)).astype(np.float32) / np.sqrt(DIM) for size in (USERS, ITEMS)]
    user, item = generator.integers(USERS, size=COUNT), generator.integers(ITEMS, size=COUNT)
    quality = generator.normal(size=COUNT)
    taste = 3.0 * (tables[0][user] * tables[1][item]).sum(axis=1)
    label = (generator.random(COUNT) < 1 / (1 + np.exp(-(taste + 0.5 * quality - 1)))).astype(np.float32)
    data = RankerData(
        cats=np.zeros((COUNT, 0), np.int32),
        crosses=np.zeros((COUNT, 0), np.int64),
        nums=quality[:, None].astype(np.float32),
        embeddings={view: (table, place) for view, table, place in zip(VIEWS, tables, (user, item), strict=True)},
        label=label,
        weight=np.where(label > 0.5, 1, 2).astype(np.float32),  # half of the negatives were kept
        user=user,
    )
    order = np.arange(COUNT)
    spec = RankerSpec(nums=1, embeddings=tuple((view, DIM) for view in VIEWS), pairs=(VIEWS,))
    fit = FitConfig(batch_size=128, max_epochs=3, learning_rate=3e-3)
    parts = (data.take(order < 7000), data.take((order >= 7000) & (order < 9000)), data.take(order >= 9000))
    return Rows(*parts, spec, fit)


@pytest.fixture(scope="module")
def honest(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    folder = tmp_path_factory.mktemp("scores")
    return scores(rows, (), 1, folder / "none"), scores(rows, VIEWS, 1, folder / "real")


def test_shuffled_labels_are_a_coin(rows: Rows, tmp_path: Path) -> None:
    shuffled = shuffled_labels(rows, 1)
    assert shuffled.train.label.sum() == rows.train.label.sum()
    assert (shuffled.train.weight[shuffled.train.label > 0.5] == 1).all()
    aucs = dealt_aucs(rows, VIEWS, tmp_path, dealings=4)
    found = judge_labels("user+item", aucs)
    assert len(set(aucs)) == 4 and found["as_expected"], found
    assert 0.45 < found["auc"] < 0.55


def test_honest_labels_are_not(rows: Rows, tmp_path: Path) -> None:
    logits = scores(rows, VIEWS, 3, tmp_path)
    aucs = [roc_auc(rows.test.label, row, rows.test.weight) for row in logits]
    found = judge_labels("user+item", aucs)
    assert not found["as_expected"] and found["ci95"][0] > 0.6


def test_shuffled_ids_lift_nothing(rows: Rows, honest: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    moved = shuffled_ids(rows, VIEWS, 1)
    table, before = (part.test.embeddings[VIEWS[0]][0] for part in (moved, rows))
    assert sorted(map(tuple, table)) == sorted(map(tuple, before)) and not np.array_equal(table, before)
    found = judge_ids(rows.test, *honest, scores(moved, VIEWS, 1, tmp_path))
    assert found["as_expected"] and found["lift"] < 0.02 < 0.1 < found["real_lift"], found
    # And where ids are right, it does not pass for "no lift".
    assert not judge_ids(rows.test, *honest, honest[1])["as_expected"]


def test_a_leak_is_too_good_and_must_be_counted(
    rows: Rows, honest: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    def leaking(data: RankerData) -> RankerData:
        vectors = np.random.default_rng(2).normal(size=(len(data), DIM)).astype(np.float32) / np.sqrt(DIM)
        vectors[:, 0] += data.label  # a vector that was computed after the outcome
        return replace(data, embeddings={**data.embeddings, VIEWS[0]: vectors})

    known = replace(rows, train=leaking(rows.train), valid=leaking(rows.valid), test=leaking(rows.test))
    leaky = scores(known, VIEWS, 1, tmp_path)
    report = {"model_trained_after_as_of": 9000, "rows": 9000, "refresh_refused": "3 of 3 moments"}
    assert judge_leak(rows.test, *honest, leaky, report)["as_expected"]
    assert not judge_leak(rows.test, *honest, leaky, report | {"model_trained_after_as_of": 0})["as_expected"]
    assert not judge_leak(rows.test, *honest, honest[1], report)["as_expected"]
