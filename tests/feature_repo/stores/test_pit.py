"""What the interface promises, one case each: names, keys, clocks and refusals."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import ConfigError, InputDataError, LakeError
from feature_repo.stores.clocks import MISSING, microseconds
from feature_repo.stores.pit import PitOfflineStoreConfig

PIT = PitOfflineStoreConfig()
Ask = Callable[..., pa.Table]
MakeView = Callable[..., Any]


def clock(seconds: list[Any], unit: str = "us", zone: str | None = "UTC") -> pa.Array:
    """Return timestamps from seconds since 1970."""
    micros = [None if value is None else round(value * 1_000_000) for value in seconds]
    return pa.array(micros, pa.timestamp("us", tz=zone)).cast(pa.timestamp(unit, tz=zone))


def rows(folder: Path, **columns: Any) -> Path:
    """Write two rows of keys 1 and 2 at 10 s."""
    path = folder / "rows.parquet"
    base = {"id": [1, 2], "event_timestamp": clock([10, 10]), "created": clock([10, 10]), "number": [10, 20]}
    pq.write_table(pa.table(base | columns), path)
    return path


def labels(**columns: Any) -> pd.DataFrame:
    """Return labels at 20 s."""
    count = len(next(iter(columns.values())))
    return pd.DataFrame(columns | {"event_timestamp": pd.to_datetime([20] * count, unit="s", utc=True)})


def test_a_join_key_may_have_another_name_among_the_labels(
    tmp_path: Path, feast_view: MakeView, historical: Ask
) -> None:
    view = feast_view(rows(tmp_path), features=("number",))
    seen, saw = (view.with_name(name).with_join_key_map({"id": f"{name}_id"}) for name in ("seen", "saw"))
    result = historical(PIT, [seen, saw], labels(seen_id=[1, 2], saw_id=[2, 3]))
    assert result["seen__number"].to_pylist() == [10, 20]
    assert result["saw__number"].to_pylist() == [20, None]


def test_stored_names_are_mapped_to_the_views_names(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    path = tmp_path / "mapped.parquet"
    columns = {"key": [1, 2], "when": clock([10, 10]), "written": clock([10, 10]), "n": [10, 20]}
    pq.write_table(pa.table(columns), path)
    mapping = {"key": "id", "n": "number", "when": "event_timestamp", "written": "created"}
    view = feast_view(path, features=("number",), field_mapping=mapping)
    assert historical(PIT, [view], labels(id=[2]))["view__number"].to_pylist() == [20]


def test_short_names_must_not_meet(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    view = feast_view(rows(tmp_path), features=("number",))
    assert historical(PIT, [view], labels(id=[1]), full=False)["number"].to_pylist() == [10]
    with pytest.raises(InputDataError, match="would be there twice"):
        historical(PIT, [view], labels(id=[1], number=[0]), full=False)


def test_only_what_is_asked_for_is_read(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    view = feast_view(rows(tmp_path, text=["a", "b"]), features=("number", "text"))
    result = historical(PIT, [view], labels(id=[1]), refs=["view:text"])
    assert result.column_names == ["id", "event_timestamp", "view__text"]


def test_integer_keys_of_any_width_meet_and_text_is_refused(
    tmp_path: Path, feast_view: MakeView, historical: Ask
) -> None:
    view = feast_view(rows(tmp_path, id=pa.array([1, 2], pa.int16())), features=("number",))
    assert historical(PIT, [view], labels(id=np.array([2], np.uint8)))["view__number"].to_pylist() == [20]
    assert historical(PIT, [view], labels(id=[2.0, None]))["view__number"].to_pylist() == [20, None]
    for keys in (["2"], [2.5]):
        with pytest.raises(InputDataError, match="'id'"):
            historical(PIT, [view], labels(id=keys))


def test_partition_columns_are_read_as_feast_reads_them(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    for number in (1, 2):
        folder = tmp_path / "parts" / f"number={number}"
        folder.mkdir(parents=True)
        pq.write_table(
            pa.table({"id": [number], "event_timestamp": clock([10]), "created": clock([10])}), folder / "a.parquet"
        )
    view = feast_view(tmp_path / "parts/*/*.parquet", features=("number",))
    assert historical(PIT, [view], labels(id=[2, 1]))["view__number"].to_pylist() == [2, 1]


@pytest.mark.parametrize(("given", "says"), [(None, "are nothing"), (" select * from labels", "no SQL")])
def test_labels_that_are_no_frame_and_no_file_are_refused(
    tmp_path: Path, feast_view: MakeView, historical: Ask, given: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        historical(PIT, [feast_view(rows(tmp_path))], given)


def test_missing_files_and_columns_are_named(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    with pytest.raises(LakeError, match=r"nowhere\.parquet"):
        historical(PIT, [feast_view(tmp_path / "nowhere.parquet")], labels(id=[1]))
    with pytest.raises(LakeError, match="nobody"):
        historical(PIT, [feast_view(rows(tmp_path), features=("number",))], str(tmp_path / "nobody*.parquet"))
    with pytest.raises(InputDataError, match="'id': is missing"):
        historical(PIT, [feast_view(rows(tmp_path), features=("number",))], labels(other=[1]))


def test_a_time_of_creation_without_a_zone_orders_but_cannot_be_strict(
    tmp_path: Path, feast_view: MakeView, historical: Ask
) -> None:
    path = rows(tmp_path, id=[1, 1], created=clock([12, 11], zone=None))
    view = feast_view(path, features=("number",))
    assert historical(PIT, [view], labels(id=[1]))["view__number"].to_pylist() == [10]
    with pytest.raises(InputDataError, match="'created': has timestamps without a time zone"):
        historical(PitOfflineStoreConfig(strict=True), [view], labels(id=[1]))


def test_rounding_shows_no_row_to_an_earlier_label() -> None:
    nanoseconds = pa.array([1_999, 2_000, -1, None], pa.timestamp("ns", tz="UTC"))
    assert microseconds(nanoseconds, "up", file="f", name="n").tolist() == [2, 2, 0, MISSING]
    assert microseconds(nanoseconds, "down", file="f", name="n").tolist() == [1, 2, -1, MISSING]
    seconds = pa.array([-3, None], pa.timestamp("s", tz="UTC"))
    assert microseconds(seconds, "up", file="f", name="n").tolist() == [-3_000_000, MISSING]
    with pytest.raises(InputDataError, match="beyond microseconds"):
        microseconds(pa.array([2**60], pa.timestamp("s", tz="UTC")), "up", file="f", name="n")
    with pytest.raises(InputDataError, match="not a timestamp"):
        microseconds(pa.array(["2024-01-01"]), "up", file="f", name="n")


def test_two_versions_of_an_embedding_side_by_side(tmp_path: Path, feast_view: MakeView, historical: Ask) -> None:
    views = []
    for number, width in ((1, 2), (2, 3)):
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        vectors = pa.array([[float(number)] * width, [2.0 * number] * width], pa.list_(pa.float32()))
        ttl = timedelta(seconds=5 * number)
        views.append(feast_view(rows(folder, vector=vectors), f"embedding_v{number}", features=("vector",), ttl=ttl))
    result = historical(PIT, views, labels(id=[1, 2]))
    assert result["embedding_v1__vector"].to_pylist() == [None, None]
    assert result["embedding_v2__vector"].to_pylist() == [[2.0] * 3, [4.0] * 3]


def test_shards_are_equal_in_every_form_and_chunk(
    tmp_path: Path, feast_view: MakeView, job: Callable[..., Any]
) -> None:
    count = 25_000
    path = tmp_path / "rows.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(count * 2, dtype=np.float32)), 2)
    columns = {"id": np.arange(count), "event_timestamp": clock([10] * count), "created": clock([10] * count)}
    pq.write_table(pa.table(columns | {"vector": vectors}), path, row_group_size=1000)
    frame = labels(id=np.random.default_rng(0).integers(0, count + 10, 3 * count))
    view = feast_view(path, features=("vector",))
    whole = job(PIT, [view], frame).to_arrow()
    # The smallest limit makes chunks of the least size, 10,000 labels.
    small = PitOfflineStoreConfig(memory_limit_gb=0.26)
    for form in ("parquet", "arrow"):
        files = job(small, [view], frame).to_shards(tmp_path / form, 30_000, form=form)
        assert len(files) == 3
        parts = [pa.ipc.open_file(file).read_all() if form == "arrow" else pq.read_table(file) for file in files]
        assert pa.concat_tables(parts).cast(whole.schema).equals(whole)
