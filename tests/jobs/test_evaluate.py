"""The evaluation's additions to the lift table: how many comparisons, the paper's figures, sub-groups."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs.evaluate_groups import groups_of, lift_by_group, too_few
from jobs.evaluate_groups import table as groups_table
from jobs.evaluate_paper import adjust, notes, published, table
from jobs.train_downstream import variants_of

CUT, TEST = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)


def _row(task: str, embeddings: str, lift: float, error: float) -> dict[str, Any]:
    return {
        "task": task,
        "embeddings": embeddings,
        "auc": 0.7 * (1 + lift),
        "normalized_entropy": 0.9,
        "relative_auc_lift": lift,
        "ci95": [lift - 2 * error, lift + 2 * error],
        "lift_error": error,
        "published_lift": published(task, embeddings, ["v2"]),
        "seeds": 3,
    }


def _table() -> list[dict[str, Any]]:
    found = [_row(task, "none", 0.0, 0.0) for task in ("ctr", "cvr")]
    found[1:1] = [_row("ctr", "user", 0.002, 0.0009), _row("ctr", "user+item", 0.01, 0.001)]
    return [*found, _row("cvr", "user", 0.001, 0.001), _row("cvr", "user+item", -0.001, 0.001)]


def test_every_row_knows_the_whole_familys_size() -> None:
    rows = _table()
    adjust(rows)
    by_name = {(row["task"], row["embeddings"]): row for row in rows}
    assert {row["comparisons"] for row in rows} == {4}
    assert by_name["ctr", "none"]["p_value"] is None and by_name["ctr", "none"]["adjusted_ci95"] is None
    # Alone its interval lies above zero; among four it does not, and the clear one stays.
    lucky, clear = by_name["ctr", "user"], by_name["ctr", "user+item"]
    assert lucky["ci95"][0] > 0 > lucky["adjusted_ci95"][0]
    assert lucky["p_value"] < 0.05 < lucky["adjusted_p_value"] == pytest.approx(3 * lucky["p_value"])
    assert clear["adjusted_ci95"][0] > 0 and clear["adjusted_p_value"] < 1e-6


def test_a_task_with_a_handful_of_outcomes_gets_a_sentence_and_no_p_value() -> None:
    rows = [row | {"rows": 457, "positives": 12} for row in _table()]
    user = np.arange(457) // 4
    few = too_few((np.arange(457) < 12).astype(float), user)
    for row in rows:
        row["too_few"] = few if row["task"] == "cvr" else too_few((np.arange(457) < 100).astype(float), user)
    adjust(rows)
    assert [row["p_value"] is not None for row in rows] == [False, True, True, False, False, False]
    assert rows[-1]["adjusted_ci95"] is None
    said = notes({"lift": rows, "bootstrap": 200})
    assert "cvr: 12 of 457 test rows are positive, fewer than 20 users with either outcome: too few to tell." in said
    assert not any(sentence.startswith("ctr") for sentence in said)


def test_the_papers_lifts_stand_beside_the_rows_that_it_has() -> None:
    assert published("ctr", "user+item", ["v2"]) == 0.0016
    assert published("ctr", "user+item, v2 added", ["v2"]) == 0.0019
    assert published("ctr", "user+item, v3 added", ["v2"]) is None  # not trained on conversions alone
    assert published("cvr", "user+item", ["v2"]) is None
    rows = _table()
    adjust(rows)
    written = table({"lift": rows})
    assert [line["the paper's"] for line in written] == ["", "+0.095%", "+0.160%", "", "", ""]
    assert written[0]["all 4 at 95%"] == "" and written[2]["p (Holm)"] == "< 0.0001"
    assert "share of possible gain" not in written[0]
    assert notes({"lift": rows, "bootstrap": 200})[0].startswith("4 comparisons")
    rows[2] |= {"share_of_possible_gain": 0.25, "share_ci95": [0.2, 0.3]}
    known = table({"lift": rows, "oracle": [{"task": "ctr"}]})
    assert known[2]["share of possible gain"] == "25.0% [20.0%, 30.0%]"


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """Forty users of whom half came after the cut-off; item i was seen i times before the test, item 0 long ago."""
    rows = [(CUT - timedelta(days=1), user, 0) for user in range(20)]
    rows += [(TEST - timedelta(days=2), 20 + item % 20, item) for item in range(1, 10) for _ in range(item)]
    rows += [(TEST + timedelta(days=1), user, item) for user in range(40) for item in range(12)]
    frame = pl.DataFrame(rows, schema=["event_timestamp", "user_id", "item_id"], orient="row")
    for part, month in enumerate([frame.head(20), frame.slice(20, 40), frame.slice(60)]):
        folder = tmp_path / "events" / f"month={part}"
        folder.mkdir(parents=True)
        month.write_parquet(folder / "0.parquet")
    return SimpleNamespace(
        home=SimpleNamespace(lake=tmp_path),
        splits=SimpleNamespace(upstream_end=CUT, valid_end=TEST),
        config=SimpleNamespace(coverage=timedelta(days=30)),
        log=SimpleNamespace(context_columns=SimpleNamespace(categorical=("hour", "place", "surface"))),
    )


def _test_rows() -> pl.DataFrame:
    rows = [(user, item) for user in range(40) for item in range(12)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    surface = pl.when(pl.col("item_id") < 9).then(pl.lit("feed")).otherwise(pl.lit("search"))
    return frame.with_columns(surface.alias("surface"), (pl.col("item_id") % 2).alias("place"))


def test_groups_are_known_before_the_test_period(workspace: Any) -> None:
    rows = _test_rows()
    found = {group.name: group.rows for group in groups_of(workspace, rows)}
    user, item = rows["user_id"].to_numpy(), rows["item_id"].to_numpy()
    assert list(found) == ["new users", "known users", "rare items", "common items", "feed", "search"]
    assert (found["new users"] == (user >= 20)).all() and (found["known users"] == (user < 20)).all()
    # Items 0, 10 and 11 had no event within the coverage window, 1 to 3 the fewest: six of twelve.
    assert set(item[found["rare items"]]) == {0, 1, 2, 3, 10, 11}
    assert (found["rare items"] ^ found["common items"]).all()
    assert (found["search"] == (item >= 9)).all()
    without = {group.kind for group in groups_of(workspace, rows.drop("surface"))}
    assert without == {"users", "items", "place"}


def test_lift_by_group_and_groups_too_small_to_say(workspace: Any) -> None:
    rows = _test_rows()
    generator = np.random.default_rng(0)
    taste = generator.normal(size=len(rows))
    label = (generator.random(len(rows)) < 1 / (1 + np.exp(-2 * taste))).astype(float)
    user = rows["user_id"].to_numpy()
    label[(user >= 20) & (user < 38)] = 0.0  # only two new users ever did it
    noise = generator.normal(size=(2, len(rows)))
    found = lift_by_group(
        groups_of(workspace, rows),
        (label, np.ones(len(rows)), user),
        noise,
        {"user+item": taste + 0.1 * noise},
        oracle=taste,
        resamples=50,
    )
    by_name = {row["group"]: row for row in found}
    written = groups_table([{"task": "ctr", **row} for row in found])
    assert written[0]["lift"].startswith("fewer than 20") and written[1]["rows"] == "240"
    assert written[-1]["sub-group"] == "surface search" and written[1]["95% interval"].startswith("[+")
    assert by_name["new users"]["embeddings"] is None and "fewer than 20" in by_name["new users"]["why"]
    known = by_name["known users"]
    assert known["rows"] == 240 and known["users"] == 20 and known["ci95"][0] > 0.1
    assert known["share_of_possible_gain"] > 0.8
    assert known["relative_auc_lift"] == pytest.approx(known["auc"] / known["baseline_auc"] - 1, rel=0.05)


def test_rows_of_the_lift_table_with_each_upstream_alone() -> None:
    plain = variants_of(("v1", "v2", "v3"))
    assert [row.name for row in plain] == ["none", "user", "user+item", "user+item, v2 added", "user+item, v3 added"]
    alone = variants_of(("v1", "v2", "v3"), each_alone=True)
    assert [row.name for row in alone][3:5] == ["user+item of v2", "user+item of v3"]
    assert alone[3].views == ("user_embedding_v2", "item_embedding_v2")
    assert (*alone[:3], *alone[5:]) == plain
