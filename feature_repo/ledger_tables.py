"""The ledger's tables. Times are ISO-8601 UTC text; what has no need to be searched is JSON."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("fingerprint", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)
spaces = sa.Table(
    "spaces",
    metadata,
    sa.Column("space_id", sa.String, primary_key=True),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("train_end", sa.String, nullable=False),
    sa.Column("data_fingerprint", sa.String, nullable=False),
    sa.Column("artifact", sa.String, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
)
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("space_id", sa.String, sa.ForeignKey("spaces.space_id"), nullable=False),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("smoothing", sa.Float, nullable=True),
)
views = sa.Table(
    "views",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("entity", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=True),
    sa.Column("id_type", sa.String, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("ttl_days", sa.Integer, nullable=False),
)
snapshots = sa.Table(
    "snapshots",
    metadata,
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
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("snapshot_id", sa.String, primary_key=True),
    sa.Column("at", sa.String, primary_key=True),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
training_sets = sa.Table(
    "training_sets",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("manifest", sa.JSON, nullable=False),
)
consumers = sa.Table(
    "consumers",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("versions", sa.JSON, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)
retirements = sa.Table(
    "retirements",
    metadata,
    sa.Column("version", sa.String, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)
# Refreshes of a view before its horizon were pruned; a removal is a file that pruning has still to remove.
horizons = sa.Table(
    "horizons",
    metadata,
    sa.Column("view", sa.String, primary_key=True),
    sa.Column("before", sa.String, nullable=False),
)
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("snapshot_id", sa.String, primary_key=True),
    sa.Column("path", sa.String, nullable=False),
)
# Snapshots that another space's model made through a bridge.
bridged = sa.Table(
    "bridged",
    metadata,
    sa.Column("snapshot_id", sa.String, primary_key=True),
    sa.Column("artifact", sa.String, nullable=False),
    sa.Column("from_space", sa.String, nullable=False),
)
# Models that were trained on from a version's own and stayed in its space: they refresh it from their cut-off on.
continuations = sa.Table(
    "continuations",
    metadata,
    sa.Column("model", sa.String, sa.ForeignKey("spaces.space_id"), primary_key=True),
    sa.Column("version", sa.String, sa.ForeignKey("versions.version"), nullable=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)
# Append-only: what serving used when. The last promote or rollback names the release that is live.
moves = sa.Table(
    "moves",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("release", sa.String, nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("verified", sa.JSON, nullable=False),
)
