"""The ledger: the transactional record of spaces, versions, snapshots, training sets and consumers.

One SQLite file by default, or a Postgres database (docs/online.md). Rows are only added or replaced as a whole, each
public method is one transaction, writers follow one another, and times are stored as ISO-8601 UTC text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from feature_repo import ledger_tables as tables
from feature_repo.contracts.errors import LedgerError, MissingExtraError, NotFoundError
from feature_repo.contracts.types import Decision, Snapshot, Space, Verdict, Version, View
from feature_repo.failpoints import durable
from feature_repo.lake import Home

VARIABLE = "HEADWATER_LEDGER"
# Of all locks that applications take in a Postgres database, the ledger's.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(7306089)")


def open_ledger(home: Home) -> Ledger:
    """Return a home folder's ledger: the database that ``$HEADWATER_LEDGER`` names, else the file in the folder."""
    return Ledger(os.environ.get(VARIABLE) or home.ledger_file)


class Ledger:
    """Record of everything that exists, in one transactional place.

    Parameters
    ----------
    url
        SQLAlchemy URL, or the path of a SQLite file, which is created where it is missing.

    Raises
    ------
    LedgerError
        If the database cannot be opened.
    MissingExtraError
        If its driver is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        # A path, or a URL without its password: error messages hold it.
        self.where = str(url) if isinstance(url, Path) else _shown(url)
        if isinstance(url, Path):
            try:
                url.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(f"The ledger's folder {url.parent} cannot be made: {error}.") from error
            url = f"sqlite:///{url}"
        # A second writer waits for the first one's commit.
        options = {"timeout": 30} if str(url).startswith("sqlite") else {}
        try:
            self._engine = sa.create_engine(url, connect_args=options, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"The ledger at {self.where} needs the driver {error.name}: pip install 'headwater[postgres]'."
            ) from error
        with self.transaction() as connection:
            self._take_turn(connection)
            tables.metadata.create_all(connection)
            connection.commit()

    @contextmanager
    def transaction(self, write: str | None = None) -> Iterator[sa.Connection]:
        """Yield a connection whose statements take effect together, or not at all.

        Parameters
        ----------
        write
            What is written, for the failpoint at its commit; None for reading.

        Raises
        ------
        LedgerError
            If the database refuses, or holds what cannot be read.
        """
        try:
            with self._engine.connect() as connection:
                if write is not None:
                    self._take_turn(connection)
                yield connection
                if write is not None:
                    with durable(f"ledger {write}"):
                        connection.commit()
        except (sa.exc.SQLAlchemyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise LedgerError(
                f"The ledger at {self.where} could not be read or written: {error}. Check permissions and free space; "
                "a damaged file is restored from a backup: `headwater doctor` says which."
            ) from error

    def _take_turn(self, connection: sa.Connection) -> None:
        """Wait for the writer before, and keep others waiting until the transaction ends, as SQLite does anyway."""
        if connection.dialect.name == "postgresql":
            connection.execute(_LOCK)

    def put(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        """Write one row; a row of the same key is replaced."""
        key = [column for column in table.primary_key.columns]
        with self.transaction(table.name) as connection:
            # Not deleted first: rows of other tables may refer to it, which only some databases mind.
            same = (column == values[column.name] for column in key)
            if not connection.execute(sa.update(table).where(*same).values(**values)).rowcount:
                connection.execute(sa.insert(table).values(**values))

    def rows(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        """Return the rows of a query as dictionaries."""
        with self.transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    # Data sets

    def put_dataset(self, fingerprint: str, name: str, record: Mapping[str, Any]) -> None:
        """Record an ingested event log by its content's fingerprint."""
        self.put(tables.datasets, {"fingerprint": fingerprint, "name": name, "record": dict(record)})

    def datasets(self) -> list[dict[str, Any]]:
        """Return the ingested event logs."""
        return self.rows(sa.select(tables.datasets))

    # Spaces and versions

    def put_space(self, space: Space) -> None:
        """Record a trained space."""
        values = {**space.__dict__, "train_end": space.train_end.isoformat()}
        self.put(tables.spaces, values)

    def spaces(self) -> list[Space]:
        """Return all spaces."""
        rows = self.rows(sa.select(tables.spaces).order_by(tables.spaces.c.train_end, tables.spaces.c.space_id))
        return [Space(**{**row, "train_end": datetime.fromisoformat(row["train_end"])}) for row in rows]

    def space(self, space_id: str) -> Space:
        """Return one space; NotFoundError if there is none of that id."""
        for space in self.spaces():
            if space.space_id == space_id:
                return space
        raise NotFoundError(f"No space '{space_id}' in {self.where}. `headwater status` lists them.")

    def put_version(self, version: Version) -> None:
        """Record which space a version's number stands for; once published, a version never changes its space.

        Raises
        ------
        LedgerError
            If vectors of another space were published under this version already.
        """
        for known in self.versions():
            moved = known.version == version.version and known.space_id != version.space_id
            if moved and self.is_published(version.version):
                raise LedgerError(
                    f"Version {version.version} stands for space {known.space_id} and cannot move to "
                    f"{version.space_id}: register the new space as the next version."
                )
        self.put(tables.versions, version.__dict__)

    def is_published(self, version: str) -> bool:
        """Return whether any snapshot of a version was accepted."""
        return any(snapshot.version == version for snapshot in self.snapshots(accepted=True))

    def versions(self) -> list[Version]:
        """Return all versions by number."""
        found = [Version(**row) for row in self.rows(sa.select(tables.versions))]
        return sorted(found, key=lambda version: int(version.version[1:]))

    def version(self, name: str) -> Version:
        """Return one version; NotFoundError if there is none of that name."""
        for version in self.versions():
            if version.version == name:
                return version
        raise NotFoundError(f"No version '{name}' in {self.where}. `headwater status` lists them.")

    # Views and snapshots

    def put_view(self, view: View) -> None:
        """Record what a feature view reads."""
        self.put(tables.views, view.__dict__)

    def views(self) -> list[View]:
        """Return all views by name."""
        return [View(**row) for row in self.rows(sa.select(tables.views).order_by(tables.views.c.name))]

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Record a snapshot with its verdict; the same id replaces the earlier record."""
        self.put(tables.snapshots, snapshot_values(snapshot))

    def snapshots(self, view: str | None = None, *, accepted: bool | None = None) -> list[Snapshot]:
        """Return snapshots by view and `as_of`, optionally of one view or one verdict."""
        statement = sa.select(tables.snapshots).order_by(tables.snapshots.c.view, tables.snapshots.c.as_of)
        if view is not None:
            statement = statement.where(tables.snapshots.c.view == view)
        if accepted is not None:
            statement = statement.where(tables.snapshots.c.accepted == accepted)
        return [
            Snapshot(
                **{
                    **row,
                    "as_of": datetime.fromisoformat(row["as_of"]),
                    "available_at": datetime.fromisoformat(row["available_at"]),
                    "verdict": Verdict.from_dict(row["verdict"]),
                }
            )
            for row in self.rows(statement)
        ]

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot; NotFoundError if there is none of that id."""
        for snapshot in self.snapshots():
            if snapshot.snapshot_id == snapshot_id:
                return snapshot
        raise NotFoundError(f"No snapshot '{snapshot_id}' in {self.where}. `headwater snapshot list` lists them.")

    def put_decision(self, decision: Decision) -> None:
        """Record what a person decided about a refused snapshot; decisions are never replaced by later ones."""
        self.put(tables.decisions, {**decision.__dict__, "at": decision.at.isoformat()})

    def decisions(self) -> list[Decision]:
        """Return what people decided about refused snapshots, oldest first."""
        rows = self.rows(sa.select(tables.decisions).order_by(tables.decisions.c.at))
        return [Decision(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows]

    # Training sets and consumers

    def put_training_set(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a training set by name with its manifest."""
        self.put(tables.training_sets, {"name": name, "manifest": dict(manifest)})

    def training_sets(self) -> list[dict[str, Any]]:
        """Return the manifests of all training sets."""
        statement = sa.select(tables.training_sets).order_by(tables.training_sets.c.name)
        return [row["manifest"] for row in self.rows(statement)]

    def put_consumer(self, name: str, task: str, versions: list[str], record: Mapping[str, Any]) -> None:
        """Record a consumer: its task, the embedding versions it is pinned to, and its results."""
        self.put(tables.consumers, {"name": name, "task": task, "versions": versions, "record": dict(record)})

    def consumers(self) -> list[dict[str, Any]]:
        """Return all consumers: name, task, versions, record."""
        return self.rows(sa.select(tables.consumers).order_by(tables.consumers.c.name))


def snapshot_values(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as a row of its table."""
    return {
        **snapshot.__dict__,
        "as_of": snapshot.as_of.isoformat(),
        "available_at": snapshot.available_at.isoformat(),
        "verdict": snapshot.verdict.to_dict(),
    }


def _shown(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError as error:
        raise LedgerError(
            f"${VARIABLE} is no database URL. Write it as postgresql+psycopg://user:password@host:5432/database."
        ) from error
