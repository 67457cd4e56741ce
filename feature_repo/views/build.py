"""Feast objects from the ledger: what was published decides what is registered.

`feast apply` deletes what its definitions no longer contain, so there is one source of definitions.
The version stands in a view's name, because two versions of one view cannot meet in one historical
read (docs/adr/0002-version-in-the-view-name.md).
"""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta
from typing import Any

from feast import Entity as FeastEntity
from feast import FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.types import Array, Bool, Float32, Float64, Int64, String
from feast.value_type import ValueType

from feature_repo.contracts.naming import ENTITIES, choices_view, join_key
from feature_repo.contracts.types import Snapshot, View
from feature_repo.lake import Home
from feature_repo.ledger import Ledger
from feature_repo.lifecycle import bridged, models_of, retirements
from feature_repo.profile import reads_with_spark

TYPES: dict[str, Any] = {
    "string": String,
    "float": Float32,
    "double": Float64,
    "int64": Int64,
    "bool": Bool,
    "list<float>": Array(Float32),
    "list<int64>": Array(Int64),
    "list<string>": Array(String),
}


def feast_objects(home: Home, ledger: Ledger) -> dict[str, Any]:
    """Return every Feast object of a home folder by its name; empty before anything was published."""
    since: dict[str, datetime] = {}
    latest: dict[str, Snapshot] = {}
    for snapshot in ledger.snapshots(accepted=True):
        since[snapshot.view] = min(snapshot.available_at, since.get(snapshot.view, snapshot.available_at))
        latest[snapshot.view] = snapshot
    retired = retirements(ledger)
    records = [view for view in ledger.views() if view.name in since and view.version not in retired]
    if not records:
        return {}
    value_type = ValueType.INT64 if records[0].id_type == "int64" else ValueType.STRING
    entities = {name: FeastEntity(name=name, join_keys=[join_key(name)], value_type=value_type) for name in ENTITIES}
    views = {
        record.name: _view(home, ledger, record, entities[record.entity], since[record.name], latest[record.name])
        for record in records
    }
    services = {consumer["name"]: _service(ledger, consumer, views, latest) for consumer in ledger.consumers()}
    return {**entities, **views, **services}


def _service(
    ledger: Ledger, consumer: dict[str, Any], views: dict[str, FeatureView], latest: dict[str, Snapshot]
) -> FeatureService:
    record = consumer["record"]
    pinned = [ledger.version(version) for version in consumer["versions"]]
    spaces = [ledger.space(version.space_id) for version in pinned]
    read = [latest[view] for view in record["views"] if view in views and latest[view].version is not None]
    tags = {
        "task": consumer["task"],
        "versions": ",".join(version.version for version in pinned),
        "space_ids": ",".join(space.space_id for space in spaces),
        "upstream_owners": ",".join(dict.fromkeys(version.owner for version in pinned)),
        "event_fingerprints": ",".join(dict.fromkeys(space.data_fingerprint for space in spaces)),
        "latest_as_of": ",".join(f"{item.view}={item.as_of.isoformat()}" for item in read),
        "artifact": record.get("artifact", "not trained"),
    }
    scores = {name: record[name] for name in ("auc", "recall_at_100") if name in record}
    tags |= {name: ",".join(f"{row}={value}" for row, value in table.items()) for name, table in scores.items()}
    return FeatureService(
        name=consumer["name"],
        features=[views[view] for view in record["views"] if view in views],
        tags=tags,
        description=f"What the {consumer['task']} consumer '{consumer['name']}' reads.",
        owner=record.get("owner", ""),
    )


def _view(
    home: Home, ledger: Ledger, record: View, entity: FeastEntity, since: datetime, latest: Snapshot
) -> FeatureView:
    tags, description, owner = {"kind": "plain"}, "Counts or attributes as of each snapshot.", ""
    if record.name == choices_view():
        description = "What users chose themselves as of each snapshot: items and faded counts, strongest first."
    if record.version is not None:
        version = ledger.version(record.version)
        space = ledger.space(version.space_id)
        description, owner = version.description, version.owner
        tags = {
            "kind": "embedding",
            "version": version.version,
            "space_id": space.space_id,
            "dim": str(space.dim),
            "train_end": space.train_end.isoformat(),
            "smoothing": "off" if version.smoothing is None else str(version.smoothing),
            "event_fingerprint": space.data_fingerprint,
            "latest_as_of": latest.as_of.isoformat(),
            "latest_snapshot": latest.snapshot_id,
        }
        continued = [model.space_id for model in models_of(ledger, version.version)[1:]]
        over = bridged(ledger).get(latest.snapshot_id)
        tags |= {"continued_by": ",".join(continued)} if continued else {}
        tags |= {"bridged_from": over["from_space"], "bridge": over["artifact"]} if over else {}
    key = Field(name=join_key(record.entity), dtype=TYPES[record.id_type])
    fields = [Field(name=name, dtype=TYPES[kind]) for name, kind in record.fields.items()]
    if record.version is not None and record.entity == "item":
        # For Feast's own vector search, where the online store offers it.
        searched: dict[str, Any] = {"vector_length": int(tags["dim"]), "vector_search_metric": "inner_product"}
        fields = [
            Field(name=f.name, dtype=f.dtype, vector_index=True, **searched) if f.name == "embedding" else f
            for f in fields
        ]
    source = _source(home, record)
    # Feast puts the wall clock here, and every `feast apply` would report the view as changed.
    source.created_timestamp = source.last_updated_timestamp = since
    return FeatureView(
        name=record.name,
        entities=[entity],
        ttl=timedelta(days=record.ttl_days),
        schema=[key, *fields],
        source=source,
        tags=tags,
        description=description,
        owner=owner,
    )


def _source(home: Home, record: View) -> DataSource:
    """Return a view's files as the source class that the profile's offline store reads."""
    shared: dict[str, Any] = {
        "name": f"{record.name}_source",
        "path": str(home.view_folder(record.name)),
        "timestamp_field": "event_timestamp",
        "created_timestamp_column": "created",
        "description": "One Parquet file per snapshot.",
    }
    if reads_with_spark():
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that Feast's Spark sources are young
            return SparkSource(file_format="parquet", **shared)
    return FileSource(file_format=ParquetFormat(), **shared)
