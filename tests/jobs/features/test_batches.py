"""Training batches: every row once, features of an allowed moment only, chances counted as they are."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.lake import Home
from jobs import ingest
from jobs.features.batches import ONE_STREAM, Grid, TrainingRows, moments, write_moments
from jobs.features.labels import Opportunities
from jobs.features.log import EventLog
from jobs.features.row_summary import RowSummary
from jobs.features.sampling import Sampling
from jobs.features.slices import MappedSlice
from jobs.features.tables import Tables, fit_encoder
from models.upstream.inputs import TrainBatch

START = datetime(2024, 1, 1, tzinfo=UTC)
LAG, COVERAGE = timedelta(hours=1), timedelta(days=40)
CUTOFF = START + timedelta(days=50)


@dataclass(frozen=True)
class Ready:
    """What training rows are made from, beside the rows made with the defaults."""

    rows: TrainingRows
    tables: Tables
    opportunities: Opportunities
    grid: Grid
    folder: Path

    @property
    def known(self) -> pl.DataFrame:
        return self.opportunities.between(None, None)

    def written(
        self, name: str, sampling: Sampling = ONE_STREAM, positives: str = "click", ranks: int = 1
    ) -> TrainingRows:
        folder, catalogue = self.folder / name, sampling.uniform_negatives > 0
        folder.mkdir()
        parts = [
            write_moments(folder, self.tables, self.opportunities, self.grid, catalogue=catalogue, shard=(rank, ranks))
            for rank in range(ranks)
        ]
        return TrainingRows.bind(folder, self.tables, parts, positives=positives, sampling=sampling)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(3000):
        time = START + timedelta(minutes=int(rng.integers(0, 60 * 1440)))
        user, item = int(rng.integers(30)), int(300 * rng.random() ** 4)
        rows.append((time, user, item, "impression", number))
        if rng.random() < 0.4:
            rows.append((time, user, item, "click", number))
            if rng.random() < 0.3:
                rows.append((time, user, item, "conversion", number))
        rows.append((time, user, int(300 * rng.random() ** 4), "view", None))
    folder = tmp_path_factory.mktemp("log")
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": range(300), "kind": [f"k{i % 5}" for i in range(300)]}).write_csv(folder / "items.csv")
    ingest.run(
        ingest.IngestConfig(
            home=folder / "home",
            name="random",
            events=(str(folder / "events.parquet"),),
            items=(str(folder / "items.csv"),),
            now=START + timedelta(days=400),
        )
    )
    log = EventLog(Home(Path(folder / "home")))
    opportunities = Opportunities(log, known_at=CUTOFF)
    grid = Grid(tuple(moments(START + timedelta(days=14), CUTOFF, timedelta(days=7))), LAG, CUTOFF)
    summary = RowSummary(log, [opportunities.between(*window) for window in grid.windows()])
    encoder = fit_encoder(
        log, summary, list(grid.moments), ("view",), COVERAGE, sequence_length=5, interests=3, top_items=4
    )
    tables = Tables(log, encoder, ("view",), COVERAGE)
    ready = Ready(None, tables, opportunities, grid, folder)  # type: ignore[arg-type]
    return replace(ready, rows=ready.written("rows"))


def test_a_row_reads_the_last_moment_that_was_available() -> None:
    grid = Grid(tuple(moments(START, START + timedelta(days=3), timedelta(days=1))), LAG, CUTOFF)
    times = [START + LAG - timedelta(microseconds=1), START + LAG, START + timedelta(days=1), START + timedelta(days=9)]
    assert grid.read_by(pl.Series(times)).tolist() == [-1, 0, 0, 2]


def test_windows_hold_every_time_once_and_each_moment_its_own(training: Ready) -> None:
    windows = training.grid.windows()
    starts, ends = zip(*windows, strict=True)
    assert starts[1:] == ends[:-1] and starts[0] is None and ends[-1] == CUTOFF
    assert starts[1:] == tuple(moment + LAG for moment in training.grid.moments)
    for index, window in enumerate(windows, start=-1):
        assert (training.grid.read_by(training.opportunities.between(*window)["event_timestamp"]) == index).all()


def test_rows_since_a_moment_are_those_of_the_whole_from_then_on(training: Ready) -> None:
    since = START + timedelta(days=20, hours=5)
    later = Opportunities(EventLog(Home(training.folder / "home")), since=since, known_at=CUTOFF)
    expected = training.known.filter(pl.col("event_timestamp") >= since)
    windows = [later.between(*window) for window in training.grid.windows()]
    assert pl.concat(windows).equals(expected) and 0 < expected.height < training.known.height
    assert [later.count(*window) for window in training.grid.windows()] == [rows.height for rows in windows]


def test_a_log_that_is_replaced_while_it_is_read_is_noticed(training: Ready, tmp_path: Path) -> None:
    shutil.copytree(training.folder / "home", tmp_path / "home")
    log = EventLog(Home(tmp_path / "home"))
    log.check_same()
    other = pl.DataFrame({"event_timestamp": [START], "user_id": [1], "item_id": [2], "event_type": ["click"]})
    other.write_parquet(tmp_path / "other.parquet")
    ingest.run(
        ingest.IngestConfig(
            home=tmp_path / "home",
            name="other",
            events=(str(tmp_path / "other.parquet"),),
            now=START + timedelta(days=400),
            replace=True,
        )
    )
    with pytest.raises(NotReadyError, match="Run the command again"):
        log.check_same()


@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_ranks_read_disjoint_windows_that_hold_the_whole_log(training: Ready, ranks: int) -> None:
    whole, shared = training.folder / "rows", training.folder / f"rows-of-{ranks}"
    shared.mkdir()
    read: list[list[tuple[datetime | None, datetime | None]]] = []

    class Watched(Opportunities):
        def between(self, start: datetime | None, end: datetime | None) -> pl.DataFrame:
            read[-1].append((start, end))
            return super().between(start, end)

        def count(self, start: datetime | None, end: datetime | None) -> int:
            read[-1].append((start, end))
            return super().count(start, end)

    watched = Watched(EventLog(Home(training.folder / "home")), known_at=CUTOFF)
    parts = []
    for rank in range(ranks):
        read.append([])
        parts.append(
            write_moments(shared, training.tables, watched, training.grid, catalogue=False, shard=(rank, ranks))
        )
    TrainingRows.bind(shared, training.tables, parts, positives="click")
    assert sorted(itertools.chain(*read), key=lambda window: window[1]) == training.grid.windows()
    assert max(map(len, read)) - min(map(len, read)) <= 1
    names = sorted(file.name for file in whole.iterdir())
    assert names == sorted(file.name for file in shared.iterdir()) and len(names) > 3
    for name in set(names) - {"codes.npz"}:
        assert (shared / name).read_bytes() == (whole / name).read_bytes(), name


def test_rows_read_by_window_are_the_rows_read_at_once(training: Ready) -> None:
    windows = [training.opportunities.between(*window) for window in training.grid.windows()]
    assert pl.concat(windows).equals(training.known)


def test_an_epoch_holds_every_row_once_and_is_repeatable(training: Ready) -> None:
    made, known, grid = training.rows, training.known, training.grid.moments
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    assert len(batches) == made.steps(128)
    assert sum(len(batch.click) for batch in batches) == made.rows
    usable = known.filter(pl.col("event_timestamp") >= grid[0] + LAG).height
    assert made.rows + made.without_history == known.height and made.rows <= usable
    pairs = {}
    for batch in batches:
        for user, item in zip(batch.user_key[batch.user_index], batch.item_key[batch.item_index], strict=True):
            pairs[int(user), int(item)] = pairs.get((int(user), int(item)), 0) + 1
        assert len(set(batch.user_key.tolist())) == len(batch.user_key)
    clicks = sum(float(batch.click.sum()) for batch in batches)
    again = list(made.epoch(0, batch_rows=128, seed=1))
    assert all(a.user_index.equal(b.user_index) and a.click.equal(b.click) for a, b in zip(batches, again, strict=True))
    other = list(made.epoch(1, batch_rows=128, seed=1))
    assert clicks == sum(float(batch.click.sum()) for batch in other)
    assert any(len(a.click) != len(b.click) or not a.click.equal(b.click) for a, b in zip(batches, other, strict=True))


def test_activity_pairs_lie_between_their_moment_and_the_next(training: Ready) -> None:
    made, grid = training.rows, training.grid.moments
    counted = sum(len(batch.pos_user_index) for batch in made.epoch(0, batch_rows=128, seed=1))
    activity = training.tables.activity
    expected = 0
    for index, moment in enumerate(grid):
        end = grid[index + 1] if index + 1 < len(grid) else CUTOFF
        low, high = (int(t.timestamp() * 1e6) for t in (moment + LAG, min(end, CUTOFF)))
        seen = set(activity.user[activity.time_us < int(moment.timestamp() * 1e6)].tolist())
        inside = (activity.time_us >= low) & (activity.time_us < high)
        expected += sum(user in seen for user in activity.user[inside].tolist())
    assert counted == expected > 0


def test_log_q_is_the_chance_to_be_in_a_batch(training: Ready) -> None:
    made = training.rows
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    said = {int(k): float(q) for b in batches for k, q in zip(b.item_key, b.item_log_q, strict=True)}
    seen: dict[int, int] = {}
    for batch in batches:
        for key in batch.item_key.tolist():
            seen[key] = seen.get(key, 0) + 1
    chance = np.array([seen[key] / len(batches) for key in said])
    assert np.corrcoef(chance, np.exp(list(said.values())))[0, 1] > 0.8
    assert max(said.values()) <= 0.0


def bits(batch: TrainBatch) -> dict[str, torch.Tensor | None]:
    found: dict[str, torch.Tensor | None] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) or value is None:
            found[field.name] = value
        else:
            found |= {f"{field.name}.{inner.name}": getattr(value, inner.name) for inner in fields(value)}
    return found


def assert_same(first: TrainBatch, second: TrainBatch) -> None:
    one, two = bits(first), bits(second)
    assert one.keys() == two.keys()
    for name, value in one.items():
        other = two[name]
        assert value is other or (value is not None and other is not None and torch.equal(value, other)), name


def test_rows_in_files_give_the_batches_of_tables_in_memory(training: Ready) -> None:
    """What is gathered from a mapped file is what the tables of that moment say, value by value."""
    for moment, mapped in zip(training.grid.moments, training.rows._slices, strict=True):
        users = training.tables.users(moment)
        for name in ("code", "cats", "nums", "item_cats"):
            assert np.array_equal(getattr(users, name), getattr(mapped.users, name)), name
        for field in fields(users.history):
            read, made = getattr(mapped.users.history, field.name), getattr(users.history, field.name)
            assert read.dtype == made.dtype and np.array_equal(read, made), field.name
        items = training.tables.items(moment, mapped.items.code)
        for name in ("row", "cats", "nums"):
            assert np.array_equal(getattr(items, name), getattr(mapped.items, name)), name


def test_an_opened_folder_gives_the_batches_that_it_was_written_for(training: Ready) -> None:
    opened = TrainingRows(training.folder / "rows", positives="click")
    assert (opened.rows, opened.without_history) == (training.rows.rows, training.rows.without_history)
    pairs = zip(opened.epoch(1, batch_rows=128, seed=3), training.rows.epoch(1, batch_rows=128, seed=3), strict=True)
    for first, second in pairs:
        assert_same(first, second)


def test_what_a_batch_read_is_given_back(tmp_path: Path, training: Ready) -> None:
    """Resident memory of the mapping grows with what is read and is gone after the release."""
    part = training.rows._slices[0]
    large = replace(part, context_nums=np.zeros((4_000_000, 1), np.float32))
    large.write(tmp_path / "large.safetensors")
    mapped = MappedSlice(tmp_path / "large.safetensors")

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[2])  # of files, not of the heap
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    assert mapped.rows.context_nums.sum() == 0.0
    read = resident()
    mapped.release()
    assert read - before > 12e6 and resident() - before < 4e6
    assert np.array_equal(mapped.rows.user, part.user)


def test_a_head_of_its_own_source_learns_from_its_rows_alone(training: Ready) -> None:
    clicked = sum(int(np.count_nonzero(part.click)) for part in training.rows._slices)
    for name in ("joint", "alternating"):
        made = training.written(name, Sampling(sources=name, conversion_rows=50 if name == "alternating" else None))  # type: ignore[arg-type]
        batches = list(made.epoch(0, batch_rows=128, seed=1))
        assert len(batches) == made.steps(128)
        masks = [(b.click_trains, b.conversion_trains) for b in batches]
        assert all(c is not None and v is not None and torch.equal(c, ~v) for c, v in masks)
        assert sum(int(c.sum()) for c, _ in masks if c is not None) == made.rows
        assert sum(int(v.sum()) for _, v in masks if v is not None) == clicked
        for batch in batches:
            assert batch.conversion_trains is not None
            assert (batch.click[batch.conversion_trains] == 1).all()
            # Positives are clicks here: those of the conversion source would count twice.
            assert not (batch.positive & batch.conversion_trains).any()
        both = [bool(c.any() and v.any()) for c, v in masks if c is not None and v is not None]
        assert all(both) if name == "joint" else not any(both)
        assert sum(len(b.pos_user_index) for b in batches) == sum(len(part.pair_user) for part in training.rows._slices)


def test_conversions_that_attract_come_from_the_conversion_source(training: Ready) -> None:
    made = training.written("attract", Sampling(sources="joint"), positives="conversion")
    converted = sum(int(np.count_nonzero(part.conversion)) for part in made._slices)
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    assert sum(int(batch.positive.sum()) for batch in batches) == converted > 0
    assert not any((batch.positive & batch.click_trains).any() for batch in batches)


def test_the_conversion_source_gets_its_share_of_the_steps_and_its_batch_size(training: Ready) -> None:
    made = training.written("share", Sampling(sources="alternating", conversion_rows=40, conversion_share=0.6))
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    of_conversion = [b for b in batches if b.conversion_trains is not None and b.conversion_trains.all()]
    assert len(batches) == made.steps(128) and len(of_conversion) / len(batches) == pytest.approx(0.6, abs=0.02)
    assert max(len(batch.click) for batch in of_conversion) <= 60 < 128
    joint = training.written("joint-40", Sampling(sources="joint", conversion_rows=40))
    counts = [
        int(b.conversion_trains.sum())
        for b in joint.epoch(0, batch_rows=128, seed=1)
        if b.conversion_trains is not None
    ]
    assert len(counts) == joint.steps(128) and max(counts) == np.median(counts) == 40
    # The two orders are drawn, not one after the other.
    kinds = [bool(b.conversion_trains.all()) for b in batches if b.conversion_trains is not None]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 5


def test_kept_negatives_are_drawn_anew_and_the_shift_says_how_many_are_missing(training: Ready) -> None:
    made = training.written("kept", Sampling(negatives=0.25))
    first, second = (list(made.epoch(number, batch_rows=128, seed=1)) for number in (0, 1))
    assert len(first) == len(second) == made.steps(128)
    clicks = sum(int(np.count_nonzero(part.click)) for part in made._slices)
    without = made.rows - clicks
    for batches in (first, second):
        assert sum(int(b.click.sum()) for b in batches) == clicks
        assert sum(int((b.click == 0).sum()) for b in batches) == pytest.approx(0.25 * without, rel=0.02)
        for batch in batches:
            assert batch.click_shift is not None and float(batch.click_shift.exp()) == pytest.approx(4.0, rel=0.1)

    def rows(batches: list[TrainBatch]) -> set[tuple[int, int]]:
        chosen = [(b.user_key[b.user_index], b.item_key[b.item_index], b.click == 0) for b in batches]
        return {pair for u, i, no in chosen for pair in zip(u[no].tolist(), i[no].tolist(), strict=True)}

    assert rows(first) != rows(second)


def test_uniform_negatives_come_from_the_moment_and_their_chance_is_that_of_the_mixture(training: Ready) -> None:
    plain = training.written("plain", Sampling())
    made = training.written("mixed", Sampling(uniform_negatives=30))
    seen: dict[tuple[int, int], int] = {}
    said: dict[tuple[int, int], float] = {}
    batches_of = [0] * len(made._slices)
    for seed in range(15):
        cuts = zip(plain.epoch(0, batch_rows=128, seed=seed), made.epoch(0, batch_rows=128, seed=seed), strict=True)
        for without, batch in cuts:
            assert set(without.item_key.tolist()) <= set(batch.item_key.tolist())
            assert len(batch.item_key) <= len(without.item_key) + 30
            assert torch.equal(batch.item_key[batch.item_index], without.item_key[without.item_index])
            assert torch.equal(batch.item_key[batch.pos_item_index], without.item_key[without.pos_item_index])
            where = next(index for index in range(len(made._slices)) if _is_of(batch, made, index))
            known = set(made._slices[where].items.code[made._slices[where].catalogue].tolist())
            assert set(batch.item_key.tolist()) - set(without.item_key.tolist()) <= known
            batches_of[where] += 1
            for key, q in zip(batch.item_key.tolist(), batch.item_log_q.tolist(), strict=True):
                seen[where, key] = seen.get((where, key), 0) + 1
                said[where, key] = float(np.exp(q))
    rare = [key for key in seen if said[key] < 0.5]
    chance = np.array([seen[key] / batches_of[key[0]] for key in rare])
    assert len(rare) > 50
    assert chance.mean() == pytest.approx(np.mean([said[key] for key in rare]), rel=0.15)


def _is_of(batch: TrainBatch, made: TrainingRows, index: int) -> bool:
    """Whether a batch's users have the ages that they had at one moment."""
    users = made._slices[index].users
    if not set(batch.user_key.tolist()) <= set(users.code.tolist()):
        return False
    at = np.searchsorted(users.code, batch.user_key.numpy())
    return np.allclose(np.log1p(users.history.age_hours[at]), batch.user.seq_age.numpy())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negatives": 0.0}, "above 0"),
        ({"conversion_share": 0.5}, "alternating"),
        ({"conversion_share": 0.5, "sources": "joint"}, "alternating"),
        ({"conversion_rows": 10}, "needs `sources"),
        ({"uniform_negatives": -1}, "negative"),
    ],
)
def test_senseless_sampling_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)
