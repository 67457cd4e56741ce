"""The same frames through Feast's own stores, and every place where they answer otherwise, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.infra.offline_stores.dask import DaskOfflineStoreConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
from hypothesis import HealthCheck, given, settings

from feature_repo.contracts.errors import InputDataError
from feature_repo.stores.pit import PitOfflineStoreConfig
from tests.feature_repo.stores.pit_cases import MICROSECOND, Case, ViewCase, cases, expected, label_table, write

pytestmark = pytest.mark.filterwarnings("ignore")
PIT, DUCKDB, DASK = PitOfflineStoreConfig(), DuckDBOfflineStoreConfig(), DaskOfflineStoreConfig()
Ask = Callable[..., pa.Table]
MakeView = Callable[..., Any]
SECOND = 1_000_000


def plain(view: ViewCase) -> ViewCase:
    """Return a view without what stock Feast has no rule for: a lag, a mixed ttl, exact ties, gaps in vectors."""
    seen: set[Any] = set()
    files = []
    for file in view.files:
        rows = []
        for row in file:
            rank = (row.key, row.time, row.created if view.has_created else None)
            if rank not in seen and None not in row.key:
                seen.add(rank)
                rows.append(row)
        files.append(rows)
    return replace(view, files=files, lag=0, twins="off", ttl=0 if view.ttl > 86_400_000_000 else view.ttl)


@given(case=cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_feasts_duckdb_store_agrees_where_the_rules_leave_no_choice(
    case: Case, feast_view: MakeView, historical: Ask
) -> None:
    view = plain(case.views[0])
    if not case.keys or not case.labels:
        return
    with tempfile.TemporaryDirectory() as scratch:
        write(view, case.keys, Path(scratch) / "view")
        created = "created" if view.has_created else ""
        made = feast_view(
            Path(scratch) / "view",
            keys=case.keys,
            features=("number", "text"),
            ttl=view.ttl * MICROSECOND,
            created=created,
        )
        frame = label_table(case).to_pandas()
        strict = {"filter_by_created_timestamp": case.strict}
        results = [historical(store, [made], frame, **strict).sort_by("row") for store in (PIT, DUCKDB)]
    ours, stock = (list(zip(*(t[f"view__{n}"].to_pylist() for n in ("number", "text")), strict=True)) for t in results)
    assert ours == stock == [row[:2] for row in expected(case, view)]


def stored(folder: Path, ids: list[Any], times: list[int], created: list[Any], zone: str | None = "UTC") -> Path:
    """Write rows numbered 0, 1, ... with times in seconds."""
    path = folder / "rows.parquet"

    def clock(values: list[Any], zone: str | None) -> pa.Array:
        micros = [None if value is None else int(value * SECOND) for value in values]
        return pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz=zone))

    pq.write_table(
        pa.table(
            {
                "id": pa.array(ids, pa.int64()),
                "event_timestamp": clock(times, zone),
                "created": clock(created, "UTC"),
                "number": pa.array(range(len(ids)), pa.int64()),
            }
        ),
        path,
    )
    return path


def labels(ids: list[int], times: list[float], utc: bool = True) -> pd.DataFrame:
    """Return labels with times in seconds."""
    return pd.DataFrame(
        {"row": range(len(ids)), "id": ids, "event_timestamp": pd.to_datetime(times, unit="s", utc=utc)}
    )


def numbers(table: pa.Table) -> dict[int, Any]:
    """Return each label's result by label."""
    return dict(zip(table["row"].to_pylist(), table["view__number"].to_pylist(), strict=True))


@pytest.fixture
def view(tmp_path: Path, feast_view: MakeView) -> Any:
    """Key 1 has rows at 10 and 20 s, the latter written twice; ttl 10 s."""
    path = stored(tmp_path, [1, 1, 1], [10, 20, 20], [10, 20, 25])
    return feast_view(path, features=("number",), ttl=timedelta(seconds=10))


def test_all_three_agree_on_labels_that_find_a_row(view: Any, historical: Ask) -> None:
    asked = labels([1, 1, 1], [10, 20, 30])
    for store in (PIT, DUCKDB, DASK):
        assert numbers(historical(store, [view], asked)) == {0: 0, 1: 2, 2: 2}, store.type


def test_dask_drops_labels_that_share_key_and_time(view: Any, historical: Ask) -> None:
    # Its last step removes duplicates by entity and timestamp, and takes equal labels for duplicates.
    asked = labels([1, 1], [20, 20])
    assert numbers(historical(PIT, [view], asked)) == numbers(historical(DUCKDB, [view], asked)) == {0: 2, 1: 2}
    assert historical(DASK, [view], asked).num_rows == 1


def test_dask_drops_labels_whose_rows_are_all_too_new_or_too_old(view: Any, historical: Ask) -> None:
    # It joins first and filters by time afterwards, which takes the label away together with its rows.
    asked = labels([1, 1, 1], [5, 31, 20])
    expected_numbers = {0: None, 1: None, 2: 2}
    assert numbers(historical(PIT, [view], asked)) == numbers(historical(DUCKDB, [view], asked)) == expected_numbers
    assert list(numbers(historical(DASK, [view], asked))) == [2]


def test_dask_lets_null_keys_meet(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    # A pandas merge takes null for equal to null; a join in SQL, and ours, does not.
    made = feast_view(stored(tmp_path, [1, None], [10, 10], [10, 10]), features=("number",))
    asked = labels([1, 2], [20, 20])
    asked["id"] = pd.array([1, None], dtype="Int64")
    assert numbers(historical(PIT, [made], asked)) == numbers(historical(DUCKDB, [made], asked)) == {0: 0, 1: None}
    assert numbers(historical(DASK, [made], asked)) == {0: 0, 1: 1}


def test_duckdb_fails_on_a_ttl_of_mixed_units(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    # It writes the ttl as an SQL interval, which ibis refuses to infer for days and hours together.
    path = stored(tmp_path, [1], [0], [0])
    made = feast_view(path, features=("number",), ttl=timedelta(days=7, hours=12))
    asked = labels([1, 1], [7.5 * 86400, 7.5 * 86400 + 1])
    assert numbers(historical(PIT, [made], asked)) == {0: 0, 1: None}
    with pytest.raises(ValueError, match="mixed units"):
        historical(DUCKDB, [made], asked)


def test_duckdb_reads_relative_paths_against_the_current_folder(
    tmp_path: Path, feast_view: MakeView, historical: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, [1], [10], [10])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    made, asked = feast_view("rows.parquet", features=("number",)), labels([1], [20])
    assert numbers(historical(PIT, [made], asked, repository=tmp_path)) == {0: 0}
    with pytest.raises(Exception, match="No files found"):
        historical(DUCKDB, [made], asked, repository=tmp_path)


def test_both_take_times_without_a_zone_for_utc(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    # Right only if they are UTC, and nobody would notice if they were not: ours refuses, or is told so.
    made = feast_view(stored(tmp_path, [1], [10], [10], zone=None), features=("number",))
    asked = labels([1], [20])
    with pytest.raises(InputDataError, match="without a time zone"):
        historical(PIT, [made], asked)
    told = PitOfflineStoreConfig(naive_timestamps="utc")
    for store in (told, DUCKDB, DASK):
        assert numbers(historical(store, [made], asked)) == {0: 0}


def test_rewritten_rows_leak_into_history_unless_asked_not_to(view: Any, historical: Ask) -> None:
    # Strict is a setting of the repository here; the stock stores need the flag on every call.
    asked = labels([1, 1], [20, 25])
    assert numbers(historical(PitOfflineStoreConfig(strict=True), [view], asked)) == {0: 1, 1: 2}
    for store in (PIT, DUCKDB, DASK):
        assert numbers(historical(store, [view], asked)) == {0: 2, 1: 2}
        assert numbers(historical(store, [view], asked, filter_by_created_timestamp=True)) == {0: 1, 1: 2}


def test_a_declared_lag_hides_rows_until_they_could_be_read(
    tmp_path: Path, feast_view: MakeView, historical: Ask
) -> None:
    # Stock Feast knows no lag: it shows the row from its event_timestamp on.
    path = stored(tmp_path, [1], [10], [10])
    made = feast_view(path, features=("number",), ttl=timedelta(seconds=10))
    asked = labels([1, 1, 1, 1], [10, 14, 15, 25])
    lagged = PitOfflineStoreConfig(availability_lag_seconds=5)
    assert numbers(historical(lagged, [made], asked)) == {0: None, 1: None, 2: 0, 3: 0}
    assert numbers(historical(DUCKDB, [made], asked)) == {0: 0, 1: 0, 2: 0, 3: None}


def test_ours_keeps_the_order_of_the_labels(view: Any, historical: Ask) -> None:
    # Stock Feast promises no order; ours does, so that labels and features can be put side by side.
    asked = labels([1, 2, 1, 1], [30, 1, 10, 20])
    assert historical(PIT, [view], asked)["row"].to_pylist() == [0, 1, 2, 3]
