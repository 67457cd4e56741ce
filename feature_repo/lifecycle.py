"""What becomes of versions and snapshots after publication: smoothed with, retired, pruned, continued by a bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa

from feature_repo import ledger_tables as tables
from feature_repo.contracts.types import Snapshot, Space
from feature_repo.ledger import Ledger, snapshot_values


def day_of(as_of: datetime) -> date:
    """Return the UTC day that a refresh describes: that of the last event it can know. Midnight ends the day before."""
    return (as_of.astimezone(UTC) - timedelta(microseconds=1)).date()


def earlier_days(ledger: Ledger, view: str, as_of: datetime) -> list[Snapshot]:
    """Return the accepted snapshots that stand for the days before that of `as_of`, oldest first: the last of each day.

    A refresh is smoothed with the latest of them and held against them (docs/adr/0036-last-of-day.md).
    """
    last = {day_of(snapshot.as_of): snapshot for snapshot in ledger.snapshots(view, accepted=True)}
    return [snapshot for day, snapshot in last.items() if day < day_of(as_of)]


@dataclass(frozen=True)
class Retirement:
    """When a version stopped being refreshed, by whose word, and why."""

    version: str
    at: datetime
    by: str
    why: str


def retire(ledger: Ledger, retirement: Retirement) -> None:
    """Record a retirement."""
    ledger.put(tables.retirements, {**retirement.__dict__, "at": retirement.at.isoformat()})


def retirements(ledger: Ledger) -> dict[str, Retirement]:
    """Return the retired versions by name."""
    rows = ledger.rows(sa.select(tables.retirements))
    return {row["version"]: Retirement(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows}


def horizons(ledger: Ledger) -> dict[str, datetime]:
    """Return, by view, the moment before which refreshes were pruned."""
    rows = ledger.rows(sa.select(tables.horizons))
    return {row["view"]: datetime.fromisoformat(row["before"]) for row in rows}


def forget(ledger: Ledger, view: str, before: datetime, snapshots: Sequence[Snapshot]) -> None:
    """Take snapshots out of the ledger and note their files for removal, in one transaction."""
    ids = [snapshot.snapshot_id for snapshot in snapshots]
    values = [{"snapshot_id": snapshot.snapshot_id, "path": snapshot.path} for snapshot in snapshots]
    with ledger.transaction(f"prune {view}") as connection:
        connection.execute(sa.delete(tables.snapshots).where(tables.snapshots.c.snapshot_id.in_(ids)))
        connection.execute(sa.delete(tables.bridged).where(tables.bridged.c.snapshot_id.in_(ids)))
        connection.execute(sa.delete(tables.removals).where(tables.removals.c.snapshot_id.in_(ids)))
        connection.execute(sa.insert(tables.removals), values)
        connection.execute(sa.delete(tables.horizons).where(tables.horizons.c.view == view))
        connection.execute(sa.insert(tables.horizons).values(view=view, before=before.isoformat()))


def removals(ledger: Ledger) -> dict[str, str]:
    """Return the files that pruning still has to remove, by snapshot id; paths below the home folder."""
    return {row["snapshot_id"]: row["path"] for row in ledger.rows(sa.select(tables.removals))}


def removed(ledger: Ledger, snapshot_ids: Sequence[str]) -> None:
    """Record that the files of pruned snapshots are gone."""
    with ledger.transaction("removed") as connection:
        connection.execute(sa.delete(tables.removals).where(tables.removals.c.snapshot_id.in_(list(snapshot_ids))))


@dataclass(frozen=True)
class Origin:
    """What carried snapshots over from another space: the bridge's folder below the home folder, and that space."""

    artifact: str
    from_space: str


def publish(ledger: Ledger, snapshots: Sequence[Snapshot], origin: Origin | None = None) -> None:
    """Record accepted snapshots of one refresh in one transaction: a reader sees all of them, or none.

    Parameters
    ----------
    origin
        The bridge that made them; None for a version's own model.
    """
    ids = [snapshot.snapshot_id for snapshot in snapshots]
    with ledger.transaction("snapshots") as connection:
        connection.execute(sa.delete(tables.snapshots).where(tables.snapshots.c.snapshot_id.in_(ids)))
        connection.execute(sa.insert(tables.snapshots), [snapshot_values(snapshot) for snapshot in snapshots])
        connection.execute(sa.delete(tables.bridged).where(tables.bridged.c.snapshot_id.in_(ids)))
        if origin is not None:
            connection.execute(sa.insert(tables.bridged), [{"snapshot_id": name, **origin.__dict__} for name in ids])


def bridged(ledger: Ledger) -> dict[str, dict[str, str]]:
    """Return, by snapshot id, the bridge's folder (``artifact``) and the space it came from (``from_space``)."""
    return {row["snapshot_id"]: row for row in ledger.rows(sa.select(tables.bridged))}


def continue_with(ledger: Ledger, version: str, model: Space) -> None:
    """Record that a model, trained on from the version's own, stayed in its space and refreshes it from now on."""
    ledger.put(tables.continuations, {"model": model.space_id, "version": version})


def models_of(ledger: Ledger, version: str) -> list[Space]:
    """Return the models that make a version's vectors, by their cut-off: its own first, then those that continue it."""
    rows = ledger.rows(sa.select(tables.continuations).where(tables.continuations.c.version == version))
    continued = [ledger.space(row["model"]) for row in rows]
    own = ledger.space(ledger.version(version).space_id)
    return [own, *sorted(continued, key=lambda space: space.train_end)]


def model_at(ledger: Ledger, version: str, as_of: datetime) -> Space:
    """Return the latest model of a version that was trained on nothing from `as_of` on; its own if there is none."""
    own, *continued = models_of(ledger, version)
    return next((model for model in reversed(continued) if model.train_end <= as_of), own)
