"""Promote and roll back between two releases under constant requests: no error, and no answer that mixes two of them.

Each request asks once what is live, reads user and item vectors of the version that its ranker reads, multiplies them,
and searches the release's item index with the user vectors of the index's version. Answers are compared, bit by bit,
with those of each release at rest. Works on any home folder with two releases that the online store is ready for.

    make bench-switching        # releases `before` and `after` of docs/versions.md
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo import releases
from feature_repo.contracts.naming import embedding_view, join_key
from feature_repo.contracts.types import Release
from feature_repo.ledger import Ledger
from feature_repo.stores.packed import EmbeddingReader
from jobs import release as job
from jobs.refresh import read_vectors
from jobs.store import open_store
from jobs.workspace import Workspace
from models.downstream.index_files import load_index

RESULTS = Path(__file__).parent / "results" / "switching.json"
USERS, CANDIDATES, NEAREST = 8, 200, 20


@dataclass
class Seen:
    """What one stream of requests saw: answers by release, wrong answers, errors, seconds of each request."""

    answers: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """The requests of all streams, and how long each move took."""

    requests: int
    answers: dict[str, int]
    mixed: int
    errors: list[str]
    request_ms_p50: float
    request_ms_p99: float
    promote_seconds: list[float]
    rollback_seconds: list[float]


class Client:
    """Serves requests from one home folder; one per thread."""

    def __init__(self, ws: Workspace, store: Any, now: datetime) -> None:
        self._ledger, self._root, self._now = Ledger(ws.home.ledger_file), ws.home.root, now
        self._readers: dict[str, EmbeddingReader] = {}
        self._indexes: dict[str, Any] = {}
        self._store = store

    def live(self) -> Release:
        """Return what is live now: asked once per request."""
        found = releases.current_release(self._ledger)
        assert found is not None, "no release is live"
        return found

    def answer(self, live: Release, users: list[Any], items: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return products [U, K] for the release's ranker, and the ids [U, N] that its index finds."""
        assert live.index is not None, f"{live.name} has no index"
        ranker = next(iter(live.consumers.values()))["versions"][0]
        known, wanted = self._read("user", ranker, users), self._read("item", ranker, items)
        index = self._indexes.get(live.index["artifact"])
        if index is None:
            index = self._indexes[live.index["artifact"]] = load_index(self._root / live.index["artifact"])
        asked = self._read("user", live.index["version"], users)
        found, _ = index.search(asked.vectors, NEAREST, space_id=asked.space_id)
        return known.scores(wanted), found

    def _read(self, entity: Any, version: str, ids: list[Any]) -> Any:
        view = embedding_view(entity, version)
        if view not in self._readers:
            self._readers[view] = EmbeddingReader(self._store, view, "embedding")
        return self._readers[view].read(ids, self._now)

    def close(self) -> None:
        """Give back connections."""
        for reader in self._readers.values():
            reader.close()


def run(ws: Workspace, names: tuple[str, str], *, moves: int = 3, streams: int = 2, rest: float = 0.5) -> Result:
    """Move the pointer to and fro between two releases while `streams` threads ask without a pause.

    Parameters
    ----------
    names
        The release to roll back to, which is promoted first, and the one to promote.
    moves
        Promotions of the second, each followed by a rollback.
    rest
        Seconds of requests between two moves.
    """
    store = open_store(ws.home)
    first, second = (releases.get(ws.ledger, name) for name in names)
    latest = [
        item for view in {*first.snapshots, *second.snapshots} for item in ws.ledger.snapshots(view, accepted=True)
    ]
    now = max(item.available_at for item in latest) + timedelta(hours=1)
    users, items = (_sample(ws, first, entity, count) for entity, count in (("user", USERS), ("item", CANDIDATES)))
    at_rest = Client(ws, store, now)
    expected = {item.name: at_rest.answer(item, users, items) for item in (first, second)}
    at_rest.close()
    assert not np.array_equal(expected[first.name][0], expected[second.name][0]), "both releases answer the same"
    job.promote(ws, first.name, by="switching", now=datetime.now(UTC))
    stop, seen = threading.Event(), [Seen() for _ in range(streams)]
    threads = [
        threading.Thread(target=_ask, args=(Client(ws, store, now), users, items, expected, one, stop)) for one in seen
    ]
    for thread in threads:
        thread.start()
    took: dict[str, list[float]] = {"promote": [], "rollback": []}
    for _ in range(moves):
        for action in took:
            time.sleep(rest)
            started = time.perf_counter()
            if action == "promote":
                job.promote(ws, second.name, by="switching", now=datetime.now(UTC))
            else:
                job.rollback(ws, first.name, by="switching", now=datetime.now(UTC))
            took[action].append(round(time.perf_counter() - started, 4))
    time.sleep(rest)
    stop.set()
    for thread in threads:
        thread.join()
    seconds = [value for one in seen for value in one.seconds]
    answers = sum((one.answers for one in seen), Counter[str]())
    return Result(
        len(seconds),
        dict(answers),
        sum(one.mixed for one in seen),
        [error for one in seen for error in one.errors][:5],
        round(1000 * float(np.median(seconds)), 3),
        round(1000 * float(np.quantile(seconds, 0.99)), 3),
        took["promote"],
        took["rollback"],
    )


def _ask(client: Client, users: list[Any], items: list[Any], expected: Any, seen: Seen, stop: threading.Event) -> None:
    while not stop.is_set():
        started = time.perf_counter()
        try:
            live = client.live()
            answer = client.answer(live, users, items)
            same = all(np.array_equal(*pair) for pair in zip(answer, expected[live.name], strict=True))
            seen.answers[live.name] += same
            seen.mixed += not same
        except Exception as error:  # whatever a request meets is what this counts
            seen.errors.append(f"{type(error).__name__}: {error}")
        seen.seconds.append(time.perf_counter() - started)
    client.close()


def _sample(ws: Workspace, release: Release, entity: Any, count: int) -> list[Any]:
    """Return ids that the release's first version has a vector of."""
    version = next(iter(release.consumers.values()))["versions"][0]
    last = ws.ledger.snapshots(embedding_view(entity, version), accepted=True)[-1]
    ids, _ = read_vectors(ws.home.root / last.path, join_key(entity))
    return list(ids.sample(min(count, len(ids)), seed=0).to_list())


def main() -> None:
    """Run on a home folder, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"))
    parser.add_argument("--first", default="before")
    parser.add_argument("--second", default="after")
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ws = Workspace.open(arguments.home.resolve())
    result = run(ws, (arguments.first, arguments.second), moves=arguments.moves)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(asdict(result), indent=1))
    raise SystemExit(bool(result.mixed or result.errors))


if __name__ == "__main__":
    main()
