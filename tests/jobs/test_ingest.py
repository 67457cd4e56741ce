"""Ingest as a whole: bad input changes nothing, good input gives one state however it comes and however often."""

from __future__ import annotations

import decimal
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import BusyError, ConfigError, InputDataError, NotReadyError
from feature_repo.lake import Home
from jobs import ingest_store
from jobs.ingest import IngestConfig, IngestResult, run
from jobs.ingest_dataset import Dataset, load
from jobs.ingest_ties import tie

NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = datetime(2017, 1, 30, tzinfo=UTC)
WINDOWS = {"click_window": timedelta(days=7), "conversion_window": timedelta(days=30)}


def sample_events(rows: int = 60, *, seed: int = 0) -> pl.DataFrame:
    """Return a log of `rows` impressions over a few days, a third clicked, some converted, and some activity."""
    random = np.random.default_rng(seed)
    impressions = pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=int(hour)) for hour in random.integers(0, 72, rows)],
            "user_id": random.integers(1, 9, rows),
            "item_id": random.integers(100, 130, rows),
            "event_type": ["impression"] * rows,
            "impression_id": np.arange(rows) + 5000,
            "weight": random.choice([1.0, 4.0], rows),
            "slot": random.choice(["top", "side"], rows),
            "price": random.integers(0, 400, rows) / 4,
            "logged_in": random.choice([True, False], rows),
            "hour": random.integers(0, 24, rows),
        }
    )
    context = {name: pl.lit(None) for name in ("slot", "price", "logged_in", "hour")}
    clicks = impressions[::3].with_columns(
        pl.col("event_timestamp") + timedelta(minutes=1), event_type=pl.lit("click"), weight=1.0, **context
    )
    conversions = clicks[::2].with_columns(
        pl.col("event_timestamp") + timedelta(days=2), event_type=pl.lit("conversion")
    )
    views = clicks[::4].with_columns(event_type=pl.lit("view"), impression_id=pl.lit(None))
    return pl.concat([impressions, clicks, conversions, views], how="vertical_relaxed")


def sample_users() -> pl.DataFrame:
    return pl.DataFrame({"user_id": range(1, 9), "age": ["18-24", None] * 4, "score": [0.5 * n for n in range(8)]})


def sample_items() -> pl.DataFrame:
    return pl.DataFrame({"item_id": range(100, 130), "brand": ["a", "b", "c"] * 10, "year": range(1990, 2020)})


def write(frame: pl.DataFrame, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%S%.f%:z")
    else:
        frame.write_parquet(path)
    return str(path)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with good Parquet input."""
    folder = tmp_path / "input"
    write(sample_events(), folder / "events.parquet")
    write(sample_users(), folder / "users.parquet")
    write(sample_items(), folder / "items.parquet")
    return folder


def ingest(home: Path, folder: Path, **changes: object) -> IngestResult:
    base = {name: folder / f"{name}.parquet" for name in ("events", "users", "items")}
    return run(IngestConfig.model_validate({"home": home, "name": "sample", "now": NOW, **base, **changes}))


def tree(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `root` by relative path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def without_record(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name != "lake/dataset.json"}


def test_the_lake_after_a_good_run(tmp_path: Path, inputs: Path) -> None:
    home = tmp_path / "home"
    result = ingest(home, inputs)
    dataset = result.dataset
    assert not result.unchanged
    assert dataset.counts == {"click": 20, "conversion": 10, "impression": 60, "view": 5}
    assert (dataset.id_type, dataset.opportunity, dataset.rows) == ("int64", "impression", 95)
    assert {column.name: column.kind for column in dataset.context} == {
        "hour": "categorical",
        "logged_in": "categorical",
        "price": "numeric",
        "slot": "categorical",
    }
    assert dataset.item_table is not None
    assert {column.name: column.kind for column in dataset.item_table.columns} == {
        "brand": "categorical",
        "year": "categorical",
    }
    files = sorted((home / "lake" / "events").rglob("*.parquet"))
    assert [file.parent.name for file in files] == ["month=2017-01", "month=2017-02"]
    stored = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
    assert stored["event_timestamp"].is_sorted()
    assert stored.schema["event_timestamp"] == pl.Datetime("us", "UTC")
    assert stored.schema["weight"] == pl.Float32
    assert stored.columns[:6] == ["event_timestamp", "user_id", "item_id", "event_type", "impression_id", "weight"]
    assert stored.sort(stored.columns).equals(
        sample_events().select(stored.columns).cast(dict(stored.schema)).sort(stored.columns)
    )
    # Plain strings and microseconds: every reader of the lake understands them.
    assert str(pq.read_schema(files[0]).field("slot").type) == "string"
    assert load(Home(home)) == dataset
    assert Dataset.from_dict(json.loads(json.dumps(dataset.to_dict()))) == dataset


def test_the_same_input_again_changes_nothing(tmp_path: Path, inputs: Path) -> None:
    home = tmp_path / "home"
    first = ingest(home, inputs)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    second = ingest(home, inputs)
    assert second.unchanged
    assert second.dataset == first.dataset
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_format_layout_and_row_order_do_not_matter(tmp_path: Path, inputs: Path) -> None:
    reference = ingest(tmp_path / "reference", inputs)
    for kind, frame in (("events", sample_events()), ("users", sample_users()), ("items", sample_items())):
        write(frame, tmp_path / "csv" / f"{kind}.csv")
        shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3).select(sorted(frame.columns, reverse=True))
        for part in range(3):
            write(shuffled[part::3], tmp_path / "parts" / kind / f"month=2016-0{part + 1}" / "part.parquet")
    as_csv = ingest(
        tmp_path / "from_csv",
        inputs,
        **{kind: tmp_path / "csv" / f"{kind}.csv" for kind in ("events", "users", "items")},
    )
    as_parts = ingest(
        tmp_path / "from_parts",
        inputs,
        events=tmp_path / "parts" / "events",
        users=str(tmp_path / "parts" / "users" / "**" / "*.parquet"),
        items=[tmp_path / "parts" / "items" / f"month=2016-0{part}" / "part.parquet" for part in (3, 1, 2)],
    )
    assert as_csv.fingerprint == as_parts.fingerprint == reference.fingerprint
    assert tree(tmp_path / "from_csv") == tree(tmp_path / "from_parts") == tree(tmp_path / "reference")


def test_one_changed_value_changes_the_fingerprint(tmp_path: Path, inputs: Path) -> None:
    reference = ingest(tmp_path / "a", inputs).fingerprint
    changed = sample_users().with_columns(score=pl.when(pl.col("user_id") == 8).then(None).otherwise("score"))
    other = ingest(tmp_path / "b", inputs, users=write(changed, tmp_path / "users.parquet"))
    assert other.fingerprint != reference


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_integer_times(tmp_path: Path, inputs: Path, per_second: int, suffix: str) -> None:
    seconds = pl.col("event_timestamp").dt.epoch("s")
    path = write(sample_events().with_columns(seconds * per_second), tmp_path / f"e.{suffix}")
    assert (
        ingest(tmp_path / "a", inputs, events=path).fingerprint
        == ingest(tmp_path / "b", inputs, events=inputs / "events.parquet").fingerprint
    )


def test_string_ids(tmp_path: Path, inputs: Path) -> None:
    as_text = pl.format("k{}", pl.col("user_id")).alias("user_id"), pl.format("k{}", pl.col("item_id")).alias("item_id")
    events = write(sample_events().with_columns(as_text), tmp_path / "e.parquet")
    users = write(sample_users().with_columns(as_text[0]), tmp_path / "u.parquet")
    result = ingest(tmp_path / "home", inputs, events=events, users=users, items=None)
    assert result.dataset.id_type == "string"
    assert result.dataset.item_table is None
    assert not (tmp_path / "home" / "lake" / "items.parquet").exists()


def test_text_and_empty_columns_are_left_out_with_a_note(tmp_path: Path, inputs: Path) -> None:
    rows = 1500
    items = pl.DataFrame(
        {
            "item_id": range(rows),
            "title": [f"title {n}" for n in range(rows)],
            "brand": [f"brand {n // 2}" for n in range(rows)],
            "cents": range(rows),
            "nothing": pl.Series([None] * rows, dtype=pl.String),
        }
    )
    result = ingest(tmp_path / "home", inputs, items=write(items, tmp_path / "i.parquet"))
    table = result.dataset.item_table
    assert table is not None
    assert {column.name: column.kind for column in table.columns} == {"brand": "categorical", "cents": "numeric"}
    assert any("'title' is left out as text" in note for note in result.dataset.notes)
    assert any("'nothing' is left out" in note for note in result.dataset.notes)


def test_words_for_a_missing_id_and_misspelt_types_are_told_in_notes(tmp_path: Path) -> None:
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    users = ["u1", "nan", "None", "nan", "Nancy", "u2", "u3"]
    kinds = ["click", "view", "clik", "impresion", "impresion", "clip-art", "purchase"]
    rows = [(START + timedelta(hours=at), user, f"i{at}", kinds[at]) for at, user in enumerate(users)]
    events = write(pl.DataFrame(rows, schema=columns, orient="row"), tmp_path / "events.parquet")
    items = write(pl.DataFrame({"item_id": ["i1", "<NA>"], "brand": ["a", "b"]}), tmp_path / "items.csv")
    dataset = ingest(tmp_path / "home", tmp_path, events=events, users=None, items=items).dataset
    assert dataset.counts["clik"] == 1 and dataset.rows == 7
    notes = [note for note in dataset.notes if "rows have" in note]
    assert [note.split(":")[0] for note in notes] == ["events", "items", "events", "events"]
    assert "3 rows have the user_id 'None' or 'nan'" in notes[0] and "counts as one user" in notes[0]
    assert "1 rows have the item_id '<NA>'" in notes[1]
    assert "1 rows have the event_type 'clik'" in notes[2] and "click is meant" in notes[2]
    assert "2 rows have the event_type 'impresion'" in notes[3] and "impression is meant" in notes[3]


def test_wide_decimals_are_numbers(tmp_path: Path, inputs: Path) -> None:
    items = sample_items().to_arrow()
    prices = pa.array([decimal.Decimal(n) / 4 for n in range(30)], pa.decimal256(50, 2))
    pq.write_table(items.append_column("price", prices), tmp_path / "i.parquet")
    ingest(tmp_path / "home", inputs, items=tmp_path / "i.parquet")
    assert pl.read_parquet(tmp_path / "home" / "lake" / "items.parquet")["price"].to_list()[:3] == [0.0, 0.25, 0.5]


Change = Callable[[pl.DataFrame], pl.DataFrame]


def first_where(column: str, value: object, *, kind: str = "impression", rows: int = 2) -> Change:
    """Return a change that sets `column` to `value` in the first `rows` rows of an event type."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        chosen = (pl.col("event_type") == kind) & ((pl.col("event_type") == kind).cum_sum() <= rows)
        return frame.with_columns(pl.when(chosen).then(pl.lit(value)).otherwise(column).alias(column))

    return change


def appended(**values: object) -> Change:
    """Return a change that adds one more row, a copy of the first one of that type with other values."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        row = frame.filter(event_type=values.get("event_type", "impression"))[:1]
        extra = row.with_columns(**{name: pl.lit(value) for name, value in values.items()})
        return pl.concat([frame, extra.cast(dict(frame.schema))])

    return change


def as_text(form: str) -> Change:
    return lambda frame: frame.with_columns(pl.col("event_timestamp").dt.strftime(form))


def seconds_with(value: int) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        return first_where("event_timestamp", value)(frame.with_columns(pl.col("event_timestamp").dt.epoch("s")))

    return change


BAD_EVENTS: dict[str, tuple[Change, str, str, int, str]] = {
    # name: change, column, reason, rows, remedy
    "missing column": (lambda f: f.drop("item_id"), "item_id", "is missing", 95, "Add it or rename"),
    "null id": (first_where("user_id", None), "user_id", "is null or empty", 2, "leave the row out"),
    "null time": (first_where("event_timestamp", None), "event_timestamp", "is null", 2, "leave the row out"),
    "naive time": (
        lambda f: f.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)),
        "event_timestamp",
        "naive time",
        95,
        "AT TIME ZONE 'UTC'",
    ),
    "naive text": (as_text("%Y-%m-%d %H:%M:%S"), "event_timestamp", "naive time", 95, "State the zone"),
    "unparsable text": (as_text("%d.%m.%Y %H:%MZ"), "event_timestamp", "can't be parsed", 95, "ISO 8601"),
    "two units": (seconds_with(1_500_000_000_000), "event_timestamp", "ambiguous", 95, "one unit"),
    "negative integer": (seconds_with(-1), "event_timestamp", "is negative", 2, "Correct the time"),
    "integer of no unit": (seconds_with(12), "event_timestamp", "is no time between 1990 and 2100", 2, "Correct"),
    "negative time": (
        first_where("event_timestamp", datetime(1960, 1, 1, tzinfo=UTC)),
        "event_timestamp",
        "is negative",
        2,
        "Correct the time",
    ),
    "far future": (
        first_where("event_timestamp", datetime(2027, 1, 1, tzinfo=UTC)),
        "event_timestamp",
        "far future",
        2,
        "check this machine's clock",
    ),
    "float id": (
        lambda f: f.with_columns(pl.col("user_id").cast(pl.Float64)),
        "user_id",
        "holds Float64",
        95,
        "astype('Int64')",
    ),
    "misspelt type": (first_where("event_type", "Impression"), "event_type", "is almost the name", 2, "lower case"),
    "weight of zero": (first_where("weight", 0.0), "weight", "is not above 0", 2, "1 / (probability"),
    "duplicate impression": (appended(), "impression_id", "duplicate impressions", 1, "Keep one row"),
    "click of no impression": (
        appended(event_type="click", impression_id=1),
        "impression_id",
        "of a click leads to no impression",
        1,
        "Add its impression",
    ),
    "click before impression": (
        appended(event_type="click", event_timestamp=START - timedelta(days=1)),
        "event_timestamp",
        "of a click is before its impression",
        1,
        "Correct the clocks",
    ),
    "conversion of no impression": (
        appended(event_type="conversion", impression_id=1),
        "impression_id",
        "of a conversion is that of no impression",
        1,
        "Add the impression",
    ),
    "conversion of no click": (
        appended(event_type="conversion", impression_id=5001),
        "impression_id",
        "of a conversion leads to no click",
        1,
        "Add its click",
    ),
    "conversion before click": (
        appended(event_type="conversion", event_timestamp=START - timedelta(days=1)),
        "event_timestamp",
        "of a conversion is before its click",
        1,
        "Correct the clocks",
    ),
    "reserved name": (lambda f: f.rename({"hour": "month"}), "month", "reserved", 95, "Rename it"),
}


@pytest.fixture(scope="module")
def full_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home folder with a dataset in it and the input it came from; tests must not change it."""
    root = tmp_path_factory.mktemp("full")
    folder = root / "input"
    write(sample_events(), folder / "events.parquet")
    write(sample_users(), folder / "users.parquet")
    write(sample_items(), folder / "items.parquet")
    ingest(root / "home", folder)
    return root / "home", folder


def refused(full_home: tuple[Path, Path], tmp_path: Path, **changes: object) -> InputDataError:
    """Ingest bad input into an empty and into a filled home; return the error after seeing both untouched."""
    home, folder = full_home
    with pytest.raises(InputDataError):
        ingest(tmp_path / "empty_home", folder, **changes)
    assert not (tmp_path / "empty_home").exists()
    before = tree(home)
    with pytest.raises(InputDataError) as caught:
        ingest(home, folder, replace=True, **changes)
    assert tree(home) == before
    return caught.value


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_events_are_refused(full_home: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    change, column, reason, rows, remedy = BAD_EVENTS[case]
    path = write(change(sample_events()), tmp_path / "bad.parquet")
    error = refused(full_home, tmp_path, events=path)
    (problem,) = error.problems
    assert (problem.file, problem.column, problem.rows) == (path, column, rows)
    assert reason in problem.reason
    assert remedy in problem.remedy
    for part in (path, column, reason, f"({rows:,} rows)", remedy, "nothing was changed"):
        assert part in str(error)


def truncated(path: Path) -> Path:
    write(sample_events(), path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def damaged(path: Path) -> Path:
    write(sample_events(), path)
    content = bytearray(path.read_bytes())
    content[50:400] = bytes(350)
    path.write_bytes(content)
    return path


def with_content(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def link(path: Path) -> Path:
    path.symlink_to(path.parent / "gone.parquet")
    return path


def folder_of_nothing(path: Path) -> Path:
    path.mkdir()
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    # file name: maker, reason, remedy
    "truncated.parquet": (truncated, "can't be read as Parquet", "truncated"),
    "damaged.parquet": (damaged, "can't be read as Parquet", "Write the file again"),
    "empty.parquet": (lambda p: Path(write(sample_events()[:0], p)), "has no rows", "with rows"),
    "nothing.parquet": (lambda p: with_content(p, b""), "can't be read as Parquet", "Write the file again"),
    "text.parquet": (lambda p: with_content(p, b"hello"), "can't be read as Parquet", "Write the file again"),
    "empty.csv": (lambda p: with_content(p, b""), "has no rows", "with rows"),
    "header.csv": (lambda p: with_content(p, b"event_timestamp,user_id\n"), "has no rows", "with rows"),
    "ragged.csv": (lambda p: with_content(p, b"a,b\n1,2,3\n"), "can't be read as CSV", "Write the file again"),
    "comma.csv": (lambda p: with_content(p, b"a,b\n1,2,3\n"), "a row has more fields than the header", "double quotes"),
    "semicolons.csv": (lambda p: with_content(p, b"a;b\n1;2\n"), "is separated by semicolons", "commas"),
    "decimals.csv": (lambda p: with_content(p, b"a;b\n1,5;2\n"), "is separated by semicolons", "commas"),
    "tabs.csv": (lambda p: with_content(p, b"a\tb\n1\t2\n"), "is separated by tabs", "commas"),
    "latin.csv": (lambda p: with_content(p, b"a,b\n\xff\xfe,2\n"), "can't be read as CSV", "Write the file again"),
    "absent.parquet": (lambda p: p, "does not exist", "Check the path"),
    "dangling.parquet": (link, "does not exist", "Check the path"),
    "x" * 300 + ".parquet": (lambda p: p, "can't be reached: File name too long", "Check the path"),
    "many-*.parquet": (lambda p: p, "matches no file", "Check the path"),
    "events.xlsx": (lambda p: with_content(p, b"x"), "unknown kind", ".parquet, .csv"),
    "folder": (folder_of_nothing, "folder without", "Check the path"),
}


@pytest.mark.parametrize("name", BAD_FILES, ids=lambda name: name[:20])
def test_bad_files_are_refused(full_home: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    make, reason, remedy = BAD_FILES[name]
    path = make(tmp_path / name)
    error = refused(full_home, tmp_path, events=[full_home[1] / "events.parquet", path])
    (problem,) = error.problems
    assert problem.file == str(path)
    assert reason in problem.reason
    assert remedy in problem.remedy
    assert "(0 rows)" not in str(error)


def test_mixed_id_types_between_files(full_home: tuple[Path, Path], tmp_path: Path) -> None:
    half = sample_events().with_columns(pl.col("user_id").cast(pl.String))
    path = write(half, tmp_path / "text.parquet")
    (problem,) = refused(full_home, tmp_path, events=[full_home[1] / "events.parquet", path]).problems
    assert (problem.file, problem.column, problem.rows) == (path, "user_id", 95)
    assert "Mixed id types" in problem.remedy


def test_mixed_id_types_between_csv_files(full_home: tuple[Path, Path], tmp_path: Path) -> None:
    numbers = write(sample_events(), tmp_path / "a.csv")
    texts = write(sample_events().with_columns(pl.format("u{}", "user_id").alias("user_id")), tmp_path / "b.csv")
    (problem,) = refused(full_home, tmp_path, events=[numbers, texts]).problems
    assert (problem.file, problem.column) == (texts, "user_id")


@pytest.mark.parametrize("kind", ["users", "items"])
def test_mixed_id_types_between_tables(full_home: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    frame = sample_users() if kind == "users" else sample_items()
    path = write(frame.with_columns(pl.first().cast(pl.String)), tmp_path / "t.parquet")
    (problem,) = refused(full_home, tmp_path, **{kind: path}).problems
    assert "mixed id types" in problem.reason
    assert f"{kind[:-1]}_id of {kind} is text" in problem.reason


def test_repeated_ids_in_a_table(full_home: tuple[Path, Path], tmp_path: Path) -> None:
    path = write(pl.concat([sample_items(), sample_items()[:3]]), tmp_path / "i.parquet")
    (problem,) = refused(full_home, tmp_path, items=path).problems
    assert (problem.file, problem.column, problem.rows) == (path, "item_id", 3)
    assert "event_timestamp" in problem.remedy


def test_every_kind_of_problem_is_told_at_once(full_home: tuple[Path, Path], tmp_path: Path) -> None:
    events = write(first_where("user_id", None)(sample_events()), tmp_path / "e.parquet")
    error = refused(
        full_home, tmp_path, events=events, users=tmp_path / "gone.csv", items=truncated(tmp_path / "i.csv")
    )
    assert {Path(problem.file).name for problem in error.problems} >= {"e.parquet", "gone.csv"}


def test_bad_rows_are_quarantined_if_allowed(tmp_path: Path, inputs: Path) -> None:
    change = first_where("user_id", None)
    bad = appended(event_type="click", impression_id=1)(change(sample_events()))
    path = write(bad, tmp_path / "bad.csv")
    with pytest.raises(InputDataError, match=r"more than --max-bad-rows 1"):
        ingest(tmp_path / "home", inputs, events=path, max_bad_rows=1)
    assert not (tmp_path / "home").exists()
    result = ingest(tmp_path / "home", inputs, events=path, max_bad_rows=5)
    # Two impressions lost their user; the first one's click leads nowhere now, and its conversion too.
    expected = {
        "impression_id of a click leads to no impression": 2,
        "impression_id of a conversion is that of no impression": 1,
        "user_id is null or empty": 2,
    }
    assert result.dataset.quarantined == expected
    folder = tmp_path / "home" / "quarantine" / f"ingest-{result.fingerprint}"
    assert json.loads((folder / "reasons.json").read_text())["counts"] == expected
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["row"].to_list() == [1, 2, 61, 81, 96]
    assert json.loads(rows["raw"][4])["impression_id"] == 1
    assert set(rows["file"]) == {path}
    assert result.dataset.counts == {"click": 19, "conversion": 9, "impression": 58, "view": 5}


def test_a_clean_run_leaves_no_quarantine(tmp_path: Path, inputs: Path) -> None:
    ingest(tmp_path / "home", inputs, max_bad_rows=100)
    assert not (tmp_path / "home" / "quarantine").exists()


def test_all_rows_bad_is_refused_whatever_is_tolerated(tmp_path: Path, inputs: Path) -> None:
    path = write(as_text("%H")(sample_events()), tmp_path / "bad.parquet")
    with pytest.raises(InputDataError, match="no good event is left"):
        ingest(tmp_path / "home", inputs, events=path, max_bad_rows=10**6)


def test_another_dataset_needs_another_home_or_replace(tmp_path: Path, inputs: Path) -> None:
    home = tmp_path / "home"
    ingest(home, inputs)
    other = write(sample_events(30, seed=1), tmp_path / "other.parquet")
    before = tree(home)
    with pytest.raises(ConfigError, match=r"--home, or --replace"):
        ingest(home, inputs, events=other)
    assert tree(home) == before
    ingest(home, inputs, events=other, users=None, replace=True)
    ingest(tmp_path / "fresh", inputs, events=other, users=None)
    assert tree(home) == tree(tmp_path / "fresh")


def test_a_damaged_lake_is_filled_again(tmp_path: Path, inputs: Path) -> None:
    home = tmp_path / "home"
    ingest(home, inputs)
    before = tree(home)
    (home / "lake" / "users.parquet").write_bytes(b"")
    assert not ingest(home, inputs).unchanged
    assert tree(home) == before
    (home / "lake" / "dataset.json").write_text("{")
    with pytest.raises(ConfigError, match="--replace"):
        ingest(home, inputs)
    ingest(home, inputs, replace=True)
    assert tree(home) == before


def test_two_processes_do_not_meet(tmp_path: Path, inputs: Path) -> None:
    with Home(tmp_path / "home").lock("ingest"), pytest.raises(BusyError):
        ingest(tmp_path / "home", inputs)


def test_nothing_ingested_yet(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="headwater ingest"):
        load(Home(tmp_path))


class Killed(BaseException):
    """Stands for a process that dies: nothing in the code under test may catch it."""


@pytest.mark.parametrize("old_dataset", [False, True])
def test_a_run_killed_at_any_rename_is_completed_by_the_next(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, old_dataset: bool
) -> None:
    ingest(tmp_path / "reference", inputs)
    expected = tree(tmp_path / "reference")
    old = tmp_path / "old"
    if old_dataset:
        ingest(old, inputs, events=write(sample_events(30, seed=1), tmp_path / "other.parquet"), users=None)
    original = Path.rename
    steps = 0
    while True:
        home = tmp_path / f"home-{steps}"
        if old_dataset:
            shutil.copytree(old, home)
        left = steps

        def dying(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            try:
                ingest(home, inputs, replace=old_dataset)
                break
            except Killed:
                pass
        record = home / "lake" / "dataset.json"
        # Half a dataset is never announced.
        assert not record.exists()
        ingest(home, inputs, replace=old_dataset)
        assert tree(home) == expected
        steps += 1
    assert steps == (6 if old_dataset else 4)


def test_a_killed_process_leaves_what_the_next_run_completes(tmp_path: Path, inputs: Path) -> None:
    ingest(tmp_path / "reference", inputs)
    program = f"""
import os, signal
from datetime import datetime
from jobs import ingest_store
from jobs.ingest import IngestConfig, run

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

ingest_store._move = killed
folder = {str(inputs)!r}
run(IngestConfig(home={str(tmp_path / "home")!r}, name="sample", now=datetime.fromisoformat({NOW.isoformat()!r}),
    events=folder + "/events.parquet", users=folder + "/users.parquet", items=folder + "/items.parquet"))
"""
    root = Path(ingest_store.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "home" / "lake").glob(".staging-ingest-*"))
    ingest(tmp_path / "home", inputs)
    assert tree(tmp_path / "home") == tree(tmp_path / "reference")


def test_a_log_without_impressions(tmp_path: Path, inputs: Path) -> None:
    events = sample_events().filter(pl.col("event_type") != "impression").drop("impression_id", "slot", "hour")
    result = ingest(tmp_path / "home", inputs, events=write(events, tmp_path / "e.parquet"))
    assert result.dataset.opportunity == "click"
    assert any("no impressions, so the CTR task is skipped" in note for note in result.dataset.notes)
    stored = pl.read_parquet(tmp_path / "home" / "lake" / "events", hive_partitioning=False)
    clicks = stored.filter(event_type="click")
    assert clicks["impression_id"].n_unique() == len(clicks) == 20
    conversions = stored.filter(event_type="conversion").join(clicks, on=["impression_id", "user_id", "item_id"])
    assert len(conversions) == 10
    assert stored.filter(event_type="view")["impression_id"].null_count() == 5


def test_a_log_of_plain_activity(tmp_path: Path, inputs: Path) -> None:
    events = sample_events().filter(event_type="view").drop("impression_id")
    result = ingest(tmp_path / "home", inputs, events=write(events, tmp_path / "e.csv"))
    assert result.dataset.opportunity is None
    assert any("CTR and CVR tasks are skipped" in note for note in result.dataset.notes)


@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("seed", range(5))
def test_ties_agree_with_a_slow_search(ids: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 300
    kinds = random.choice(["impression", "click", "conversion", "view"], rows)
    frame = pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=int(hour)) for hour in random.integers(0, 24 * 40, rows)],
            "user_id": random.integers(0, 4, rows),
            "item_id": random.integers(0, 4, rows),
            "event_type": kinds,
            "impression_id": pl.Series([None] * rows, dtype=pl.Null),
        }
    )
    if ids == "string":
        frame = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    given = [index + 10_000 if kinds[index] == "impression" and index % 2 else None for index in range(rows)]
    frame = frame.with_columns(impression_id=pl.Series(given, dtype=pl.Int64))
    # Two impressions of one user and item at one moment are refused later; here they'd be a coin toss.
    frame = frame.filter(
        ~(pl.struct("event_timestamp", "user_id", "item_id", "event_type").is_duplicated())
        | pl.col("event_type").is_in(["conversion", "view"])
    )
    tied = tie(frame, **WINDOWS)
    assert tied.drop("impression_id").equals(frame.drop("impression_id"))
    assert tied.schema["impression_id"] == (pl.Int64 if ids == "int64" else pl.String)
    assert tied.filter(event_type="impression")["impression_id"].is_unique().all()
    by_kind = {kind: tied.filter(event_type=kind).to_dicts() for kind in ("impression", "click", "conversion")}
    assert by_kind["click"] and by_kind["conversion"]

    def slow(row: dict[str, object], causes: list[dict[str, object]], window: timedelta) -> object:
        fitting = [
            cause
            for cause in causes
            if cause["impression_id"] is not None
            and (cause["user_id"], cause["item_id"]) == (row["user_id"], row["item_id"])
            and timedelta(0) <= row["event_timestamp"] - cause["event_timestamp"] <= window
        ]
        latest = max(fitting, key=lambda cause: cause["event_timestamp"], default=None)
        return latest["impression_id"] if latest else None

    for kind, cause, window in (("click", "impression", 7), ("conversion", "click", 30)):
        for row in by_kind[kind]:
            assert row["impression_id"] == slow(row, by_kind[cause], timedelta(days=window))


def test_made_ids_do_not_depend_on_the_other_rows() -> None:
    def made(frame: pl.DataFrame) -> dict[object, object]:
        ids = tie(frame.with_columns(impression_id=None), **WINDOWS).filter(event_type="impression")
        return dict(zip(ids.select("user_id", "item_id", "event_timestamp").rows(), ids["impression_id"], strict=True))

    whole = sample_events()
    assert made(whole[::2]).items() <= made(whole).items()


def test_ids_made_of_texts_cannot_run_into_each_other() -> None:
    frame = pl.DataFrame(
        {
            "event_timestamp": [START, START],
            "user_id": ["a:b", "a"],
            "item_id": ["c", "b:c"],
            "event_type": ["impression", "impression"],
            "impression_id": [None, None],
        }
    )
    assert tie(frame, **WINDOWS)["impression_id"].n_unique() == 2


@pytest.mark.parametrize("text", ["007", "1e3x", "+5", "99999999999999999999"])
def test_csv_ids_that_are_no_plain_integers_stay_text(tmp_path: Path, inputs: Path, text: str) -> None:
    lines = ["event_timestamp,user_id,item_id,event_type", f"2017-01-01T00:00:00Z,{text},a,view"]
    path = with_content(tmp_path / "e.csv", "\n".join(lines).encode())
    result = ingest(tmp_path / "home", inputs, events=path, users=None, items=None)
    assert result.dataset.id_type == "string"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="timezone"):
        IngestConfig(home=Path("h"), name="n", events=("e",), now=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="extra"):
        IngestConfig.model_validate({"home": "h", "name": "n", "events": "e", "now": NOW, "evnets": 1})
