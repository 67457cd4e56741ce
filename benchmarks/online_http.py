"""HTTP rows of benchmarks/online.py: vectors and recommendations over HTTP, and the index at a million items.

The server runs in a process of its own, on one core; the client keeps one connection and sends one request after
another. Read: the vectors of so many items, by ours (/v1/embeddings), by Feast's Python feature server on the same
SQLite store, and by a FastAPI route that looks at nothing and answers with as many bytes (the floor). Recommend:
500 retrieved of 20,000 items and ranked by two models, best 20 answered; its floor is what the two models take for 500
ready rows, in a process that does nothing else and also times the stages of a request; the bare route is a FastAPI
route that answers the same request with ready bytes. Retrieve: 100 of a million clustered vectors by the index alone;
its floor is exact search.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import online_home
from jobs.serving.background import free_port

CANDIDATES = (1, 100, 500, 1_000)
ITEMS, USERS, MANY = 20_000, 2_000, 1_000_000
CALLS = 300
VIEW = "item_embedding_v1"


def serve(engine: str, root: Path, port: int) -> None:
    """Run one server in this process, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import uvicorn

    uvicorn.run(_application(engine, root), host="127.0.0.1", port=port, log_level="error", access_log=False)


def _application(engine: str, root: Path) -> Any:
    if engine == "feast":
        from feast.feature_server import get_app

        from jobs.store import open_store
        from jobs.workspace import Workspace

        return get_app(open_store(Workspace.open(root).home))
    if engine == "ours":
        from jobs.serving.app import create_app
        from jobs.serving.settings import ServeSettings

        return create_app(ServeSettings(home=root, now=online_home.NOW, timeout_s=30, log_sample=0))
    from benchmarks.online_floor import app

    return app


@contextmanager
def server(engine: str, root: Path) -> Iterator[http.client.HTTPConnection]:
    """Run a server in a process of its own and yield a connection to it once it answers."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "benchmarks.online_http",
        "--serve",
        engine,
        "--home",
        str(root),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        probe = {"ours": ("GET", "/readyz"), "feast": ("GET", "/health")}.get(engine, ("GET", "/openapi.json"))
        end = time.monotonic() + 300
        while True:
            try:
                connection.request(*probe)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    break
            except OSError:
                connection.close()
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"the server of {engine} did not start")
            time.sleep(0.2)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait()


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> bytes:
    """Send one request and return its answer's body; RuntimeError unless it is 200."""
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text[:200]!r}")
    return text


def http_reads(root: Path, timed: Callable[..., dict[str, float]]) -> list[dict[str, Any]]:
    """Measure reads of vectors over HTTP by every engine."""
    import numpy as np

    rows = []
    for engine in ("feast", "ours", "floor"):
        with server(engine, root) as connection:
            for size in CANDIDATES:
                draw = np.random.default_rng(size)
                asked = [draw.choice(ITEMS, size, replace=False).tolist() for _ in range(20)]
                path = "/get-online-features" if engine == "feast" else "/v1/embeddings"
                one = _asking(connection, path, [_body(engine, ids) for ids in asked])
                taken = timed(one, CALLS if engine != "feast" or size < 500 else CALLS // 3)
                rate = {"rows_per_s": size / taken["p50_ms"] * 1e3}
                rows.append({"what": "http read", "store": "sqlite", "engine": engine, "size": size, **taken, **rate})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _body(engine: str, ids: list[int]) -> dict[str, Any]:
    if engine == "feast":
        return {"features": [f"{VIEW}:embedding"], "entities": {"item_id": ids}}
    return {"ids": ids} if engine == "floor" else {"entity": "item", "ids": ids}


def _asking(connection: http.client.HTTPConnection, path: str, bodies: list[Any]) -> Callable[[int], bytes]:
    return lambda call: post(connection, path, bodies[call % len(bodies)])


def recommend(root: Path, timed: Callable[..., dict[str, float]]) -> list[dict[str, Any]]:
    """Measure retrieve 500, rank 500 over HTTP, and the bare models."""
    common = {"what": "recommend", "store": "sqlite", "size": 500}
    rows = []
    for engine, name in (("ours", "ours"), ("floor", "bare route")):
        with server(engine, root) as connection:
            bodies = [
                {"user_id": user * 7 % USERS, "k": 20, "candidates": 500, "context": {"hour": 9}}
                for user in range(CALLS)
            ]
            taken = timed(_asking(connection, "/v1/recommend", bodies), 2 * CALLS)
        rows.append({**common, "engine": name, **taken, "rows_per_s": 500 / taken["p50_ms"] * 1e3})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.online_http", "--models", "--home", str(root)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    taken = json.loads(done.stdout.splitlines()[-1])
    rows.append({**common, "engine": "floor", **taken, "rows_per_s": 500 / taken["p50_ms"] * 1e3})
    print(rows, file=sys.stderr, flush=True)
    return rows


def models(root: Path) -> dict[str, Any]:
    """Return how long the two models take for 500 rows that are ready, and the stages of a request, alone in here."""
    from benchmarks.online import timed
    from jobs.serving.holder import Holder
    from jobs.serving.served import Question
    from jobs.serving.settings import ServeSettings

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    holder = Holder(ServeSettings(home=root, now=online_home.NOW, log_sample=0))
    holder.refresh()
    served = holder.served
    rows = served.rows([Question(1, list(range(500)), {"hour": 9})], online_home.NOW)
    ready = [(inputs.ready, inputs.requests(rows)[0]) for inputs in served.inputs.values()]

    def both(call: int) -> None:
        for ranker, request in ready:
            ranker(*request)

    return {**timed(both, CALLS), "stages_ms": stages(served, timed)}


def stages(served: Any, timed: Callable[..., dict[str, float]]) -> dict[str, float]:
    """Return the p50 of each stage of a request, in the order that it takes them."""
    from jobs.serving import worker
    from jobs.serving.served import Question
    from jobs.serving.settings import ServeSettings
    from jobs.serving.worker import Task

    now, clock = online_home.NOW, int(online_home.NOW.timestamp() * 1e6)
    settings = ServeSettings(home=Path(), now=now)
    tasks = [[Task(user, retrieve=500, keep=20, context={"hour": 9})] for user in range(100)]
    users = [worker._users(served, task, now) for task in tasks]
    found = [worker._retrieve(served, task, known)[0][0] for task, known in zip(tasks, users, strict=True)]
    rows = [served.rows([Question(user, items, {"hour": 9})], now) for user, items in enumerate(found)]
    calls: dict[str, Callable[[int], Any]] = {
        "user vector from SQLite": lambda call: worker._users(served, tasks[call % 100], now),
        "index search": lambda call: worker._retrieve(served, tasks[call % 100], users[call % 100]),
        "user features by Feast": lambda call: served.users.plain([call % 100], clock),
        "all rows, users' features among them": lambda call: served.rows(
            [Question(call % 100, found[call % 100], {"hour": 9})], now, users[call % 100]
        ),
        "tensors of both models": lambda call: [inputs.requests(rows[call % 100]) for inputs in served.inputs.values()],
        "tensors and both models": lambda call: served.score(rows[call % 100]),
        "all of it without HTTP": lambda call: worker.compute(served, tasks[call % 100], settings),
    }
    return {name: timed(call, CALLS)["p50_ms"] for name, call in calls.items()}


def retrieval(folder: Path, timed: Callable[..., dict[str, float]], size: int = MANY) -> list[dict[str, Any]]:
    """Measure the index of many items: recall at 100 against exact search, and time of one search, on one core."""
    import faiss
    import numpy as np

    from models.downstream.index_files import load_index, save_index

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    items, users = online_home.vectors(size, 2), online_home.vectors(1_000, 1)
    started = time.perf_counter()
    save_index(folder / "index", np.arange(size), items, space_id="made up", notes={}, queries=users[:200])
    seconds = time.perf_counter() - started
    found = load_index(folder / "index")
    faiss.omp_set_num_threads(1)
    exact = faiss.IndexFlatIP(online_home.DIM)
    exact.add(items)
    asked = users[200:]
    _, truth = exact.search(asked, 100)
    positions, _ = found.index.search(asked, 100)
    recall = float(np.mean([np.isin(truth[row], positions[row]).mean() for row in range(len(asked))]))
    rows = []
    for engine, search in (
        ("ours", lambda call: found.index.search(asked[[call % 800]], 100)),
        ("floor", lambda call: exact.search(asked[[call % 800]], 100)),
    ):
        taken = timed(search, CALLS)
        row = {
            "what": "retrieve",
            "store": "index",
            "engine": engine,
            "size": size,
            **taken,
            "rows_per_s": 1e3 / taken["p50_ms"],
        }
        if engine == "ours":
            row |= {
                "recall_at_100": recall,
                "build_s": seconds,
                **{name: found.notes[name] for name in ("kind", "search_depth")},
            }
        rows.append(row)
    print(rows, file=sys.stderr, flush=True)
    return rows


def run(folder: Path, timed: Callable[..., dict[str, float]], *, small: bool) -> list[dict[str, Any]]:
    """Measure everything; `small` leaves the million out."""
    root = folder / "home"
    online_home.build(root, items=ITEMS, users=USERS)
    rows = [*http_reads(root, timed), *recommend(root, timed)]
    return rows if small else [*rows, *retrieval(folder, timed)]


def main() -> None:
    """Serve, or time the models, for a process that measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help="ours, feast or floor")
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.home, arguments.port)
    else:
        print(json.dumps(models(arguments.home)))


if __name__ == "__main__":
    main()
