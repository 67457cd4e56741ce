"""The reader of lists answers what Feast answers, never what is too old, and never lists of two writes."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import BusyError, ConfigError, InputDataError, NotReadyError, OnlineStoreError
from feature_repo.stores.list_reader import ListReader
from tests.feature_repo.online.conftest import RedisServer, redis_server, shared_redis  # noqa: F401
from tests.feature_repo.online.online_cases import OURS, STOCK, T0, load, rows, store_of, view_of, written

pytestmark = pytest.mark.filterwarnings("ignore")
NOW = T0 + timedelta(hours=1)
FEATURES = {"vector": "vector", "numbers": "numbers", "words": "words"}


@pytest.fixture(params=["sqlite", "redis"])
def online(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the settings of an online store."""
    if request.param == "sqlite":
        return {"type": "sqlite"}
    server: RedisServer = request.getfixturevalue("redis_server")
    return {"type": "redis", "connection_string": server.connection_string}


def lists_of(count: int) -> dict[str, pa.Array]:
    """Return three columns of lists; of every twelve rows one is null, and one is empty, in each column another."""
    words = ["", "żółć 🦊", "a" * 300, "\x00"]
    lists: dict[str, list[Any]] = {
        "vector": [[0.1 * row, -0.0, float("inf")] * (row % 7) for row in range(count)],
        "numbers": [[-(2**63), 2**63 - 1, row, -row][: row % 5] * (row % 3 + 1) for row in range(count)],
        "words": [[words[(row + at) % 4] for at in range(row % 6)] for row in range(count)],
    }
    for shift, column in enumerate(lists.values()):
        for row in range(shift, count, 12):
            column[row] = None
        for row in range(shift + 5, count, 12):
            column[row] = []
    kinds = {"vector": pa.float32(), "numbers": pa.int64(), "words": pa.string()}
    return {name: pa.array(column, pa.list_(kinds[name])) for name, column in lists.items()}


@pytest.mark.parametrize("engine", [STOCK, OURS])
@pytest.mark.parametrize("key", ["int64", "string"])
def test_lists_are_those_that_feast_answers(tmp_path: Path, online: dict[str, Any], engine: str, key: str) -> None:
    ids: list[Any] = [2**63 - 1, -(2**63), 0, -1, *range(5, 50)]
    unknown: Any = 999
    if key == "string":
        ids, unknown = ["", "ä", "日本", "a" * 300, "🦊", *(f"n{i}" for i in range(44))], "nobody"
    path = written(tmp_path / "a.parquet", rows({"key": pa.array(ids), **lists_of(len(ids))}))
    store = store_of(tmp_path / "s", online, engine, [view_of(path, FEATURES, keys={"key": key})])
    load(store)
    asked = [ids[3], unknown, *ids, ids[3]]
    for chosen in (["numbers"], ["words"], ["vector"], ["words", "vector", "numbers"]):
        reader = ListReader(store, "view", chosen)
        answer = reader.read(asked, NOW)
        response = store.get_online_features([f"view:{name}" for name in chosen], [{"key": key} for key in asked])
        wanted = response.to_dict()
        found = [all(wanted[name][row] is not None for name in chosen) for row in range(len(asked))]
        assert answer.found.dtype == np.bool_ and answer.found.tolist() == found
        assert not answer.found[1] and 30 < sum(found) < len(ids)
        assert list(answer.values) == chosen
        for name in chosen:
            expected = [value if there else [] for value, there in zip(wanted[name], found, strict=True)]
            assert repr(answer.values[name]) == repr(expected)
        reader.close()


def test_old_and_future_lists_are_not_found(tmp_path: Path, online: dict[str, Any]) -> None:
    times = [T0, T0 - timedelta(days=7), T0 - timedelta(days=7, seconds=2), T0 + timedelta(minutes=5)]
    numbers = pa.array([[1], [2], [3], [4]])
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(4)), "numbers": numbers}, times))
    view = view_of(path, {"numbers": "numbers"}, ttl=timedelta(days=7, seconds=1))
    store = store_of(tmp_path / "s", online, OURS, [view])
    load(store)
    reader = ListReader(store, "view", ["numbers"])
    answer = reader.read(range(5), T0)
    assert answer.found.tolist() == [True, True, False, False, False]
    assert answer.values == {"numbers": [[1], [2], [], [], []]}
    assert reader.read([3], T0 + timedelta(minutes=6)).values["numbers"] == [[4]]
    assert not reader.read(range(4)).found.any(), "by the wall clock all of it is old"
    with pytest.raises(ValueError, match="time zone"):
        reader.read([1], datetime(2024, 1, 1))  # noqa: DTZ001


def test_what_is_not_read_is_said(tmp_path: Path, online: dict[str, Any]) -> None:
    columns = {"item_id": pa.array([1]), "shop": pa.array([2]), "numbers": pa.array([[1]]), "d": pa.array([0.5])}
    path = written(tmp_path / "a.parquet", rows(columns))
    features = {"numbers": "numbers", "d": "double"}
    pair = view_of(path, features, name="pair", keys={"item_id": "int64", "shop": "int64"})
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, features), pair])
    reader = ListReader(store, "view", ["numbers"])
    nothing = reader.read([], NOW)
    assert nothing.values == {"numbers": []} and nothing.found.shape == (0,)
    assert reader.read([1], NOW).values == {"numbers": [[]]}, "the view is not loaded yet"
    for asked, message in {
        ("view", "other"): "no feature 'other'; it has numbers, d. Name one",
        ("view", "d"): r"view:d is Float64; this reads Array\(Float32\), Array\(Int64\), .* get_online_features",
        ("pair", "numbers"): r"2 join keys \(item_id, shop\); .* get_online_features",
        ("view",): "at least one of numbers, d",
    }.items():
        with pytest.raises(ConfigError, match=message):
            ListReader(store, asked[0], asked[1:])
    with pytest.raises(InputDataError, match="int64"):
        reader.read(["1"])


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1, 2, 3]), "numbers": pa.array([[1]] * 3)}))
    store = store_of(tmp_path / "s", {"type": "sqlite"}, OURS, [view_of(path, {"numbers": "numbers"})])
    load(store)
    reader = ListReader(store, "view", ["numbers"], wait_seconds=0.1)
    for stored, said in {b"\x20\x05": "int64_val", b"\xff": "no Feast value"}.items():
        with closing(sqlite3.connect(tmp_path / "s" / "online.db")) as connection, connection:
            connection.execute("UPDATE shop_view SET value = ?", (stored,))
        with pytest.raises(OnlineStoreError, match=f"is {said}, not int64_list_val.* materialize the view again"):
            reader.read([1], NOW)
    with closing(sqlite3.connect(tmp_path / "s" / "online.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError):
            reader.read([1], NOW)
    reader.close()
    (tmp_path / "s" / "online.db").unlink()
    with pytest.raises(NotReadyError, match="feast apply"):
        ListReader(store, "view", ["numbers"]).read([1], NOW)


def test_lists_of_one_id_are_of_one_write(tmp_path: Path, online: dict[str, Any]) -> None:
    """Two lists that are written together, over and over with the same clock, are never read from two writes."""
    path = tmp_path / "a.parquet"
    names = {"numbers": "numbers", "words": "words"}
    online = {**online, **({"skip_dedup": True} if online["type"] == "redis" else {})}
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, names)])
    ids = list(range(200))

    def write(value: int) -> None:
        columns = {"numbers": pa.array([[value]] * len(ids)), "words": pa.array([[str(value)]] * len(ids))}
        written(path, rows({"item_id": pa.array(ids), **columns}))
        load(store)

    write(0)
    reader, torn, reads, over = ListReader(store, "view", list(names)), 0, 0, threading.Event()

    def ask() -> None:
        nonlocal torn, reads
        while not over.is_set():
            answer = reader.read(ids, NOW)
            reads += 1
            pairs = zip(answer.values["numbers"], answer.values["words"], strict=True)
            torn += sum([str(number) for number in numbers] != words for numbers, words in pairs)

    thread = threading.Thread(target=ask)
    thread.start()
    for value in range(1, 12):
        write(value)
    over.set()
    thread.join()
    assert reads > 5 and torn == 0
    assert reader.read([7], NOW).values == {"numbers": [[11]], "words": [["11"]]}
