"""The simulated world: its marginals, its clocks, its truth, and that the same settings make the same bytes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import folder_digest, read_json
from jobs import simulate
from jobs.cli import app
from jobs.world.config import SURFACES, WorldConfig, checked
from jobs.world.outcomes import OFFSITE, ONSITE
from jobs.world.population import Tastes
from jobs.world.world import World

TINY = WorldConfig(users=300, items=200, days=5, seed=3, impressions=20_000)
SMALL = WorldConfig(users=4000, items=1500, days=40, seed=1, impressions=400_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate.run(SMALL, tmp_path_factory.mktemp("world") / "small").folder


@pytest.fixture(scope="module")
def events(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "events")


@pytest.fixture(scope="module")
def shown(folder: Path, events: pl.DataFrame) -> pl.DataFrame:
    """Impressions with their truth and what is known of them at the end: click and conversion times, null for none."""
    rows = events.filter(event_type="impression").join(pl.read_parquet(folder / "truth"), on="impression_id")
    for kind in ("click", "conversion"):
        first = (
            events.filter(event_type=kind).group_by("impression_id").agg(pl.col("event_timestamp").min().alias(kind))
        )
        rows = rows.join(first, on="impression_id", how="left", maintain_order="left")
    return rows


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


def content(folder: Path) -> dict[str, str]:
    return {name: folder_digest(folder / name) for name in ("events", "truth")} | {
        name: (folder / name).read_bytes().hex() for name in ("users.parquet", "items.parquet", "world.json")
    }


def off(expected: np.ndarray, happened: np.ndarray) -> float:
    """Return how many standard errors a count lies from the sum of its probabilities."""
    return float((happened.sum() - expected.sum()) / np.sqrt((expected * (1 - expected)).sum()))


# The same settings, the same bytes


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    first, again = (content(simulate.run(TINY, tmp_path / name).folder) for name in ("a", "b"))
    other = content(simulate.run(TINY.model_copy(update={"seed": 4}), tmp_path / "c").folder)
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate.run(TINY, tmp_path / "whole")
    original = World.day

    def dies(self: World, day: int):  # type: ignore[no-untyped-def]
        for block in original(self, day):
            yield block
            if day == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(World, "day", dies)
    with pytest.raises(KeyboardInterrupt):
        simulate.run(TINY, tmp_path / "killed")
    monkeypatch.undo()
    # Killed between the two renames of day 1: its truth lies there, its events do not.
    (tmp_path / "killed/events/2024-01-02.parquet").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/events").iterdir()}
    assert len(stamps) == 2
    gone_on = simulate.run(TINY, tmp_path / "killed")
    assert gone_on.days_made == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "finished days are left alone"
    assert content(gone_on.folder) == content(whole.folder)
    assert gone_on.summary == whole.summary
    assert simulate.run(TINY, tmp_path / "killed").days_made == 0


def test_a_day_does_not_depend_on_the_days_made_before_it() -> None:
    long = TINY.model_copy(update={"days": 20})
    calibration = World(long).calibration
    alone, after = World(long, calibration), World(long, calibration)
    for day in range(16):
        for _ in after.day(day):
            pass
    for left, right in zip(alone.day(16), after.day(16), strict=True):
        assert np.array_equal(left.slots.item, right.slots.item)
        assert np.array_equal(left.truth.click, right.truth.click)
        assert np.array_equal(left.click_us, right.click_us)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty"):
        simulate.run(TINY, tmp_path)
    simulate.run(TINY, tmp_path / "world")
    with pytest.raises(ConfigError, match="another world"):
        simulate.run(TINY.model_copy(update={"seed": 9}), tmp_path / "world")


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="items") as refused:
        checked(users=100, items=3, days=0)
    assert "days" in str(refused.value)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_impressions(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jobs import simulate; from jobs.world.config import checked;"
        "simulate.run(checked(users=2000, items=500, days=2, impressions=int(sys.argv[1])), Path(sys.argv[2]));"
        "lines = Path('/proc/self/status').read_text().splitlines();"
        "print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM')))"
    )

    def peak_mb(impressions: int) -> int:
        arguments = [sys.executable, "-c", code, str(impressions), str(tmp_path / str(impressions))]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)

    small, large = peak_mb(150_000), peak_mb(1_000_000)
    assert large - small < 60, (small, large)


# Marginals


def test_sizes_and_rates_are_those_of_a_marketplace(folder: Path, shown: pl.DataFrame) -> None:
    assert abs(shown.height / SMALL.expected - 1) < 0.05
    by_surface = shown.group_by("surface").agg(pl.col("click").is_not_null().mean()).to_dict(as_series=False)
    rates = dict(zip(by_surface["surface"], by_surface["click"], strict=True))
    assert set(rates) == {surface.name for surface in SURFACES}
    assert all(abs(rates[surface.name] / surface.ctr - 1) < 0.2 for surface in SURFACES), rates
    clicked = shown.filter(pl.col("click").is_not_null())
    assert 0.03 < clicked.height / shown.height < 0.10
    assert 0.01 < clicked["conversion"].is_not_null().mean() < 0.05  # type: ignore[operator]
    summary = read_json(folder / "summary.json")
    assert summary["counts"]["impression"] == shown.height
    assert summary["counts"]["click"] == clicked.height


@pytest.mark.parametrize(("entity", "share"), [("user", 0.35), ("item", 0.40)])
def test_activity_and_popularity_have_long_tails(shown: pl.DataFrame, entity: str, share: float) -> None:
    counts = np.sort(shown.group_by(f"{entity}_id").len()["len"].to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > share * counts.sum()
    assert np.median(counts) < 0.7 * counts.mean()


def test_tastes_drift_and_remember(world: World) -> None:
    tastes, users = Tastes(world.population), np.arange(SMALL.users)
    first = tastes.of(users, np.zeros(SMALL.users))
    tastes.at(37)
    later = tastes.of(users, np.full(SMALL.users, 37.0))
    expected = 1 - SMALL.drift * (1 - np.exp(-37 / SMALL.drift_days))
    assert abs(np.einsum("ud,ud->u", first, later).mean() - expected) < 0.03
    with pytest.raises(ValueError, match="do not go back"):
        tastes.at(0)


def test_tastes_for_clicking_and_converting_are_related_but_not_the_same(world: World) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(SMALL.users, size=50_000), rng.integers(SMALL.items, size=50_000)
    tastes, vectors = Tastes(world.population), world.population.items.vector[items]
    clicking = np.einsum("nd,nd->n", tastes.of(users, np.zeros(len(users))), vectors)
    own = np.einsum("nd,nd->n", world.population.users.conversion_own[users], vectors)
    converting = SMALL.taste_correlation * clicking + np.sqrt(1 - SMALL.taste_correlation**2) * own
    assert abs(np.corrcoef(clicking, converting)[0, 1] - SMALL.taste_correlation) < 0.05


def test_weekends_and_evenings_are_busier(shown: pl.DataFrame) -> None:
    days = shown.group_by(pl.col("event_timestamp").dt.date().alias("day")).len().sort("day")
    weekend = days["day"].dt.weekday() >= 6
    # Users join all the time, so neighbouring days are compared.
    assert days.filter(weekend)["len"].mean() > 1.1 * days.filter(~weekend)["len"].mean()  # type: ignore[operator]
    hours = shown.group_by("hour").len().sort("hour")["len"]
    assert hours[20] > 5 * hours[3]


# Clocks


def test_everything_follows_what_caused_it(events: pl.DataFrame) -> None:
    end = pl.lit(SMALL.end)
    starts = events.filter(event_type="impression").select("impression_id", "user_id", "item_id", at="event_timestamp")
    clicks = events.filter(event_type="click").select("impression_id", clicked="event_timestamp")
    rows = events.filter(pl.col("event_type") != "view").join(starts, on="impression_id", suffix="_shown")
    assert rows.height == events.filter(pl.col("event_type") != "view").height
    assert (
        rows.filter(
            (pl.col("user_id") != pl.col("user_id_shown")) | (pl.col("item_id") != pl.col("item_id_shown"))
        ).height
        == 0
    )
    after = rows.filter(pl.col("event_type") == "click")
    assert (after["event_timestamp"] > after["at"]).all()
    later = rows.filter(pl.col("event_type").is_in(["add_to_cart", "conversion"])).join(clicks, on="impression_id")
    assert later.height == rows.filter(pl.col("event_type").is_in(["add_to_cart", "conversion"])).height
    assert (later["event_timestamp"] > later["clicked"]).all()
    assert later.select((pl.col("event_timestamp") < end).all()).item()
    assert starts["impression_id"].n_unique() == starts.height
    assert clicks["impression_id"].n_unique() == clicks.height


def test_conversions_arrive_late_and_some_never(shown: pl.DataFrame) -> None:
    bought = shown.filter(pl.col("conversion").is_not_null())
    delay = bought["conversion"] - bought["click"]
    assert 0.15 < (delay > timedelta(days=1)).mean() < 0.6  # type: ignore[operator]
    assert delay.max() <= timedelta(days=28)  # type: ignore[operator]
    last = shown.filter(pl.col("event_timestamp") >= SMALL.end - timedelta(days=2))
    assert last["p_conversion"].sum() < 0.8 * last["p_conversion_ever"].sum()
    assert (shown["p_conversion"] <= shown["p_conversion_ever"] + 1e-6).all()


def test_no_item_is_shown_before_it_is_born_or_after_it_died(folder: Path, shown: pl.DataFrame, world: World) -> None:
    born = pl.read_parquet(folder / "items.parquet").select("item_id", born="event_timestamp")
    rows = shown.join(born, on="item_id")
    assert rows.height == shown.height
    assert (rows["event_timestamp"] > rows["born"]).all()
    assert (born["born"] > SMALL.start).mean() > 0.2  # type: ignore[operator]
    last = shown.group_by("item_id").agg(pl.col("event_timestamp").max())
    dies = world.population.items.dies[last["item_id"].to_numpy() - 1]
    seen = (last["event_timestamp"] - SMALL.start).dt.total_seconds().to_numpy() / 86_400
    # The last session of a day may run past midnight.
    assert (seen < dies + 0.05).all()
    assert (dies < SMALL.days).mean() > 0.2


def test_no_user_is_there_before_joining(shown: pl.DataFrame, world: World) -> None:
    first = shown.group_by("user_id").agg(pl.col("event_timestamp").min())
    joined = world.population.users.joined[first["user_id"].to_numpy() - 1]
    seen = (first["event_timestamp"] - SMALL.start).dt.total_seconds().to_numpy() / 86_400
    assert (seen >= joined).all()
    assert (joined > 0).mean() > 0.2


@pytest.mark.parametrize("delay", [ONSITE, OFFSITE])
def test_delays_arrive_as_their_distribution_says(delay) -> None:  # type: ignore[no-untyped-def]
    drawn = delay.draw(np.random.default_rng(0).random(200_000))
    for hours in (0.5, 5, 24, 24 * 7, 24 * 28):
        us = np.array([hours * 3600e6])
        assert abs((drawn <= us).mean() - delay.arrived(us)[0]) < 0.004
    assert drawn.min() >= delay.dead_us


# Truth


def test_the_truth_lies_beside_the_log_and_not_in_it(events: pl.DataFrame, folder: Path) -> None:
    truth = pl.read_parquet(folder / "truth")
    assert set(events.columns) & set(truth.columns) == {"impression_id"}
    assert set(truth["impression_id"]) == set(events.filter(event_type="impression")["impression_id"])


@pytest.mark.parametrize(("column", "outcome"), [("p_click", "click"), ("p_conversion", "conversion")])
def test_the_truth_is_calibrated(shown: pl.DataFrame, column: str, outcome: str) -> None:
    rows = shown if outcome == "click" else shown.filter(pl.col("click").is_not_null())
    probability, happened = rows[column].cast(pl.Float64).to_numpy(), rows[outcome].is_not_null().to_numpy()
    bins = np.array_split(np.argsort(probability, kind="stable"), 20 if outcome == "click" else 8)
    deviations = [off(probability[rows], happened[rows]) for rows in bins]
    assert np.abs(deviations).max() < 3.7, deviations
    assert abs(off(probability, happened)) < 3.3
    for surface in SURFACES:
        there = (rows["surface"] == surface.name).to_numpy()
        assert abs(off(probability[there], happened[there])) < 3.3


def test_what_has_not_arrived_by_the_end_is_not_in_the_truth_of_the_log(tmp_path: Path) -> None:
    rates = {"cart_rate": 0.5, "onsite_rate": 0.15, "offsite_rate": 0.25}
    config = SMALL.model_copy(update={**rates, "days": 6, "impressions": 120_000})
    folder = simulate.run(config, tmp_path / "world").folder
    events = pl.read_parquet(folder / "events")
    came = events.filter(event_type="conversion")["impression_id"]
    clicked = (
        events.filter(event_type="click")
        .select("impression_id")
        .join(pl.read_parquet(folder / "truth"), on="impression_id")
    )
    happened = clicked["impression_id"].is_in(came.to_list()).to_numpy()
    assert abs(off(clicked["p_conversion"].cast(pl.Float64).to_numpy(), happened)) < 3.3
    assert off(clicked["p_conversion_ever"].cast(pl.Float64).to_numpy(), happened) < -10


def test_position_bias_can_be_recovered_where_the_order_was_random() -> None:
    config = SMALL.model_copy(update={"randomized": 0.5, "days": 6, "impressions": 250_000})
    world = World(config)
    clicks, rows = np.zeros((2, 8)), np.zeros((2, 8))
    for day in range(config.days):
        for block in world.day(day):
            request, slot = block.slots.request, block.slots.slot
            feed = block.requests.surface[request] == 0
            for random in (0, 1):
                chosen = feed & (block.requests.randomized[request] == bool(random))
                rows[random] += np.bincount(slot[chosen], minlength=8)
                clicks[random] += np.bincount(slot[chosen & (block.click_us >= 0)], minlength=8)
    rate = clicks / rows
    error = np.sqrt(rate * (1 - rate) / rows)
    expected = SURFACES[0].examination
    scale = clicks[1].sum() / (rows[1] * expected).sum()
    assert (np.abs(rate[1] - scale * expected) < 4 * error[1]).all(), (rate[1], scale * expected)
    # Elsewhere the best come first, and the naive ratio of rates makes the bias look larger than it is.
    assert rate[0, 7] / rate[0, 0] < 0.85 * expected[7], (rate[0], expected)


# The command


def test_the_command_says_what_it_did_and_how_to_go_on(tmp_path: Path) -> None:
    out, home = tmp_path / "a world", tmp_path / "a world-home"
    asked = ["--users", "200", "--items", "150", "--days", "3", "--impressions", "6000", "--out", str(out)]
    result = CliRunner().invoke(app, ["simulate", *asked])
    assert result.exit_code == 0, result.output
    assert "impressions/s" in result.output
    (following,) = [line for line in result.output.splitlines() if line.startswith("Next: headwater ")]
    taken = CliRunner().invoke(app, shlex.split(following)[2:])
    assert taken.exit_code == 0, taken.output
    record = read_json(home / "lake/dataset.json")
    assert record["quarantined"] == {} and record["notes"] == []
    assert record["counts"] == {k: v for k, v in read_json(out / "summary.json")["counts"].items() if v}
    assert {column["name"] for column in record["context"]} >= {"surface", "position", "asked_for", "device"}


@pytest.mark.parametrize("days", [44, simulate.SHORTEST_RUN_DAYS])
def test_a_run_is_named_where_its_settings_were_written(tmp_path: Path, days: int) -> None:
    asked = ["--users", "20", "--items", "100", "--days", str(days), "--impressions", "900", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["simulate", *asked])
    assert result.exit_code == 0, result.output
    assert ("then: headwater run" in result.output) == (tmp_path / "config.yaml").exists() == (days == 45)
    assert ("too few" in result.output) == (days < 45)
