"""Faults of Feast's own Spark store that ours must not have, and what the interface promises, one case each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import ConfigError, InputDataError

pytest.importorskip("pyspark", reason="needs the extra `spark`: pip install -e '.[spark]', and Java 17")
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore")]

Ask = Callable[..., pa.Table]
T0 = datetime(2024, 3, 1, tzinfo=UTC)


def at(*seconds: float, zone: str | None = "UTC", unit: str = "us") -> pa.Array:
    """Return moments after T0."""
    moments = pa.array([T0 + timedelta(seconds=each) for each in seconds], pa.timestamp("us", tz="UTC"))
    return moments.cast(pa.int64()).cast(pa.timestamp("us", tz=zone)).cast(pa.timestamp(unit, tz=zone))


def written(path: Path, **columns: Any) -> Path:
    """Write rows that were written when they happened."""
    table = pa.table(columns)
    if "created" not in columns:
        table = table.append_column("created", table["event_timestamp"])
    pq.write_table(table, path)
    return path


def labels(*seconds: float, **columns: Any) -> pd.DataFrame:
    """Return labels some seconds after T0."""
    return pd.DataFrame(columns | {"event_timestamp": at(*seconds).to_pandas()})


def test_vectors_come_back_bit_for_bit_and_times_in_utc(
    tmp_path: Path, session: Any, view_on: Callable[..., Any], job: Callable[..., Any]
) -> None:
    session.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    strange = np.array([[0.1, -0.0, np.nan], [np.inf, 1e-45, 3.4e38], [1.0, 2.0, 3.0]], np.float32)
    vectors = pa.array(list(strange), pa.list_(pa.float32()))
    ids, one = [1, 2, 3], [10, 20, 30]
    path = written(tmp_path / "a.parquet", id=ids, event_timestamp=at(0, 0, 0), number=one, vector=vectors)
    asked = job([view_on(path, features=("number", "vector"))], labels(5, 5, 5, 5, id=[3, 9, 1, 2]))
    assert session.conf.get("spark.sql.session.timeZone") == "UTC"
    # Somebody changes the session between asking and reading.
    session.conf.set("spark.sql.session.timeZone", "America/New_York")
    result = asked.to_arrow()
    assert result["view__vector"].type == pa.list_(pa.float32())
    assert result["view__number"].to_pylist() == [30, None, 10, 20]
    got = np.stack([result["view__vector"][row].values.to_numpy() for row in (2, 3, 0)])
    assert np.array_equal(got.view(np.uint32), strange.view(np.uint32))
    assert result["event_timestamp"].type.tz == "UTC"
    frame = asked.to_spark_df().filter("id = 1").toArrow()
    assert frame["event_timestamp"].to_pylist() == [T0 + timedelta(seconds=5)]


def test_composite_keys_do_not_run_into_each_other(tmp_path: Path, view_on: Callable[..., Any], ask: Ask) -> None:
    path = written(tmp_path / "a.parquet", id=[1, 12], other=[23, 3], event_timestamp=at(0, 0), number=[1, 2])
    view = view_on(path, keys={"id": "int", "other": "int"}, features=("number",))
    result = ask([view], labels(5, 5, 5, id=[12, 1, 1], other=[3, 23, 3]))
    assert result["view__number"].to_pylist() == [2, 1, None]


def test_ties_give_one_row_the_last_written_of_the_last_file(
    tmp_path: Path, view_on: Callable[..., Any], ask: Ask
) -> None:
    (tmp_path / "v").mkdir()
    for name, numbers in (("b", [3, 4]), ("a", [1, 2])):
        written(tmp_path / "v" / f"{name}.parquet", id=[1, 1], event_timestamp=at(0, 0), number=numbers)
    view = view_on(tmp_path / "v", features=("number",))
    assert ask([view], labels(5, id=[1]))["view__number"].to_pylist() == [4]


def test_strict_mode_hides_what_was_written_late(tmp_path: Path, view_on: Callable[..., Any], ask: Ask) -> None:
    columns: dict[str, Any] = {"id": [1, 1], "event_timestamp": at(0, 10), "created": at(0, 30), "number": [1, 2]}
    view = view_on(written(tmp_path / "a.parquet", **columns), features=("number",), ttl=timedelta(seconds=25))
    wanted = labels(20, 30, 36, id=[1, 1, 1])
    assert ask([view], wanted)["view__number"].to_pylist() == [2, 2, None]
    assert ask([view], wanted, strict=True)["view__number"].to_pylist() == [1, 2, None]


def test_two_versions_in_one_read_from_a_query_and_from_files(
    tmp_path: Path, session: Any, view_on: Callable[..., Any], ask: Ask
) -> None:
    vectors = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    path = written(tmp_path / "a.parquet", id=[1, 2], event_timestamp=at(0, 3), vector=vectors)
    files = view_on(path, "files", features=("vector",))
    query = view_on("", "query", features=("vector",), query=f"SELECT * FROM parquet.`{path}`")
    session.createDataFrame(pa.table({"id": [2, 1], "event_timestamp": at(1, 1)})).createOrReplaceTempView("asked")
    result = ask([files, query], "SELECT * FROM asked")
    assert result["id"].to_pylist() == [2, 1]
    assert result["files__vector"].to_pylist() == result["query__vector"].to_pylist() == [None, [1.0]]


def test_threads_do_not_take_each_others_labels(
    tmp_path: Path, session: Any, view_on: Callable[..., Any], ask: Ask
) -> None:
    path = written(tmp_path / "a.parquet", id=[1, 2], event_timestamp=at(0, 0), number=[10, 20])
    view = view_on(path, features=("number",))
    found: dict[int, Any] = {}

    def read(key: int) -> None:
        found[key] = ask([view], labels(5, id=[key]))["view__number"].to_pylist()

    threads = [threading.Thread(target=read, args=(key,)) for key in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: [10], 2: [20]}


def test_shards_are_written_in_the_order_of_the_labels_and_kept(
    tmp_path: Path, view_on: Callable[..., Any], job: Callable[..., Any]
) -> None:
    path = written(tmp_path / "a.parquet", id=[0, 1, 2], event_timestamp=at(0, 0, 0), number=[10, 20, 30])
    count = 25
    given = pa.table(
        {
            "row": pa.array(range(count), pa.uint32()),
            "id": [row % 4 for row in range(count)],
            "event_timestamp": at(*range(count)),
        }
    )
    (tmp_path / "labels").mkdir()
    pq.write_table(given.slice(0, 7), tmp_path / "labels" / "1.parquet")
    pq.write_table(given.slice(7), tmp_path / "labels" / "2.parquet")
    asked = job([view_on(path, features=("number",))], str(tmp_path / "labels"))
    files = asked.to_shards(tmp_path / "out", 10)
    assert [pq.read_metadata(file).num_rows for file in files] == [10, 10, 5]
    result = pa.concat_tables([pq.read_table(file) for file in files])
    assert result.select(given.column_names).equals(given)
    assert result["view__number"].to_pylist() == [[10, 20, 30, None][row % 4] for row in range(count)]
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    assert asked.to_shards(tmp_path / "out", 10) == files
    assert files[0].stat().st_mtime_ns == kept and pq.read_table(files[1])["row"].to_pylist() == list(range(10, 20))


def test_what_cannot_be_right_is_refused(tmp_path: Path, session: Any, view_on: Callable[..., Any], ask: Ask) -> None:
    naive = written(tmp_path / "naive.parquet", id=[1], event_timestamp=at(0, zone=None), number=[1])
    with pytest.raises(InputDataError, match="without a time zone"):
        ask([view_on(naive, features=("number",))], labels(5, id=[1]))
    result = ask([view_on(naive, features=("number",))], labels(0, id=[1]), naive_timestamps="utc")
    assert result["view__number"].to_pylist() == [1]
    path = written(tmp_path / "a.parquet", id=[1], event_timestamp=at(0), number=[1])
    view = view_on(path, features=("number",))
    with pytest.raises(InputDataError, match="'id'"):
        ask([view], labels(5, id=["1"]))
    with pytest.raises(InputDataError, match="'id': is missing"):
        ask([view], labels(5, other=[1]))
    with pytest.raises(InputDataError, match="would be there twice"):
        ask([view], labels(5, id=[1], number=[2]), full=False)
    with pytest.raises(ConfigError, match="no labels from a time range"):
        ask([view], None)
    with pytest.raises(ConfigError, match=r"spark\.driver\.memory"):
        ask([view], labels(5, id=[1]), spark_conf={"spark.driver.memory": "77g"})
