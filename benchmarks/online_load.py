"""Keep a server busy while a refresh, a promotion and a rollback happen, and count what went wrong.

    make load-test                             # five minutes, writes benchmarks/results/load.json
    python -m benchmarks.online_load --seconds 30

``headwater serve`` runs with several workers on 20,000 items; four clients send recommendations, rankings, retrievals
with and without filters, vectors, and some unknown users, as fast as they are answered. At a quarter of the time
vectors and counts of a later moment are published, applied and loaded; at half of it another release is promoted; at
three quarters it is rolled back. A request fails if its status is not 200. An answer is mixed if the scores in it are
not those that its release has. Memory is that of all processes of the server that is theirs alone, every two seconds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import online_home
from feature_repo.contracts.types import Entity
from jobs.serving.background import free_port
from jobs.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "load.json"
ITEMS, USERS, WORKERS, CLIENTS = 20_000, 2_000, 2, 4
SIZES: dict[Entity, int] = {"user": USERS, "item": ITEMS}


@dataclass
class Tally:
    """What the clients saw."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    snapshots: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    problems: list[str] = field(default_factory=list)


def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """Return one request of the mixture."""
    user = draw.randrange(USERS) if draw.random() > 0.05 else -1 - draw.randrange(100)
    context = {"hour": draw.randrange(24)}
    kind = draw.random()
    if kind < 0.5:
        return "/v1/recommend", {"user_id": user, "k": 20, "candidates": 500, "context": context}
    if kind < 0.7:
        items = [draw.randrange(ITEMS + 100) for _ in range(100)]
        return "/v1/rank", {"user_id": user, "item_ids": items, "context": context}
    if kind < 0.8:
        return "/v1/retrieve", {"user_id": user, "k": 100}
    if kind < 0.9:
        return "/v1/retrieve", {
            "user_id": user,
            "k": 100,
            "filters": {"department": [f"department-{draw.randrange(26)}"]},
        }
    return "/v1/embeddings", {"entity": "item", "ids": [draw.randrange(ITEMS) for _ in range(100)]}


def ask(port: int, seed: int, stop: threading.Event, tally: Tally) -> None:
    """Send requests one after another until told to stop."""
    draw = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.is_set():
        path, body = question(draw)
        started = time.perf_counter()
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            text, status = answer.read(), str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            text, status = b"", type(error).__name__
        tally.milliseconds.setdefault(path, []).append((time.perf_counter() - started) * 1e3)
        tally.statuses[status] += 1
        if status != "200":
            tally.problems.append(f"{path} {status} {text[:200]!r}")
            continue
        found = json.loads(text)
        tally.releases[found["release"]] += 1
        if "index_snapshot" in found:
            tally.snapshots[found["index_snapshot"]] += 1
        if path in ("/v1/recommend", "/v1/rank"):
            wanted = found["release"] == "both"
            tally.mixed += any(("cvr" in item) != wanted for item in found["items"])
    connection.close()


@contextmanager
def served(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``headwater serve`` and wait until it is ready."""
    options = ["--home", str(root), "--port", str(port), "--workers", str(WORKERS), "--timeout", "20"]
    options += ["--now", online_home.NOW.isoformat(), "--log-sample", "0.05"]
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "serve", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_ready(port, process)
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until every worker has loaded the release; each counts that once, and any of them knows the sum."""
    loaded, end = 0.0, time.monotonic() + 300
    while loaded < WORKERS:
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError("the server did not get ready")
        time.sleep(0.3)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/metrics")
            found = re.search(
                r"^headwater_switches_total (\S+)$", connection.getresponse().read().decode(), re.MULTILINE
            )
            loaded = float(found[1]) if found else 0.0
            connection.close()
        except OSError:
            continue


def private_mb(pid: int) -> float:
    """Return the memory of a process and its children that they share with no file, in MB."""
    total = 0.0
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            total += int(line.split()[1]) / 1024
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        total += private_mb(int(child))
    return total


def change(ws: Workspace, what: str) -> None:
    """Do one of the three things that happen while requests come in."""
    from jobs import apply, materialize, release

    if what == "refresh":
        online_home.refresh(ws, online_home.START + timedelta(days=7), SIZES)
        apply.run(ws)
        materialize.run(ws, online_home.NOW)
    elif what == "promotion":
        release.promote(ws, "clicks", by="load test", now=datetime.now(UTC))
    else:
        release.rollback(ws, "both", by="load test", now=datetime.now(UTC))


def run(seconds: float) -> dict[str, Any]:
    """Return what happened, as it is written to the results."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        root, port = Path(name) / "home", free_port()
        ws = online_home.build(root, items=ITEMS, users=USERS)
        with served(root, port) as process:
            tallies, stop = [Tally() for _ in range(CLIENTS)], threading.Event()
            threads = [
                threading.Thread(target=ask, args=(port, seed, stop, tally)) for seed, tally in enumerate(tallies)
            ]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            changes, memory = [(0.25, "refresh"), (0.5, "promotion"), (0.75, "rollback")], []
            happened = []
            try:
                while time.monotonic() - started < seconds:
                    if changes and time.monotonic() - started > changes[0][0] * seconds:
                        what = changes.pop(0)[1]
                        began = time.monotonic()
                        change(ws, what)
                        happened.append({"what": what, "at_s": began - started, "took_s": time.monotonic() - began})
                    memory.append({"at_s": time.monotonic() - started, "private_mb": private_mb(process.pid)})
                    time.sleep(2)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            elapsed = time.monotonic() - started
        return {
            "seconds": elapsed,
            "workers": WORKERS,
            "clients": CLIENTS,
            "items": ITEMS,
            "requests": sum(sum(tally.statuses.values()) for tally in tallies),
            "requests_per_s": sum(sum(tally.statuses.values()) for tally in tallies) / elapsed,
            "failed": sum(count for t in tallies for status, count in t.statuses.items() if status != "200"),
            "mixed": sum(tally.mixed for tally in tallies),
            "statuses": dict(sum((tally.statuses for tally in tallies), Counter())),
            "releases": dict(sum((tally.releases for tally in tallies), Counter())),
            "index_snapshots": dict(sum((tally.snapshots for tally in tallies), Counter())),
            "latency_ms": {
                path: {
                    "p50": float(np.percentile(values, 50)),
                    "p99": float(np.percentile(values, 99)),
                    "requests": len(values),
                }
                for path in sorted({path for tally in tallies for path in tally.milliseconds})
                for values in [np.concatenate([tally.milliseconds.get(path, []) for tally in tallies])]
            },
            "changes": happened,
            "memory_settled_mb": settled(memory, seconds),
            "memory": memory,
            "problems": [problem for tally in tallies for problem in tally.problems][:20],
            "audit": audited(ws),
        }


def settled(memory: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Return private memory, in MB, before the first change and at the end; the same release is served then."""
    import statistics

    spans = {"before": (0.1, 0.25), "after": (0.85, 1.0)}
    return {
        name: statistics.median(m["private_mb"] for m in memory if first <= m["at_s"] / seconds <= last)
        for name, (first, last) in spans.items()
    }


def audited(ws: Workspace) -> dict[str, Any]:
    """Return what the audit says of what was served; rows between publication and load count as stale."""
    from jobs import audit

    result = audit.run(ws, max_stale=1.0)
    kinds = {kind: sum(getattr(view, kind) for view in result.views) for kind in audit.KINDS}
    different = sum(score.differing for score in result.scores)
    return {"requests": result.requests, "rows": result.rows, "exact": result.rows_exact, **kinds, "scores": different}


def main() -> None:
    """Run, print, and write the results of a full run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    found = run(arguments.seconds)
    print(json.dumps({name: value for name, value in found.items() if name != "memory"}, indent=1))
    memory = [item["private_mb"] for item in found["memory"]]
    print(f"private memory, MB: first {memory[0]:.0f}, largest {max(memory):.0f}, last {memory[-1]:.0f}")
    audit = found["audit"]
    # Late rows are those between a publication and its load, and scores differ with them.
    wrong = sum(audit[kind] for kind in ("different", "missing", "extra", "early"))
    if arguments.seconds >= 300:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["failed"] or found["mixed"] or wrong:
        sys.exit(f"{found['failed']} requests failed, {found['mixed']} answers were mixed, {wrong} rows are wrong")


if __name__ == "__main__":
    main()
