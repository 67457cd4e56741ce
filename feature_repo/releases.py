"""Releases in the ledger: what serving uses, as one pointer. Reading it needs neither Feast nor torch.

The history of moves is append-only, and one row moves the pointer: a reader sees the release before or the one after.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from feature_repo import ledger_tables as tables
from feature_repo.contracts.errors import NotFoundError
from feature_repo.contracts.types import Move, Release
from feature_repo.ledger import Ledger


def current_release(ledger: Ledger) -> Release | None:
    """Return the release that serving uses now; None before the first promotion.

    Ask once per request and use the answer to its end: the pointer may move between two requests.
    """
    live = live_stack(history(ledger))
    return get(ledger, live[-1]) if live else None


def live_stack(moves: list[Move]) -> list[str]:
    """Return the live release and, before it, those that a rollback goes back to, oldest first."""
    stack: list[str] = []
    for move in moves:
        if move.action == "rollback":
            while stack and stack[-1] != move.release:
                stack.pop()
        else:
            stack = [name for name in stack if name != move.release]
        if move.action != "drop" and (not stack or stack[-1] != move.release):
            stack.append(move.release)
    return stack


def put(ledger: Ledger, release: Release) -> None:
    """Record a release. It never changes afterwards."""
    record = {key: value for key, value in release.__dict__.items() if key not in ("name", "created")}
    with ledger.transaction("releases") as connection:
        values = {"name": release.name, "created": release.created.isoformat(), "record": record}
        connection.execute(sa.insert(tables.releases).values(**values))


def every(ledger: Ledger) -> list[Release]:
    """Return all releases by the order of their making."""
    rows = ledger.rows(sa.select(tables.releases).order_by(tables.releases.c.created, tables.releases.c.name))
    return [_read(row) for row in rows]


def get(ledger: Ledger, name: str) -> Release:
    """Return one release; NotFoundError if there is none of that name."""
    rows = ledger.rows(sa.select(tables.releases).where(tables.releases.c.name == name))
    if not rows:
        raise NotFoundError(f"No release '{name}' in {ledger.where}. `headwater release list` lists them.")
    return _read(rows[0])


def usable(ledger: Ledger) -> list[Release]:
    """Return the releases that are live, or can become it: all but those that were dropped."""
    dropped: set[str] = set()
    for move in history(ledger):
        dropped = dropped | {move.release} if move.action == "drop" else dropped - {move.release}
    return [release for release in every(ledger) if release.name not in dropped]


def move(ledger: Ledger, action: str, release: str, at: datetime, by: str, verified: dict[str, str]) -> None:
    """Append one move to the history: the one write that changes what serving uses."""
    values = {"action": action, "release": release, "at": at.isoformat(), "by": by, "verified": verified}
    with ledger.transaction(f"moves {action}") as connection:
        connection.execute(sa.insert(tables.moves).values(**values))


def history(ledger: Ledger) -> list[Move]:
    """Return every move, oldest first."""
    rows = ledger.rows(sa.select(tables.moves).order_by(tables.moves.c.seq))
    return [Move(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows]


def _read(row: dict[str, Any]) -> Release:
    return Release(row["name"], datetime.fromisoformat(row["created"]), **row["record"])
