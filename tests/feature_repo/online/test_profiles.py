"""Profiles are the same definitions on other stores, and the platform's own stores are loaded directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

import jobs.store
from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import Home
from feature_repo.stores.packed import EmbeddingReader
from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import OURS, T0, load, rows, store_of, view_of, written

pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = Path(jobs.store.REPOSITORY)


def test_redis_differs_from_the_default_in_the_online_store_alone() -> None:
    default = yaml.safe_load((FOLDER / "feature_store.yaml").read_text(encoding="utf-8"))
    redis = yaml.safe_load((FOLDER / "profiles/redis.yaml").read_text(encoding="utf-8"))
    assert default.pop("online_store") != redis.pop("online_store")
    # What one registry says about up to when a store was loaded must not be taken for the other's.
    assert default["registry"].pop("path") != redis["registry"].pop("path")
    assert default == redis


def test_the_profile_is_chosen_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "redis")
    config = jobs.store.open_store(Home(tmp_path)).config
    assert config.online_store.type == "feature_repo.stores.spaces_redis.SpaceRedisOnlineStore"
    assert config.registry.path == str(tmp_path / "feast" / "registry-redis.db")
    monkeypatch.setenv("HEADWATER_PROFILE", "paper")
    with pytest.raises(ConfigError, match="there are postgres, redis"):
        jobs.store.open_store(Home(tmp_path))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_stores_that_check_spaces_are_packed_too(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    online: dict[str, Any] = {"type": "feature_repo.stores.spaces.SpaceSqliteOnlineStore", "path": str(tmp_path / "o")}
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        plug_in = "feature_repo.stores.spaces_redis.SpaceRedisOnlineStore"
        online = {"type": plug_in, "connection_string": server.connection_string}
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1, 2]), "vector": vectors}))
    store = store_of(tmp_path / "s", online, OURS, [view_of(path, {"vector": "vector"})])
    load(store)
    assert not [record for record in caplog.records if "Feast's own way" in record.message]
    answer = EmbeddingReader(store, "view", "vector").read([2, 1], T0)
    assert np.array_equal(answer.vectors, [[3.0, 4.0], [1.0, 2.0]])
    assert store.get_online_features(["view:vector"], [{"item_id": 2}]).to_dict()["vector"] == [[3.0, 4.0]]
