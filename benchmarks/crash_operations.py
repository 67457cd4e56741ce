"""What the crash matrix does to a home folder, and what it compares afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import small_home
from benchmarks.small_home import NOW, SPACES, START, WEEK
from feature_repo.contracts.errors import SnapshotRefusedError
from feature_repo.lake import folder_digest
from feature_repo.lifecycle import Origin
from feature_repo.stores.twin import current
from jobs import apply, materialize, release, versions
from jobs.workspace import Workspace

# Clocks of writing, which differ between two runs of the same thing.
CLOCKS = {"created", "sha256"}


@dataclass(frozen=True)
class Operation:
    """One operation under test: what has to be there before, and what is run, killed, and run again."""

    prepare: Callable[[Workspace], None]
    run: Callable[[Workspace], None]
    feast: bool = False


def _nothing(_: Workspace) -> None:
    return


def _served(ws: Workspace) -> None:
    """Bring v1 and v2 online, with a release of each; r1 is live."""
    apply.run(ws)
    materialize.run(ws, NOW)
    release.create(ws, name="r1", now=NOW)
    small_home.train(ws, "ctr_ranker", "v2")
    release.create(ws, name="r2", now=NOW)
    release.promote(ws, "r1", by="me", now=NOW)


def _both_promoted(ws: Workspace) -> None:
    _served(ws)
    release.promote(ws, "r2", by="me", now=NOW)


def _refused(ws: Workspace) -> None:
    with contextlib.suppress(SnapshotRefusedError):
        small_home.refresh(ws, "v1", START + 4 * WEEK, accept=False)


def _bridged(ws: Workspace) -> None:
    """Publish users and items of v1 as a bridge from v3 does: both at once."""
    small_home.refresh(ws, "v1", START + 4 * WEEK, bridge=Origin("artifacts/bridge", SPACES["v3"]))


def _refreshed(ws: Workspace) -> None:
    _served(ws)
    small_home.refresh(ws, "v1", START + 4 * WEEK)
    small_home.refresh(ws, "v2", START + 4 * WEEK)


OPERATIONS = {
    "refresh": Operation(_nothing, lambda ws: _ignore(small_home.refresh(ws, "v1", START + 4 * WEEK))),
    "refused refresh": Operation(_nothing, _refused),
    "bridge": Operation(_nothing, _bridged),
    "register": Operation(_nothing, lambda ws: _ignore(versions.register(ws, SPACES["v3"]))),
    "retire": Operation(_nothing, lambda ws: _ignore(versions.retire(ws, "v2", by="me", why="old", now=NOW))),
    "prune": Operation(_nothing, lambda ws: _ignore(versions.prune(ws, keep=timedelta(days=7)))),
    "create release": Operation(_nothing, lambda ws: _ignore(release.create(ws, name="r1", now=NOW))),
    "promote": Operation(_served, lambda ws: _ignore(release.promote(ws, "r2", by="me", now=NOW)), feast=True),
    "rollback": Operation(_both_promoted, lambda ws: _ignore(release.rollback(ws, "r1", by="me", now=NOW)), feast=True),
    "apply": Operation(_nothing, lambda ws: _ignore(apply.run(ws)), feast=True),
    "materialize": Operation(_refreshed, lambda ws: _ignore(materialize.run(ws, NOW + WEEK)), feast=True),
}


def _ignore(_: Any) -> None:
    return


def state(root: Path) -> dict[str, Any]:
    """Return what a home folder holds by content, without the clocks of its writing."""
    lake = {}
    for path in sorted([*(root / "lake").rglob("*.parquet"), *(root / "quarantine").rglob("*.parquet")]):
        frame = pl.read_parquet(path)
        lake[str(path.relative_to(root))] = frame.drop("created").hash_rows(seed=1).sum()
    return {
        "lake": lake,
        "twins": sorted(str(path.relative_to(root)) for path in (root / "lake").rglob("*.arrow")),
        "stale twins": [str(path) for path in (root / "lake").rglob("*.parquet") if current(path) is None],
        "unfinished": [str(path) for path in root.rglob("*.part")],
        "artifacts": {path.name: folder_digest(path) for path in sorted((root / "artifacts").iterdir())},
        "ledger": _tables(root / "ledger.db", CLOCKS),
        "online": _online(root / "feast" / "online.db"),
        "registry": _registry(root),
    }


def _tables(path: Path, without: set[str]) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(path) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for name in sorted(names):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info('{name}')") if row[1] not in without]
            chosen = ", ".join(f'"{column}"' for column in columns)
            rows = connection.execute(f"SELECT {chosen} FROM '{name}'")
            found[name] = sorted((_timeless(row) for row in rows), key=str)
    connection.close()
    return found


def _timeless(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave out what the gate's stopwatch wrote into a verdict."""
    return tuple(value.split(', "seconds"')[0] if isinstance(value, str) else value for value in row)


def _online(path: Path) -> str | None:
    if not path.exists():
        return None
    tables = {name: rows for name, rows in _tables(path, {"created_ts"}).items() if name.startswith("headwater")}
    return hashlib.sha256(repr(tables).encode()).hexdigest()


def _registry(root: Path) -> list[tuple[Any, ...]]:
    if not (root / "feast" / "registry.db").exists():
        return []
    from feature_repo.lake import Home
    from jobs.store import open_store

    store = open_store(Home(root))
    views = [
        (view.name, sorted(view.tags.items()), str(view.most_recent_end_time)) for view in store.list_feature_views()
    ]
    return sorted(views) + sorted((service.name, sorted(service.tags)) for service in store.list_feature_services())
