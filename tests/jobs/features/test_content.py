"""Attributes as features: what two items share is what makes them alike."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from jobs.features.content import ContentFeatures
from jobs.features.log import Columns

ITEMS = pl.DataFrame(
    {
        "title": ["Whole Milk 1L", "skim milk", "Rye bread", "bread, white", None],
        "brand": ["a", "a", "b", "b", "c"],
        "price": [1.0, 2.0, 3.0, float("nan"), None],
    }
)
COLUMNS = Columns(("title", "brand"), ("price",))


def told(features: ContentFeatures, items: pl.DataFrame) -> list[dict[str, float]]:
    bags = features.bags(items)
    ends = [*bags.start.tolist()[1:], len(bags.feature)]
    return [
        {
            features.names[at]: share
            for at, share in zip(bags.feature[a:b].tolist(), bags.share[a:b].tolist(), strict=True)
        }
        for a, b in zip(bags.start.tolist(), ends, strict=True)
    ]


def test_items_share_words_and_values_whatever_their_case(tmp_path: Path) -> None:
    features = ContentFeatures.fit(ITEMS, COLUMNS)
    rows = told(features, ITEMS)
    assert rows[0]["title~milk"] == 1 and rows[1]["title~milk"] == 1
    assert rows[2]["title~bread"] == 1 and rows[3]["title~bread"] == 1
    assert rows[0]["brand=a"] == 1 and "title~rye" not in features.names  # of one item: it ties it to no other
    assert rows[4] == {}
    features.save(tmp_path / "features.json")
    assert ContentFeatures.load(tmp_path / "features.json") == features


def test_a_number_is_shared_between_the_two_quantiles_around_it() -> None:
    items = pl.DataFrame({"price": [float(value) for value in range(81)]})
    features = ContentFeatures.fit(items, Columns((), ("price",)))
    assert features.knots["price"] == [float(value) for value in range(0, 81, 10)]
    (row,) = told(features, pl.DataFrame({"price": [12.5]}))
    assert row == {"price#1": pytest.approx(0.75), "price#2": pytest.approx(0.25)}
    low, high = told(features, pl.DataFrame({"price": [-5.0, 500.0]}))
    assert low == {"price#0": 1.0} and high == {"price#8": 1.0}


def test_what_was_not_known_then_says_nothing() -> None:
    features = ContentFeatures.fit(ITEMS, COLUMNS)
    new = pl.DataFrame(
        {"title": ["Oat drink"], "brand": ["z"], "price": [None]}, schema_overrides={"price": pl.Float64}
    )
    assert told(features, new) == [{}]
