"""Rows of events, users and items: what is accepted, what is refused, and what a person is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from feature_repo.contracts.types import Problem
from validation.bad_rows import MANY_FILES, PLACE, BadRows, merged, to_problems
from validation.event_links import check_links, opportunity_type
from validation.event_times import parse_times
from validation.events import CORE, check_events, check_id_types, check_repeats, check_same_types, check_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MOMENT = datetime(2017, 8, 7, 12, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())
WINDOWS = {"click_window": timedelta(days=7), "conversion_window": timedelta(days=30)}


def reasons(column: pl.Series, now: datetime = NOW) -> list[tuple[str, list[bool]]]:
    return [(fault.reason, fault.mask.to_list()) for fault in parse_times(column, now).faults]


@pytest.mark.parametrize(
    "text",
    [
        "2017-08-07T12:00:00Z",
        "2017-08-07T12:00:00z",
        "2017-08-07t12:00Z",
        "2017-08-07 12:00:00 UTC",
        "2017-08-07 14:00:00+02:00",
        "2017-08-07T14:00+0200",
        "2017-08-07T07:00:00.000-05",
        "2017-08-07T12:00:00,0Z",
        " 2017-08-07T12:00:00Z ",
    ],
)
def test_text_with_a_zone_is_a_time(text: str) -> None:
    times = parse_times(pl.Series("t", [text]), NOW)
    assert times.moments.to_list() == [MOMENT]
    assert times.faults == ()


def test_text_keeps_microseconds() -> None:
    times = parse_times(pl.Series("t", ["2017-08-07T12:00:00.123456789Z"]), NOW)
    assert times.moments.to_list() == [MOMENT + timedelta(microseconds=123456)]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64])
@pytest.mark.parametrize("scale", [1, 10**3, 10**6, 10**9])
def test_integers_of_one_unit_are_times(scale: int, dtype: type[pl.DataType]) -> None:
    times = parse_times(pl.Series("t", [SECONDS * scale, None, (SECONDS + 1) * scale], dtype=dtype), NOW)
    assert times.moments.to_list() == [MOMENT, None, MOMENT + timedelta(seconds=1)]
    assert [fault.reason for fault in times.faults] == ["is null"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_timestamps_with_a_zone_become_utc_microseconds(unit: str) -> None:
    column = pl.Series("t", [MOMENT]).cast(pl.Datetime(unit, "UTC")).dt.convert_time_zone("Asia/Kolkata")
    times = parse_times(column, NOW)
    assert times.moments.dtype == pl.Datetime("us", "UTC")
    assert times.moments.to_list() == [MOMENT]


def test_integers_of_two_units_are_ambiguous_as_a_whole() -> None:
    ((reason, mask),) = reasons(pl.Series("t", [SECONDS, SECONDS, SECONDS * 1000]))
    assert reason == "mixes seconds (2 rows) and milliseconds (1 rows), so its unit is ambiguous"
    assert mask == [True, True, True]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "fits no time between 1990 and 2100 in seconds, milliseconds, microseconds or nanoseconds"),
        ([2**64 - 1, 2**64 - 2], "fits no time between 1990 and 2100"),
        ([MOMENT.replace(tzinfo=None)], "is a naive time (Datetime"),
        ([MOMENT.date()], "is a naive time (Date"),
        (["2017-08-07 12:00:00", "2017-08-07"], "is a naive time (text without a zone)"),
        (["soon", "2017-13-07T12:00:00Z", "07/08/2017 12:00Z", ""], "can't be parsed as a time"),
        ([1.5], "is no time (Float64)"),
        ([True], "is no time (Boolean)"),
        ([datetime(1969, 12, 31, tzinfo=UTC)], "is negative (before 1970)"),
        ([datetime(1970, 1, 18, tzinfo=UTC)], "is before 1990"),
        ([NOW + timedelta(days=1, seconds=1)], "is in the far future (after 2026-01-02T00:00:00Z)"),
    ],
)
def test_what_is_no_time_is_named(values: list[object], expected: str) -> None:
    dtype = pl.UInt64 if isinstance(values[0], int) and values[0] > 2**63 else None
    ((reason, mask),) = reasons(pl.Series("t", values, dtype=dtype))
    assert reason.startswith(expected)
    assert all(mask)


def test_single_integers_outside_the_unit_of_the_others_are_named_alone() -> None:
    found = dict(reasons(pl.Series("t", [SECONDS, -1, 0, SECONDS])))
    assert found["is negative (before 1970)"] == [False, True, False, False]
    assert found["is no time between 1990 and 2100 in seconds, the unit of the other rows"] == [
        False,
        False,
        True,
        False,
    ]


def test_a_day_of_clock_skew_is_no_far_future() -> None:
    assert reasons(pl.Series("t", [NOW + timedelta(days=1)])) == []


def events(**columns: list[object]) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    base = {
        "event_timestamp": [MOMENT] * rows,
        "user_id": list(range(rows)),
        "item_id": list(range(rows)),
        "event_type": ["view"] * rows,
    }
    return pl.DataFrame({**base, **columns})


def checked(frame: pl.DataFrame) -> dict[tuple[str | None, str], list[int]]:
    parsed = check_events(frame, "e.parquet", 0, NOW)
    assert parsed.frame is not None, parsed.problems
    found = {(bad.column, bad.reason): bad.rows["__row"].to_list() for bad in parsed.bad}
    everything = set(range(1, len(frame) + 1))
    assert set(parsed.frame["__row"]) == everything - {row for rows in found.values() for row in rows}
    return found


def test_canonical_columns_and_types() -> None:
    frame = events(
        user_id=["a", "b"], price=[1.0, 2.5], code=pl.Series([3, 4], dtype=pl.Int16), z=["", "x"], a=[True, None]
    )
    parsed = check_events(frame.with_columns(pl.col("user_id", "item_id").cast(pl.String)), "e", 4, NOW)
    assert parsed.frame is not None
    assert parsed.frame.columns == [*CORE, "a", "code", "price", "z", *PLACE]
    assert parsed.frame.schema["code"] == pl.Int64
    assert parsed.frame.schema["weight"] == pl.Float32
    assert parsed.frame["z"].to_list() == [None, "x"]
    assert parsed.frame["__file"].to_list() == [4, 4]


@pytest.mark.parametrize(
    ("columns", "column", "reason", "rows"),
    [
        ({"user_id": [1, None, 3]}, "user_id", "is null or empty", [2]),
        ({"item_id": ["a", "", None]}, "item_id", "is null or empty", [2, 3]),
        ({"user_id": pl.Series([None, None])}, "user_id", "is null or empty", [1, 2]),
        (
            {"item_id": pl.Series([1, 2**64 - 1], dtype=pl.UInt64)},
            "item_id",
            "does not fit into a signed 64-bit integer",
            [2],
        ),
        ({"event_type": ["view", None, ""]}, "event_type", "is null or empty", [2, 3]),
        (
            {"event_type": ["Click", "clicks", " impression", "view"]},
            "event_type",
            "is almost the name of a known event type",
            [1, 2, 3],
        ),
        (
            {"weight": [1.0, 0.0, -1.0, float("nan"), float("inf"), None]},
            "weight",
            "is not above 0 and finite",
            [2, 3, 4, 5],
        ),
        (
            {"event_type": ["impression", "view"], "weight": pl.Series([None, None], dtype=pl.Float64)},
            "weight",
            "is null on an impression",
            [1],
        ),
        ({"price": [1.0, float("inf"), float("nan")]}, "price", "is infinite", [2]),
    ],
)
def test_bad_rows_are_parted_and_named(
    columns: dict[str, list[object]], column: str, reason: str, rows: list[int]
) -> None:
    assert checked(events(**columns)) == {(column, reason): rows}


def test_event_types_may_be_dictionary_encoded() -> None:
    frame = events(event_type=["click", "view"]).with_columns(pl.col("event_type").cast(pl.Categorical))
    assert checked(frame) == {}


@pytest.mark.parametrize(
    ("frame", "column", "told"),
    [
        (events(x=[1]).drop("item_id"), "item_id", "is missing"),
        (events(user_id=[1.0]), "user_id", "Float64"),
        (events(impression_id=[1.0]), "impression_id", "Float64"),
        (events(user_id=[True]), "user_id", "Boolean"),
        (events(event_type=[3]), "event_type", "not text"),
        (events(weight=["1"]), "weight", "not numbers"),
        (events(sampling_rate=[0.5]), "sampling_rate", "reserved"),
        (events(month=["2017-08"]), "month", "reserved"),
        (events(__x=[1]), "__x", "two underscores"),
    ],
)
def test_columns_that_refuse_the_whole_file(frame: pl.DataFrame, column: str, told: str) -> None:
    parsed = check_events(frame, "e.parquet", 0, NOW)
    assert parsed.frame is None
    (problem,) = parsed.problems
    assert (problem.file, problem.column, problem.rows) == ("e.parquet", column, 1)
    assert told in problem.reason
    assert problem.remedy


def test_columns_of_other_types_are_left_out_with_a_note() -> None:
    parsed = check_events(events(tags=[["a"]], day=[MOMENT.date()]), "e.parquet", 0, NOW)
    assert parsed.frame is not None
    assert "tags" not in parsed.frame.columns
    assert [note.split("'")[1] for note in parsed.notes] == ["day", "tags"]


def test_tables_need_an_id_and_may_have_times() -> None:
    raw = pl.DataFrame({"user_id": [1, 1], "age": ["a", "b"], "event_timestamp": ["2017-01-01T00:00Z", "soon"]})
    parsed = check_table(raw, "u.csv", 0, "user", NOW)
    assert [(bad.column, bad.reason) for bad in parsed.bad] == [("event_timestamp", "can't be parsed as a time")]
    assert check_table(raw, "i.csv", 0, "item", NOW).problems[0].column == "item_id"


def test_repeated_ids_are_bad_unless_their_times_differ() -> None:
    raw = pl.DataFrame({"user_id": [1, 1, 2], "event_timestamp": [MOMENT, MOMENT + timedelta(days=1), MOMENT]})
    timed = check_table(raw, "u", 0, "user", NOW).frame
    plain = check_table(raw.drop("event_timestamp"), "u", 0, "user", NOW).frame
    assert timed is not None and plain is not None
    assert check_repeats(timed, "user") == []
    (bad,) = check_repeats(plain, "user")
    assert bad.rows["__row"].to_list() == [2]
    assert "event_timestamp" in bad.remedy


def test_types_must_agree_between_files() -> None:
    def frame(index: int, **columns: list[object]) -> pl.DataFrame:
        parsed = check_events(events(**columns), f"{index}", index, NOW).frame
        assert parsed is not None
        return parsed

    frames = [frame(0, user_id=[1], x=[1], y=["a"]), frame(1, user_id=["u"], x=[1.5], y=[2]), frame(2, x=[None])]
    problems = check_same_types(frames, ["a", "b", "c"])
    # c holds integers again, as a did.
    assert [(problem.file, problem.column) for problem in problems] == [("b", "user_id"), ("b", "y")]
    assert "Mixed id types" in problems[0].remedy
    assert "integer in a" in problems[0].reason


def test_ids_of_the_tables_must_agree() -> None:
    numbers, texts = events(user_id=[1]), events(user_id=["u"])
    assert check_id_types(numbers, None, pl.DataFrame({"item_id": [1]})) == []
    assert "item_id of events is integer" in check_id_types(texts, None, None)[0].reason
    (problem,) = check_id_types(numbers, pl.DataFrame({"user_id": ["u"]}), None)
    assert "user_id of users is text" in problem.reason


def log(*rows: tuple[str, str, int, int, int | None]) -> pl.DataFrame:
    """Return events of (type, minutes after MOMENT, user, item, impression_id)."""
    kinds, minutes, users, items, ids = (list(column) for column in zip(*rows, strict=True))
    moments = [MOMENT + timedelta(minutes=int(minute)) for minute in minutes]
    frame = events(event_timestamp=moments, user_id=users, item_id=items, event_type=kinds, impression_id=ids)
    parsed = check_events(frame, "e", 0, NOW)
    assert parsed.frame is not None
    return parsed.frame


@pytest.mark.parametrize(
    ("rows", "told", "bad"),
    [
        ([("impression", 0, 1, 1, 7), ("click", 0, 1, 1, 7), ("conversion", 0, 1, 1, 7), ("x", 0, 1, 1, None)], "", []),
        ([("impression", 0, 1, 1, 7), ("impression", 1, 2, 2, 7)], "duplicate impressions", [2]),
        ([("impression", 1, 1, 1, 7), ("impression", 0, 2, 2, 7)], "duplicate impressions", [1]),
        ([("impression", 0, 1, 1, 7), ("click", 1, 1, 1, 8)], "of a click leads to no impression", [2]),
        ([("impression", 0, 1, 1, 7), ("click", 1, 1, 1, None)], "of a click leads to no impression", [2]),
        ([("impression", 1, 1, 1, 7), ("click", 0, 1, 1, 7)], "of a click is before its impression", [2]),
        ([("impression", 0, 1, 1, 7), ("click", 1, 2, 1, 7)], "of another user or item", [2]),
        ([("impression", 0, 1, 1, 7), ("conversion", 1, 1, 1, 7)], "of a conversion leads to no click", [2]),
        ([("impression", 0, 1, 1, 7), ("conversion", 1, 1, 1, 8)], "of a conversion is that of no impression", [2]),
        (
            [("impression", 0, 1, 1, 7), ("click", 2, 1, 1, 7), ("conversion", 1, 1, 1, 7)],
            "of a conversion is before its click",
            [3],
        ),
        ([("click", 0, 1, 1, 7), ("click", 1, 1, 1, 7)], "duplicate clicks", [2]),
        ([("click", 1, 1, 1, 7), ("conversion", 0, 1, 1, 7)], "of a conversion is before its click", [2]),
        ([("click", 0, 1, 1, 7), ("conversion", 0, 1, 1, 8)], "of a conversion leads to no click", [2]),
        ([("conversion", 0, 1, 1, 7), ("view", 0, 1, 1, None)], "", []),
    ],
)
def test_links(rows: list[tuple[str, int, int, int, int | None]], told: str, bad: list[int]) -> None:
    frame = log(*rows)
    good, found = check_links(frame, **WINDOWS)
    assert [row for reason in found for row in reason.rows["__row"]] == bad
    assert all(told in reason.reason for reason in found)
    assert set(good["__row"]) == set(frame["__row"]) - set(bad)


def test_what_hangs_on_a_bad_row_is_bad_too() -> None:
    frame = log(("impression", 5, 1, 1, 7), ("click", 0, 1, 1, 7), ("conversion", 9, 1, 1, 7))
    good, found = check_links(frame, **WINDOWS)
    assert good["event_type"].to_list() == ["impression"]
    assert [reason.reason for reason in found] == [
        "of a click is before its impression",
        "of a conversion leads to no click",
    ]


def test_the_first_click_counts_for_a_conversion() -> None:
    frame = log(("impression", 0, 1, 1, 7), ("click", 5, 1, 1, 7), ("click", 1, 1, 1, 7), ("conversion", 2, 1, 1, 7))
    assert check_links(frame, **WINDOWS)[1] == []


def test_opportunity() -> None:
    assert opportunity_type(events(event_type=["click", "impression"])) == "impression"
    assert opportunity_type(events(event_type=["click", "view"])) == "click"
    assert opportunity_type(events(event_type=["view"])) is None


def test_problems_name_file_count_and_first_row() -> None:
    rows = pl.DataFrame({"__file": [1, 0, 1], "__row": [9, 4, 3]}, schema=dict.fromkeys(PLACE, pl.UInt32))
    problems = to_problems([BadRows("user_id", "is null", "Fill it in.", rows)], ["a", "b"])
    assert problems == [
        Problem("a", "user_id", "is null, first in row 4", 1, "Fill it in."),
        Problem("b", "user_id", "is null, first in row 3", 2, "Fill it in."),
    ]


def test_the_same_problem_of_many_files_is_told_once() -> None:
    many = MANY_FILES + 1
    files = [f"part-{index}" for index in range(many)]
    rows = pl.DataFrame({"__file": range(many), "__row": [1] * many}, schema=dict.fromkeys(PLACE, pl.UInt32))
    (problem,) = to_problems([BadRows("user_id", "is null", "Fill it in.", rows)], files)
    assert (problem.file, problem.rows) == (f"part-0 and {many - 1} more files", many)
    few = [Problem(file, "x", "is missing", 1, "Add it.") for file in files[:MANY_FILES]]
    assert merged(few) == few
