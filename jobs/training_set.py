"""Training sets: labels joined, point in time, with the features of one consumer's service."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import NotReadyError
from feature_repo.lake import read_json, write_json, write_parquet
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from feast import FeatureStore

SHARD_ROWS = 200_000
KEYS = ("user_id", "item_id", "event_timestamp")


@dataclass(frozen=True)
class Result:
    """Where a training set lies and its manifest."""

    folder: Path
    manifest: dict[str, Any]
    reused: bool = False


def labels_of(ws: Workspace, task: str) -> pl.DataFrame:
    """Return the labelled rows a consumer's task learns from and is judged on.

    CTR takes every impression from the upstream cut-off on, CVR every clicked one.

    Raises
    ------
    NotReadyError
        If the log has no row for this task; the message says why.
    """
    from jobs.features.labels import opportunities

    rows = opportunities(ws.log).filter(pl.col("event_timestamp") >= ws.splits.upstream_end)
    if task == "ctr":
        if rows["click"].null_count():
            raise NotReadyError("The log has no impressions, so there is no click-through rate to learn.")
    elif task == "cvr":
        rows = rows.filter(pl.col("click").fill_null(True))
    else:
        raise NotReadyError(f"The task '{task}' reads snapshots, not a training set.")
    if rows.height == 0:
        raise NotReadyError(f"The log has no row for the task '{task}' from {ws.splits.upstream_end} on.")
    return rows.drop("user_code", "item_code")


def run(ws: Workspace, service: str, *, progress: Progress = silent) -> Result:
    """Join a consumer's labels with the features of its service through Feast.

    The result is Parquet shards and ``manifest.json`` under ``training_sets/<service>/``. Shards that are
    there from a killed run with the same inputs are kept.

    Raises
    ------
    ConfigError
        If no consumer has that name.
    NotReadyError
        If the service is not registered or there are no labels.
    """
    consumer = ws.config.consumer(service)
    labels = labels_of(ws, consumer.task).with_row_index("row_id")
    folder = ws.home.training_sets / service
    request = _request(ws, service)
    manifest_file = folder / "manifest.json"
    if manifest_file.exists() and read_json(manifest_file)["request"] == request:
        return Result(folder, read_json(manifest_file), reused=True)
    request_file = folder / "request.json"
    if not request_file.exists() or read_json(request_file) != request:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(request, request_file)

    from feast.errors import FeatureServiceNotFoundException

    from jobs.leaks import leak_report
    from jobs.store import open_store

    store = open_store(ws.home)
    try:
        store.get_feature_service(service)
    except FeatureServiceNotFoundException as error:
        raise NotReadyError(f"Feast knows no service '{service}'. Run `headwater apply` first.") from error
    started = time.monotonic()
    shards = range(0, labels.height, SHARD_ROWS)
    joined_rows, files = 0, []
    for number, start in enumerate(shards):
        progress(f"training set {service}", number, len(shards))
        part = folder / f"part-{number:05d}.parquet"
        files.append(part)
        if not part.exists():
            chunk = labels.slice(start, SHARD_ROWS)
            write_parquet(join(store, service, chunk), part)
            joined_rows += chunk.height
    seconds = time.monotonic() - started
    progress(f"training set {service}: leak report", len(shards), len(shards))
    report = leak_report(ws, files, request["views"])
    manifest = {
        "request": request,
        "service": service,
        "task": consumer.task,
        "versions": list(consumer.versions),
        "rows": labels.height,
        "start": labels["event_timestamp"].min(),
        "end": labels["event_timestamp"].max(),
        "label_rate": float(labels["click" if consumer.task == "ctr" else "conversion"].mean()),  # type: ignore
        "hit_rates": report.hit_rates,
        "leaks": report.leaks,
        "leak_report": report.counts,
        "files": [file.name for file in files],
        "seconds": seconds,
        "rows_per_s": joined_rows / seconds if joined_rows else None,
    }
    _gate(labels.height, files, manifest)
    write_json(manifest, manifest_file)
    ws.ledger.put_training_set(service, read_json(manifest_file))
    return Result(folder, read_json(manifest_file))


def join(store: FeatureStore, service: str, labels: pl.DataFrame) -> pa.Table:
    """Return the labels with the service's features as of each label's time, in the labels' order.

    Feature columns are named ``<view>__<feature>``.
    """
    entity_frame = labels.select("row_id", *KEYS).to_pandas()
    job = store.get_historical_features(
        entity_frame, features=store.get_feature_service(service), full_feature_names=True
    )
    table = job.to_arrow().sort_by("row_id")
    features = [name for name in table.column_names if name not in ("row_id", *KEYS)]
    result = labels.to_arrow()
    for name in features:
        result = result.append_column(table.schema.field(name), table[name])
    return result


def _request(ws: Workspace, service: str) -> dict[str, Any]:
    """Say what the training set is made from: equal requests give equal rows."""
    record = {consumer["name"]: consumer for consumer in ws.ledger.consumers()}.get(service)
    if record is None:
        raise NotReadyError(f"The consumer '{service}' is not registered. Run `headwater apply` first.")
    views = record["record"]["views"]
    snapshots = {view: [snapshot.sha256 for snapshot in ws.ledger.snapshots(view, accepted=True)] for view in views}
    digest = hashlib.sha256(json.dumps(snapshots, sort_keys=True).encode()).hexdigest()
    return {
        "service": service,
        "views": views,
        "fingerprint": ws.log.fingerprint,
        "splits": ws.splits.model_dump(mode="json"),
        "snapshots": digest,
        "shard_rows": SHARD_ROWS,
    }


def _gate(labels: int, files: list[Path], manifest: dict[str, Any]) -> None:
    """Refuse a training set that lost or gained rows or holds a feature newer than its label."""
    from feature_repo.contracts.errors import LakeError

    rows = pl.scan_parquet(files).select(pl.len()).collect().item()
    if rows != labels:
        raise LakeError(
            f"The join of {labels:,} labels gave {rows:,} rows. Remove {files[0].parent} and run again; "
            "if it stays so, a feature view holds two rows of one entity, moment and creation time."
        )
    if manifest["leaks"]:
        raise LakeError(
            f"{manifest['leaks']:,} rows of {files[0].parent} carry a feature newer than their label. "
            "The training set must not be used; see its leak report."
        )
