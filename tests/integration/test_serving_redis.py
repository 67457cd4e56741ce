"""Serving with users in Redis: a real server, killed, frozen and started again while requests come in."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
import yaml

import jobs.store
from benchmarks import online_home
from feature_repo.contracts.errors import NotReadyError
from feature_repo.stores import online_redis
from jobs import audit, materialize
from jobs.serving.background import free_port, serving
from jobs.serving.holder import Holder
from tests.integration.http_client import call
from tests.integration.small_server import USERS, settings, small_home

pytestmark = pytest.mark.filterwarnings("ignore")


class Server:
    """A Redis server that writes every command to its file, so that it comes back with what it had."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                redis.Redis(port=self.port).ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start one, and let the profile for Redis name it."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    found = Server(tmp_path)
    profile = yaml.safe_load((jobs.store.REPOSITORY / "profiles" / "redis.yaml").read_text(encoding="utf-8"))
    profile["online_store"]["connection_string"] = f"127.0.0.1:{found.port}"
    (tmp_path / "redis.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    monkeypatch.setattr(jobs.store, "settings_file", lambda: tmp_path / "redis.yaml")
    found.start()
    yield found
    found.kill()


def test_redis_goes_away_and_comes_back(server: Server, tmp_path: Path) -> None:
    ws = small_home(tmp_path / "home")
    with serving(settings(ws, timeout_s=2.0)) as url:
        expected = {user: ask(url, user)[1]["items"] for user in range(USERS)}
        assert all(len(items) == 5 for items in expected.values())
        answers: list[tuple[int, int, Any]] = []
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                user = len(answers) % USERS
                answers.append((user, *ask(url, user)))

        thread = threading.Thread(target=keep_asking)
        thread.start()
        wait_for(answers, 200)
        server.kill()
        wait_for(answers, 503)
        server.start()
        wait_for(answers, 200)
        # One that hangs is worse than one that is gone: requests end in time all the same.
        server.process.send_signal(signal.SIGSTOP)
        wait_for(answers, 504)
        server.process.send_signal(signal.SIGCONT)
        wait_for(answers, 200)
        stop.set()
        thread.join()
    assert {status for _, status, _ in answers} == {200, 503, 504}
    for user, status, answer in answers:
        if status == 200:
            assert answer["fallback"] is None
            for item, wanted in zip(answer["items"], expected[user], strict=True):
                assert item == pytest.approx(wanted)
        elif status == 503:
            assert answer["error"]["code"] == "unavailable" and "store" in answer["error"]["message"]
    result = audit.run(ws)
    assert result.passed and result.rows_exact == result.rows > 0


def test_redis_comes_back_empty(server: Server, tmp_path: Path) -> None:
    """Users that it forgot are not served as users that nobody knew."""
    ws = small_home(tmp_path / "home")
    with serving(settings(ws, timeout_s=2.0)) as url:
        expected = {user: ask(url, user)[1]["items"] for user in (0, 7, USERS - 1)}
        unknown = ask(url, USERS + 5)
        assert unknown[0] == 200 and unknown[1]["fallback"] == "popular"
        redis.Redis(port=server.port).flushall()
        for user in (*expected, USERS + 5):
            status, answer = ask(url, user)
            assert status == 503 and answer["error"]["code"] == "unavailable", answer
        wait_until(lambda: call(f"{url}/readyz")[1]["behind"])
        materialize.run(ws, materialize.last_available(ws, online_home.NOW), again=True)
        for user, items in expected.items():
            status, answer = ask(url, user)
            assert status == 200 and [item["item_id"] for item in answer["items"]] == [i["item_id"] for i in items]
        wait_until(lambda: not call(f"{url}/readyz")[1]["behind"])
    redis.Redis(port=server.port).flushall()
    with pytest.raises(NotReadyError, match="materialize --again"):
        Holder(settings(ws)).refresh()


def test_redis_forgets_what_users_chose(server: Server, tmp_path: Path) -> None:
    """Retrieval without what it was released with is no answer, though every vector is there."""
    ws = small_home(tmp_path / "home")
    store = redis.Redis(port=server.port)
    with serving(settings(ws, timeout_s=2.0)) as url:
        status, answer = call(f"{url}/v1/retrieve", {"user_id": 3, "k": 20})
        chosen = pl.read_parquet(ws.home.lake / "user_choices" / "*.parquet").filter(pl.col("user_id") == 3)["items"][0]
        assert status == 200 and set(chosen) > {item["item_id"] for item in answer["items"][:5]}
        fields = [online_redis._feature_field("user_choices", name) for name in ("items", "strengths", "available_us")]
        for key in store.scan_iter():
            store.hdel(key, online_redis._clock_field("user_choices"), *fields)
        status, answer = call(f"{url}/v1/retrieve", {"user_id": 3, "k": 20})
        assert status == 503 and answer["error"]["code"] == "unavailable", answer
        wait_until(lambda: call(f"{url}/readyz")[1]["behind"])
        materialize.run(ws, materialize.last_available(ws, online_home.NOW), again=True)
        status, again = call(f"{url}/v1/retrieve", {"user_id": 3, "k": 20})
        assert status == 200 and set(chosen) > {item["item_id"] for item in again["items"][:5]}


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def ask(url: str, user: int) -> tuple[int, Any]:
    return call(f"{url}/v1/recommend", {"user_id": user, "k": 5, "candidates": 50, "context": {"hour": 9}})


def wait_for(answers: list[tuple[int, int, Any]], status: int) -> None:
    """Wait for an answer of some status that is given from here on."""
    seen, end = len(answers), time.monotonic() + 40
    while not any(found == status for _, found, _ in answers[seen + 1 :]):
        assert time.monotonic() < end, (status, answers[-1:])
        time.sleep(0.02)
