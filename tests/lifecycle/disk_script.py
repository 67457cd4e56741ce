"""What happens on a small disk of its own, in a mount namespace; test_disk.py runs it and reads what it prints.

full       fill the disk, then let a refresh and a registration run with ever more free space
read-only  everything that writes is refused, everything that reads goes on
after      whatever is left is mended, and the refresh goes through
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks import small_home
from benchmarks.small_home import NOW, SPACES, START, WEEK
from feature_repo.contracts.errors import HeadwaterError
from feature_repo.lake import sha256_of, write_json
from jobs import doctor, release, versions
from jobs.refresh import read_vectors
from jobs.workspace import Workspace

PAGE = 4096


def outcome(what: Callable[[], object]) -> str:
    """Return how something ended: ``done``, or the error and what it says."""
    try:
        what()
    except HeadwaterError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def intact(root: Path) -> dict[str, Any]:
    """Return the ledger's snapshots, with whether each file is the one that was published and can be read."""
    known = Workspace.open(root).ledger.snapshots(accepted=True)
    wrong = [item.snapshot_id for item in known if sha256_of(root / item.path) != item.sha256]
    for item in known:
        read_vectors(root / item.path, f"{item.entity}_id")
    return {"snapshots": sorted(item.snapshot_id for item in known), "wrong": wrong}


def refresh(root: Path) -> str:
    return outcome(lambda: small_home.refresh(Workspace.open(root), "v1", START + 4 * WEEK))


def full(root: Path) -> dict[str, Any]:
    ws = small_home.build(root)
    for space in ws.ledger.spaces():
        write_json({}, root / space.artifact / "model.json")
    before = intact(root)
    ballast = root.parent / "ballast"
    with open(ballast, "wb", buffering=0) as handle, suppress(OSError):
        while True:
            handle.write(b"x" * PAGE)
    size, told = ballast.stat().st_size, []
    for free in range(0, 400, 2):
        with open(ballast, "r+b") as handle:
            handle.truncate(size - free * PAGE)
        told.append({"registered": outcome(lambda: versions.register(Workspace.open(root), SPACES["v3"]))})
        told[-1] |= {"refreshed": refresh(root), **intact(root)}
        if told[-1]["registered"] == told[-1]["refreshed"] == "done":
            break
    return {"before": before, "steps": told}


def read_only(root: Path) -> dict[str, Any]:
    ws = Workspace.open(root)
    later = START + 5 * WEEK
    writes: dict[str, Callable[[], object]] = {
        "refresh": lambda: small_home.refresh(ws, "v1", later),
        "register": lambda: versions.retire(ws, "v2", by="me", why="old", now=NOW),
        "prune": lambda: versions.prune(ws, keep=timedelta(days=7)),
        "create release": lambda: release.create(ws, now=NOW),
        "doctor": lambda: doctor.run(ws),
    }
    return {"writes": {name: outcome(what) for name, what in writes.items()}, **intact(root), "rows": versions.rows(ws)}


def after(root: Path) -> dict[str, Any]:
    (root.parent / "ballast").unlink()
    ws = Workspace.open(root)
    first, second = doctor.run(ws), doctor.run(ws)
    findings = [finding.what for finding in first.findings]
    done = outcome(lambda: small_home.refresh(ws, "v1", START + 5 * WEEK))
    return {
        "mended": first.healthy,
        "findings": findings,
        "left": len(second.findings),
        "refreshed": done,
        **intact(root),
    }


if __name__ == "__main__":
    phase = {"full": full, "read-only": read_only, "after": after}[sys.argv[1]]
    print(json.dumps(phase(Path(sys.argv[2]))))
