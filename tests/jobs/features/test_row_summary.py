"""What is counted window by window is what one look at all rows says."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

from jobs.features.encode import IdTable, Spread, Standardizer, Vocabulary, counted
from jobs.features.log import Columns
from jobs.features.row_summary import RowSummary


class Log:
    """The part of a log that a summary reads."""

    codes: ClassVar = {"user": pl.DataFrame({"user_code": range(7)}), "item": pl.DataFrame({"item_code": range(9)})}
    context_columns = Columns(("surface",), ("position", "price"))


@pytest.fixture
def rows() -> pl.DataFrame:
    draw = np.random.default_rng(5)
    clicked = draw.random(400) < 0.4
    return pl.DataFrame(
        {
            "user_code": draw.integers(0, 6, 400),
            "item_code": draw.integers(0, 9, 400),
            "click": clicked,
            "conversion": clicked & (draw.random(400) < 0.3),
            "surface": [None if number < 0.1 else f"s{int(number * 5)}" for number in draw.random(400)],
            "position": draw.integers(0, 50, 400),
            "price": [None if number < 0.2 else 10 * number for number in draw.random(400)],
        }
    )


@pytest.mark.parametrize("cuts", [(400,), (0, 400), (1, 130, 131, 400), (399, 400)])
def test_windows_add_up_to_the_whole(rows: pl.DataFrame, cuts: tuple[int, ...]) -> None:
    log: Any = Log()
    found = RowSummary(log, [rows[low:high] for low, high in zip((0, *cuts[:-1]), cuts, strict=True)])
    assert found.rows == 400 and found.clicks == rows["click"].sum() and found.conversions == rows["conversion"].sum()
    assert found.click_rate == rows["click"].mean()
    assert found.conversion_rate == rows.filter("click")["conversion"].mean()
    for counts, name in ((found.of_user, "user_code"), (found.of_item, "item_code")):
        assert counts.tolist() == [int((rows[name] == code).sum()) for code in range(len(counts))]
    assert found.vocabulary("surface") == Vocabulary.fit(rows["surface"])
    logs = np.log1p(rows.select("position", "price").cast(pl.Float64).fill_null(np.nan).to_numpy())
    told = found.standardizer()
    np.testing.assert_allclose(told.mean, np.nanmean(logs, axis=0), rtol=1e-12)
    np.testing.assert_allclose(told.std, np.nanstd(logs, axis=0), rtol=1e-12)


def test_in_one_piece_a_spread_is_numpys_to_the_bit() -> None:
    values = np.random.default_rng(1).lognormal(size=(1000, 3)) * [1, 1e6, -1]
    values[::7, 1] = np.nan
    logs = np.sign(values) * np.log1p(np.abs(values))
    assert Standardizer.fit(values) == Standardizer(np.nanmean(logs, 0).tolist(), np.nanstd(logs, 0).tolist())


def test_columns_without_values_keep_their_scale() -> None:
    empty = Spread(2).add(np.full((3, 2), np.nan)).standardizer()
    assert empty == Standardizer([0.0, 0.0], [1.0, 1.0]) == Spread(2).standardizer()
    assert Standardizer.fit(np.full((5, 1), np.e - 1)) == Standardizer([1.0], [1.0])


def test_ids_by_counts_are_ids_by_rows() -> None:
    ids = pl.Series([3, 3, 3, 5, 5, 8, None])
    both = pl.concat([counted(ids[:2]), counted(ids[2:])])
    assert IdTable.of_counts(both, min_count=2, buckets=4) == IdTable.fit(ids, min_count=2, buckets=4)
    assert IdTable.fit(ids, min_count=2, buckets=4).frequent == ["3", "5"]
