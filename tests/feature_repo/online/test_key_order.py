"""Batches for SQLite come in the order of keys, whatever the order, number and size of the stored parts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.stores.key_order import ordered
from tests.feature_repo.online.online_cases import OURS, load, rows, store_of, view_of, written

pytestmark = pytest.mark.filterwarnings("ignore")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 20), max_size=6),
    rows_at_once=st.integers(1, 25),
    piece=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_every_row_once_and_in_order(
    tmp_path: Path, sizes: list[int], rows_at_once: int, piece: int, seed: int
) -> None:
    ranks = np.random.default_rng(seed).permutation(sum(sizes))
    # Dictionaries that differ between parts, and lists with nulls: what a Parquet file may hold.
    whole = pa.table(
        {
            "rank": pa.array(ranks),
            "text": pa.array([f"t{rank}" for rank in ranks], pa.string()),
            "vector": pa.array(
                [None if rank % 5 == 0 else [rank / 2] * (rank % 3) for rank in ranks], pa.list_(pa.float32())
            ),
        }
    )
    cuts = np.cumsum([0, *sizes])
    parts = [whole.slice(start, size) for start, size in zip(cuts, sizes, strict=False)]
    parts = [part.set_column(1, "text", part["text"].dictionary_encode()) for part in parts]
    pieces = list(ordered(parts, ranks, rows_at_once, piece, tmp_path))
    found = [table.cast(whole.schema) for table, _ in pieces]
    ends = np.flatnonzero([last for _, last in pieces])
    chunks = np.diff(np.cumsum([0, *(table.num_rows for table in found)])[[0, *(ends + 1)]])
    assert not len(pieces) or ends[-1] == len(pieces) - 1
    assert (chunks[:-1] == rows_at_once).all() and all(table.num_rows <= piece for table in found)
    assert sum(table.num_rows for table in found) == sum(sizes)
    if sum(sizes):
        assert pa.concat_tables(found).combine_chunks() == whole.take(pa.array(np.argsort(ranks))).combine_chunks()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["int64", "int32", "string"])
def test_sqlite_gets_its_rows_in_the_order_of_keys(tmp_path: Path, key: str) -> None:
    draw = np.random.default_rng(3)
    numbers = draw.permutation(np.arange(-200, 200)) * 77
    ids = [str(number) for number in numbers] if key == "string" else numbers
    kind = {"int64": pa.int64(), "int32": pa.int32(), "string": pa.string()}[key]
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(ids, kind), "d": pa.array(numbers / 2)}))
    engine = {"type": OURS, "chunk_mb": 0.001}
    view = view_of(path, {"d": "double"}, keys={"item_id": key})
    load(store_of(tmp_path / "s", {"type": "sqlite"}, engine, [view]))
    connection = sqlite3.connect(tmp_path / "s" / "online.db")
    keys = [key for (key,) in connection.execute("SELECT entity_key FROM shop_view ORDER BY rowid")]
    connection.close()
    assert len(keys) == 400 and keys == sorted(keys)


def test_a_database_that_is_not_utf8_goes_the_way_of_feast(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s").mkdir()
    connection = sqlite3.connect(tmp_path / "s" / "online.db")
    connection.executescript("PRAGMA encoding = 'UTF-16'; CREATE TABLE other (x);")
    connection.close()
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1]), "s": pa.array(["żółć"])}))
    store = store_of(tmp_path / "s", {"type": "sqlite"}, OURS, [view_of(path, {"s": "string"})])
    load(store)
    assert "UTF-16" in caplog.text
    assert store.get_online_features(["view:s"], [{"item_id": 1}]).to_dict()["s"] == ["żółć"]
