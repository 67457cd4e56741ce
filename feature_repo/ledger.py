"""The ledger: the transactional record of spaces, versions, snapshots, training sets and consumers.

One SQLite file by default; any SQLAlchemy URL works. Rows are only added or replaced as a whole, each
public method is one transaction, and times are stored as ISO-8601 UTC text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from feature_repo.contracts.errors import LedgerError, NotFoundError
from feature_repo.contracts.types import Decision, Snapshot, Space, Verdict, Version, View

_metadata = sa.MetaData()

_datasets = sa.Table(
    "datasets",
    _metadata,
    sa.Column("fingerprint", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)
_spaces = sa.Table(
    "spaces",
    _metadata,
    sa.Column("space_id", sa.String, primary_key=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("train_end", sa.String, nullable=False),
    sa.Column("data_fingerprint", sa.String, nullable=False),
    sa.Column("artifact", sa.String, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
)
_versions = sa.Table(
    "versions",
    _metadata,
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("space_id", sa.String, sa.ForeignKey("spaces.space_id"), nullable=False),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("smoothing", sa.Float, nullable=True),
)
_views = sa.Table(
    "views",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("entity", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=True),
    sa.Column("id_type", sa.String, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("ttl_days", sa.Integer, nullable=False),
)
_snapshots = sa.Table(
    "snapshots",
    _metadata,
    sa.Column("snapshot_id", sa.String, primary_key=True),
    sa.Column("view", sa.String, nullable=False, index=True),
    sa.Column("entity", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=True),
    sa.Column("space_id", sa.String, nullable=True),
    sa.Column("as_of", sa.String, nullable=False),
    sa.Column("available_at", sa.String, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("path", sa.String, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("verdict", sa.JSON, nullable=False),
)
_decisions = sa.Table(
    "decisions",
    _metadata,
    sa.Column("snapshot_id", sa.String, primary_key=True),
    sa.Column("at", sa.String, primary_key=True),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
_training_sets = sa.Table(
    "training_sets",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("manifest", sa.JSON, nullable=False),
)
_consumers = sa.Table(
    "consumers",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("versions", sa.JSON, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)


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
    """

    def __init__(self, url: str | Path) -> None:
        self._where = str(url)
        if isinstance(url, Path):
            url.parent.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{url}"
        self._engine = sa.create_engine(url)
        with self._transaction() as connection:
            _metadata.create_all(connection)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(
                f"The ledger at {self._where} could not be read or written: {error}. "
                "Check permissions and free space; a damaged file has to be restored from a backup."
            ) from error

    def _put(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        key = [column for column in table.primary_key.columns]
        with self._transaction() as connection:
            connection.execute(sa.delete(table).where(*(column == values[column.name] for column in key)))
            connection.execute(sa.insert(table).values(**values))

    def _rows(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    # Data sets

    def put_dataset(self, fingerprint: str, name: str, record: Mapping[str, Any]) -> None:
        """Record an ingested event log by its content's fingerprint."""
        self._put(_datasets, {"fingerprint": fingerprint, "name": name, "record": dict(record)})

    def datasets(self) -> list[dict[str, Any]]:
        """Return the ingested event logs."""
        return self._rows(sa.select(_datasets))

    # Spaces and versions

    def put_space(self, space: Space) -> None:
        """Record a trained space."""
        values = {**space.__dict__, "train_end": space.train_end.isoformat()}
        self._put(_spaces, values)

    def spaces(self) -> list[Space]:
        """Return all spaces."""
        rows = self._rows(sa.select(_spaces).order_by(_spaces.c.train_end, _spaces.c.space_id))
        return [Space(**{**row, "train_end": datetime.fromisoformat(row["train_end"])}) for row in rows]

    def space(self, space_id: str) -> Space:
        """Return one space; NotFoundError if there is none of that id."""
        for space in self.spaces():
            if space.space_id == space_id:
                return space
        raise NotFoundError(f"No space '{space_id}' in {self._where}. `headwater status` lists them.")

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
        self._put(_versions, version.__dict__)

    def is_published(self, version: str) -> bool:
        """Return whether any snapshot of a version was accepted."""
        return any(snapshot.version == version for snapshot in self.snapshots(accepted=True))

    def versions(self) -> list[Version]:
        """Return all versions by number."""
        found = [Version(**row) for row in self._rows(sa.select(_versions))]
        return sorted(found, key=lambda version: int(version.version[1:]))

    def version(self, name: str) -> Version:
        """Return one version; NotFoundError if there is none of that name."""
        for version in self.versions():
            if version.version == name:
                return version
        raise NotFoundError(f"No version '{name}' in {self._where}. `headwater status` lists them.")

    # Views and snapshots

    def put_view(self, view: View) -> None:
        """Record what a feature view reads."""
        self._put(_views, view.__dict__)

    def views(self) -> list[View]:
        """Return all views by name."""
        return [View(**row) for row in self._rows(sa.select(_views).order_by(_views.c.name))]

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Record a snapshot with its verdict; the same id replaces the earlier record."""
        values = {
            **snapshot.__dict__,
            "as_of": snapshot.as_of.isoformat(),
            "available_at": snapshot.available_at.isoformat(),
            "verdict": snapshot.verdict.to_dict(),
        }
        self._put(_snapshots, values)

    def snapshots(self, view: str | None = None, *, accepted: bool | None = None) -> list[Snapshot]:
        """Return snapshots by view and `as_of`, optionally of one view or one verdict."""
        statement = sa.select(_snapshots).order_by(_snapshots.c.view, _snapshots.c.as_of)
        if view is not None:
            statement = statement.where(_snapshots.c.view == view)
        if accepted is not None:
            statement = statement.where(_snapshots.c.accepted == accepted)
        return [
            Snapshot(
                **{
                    **row,
                    "as_of": datetime.fromisoformat(row["as_of"]),
                    "available_at": datetime.fromisoformat(row["available_at"]),
                    "verdict": Verdict.from_dict(row["verdict"]),
                }
            )
            for row in self._rows(statement)
        ]

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot; NotFoundError if there is none of that id."""
        for snapshot in self.snapshots():
            if snapshot.snapshot_id == snapshot_id:
                return snapshot
        raise NotFoundError(f"No snapshot '{snapshot_id}' in {self._where}. `headwater snapshot list` lists them.")

    def put_decision(self, decision: Decision) -> None:
        """Record what a person decided about a refused snapshot; decisions are never replaced by later ones."""
        self._put(_decisions, {**decision.__dict__, "at": decision.at.isoformat()})

    def decisions(self) -> list[Decision]:
        """Return what people decided about refused snapshots, oldest first."""
        rows = self._rows(sa.select(_decisions).order_by(_decisions.c.at))
        return [Decision(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows]

    # Training sets and consumers

    def put_training_set(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Record a training set by name with its manifest."""
        self._put(_training_sets, {"name": name, "manifest": dict(manifest)})

    def training_sets(self) -> list[dict[str, Any]]:
        """Return the manifests of all training sets."""
        return [row["manifest"] for row in self._rows(sa.select(_training_sets).order_by(_training_sets.c.name))]

    def put_consumer(self, name: str, task: str, versions: list[str], record: Mapping[str, Any]) -> None:
        """Record a consumer: its task, the embedding versions it is pinned to, and its results."""
        self._put(_consumers, {"name": name, "task": task, "versions": versions, "record": dict(record)})

    def consumers(self) -> list[dict[str, Any]]:
        """Return all consumers: name, task, versions, record."""
        return self._rows(sa.select(_consumers).order_by(_consumers.c.name))
