"""The reader and the bank answer what Feast answers, and never what is too old."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ConfigError, InputDataError, LakeError, NotReadyError, OnlineStoreError
from feature_repo.stores.bank import ItemBank
from feature_repo.stores.packed import EmbeddingReader
from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import CLOCK, OURS, STOCK, T0, load, rows, store_of, view_of, written

pytestmark = pytest.mark.filterwarnings("ignore")
NOW = T0 + timedelta(hours=1)


@pytest.fixture(params=["sqlite", "redis"])
def online(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the settings of an online store."""
    if request.param == "sqlite":
        return {"type": "sqlite"}
    server: RedisServer = request.getfixturevalue("redis_server")
    return {"type": "redis", "connection_string": server.connection_string}


def vectors_of(count: int, dim: int) -> pa.Array:
    numbers = np.random.default_rng(dim).normal(size=(count, dim)).astype(np.float32)
    numbers[0, :] = [-0.0, np.inf, -np.inf, np.nan, 1e-45][: min(dim, 5)] + [0.0] * max(dim - 5, 0)
    return pa.array(list(numbers), pa.list_(pa.float32()))


@pytest.mark.parametrize("engine", [STOCK, OURS])
@pytest.mark.parametrize("dim", [1, 64, 512])
def test_bits_equal_to_what_feast_answers(tmp_path: Path, online: dict[str, Any], engine: str, dim: int) -> None:
    ids = [2**63 - 1, -(2**63), 0, -1, *range(5, 30)]
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(ids), "vector": vectors_of(len(ids), dim)}))
    store = store_of(tmp_path / "s", online, engine, [view_of(path, {"vector": "vector"})])
    load(store)
    reader = EmbeddingReader(store, "view", "vector")
    asked = [ids[3], 999, *ids, ids[3]]
    answer = reader.read(asked, NOW)
    response = store.get_online_features(["view:vector"], [{"item_id": key} for key in asked]).to_dict()["vector"]
    wanted = np.array([[0.0] * dim if vector is None else vector for vector in response], np.float32)
    assert answer.vectors.dtype == np.float32 and answer.vectors.shape == (len(asked), dim)
    assert answer.found.tolist() == [vector is not None for vector in response]
    assert np.array_equal(answer.vectors.view(np.uint32), wanted.view(np.uint32))
    assert np.isnan(answer.age[1]) and np.allclose(np.delete(answer.age, 1), 3600, atol=1.0)
    bank = ItemBank(path, "item_id", "vector")
    same = bank.read(asked, NOW)
    assert np.array_equal(same.vectors.view(np.uint32), wanted.view(np.uint32))
    assert np.array_equal(same.found, answer.found) and reader.dim == bank.dim == dim
    reader.close()


def test_string_ids(tmp_path: Path, online: dict[str, Any]) -> None:
    names = ["", "ä", "日本", "a" * 300, "🦊", "b"]
    path = written(tmp_path / "a.parquet", rows({"name": pa.array(names), "vector": vectors_of(6, 3)}))
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector"}, keys={"name": "string"})])
    load(store)
    asked = ["nobody", *reversed(names), "zz"]
    for source in (EmbeddingReader(store, "view", "vector"), ItemBank(path, "name", "vector")):
        answer = source.read(asked, NOW)
        assert answer.found.tolist() == [False, *[True] * 6, False]
        assert np.array_equal(answer.vectors[1:7], np.stack(vectors_of(6, 3).to_pylist()[::-1]).astype("f4"), True)
        with pytest.raises(InputDataError, match="name"):
            source.read([1, 2])


def test_old_and_future_vectors_are_not_found(tmp_path: Path, online: dict[str, Any]) -> None:
    times = [T0, T0 - timedelta(days=7), T0 - timedelta(days=7, seconds=2), T0 + timedelta(minutes=5)]
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(4)), "vector": vectors_of(4, 2)}, times))
    week = timedelta(days=7, seconds=1)
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector"}, ttl=week)])
    load(store)
    for source in (EmbeddingReader(store, "view", "vector"), ItemBank(path, "item_id", "vector", ttl=week)):
        answer = source.read(range(5), T0)
        assert answer.found.tolist() == [True, True, False, False, False]
        assert not answer.vectors[2:].any()
        assert answer.age[2] == pytest.approx(7 * 86400 + 2, abs=1) and np.isnan(answer.age[4])
        assert source.read([3], T0 + timedelta(minutes=6)).found.all()
        assert not source.read(range(4)).found.any(), "by the wall clock all of it is old"
        with pytest.raises(ValueError, match="time zone"):
            source.read([1], datetime(2024, 1, 1))  # noqa: DTZ001
    strict = EmbeddingReader(store, "view", "vector", max_age=timedelta(days=1))
    assert strict.read(range(4), T0).found.tolist() == [True, False, False, False]


def test_null_vectors_and_other_widths(tmp_path: Path, online: dict[str, Any]) -> None:
    vectors = pa.array([[1.0, 2.0], None, [3.0]], pa.list_(pa.float32()))
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1, 2, 3]), "vector": vectors}))
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector"})])
    load(store)
    reader = EmbeddingReader(store, "view", "vector")
    answer = reader.read([1, 2], NOW)
    assert answer.found.tolist() == [True, False] and answer.vectors.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    with pytest.raises(OnlineStoreError, match="1 of 2 stored values are not vectors of 2 floats"):
        reader.read([1, 3], NOW)
    with pytest.raises(LakeError, match="one width"):
        ItemBank(path, "item_id", "vector")


def test_nothing_asked_and_nothing_there(tmp_path: Path, online: dict[str, Any]) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1]), "vector": vectors_of(1, 2)}))
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector", "d": "double"})])
    reader = EmbeddingReader(store, "view", "vector")
    assert reader.read([], NOW).vectors.shape == (0, 0)
    assert not reader.read([1, 2], NOW).found.any()
    for view, feature in (("view", "d"), ("view", "other")):
        with pytest.raises(ConfigError, match=feature):
            EmbeddingReader(store, view, feature)
    with pytest.raises(InputDataError, match="int64"):
        reader.read(["1"])


def test_a_missing_sqlite_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1]), "vector": vectors_of(1, 2)}))
    store = store_of(tmp_path / "s", {"type": "sqlite"}, OURS, [view_of(path, {"vector": "vector"})])
    (tmp_path / "s" / "online.db").unlink()
    with pytest.raises(NotReadyError, match="feast apply"):
        EmbeddingReader(store, "view", "vector").read([1], NOW)


def test_threads_share_a_reader(tmp_path: Path, online: dict[str, Any]) -> None:
    vectors = vectors_of(300, 8)
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(300)), "vector": vectors}))
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector"})])
    load(store)
    reader = EmbeddingReader(store, "view", "vector")
    wanted = np.stack(vectors.to_pylist()).astype(np.float32)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(20):
            ids = draw.integers(0, 300, 50)
            if not np.array_equal(reader.read(ids, NOW).vectors, wanted[ids], equal_nan=True):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bank_refuses_ids_that_occur_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1, 1]), "vector": vectors_of(2, 2)}))
    with pytest.raises(LakeError, match="twice"):
        ItemBank(path, "item_id", "vector")


def test_a_bank_follows_its_snapshot(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([2, 1]), "vector": vectors_of(2, 2)}))
    before = ItemBank(path, "item_id", "vector")
    again = pa.table(
        {
            "item_id": pa.array([7]),
            "vector": pa.array([[5.0, 6.0]], pa.list_(pa.float32())),
            "event_timestamp": pa.array([datetime(2024, 1, 1, tzinfo=UTC)], CLOCK),
        }
    )
    written(path, again)
    after = ItemBank(path, "item_id", "vector")
    assert after.read([7, 2], NOW).vectors.tolist() == [[5.0, 6.0], [0.0, 0.0]]
    assert before.read([2, 7], NOW).found.tolist() == [True, False], "what is mapped stays what it was"
