"""The ledger's tables. Times are ISO-8601 UTC text; what has no need to be searched is JSON."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa


class JsonText(sa.TypeDecorator[Any]):
    """JSON as text, as SQLite keeps it: Postgres's own type refuses NaN, which checks may have found."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
        """Return what is stored."""
        return json.dumps(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        """Return what was stored."""
        return None if value is None else json.loads(value)


JSON = sa.JSON().with_variant(JsonText(), "postgresql")
# Sorted by bytes, as in SQLite, whatever language a Postgres database was made for: times are compared as text.
TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
metadata = sa.MetaData()

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("fingerprint", TEXT, primary_key=True),
    sa.Column("name", TEXT, nullable=False),
    sa.Column("record", JSON, nullable=False),
)
spaces = sa.Table(
    "spaces",
    metadata,
    sa.Column("space_id", TEXT, primary_key=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("train_end", TEXT, nullable=False),
    sa.Column("data_fingerprint", TEXT, nullable=False),
    sa.Column("artifact", TEXT, nullable=False),
    sa.Column("config", JSON, nullable=False),
)
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("version", TEXT, primary_key=True),
    sa.Column("space_id", TEXT, sa.ForeignKey("spaces.space_id"), nullable=False),
    sa.Column("description", TEXT, nullable=False),
    sa.Column("owner", TEXT, nullable=False),
    sa.Column("smoothing", sa.Float, nullable=True),
)
views = sa.Table(
    "views",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("entity", TEXT, nullable=False),
    sa.Column("version", TEXT, nullable=True),
    sa.Column("id_type", TEXT, nullable=False),
    sa.Column("fields", JSON, nullable=False),
    sa.Column("ttl_days", sa.Integer, nullable=False),
)
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("snapshot_id", TEXT, primary_key=True),
    sa.Column("view", TEXT, nullable=False, index=True),
    sa.Column("entity", TEXT, nullable=False),
    sa.Column("version", TEXT, nullable=True),
    sa.Column("space_id", TEXT, nullable=True),
    sa.Column("as_of", TEXT, nullable=False),
    sa.Column("available_at", TEXT, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("path", TEXT, nullable=False),
    sa.Column("sha256", TEXT, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("verdict", JSON, nullable=False),
)
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("snapshot_id", TEXT, primary_key=True),
    sa.Column("at", TEXT, primary_key=True),
    sa.Column("sha256", TEXT, nullable=False),
    sa.Column("action", TEXT, nullable=False),
    sa.Column("by", TEXT, nullable=False),
    sa.Column("why", TEXT, nullable=False),
)
training_sets = sa.Table(
    "training_sets",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("manifest", JSON, nullable=False),
)
consumers = sa.Table(
    "consumers",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("task", TEXT, nullable=False),
    sa.Column("versions", JSON, nullable=False),
    sa.Column("record", JSON, nullable=False),
)
retirements = sa.Table(
    "retirements",
    metadata,
    sa.Column("version", TEXT, primary_key=True),
    sa.Column("at", TEXT, nullable=False),
    sa.Column("by", TEXT, nullable=False),
    sa.Column("why", TEXT, nullable=False),
)
# Refreshes of a view before its horizon were pruned; a removal is a file that pruning has still to remove.
horizons = sa.Table(
    "horizons",
    metadata,
    sa.Column("view", TEXT, primary_key=True),
    sa.Column("before", TEXT, nullable=False),
)
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("snapshot_id", TEXT, primary_key=True),
    sa.Column("path", TEXT, nullable=False),
)
# Snapshots that another space's model made through a bridge.
bridged = sa.Table(
    "bridged",
    metadata,
    sa.Column("snapshot_id", TEXT, primary_key=True),
    sa.Column("artifact", TEXT, nullable=False),
    sa.Column("from_space", TEXT, nullable=False),
)
# Models that were trained on from a version's own and stayed in its space: they refresh it from their cut-off on.
continuations = sa.Table(
    "continuations",
    metadata,
    sa.Column("model", TEXT, sa.ForeignKey("spaces.space_id"), primary_key=True),
    sa.Column("version", TEXT, sa.ForeignKey("versions.version"), nullable=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("created", TEXT, nullable=False),
    sa.Column("record", JSON, nullable=False),
)
# Append-only: what serving used when. The last promote or rollback names the release that is live.
moves = sa.Table(
    "moves",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("action", TEXT, nullable=False),
    sa.Column("release", TEXT, nullable=False),
    sa.Column("at", TEXT, nullable=False),
    sa.Column("by", TEXT, nullable=False),
    sa.Column("verified", JSON, nullable=False),
)
