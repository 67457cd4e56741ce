"""A server that is stopped, killed, overrun, asked too slowly, or whose store goes away; and text for ids."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from jobs import audit
from jobs.serving import worker
from jobs.serving.background import serving
from jobs.serving.feature_log import FLUSH_SECONDS, log_folder
from jobs.workspace import Workspace
from tests.integration.http_client import call
from tests.integration.small_server import ITEMS, USERS, served, settings, small_home

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_home(tmp_path_factory.mktemp("small") / "home")


def logged(ws: Workspace) -> set[str]:
    """Return the requests that the log holds."""
    files = list(log_folder(ws.home).glob("*/*.parquet"))
    return {name for file in files for name in pl.read_parquet(file, columns=["request_id"])["request_id"].to_list()}


def recommend(url: str, user: Any) -> tuple[int, Any]:
    return call(f"{url}/v1/recommend", {"user_id": user, "k": 5, "candidates": 50, "context": {"hour": 9}})


def metric(url: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    status, text = call(f"{url}/metrics")
    assert status == 200
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def agree(url: str, name: str, value: float) -> None:
    """Scrape again and again, each time on a connection of its own, so that either worker answers some."""
    until(lambda: [metric(url, name) for _ in range(8)] == [value] * 8)  # a request is counted after its answer


# One request at a time or several at once: the scores are those of the trained model


def test_requests_are_ranked_as_the_trained_model_ranks_them(home: Workspace) -> None:
    from jobs.serving.holder import Holder
    from jobs.serving.served import Question

    held = Holder(settings(home))
    held.refresh()
    unknown = [10**7, 3, 10**7 + 1]
    questions = [
        Question(1, list(range(ITEMS)), {"hour": 9}),
        Question(10**7, [*unknown, *range(20)], {}),
        Question(2, [], {"hour": 3}),
        Question(2, [5], {"hour": 3}),
    ]
    now = settings(home).moment()
    assert held.served.score(held.served.rows([questions[2]], now))["ctr"].shape == (0,)
    for task, ranker in held.served.rankers.items():
        inputs = held.served.inputs[task]
        for some in (questions, *([question] for question in questions if question.item_ids)):
            rows = held.served.rows(some, now)
            with torch.inference_mode():
                trained = ranker.saved.model(inputs.batch(rows))
            found = torch.cat([inputs.ready(*request) for request in inputs.requests(rows)])
            torch.testing.assert_close(found, trained, atol=2e-6, rtol=0)


# Two workers count together, one is killed, and a stop answers what is in flight


def test_two_workers(home: Workspace) -> None:
    answered = 'headwater_requests_total{path="/v1/recommend",status="200"}'
    with served(home, "--workers", "2") as (url, port, process):
        until(lambda: metric(url, "headwater_switches_total") == 2, 200)  # both have loaded
        answers = [recommend(url, user) for user in range(USERS)]
        assert {status for status, _ in answers} == {200}
        agree(url, re.escape(answered), USERS)
        agree(url, "headwater_requests_in_flight", 1)  # the scrape
        first = workers(home, process)
        assert len(first) == 2
        time.sleep(2 * FLUSH_SECONDS)
        os.kill(first.pop(), signal.SIGKILL)
        # A killed process loses the last second of its log, and no more.
        assert {answer["request_id"] for _, answer in answers} <= logged(home)
        assert sum(status == 200 for status in (recommend_again(url, user) for user in range(10))) == 10
        agree(url, re.escape(answered), USERS + 10)
        agree(url, "headwater_requests_in_flight", 1)
        until(lambda: metric(url, "headwater_switches_total") == 3, 200)  # another one has taken its place
        stopped_in_flight(home, url, port, process)


def workers(ws: Workspace, process: subprocess.Popen[bytes]) -> set[int]:
    """Return the processes that have counted something."""
    counted = (ws.home.root / "serving").glob("metrics-*/counter_*.db")
    return {int(file.stem.rsplit("_", 1)[1]) for file in counted} - {process.pid}


def recommend_again(url: str, user: int) -> int:
    """Ask, and once more where the connection fell to the worker that was killed."""
    try:
        return recommend(url, user)[0]
    except OSError:
        return recommend(url, user)[0]


def stopped_in_flight(ws: Workspace, url: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """SIGTERM with requests in flight: all of them are answered and logged, and nobody gets in after them."""
    count = 60
    ranked = re.escape('headwater_requests_total{path="/v1/rank",status="200"}')
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)]
    items = [number % ITEMS for number in range(1_000)]
    for number, connection in enumerate(connections):
        body = json.dumps({"user_id": number % USERS, "item_ids": items})
        connection.request("POST", "/v1/rank", body, {"content-type": "application/json"})

    # The scrape itself is in flight, too.
    until(lambda: metric(url, ranked) + metric(url, "headwater_requests_in_flight") - 1 >= count)
    process.send_signal(signal.SIGTERM)
    answers = [connection.getresponse() for connection in connections]
    bodies = [json.loads(answer.read()) for answer in answers]
    assert {answer.status for answer in answers} == {200}
    assert process.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert {body["request_id"] for body in bodies} <= logged(ws)


# Limits


def test_a_slow_body_is_given_up_and_blocks_nobody(home: Workspace) -> None:
    with serving(settings(home, body_s=0.5)) as url:
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            slow.sendall(b'content-length: 100\r\n\r\n{"user_id"')
            assert recommend(url, 1)[0] == 200
            answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"slow_request" in answer


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let nothing be computed before the event is set; the server has been warmed by then."""
    go, compute = threading.Event(), worker.compute

    def wait(*arguments: Any) -> Any:
        go.wait(30)
        return compute(*arguments)

    monkeypatch.setattr(worker, "compute", wait)
    yield go
    go.set()


def test_a_full_queue_turns_requests_away(home: Workspace, held: threading.Event) -> None:
    with serving(settings(home, queue=2)) as url, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(recommend, url, 0)]
        until(
            lambda: metric(url, "headwater_requests_in_flight") == 2 and metric(url, "headwater_waiting_requests") == 0
        )
        accepted += [pool.submit(recommend, url, user) for user in (1, 2)]
        until(lambda: metric(url, "headwater_waiting_requests") == 2)
        status, answer = recommend(url, 3)
        assert status == 503 and answer["error"]["code"] == "busy" and "again" in answer["error"]["message"]
        held.set()
        assert [request.result()[0] for request in accepted] == [200, 200, 200]
        assert recommend(url, 3)[0] == 200


def test_what_takes_too_long_is_given_up(home: Workspace, held: threading.Event) -> None:
    with serving(settings(home, timeout_s=0.3)) as url:
        status, answer = recommend(url, 1)
        assert status == 504 and answer["error"]["code"] == "timeout"
        held.set()
        until(lambda: recommend(url, 1)[0] == 200)


# Text for ids


def test_text_for_ids(tmp_path: Path) -> None:
    ws = small_home(tmp_path / "home", text_ids=True)
    with serving(settings(ws)) as url:
        status, answer = recommend(url, "user-3")
        assert status == 200 and answer["fallback"] is None
        items = [item["item_id"] for item in answer["items"]]
        assert len(items) == 5 and all(re.fullmatch(r"item-\d+", item) for item in items)
        asked = {"user_id": "user-3", "item_ids": [*items, "item-none", "ítem ✓"], "context": {"hour": 9}}
        status, ranked = call(f"{url}/v1/rank", asked)
        assert status == 200 and [item["item_id"] for item in ranked["items"]] == asked["item_ids"]
        for one, other in zip(ranked["items"], answer["items"], strict=False):
            assert one["score"] == pytest.approx(other["score"], rel=1e-5)
        status, found = call(f"{url}/v1/embeddings", {"entity": "user", "ids": ["user-0", "user-x"]})
        assert status == 200 and found["found"] == [True, False]
        excluding = {"user_id": "user-3", "k": 5, "exclude": items[:2]}
        _, nearest = call(f"{url}/v1/retrieve", excluding)
        chosen = pl.read_parquet(ws.home.lake / "user_choices" / "*.parquet").filter(pl.col("user_id") == "user-3")
        assert set(chosen["items"][0]) > {item["item_id"] for item in nearest["items"]}
        assert not {item["item_id"] for item in nearest["items"]} & set(items[:2])
        assert recommend(url, "nobody")[1]["fallback"] == "popular"
        status, refused = recommend(url, 3)
        assert status == 422 and "text" in refused["error"]["message"]
    result = audit.run(ws)
    assert result.passed and result.rows_exact == result.rows > 0
