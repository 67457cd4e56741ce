"""Twins: derived, current only for the bytes they were made from, and never needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import LakeError
from feature_repo.stores import twin
from feature_repo.stores.pit import PitOfflineStoreConfig

MOMENT = pd.Timestamp("2024-01-01", tz="UTC")


def write(path: Path, scale: float = 1.0, ids: tuple[int, ...] = (3, 1, 2)) -> Path:
    """Write vectors that tell their id, unsorted."""
    count = len(ids)
    moments = pa.array([MOMENT] * count, pa.timestamp("us", tz="UTC"))
    vectors = pa.array([[scale * number, 0.5] for number in ids], pa.list_(pa.float32()))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ids, "event_timestamp": moments, "created": moments, "vector": vectors}), path)
    return path


@pytest.fixture
def ask(historical: Callable[..., pa.Table], feast_view: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return the vectors that ids 1, 2 and 3 get."""

    def run(folder: Path, twins: str) -> list[Any]:
        labels = pd.DataFrame({"id": [1, 2, 3], "event_timestamp": [MOMENT] * 3})
        offline = PitOfflineStoreConfig(twins=twins)
        return historical(offline, [feast_view(folder, features=("vector",))], labels)["view__vector"].to_pylist()

    return run


VECTORS = [[1.0, 0.5], [2.0, 0.5], [3.0, 0.5]]


def test_a_twin_holds_the_rows_sorted_with_vectors_side_by_side(tmp_path: Path) -> None:
    built = twin.build(write(tmp_path / "view/a.parquet"), ["id"])
    table = built.table()
    assert table["id"].to_pylist() == [1, 2, 3]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 2)
    assert table["vector"].to_pylist() == VECTORS
    assert twin.current(tmp_path / "view/a.parquet") == built


def test_rows_that_do_not_make_a_matrix_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for vectors in ([[1.0], [1.0, 2.0]], [[1.0], None], [[1.0], [None]], [[], []]):
        pq.write_table(pa.table({"id": [1, 2], "vector": pa.array(vectors, pa.list_(pa.float32()))}), path)
        assert twin.build(path, ["id"]).table()["vector"].to_pylist() == vectors


def test_a_twin_of_other_bytes_is_not_read(tmp_path: Path, ask: Callable[..., list[Any]]) -> None:
    path = write(tmp_path / "view/a.parquet")
    twin.build(path, ["id"])
    write(path, scale=2.0)
    assert twin.current(path) is None
    assert ask(path.parent, "use") == [[2.0, 0.5], [4.0, 0.5], [6.0, 0.5]]
    assert twin.current(path) is None
    assert ask(path.parent, "build") == [[2.0, 0.5], [4.0, 0.5], [6.0, 0.5]]
    assert twin.current(path) is not None


def test_a_copied_folder_keeps_its_twins_if_the_bytes_are_equal(tmp_path: Path) -> None:
    path = write(tmp_path / "view/a.parquet")
    twin.build(path, ["id"])
    shutil.copytree(path.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = tmp_path / "copy/a.parquet"
    os.utime(twin.twin_path(copy), ns=(1, 1))
    assert twin.current(copy) is not None
    assert twin.twin_path(copy).stat().st_mtime_ns == copy.stat().st_mtime_ns
    # Equal in size, other in content, and younger than its twin: only the hash can tell.
    changed = bytearray(copy.read_bytes())
    changed[20] ^= 1
    copy.write_bytes(changed)
    os.utime(copy, ns=(2, 2))
    assert twin.current(copy) is None


@pytest.mark.parametrize("keep", [0, 10, -20])
def test_a_damaged_twin_is_passed_over(tmp_path: Path, ask: Callable[..., list[Any]], keep: int) -> None:
    path = write(tmp_path / "view/a.parquet")
    place = twin.build(path, ["id"]).path
    place.write_bytes(place.read_bytes()[:keep])
    assert ask(path.parent, "use") == VECTORS
    assert ask(path.parent, "build") == VECTORS
    assert twin.current(path) is not None


def test_where_no_twin_can_be_written_the_parquet_is_read(
    tmp_path: Path, ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "view/a.parquet")

    def refuse(parquet: Path, keys: Any) -> twin.Twin:
        raise LakeError("read-only")

    monkeypatch.setattr(twin, "build", refuse)
    assert ask(path.parent, "build") == VECTORS


def test_other_readers_do_not_see_twins(tmp_path: Path) -> None:
    import duckdb

    path = write(tmp_path / "view/a.parquet")
    twin.build(path, ["id"])
    assert pq.ParquetDataset(path.parent).read().num_rows == 3
    assert duckdb.sql(f"select * from '{path.parent}/**/*.parquet'").to_arrow_table().num_rows == 3
    assert len(pd.read_parquet(path.parent)) == 3


def test_a_folder_is_read_through_twins_and_parquet_alike(tmp_path: Path, ask: Callable[..., list[Any]]) -> None:
    twin.build(write(tmp_path / "view/a.parquet"), ["id"])
    write(tmp_path / "view/b.parquet", scale=10.0, ids=(2,))
    # Equal moments and creation: the last file wins.
    assert ask(tmp_path / "view", "use") == [[1.0, 0.5], [20.0, 0.5], [3.0, 0.5]]


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(LakeError, match=r"gone\.parquet"):
        twin.build(path, ["id"])


def test_vectors_of_a_twin_are_not_copied_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = np.arange(64_000, dtype=np.float32)
    column = pa.ListArray.from_arrays(pa.array(np.arange(1001, dtype=np.int32) * 64), pa.array(values))
    pq.write_table(pa.table({"id": np.arange(1000), "vector": column}), path)
    built = twin.build(path, ["id"])
    before = pa.total_allocated_bytes()
    table = built.table()
    assert pa.total_allocated_bytes() - before < values.nbytes / 10
    assert table["vector"].chunk(0).values.to_numpy().tolist() == values.tolist()


def test_what_all_rows_share_is_noted_and_nothing_else(tmp_path: Path) -> None:
    micros = MOMENT.value // 1000
    assert twin.build(write(tmp_path / "a.parquet"), ["id"]).constants == {"event_timestamp": micros, "created": micros}
    assert twin.build(write(tmp_path / "a.parquet"), ["id"]).ascending
    assert not twin.build(write(tmp_path / "a.parquet", ids=(1, 1, 2)), ["id"]).ascending
    moments = pa.array([MOMENT, MOMENT + pd.Timedelta("1us")], pa.timestamp("us", tz="UTC"))
    gaps = pa.array([MOMENT, None], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"id": [1, 2], "event_timestamp": moments, "created": gaps}), tmp_path / "b.parquet")
    assert twin.build(tmp_path / "b.parquet", ["id"]).constants == {}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_shared_clocks_are_clocks(
    tmp_path: Path, historical: Callable[..., pa.Table], feast_view: Callable[..., Any], strict: bool, late: bool
) -> None:
    """Twins tell the clocks without their rows being read: the same rows must come out, in strict mode too."""
    place = tmp_path / "view"
    place.mkdir()
    for day in range(3):
        moment = MOMENT + pd.Timedelta(days=day)
        written = moment + pd.Timedelta(days=10 if late and day == 1 else 0)
        columns = {
            "id": pa.array([3, 1, 2] if day else [2, 3]),
            "event_timestamp": pa.array([moment] * (3 if day else 2), pa.timestamp("ns", tz="UTC")),
            "created": pa.array([written] * (3 if day else 2), pa.timestamp("ms", tz="UTC")),
            "vector": pa.array([[float(day), 1.0]] * (3 if day else 2), pa.list_(pa.float32())),
        }
        pq.write_table(pa.table(columns), place / f"{day}.parquet")
    labels = pd.DataFrame(
        {"id": [1, 2, 3, 9] * 4, "event_timestamp": [MOMENT + pd.Timedelta(hours=h) for h in range(-12, 84, 6)]}
    )
    found = {
        twins: historical(
            PitOfflineStoreConfig(twins=twins, strict=strict), [feast_view(place, features=("vector",))], labels
        )["view__vector"].to_pylist()
        for twins in ("off", "build")
    }
    assert found["build"] == found["off"]
    assert any(found["off"]) and not all(found["off"])
