"""Training sets: labels joined, point in time, with the features of one consumer's service."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.errors import ConfigError, LakeError, NotReadyError
from feature_repo.lake import read_json, sha256_of, write_json, write_parquet
from feature_repo.stores.sources import parquet_files
from jobs.config import Config, Consumer
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from feature_repo.contracts.types import Verdict
    from feature_repo.stores.job import PitRetrievalJob

SHARD_ROWS = 200_000
LABELS = {"ctr": "click", "cvr": "conversion"}
# A view in which next to no label finds a row is one that was joined by the wrong key.
LEAST_HIT_RATE = 0.001


@dataclass(frozen=True)
class Result:
    """Where a training set lies and its manifest."""

    folder: Path
    manifest: dict[str, Any]
    reused: bool = False


def labels_of(ws: Workspace, task: str, where: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Return the labelled rows a consumer's task learns from and is judged on.

    CTR takes every impression from the upstream cut-off on, CVR every clicked one; `where` keeps those whose context
    columns have the given values.

    Raises
    ------
    NotReadyError
        If the log has no row for this task; the message says why.
    ConfigError
        If the log has no such context column.
    """
    from jobs.features.labels import opportunities

    splits = ws.splits
    rows = opportunities(ws.log, splits.upstream_end).filter(pl.col("event_timestamp") <= splits.end)
    if task == "ctr":
        if rows["click"].null_count():
            raise NotReadyError("The log has no impressions, so there is no click-through rate to learn.")
    elif task == "cvr":
        rows = rows.filter(pl.col("click").fill_null(True))
    else:
        raise NotReadyError(f"The task '{task}' reads snapshots, not a training set.")
    rows = rows.filter(*_tests(ws, where or {}))
    if rows.height == 0:
        told = "".join(f" with {name} {value}" for name, value in (where or {}).items())
        raise NotReadyError(f"The log has no row for the task '{task}'{told} from {ws.splits.upstream_end} on.")
    return rows.drop("user_code", "item_code")


def _tests(ws: Workspace, where: Mapping[str, str]) -> list[pl.Expr]:
    """Return a test for each context column that must have a given value."""
    context = ws.log.context_columns
    known = (*context.categorical, *context.numeric)
    unknown = [name for name in where if name not in known]
    if unknown:
        raise ConfigError(
            f"The log has no context column {', '.join(unknown)} (it has: {', '.join(known) or 'none'}). See `where` "
            "of the consumer in config.yaml."
        )
    return [pl.col(name).cast(pl.String) == value for name, value in where.items()]


def run(
    ws: Workspace,
    service: str,
    *,
    labels: Path | None = None,
    out: Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Join labels with the features of a consumer's service through Feast.

    The result is Parquet shards and ``manifest.json``. Shards that are there from a killed run with the same
    inputs are kept.

    Parameters
    ----------
    service
        Name of a consumer and of its service.
    labels
        Parquet file, folder or glob with `event_timestamp` and the service's join keys; may be larger than
        memory. The labels of the consumer's own task in the log by default.
    out
        Folder of the result; ``training_sets/<service>`` of the home folder by default.

    Raises
    ------
    ConfigError
        If no consumer has that name, or `out` holds something else.
    NotReadyError
        If the service is not registered or there are no labels.
    LakeError
        If the gate refuses the result.
    """
    consumer = ws.config.consumer(service)
    folder = ws.home.training_sets / service if out is None else out.resolve()
    own = labels_of(ws, consumer.task, consumer.where).with_row_index("row_id") if labels is None else None
    request = _request(ws, service, labels)
    manifest_file = folder / "manifest.json"
    if manifest_file.exists() and read_json(manifest_file)["request"] == request:
        return Result(folder, read_json(manifest_file), reused=True)
    _prepare(folder, request)
    if own is not None:
        labels = folder / "labels.parquet"
        if not labels.exists():
            write_parquet(own.to_arrow(), labels)
    assert labels is not None
    job = _job(ws, service, labels)
    kept = sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))
    started = time.monotonic()

    def tell(done: int, total: int) -> None:
        rate = max(0, done - kept) / max(time.monotonic() - started, 1e-9)
        progress(f"training set {service}: {done:,} rows, {rate:,.0f} rows/s", done // SHARD_ROWS, total // SHARD_ROWS)

    files = job.to_shards(folder, SHARD_ROWS, progress=tell)
    seconds = time.monotonic() - started
    name = service if out is None else f"{service}: {folder.name}"
    manifest = _manifest(ws, consumer, request, files, job.rows, name)
    manifest |= {"seconds": seconds, "rows_per_s": (job.rows - kept) / seconds if job.rows > kept else None}
    write_json(manifest, manifest_file)
    ws.ledger.put_training_set(name, {**read_json(manifest_file), "service": name})
    return Result(folder, read_json(manifest_file))


def _prepare(folder: Path, request: dict[str, Any]) -> None:
    """Make a folder ready: go on where the request is the same, start anew where it is another one of ours."""
    request_file = folder / "request.json"
    if request_file.exists() and read_json(request_file) == request:
        return
    ours = [*folder.glob("part-*.parquet"), folder / "labels.parquet", folder / "manifest.json", request_file]
    if folder.exists() and not request_file.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files that are no training set. Choose a new or empty folder for --out.")
    for file in ours:
        file.unlink(missing_ok=True)
    write_json(request, request_file)


def _job(ws: Workspace, service: str, labels: Path) -> PitRetrievalJob:
    from feast.errors import FeatureServiceNotFoundException

    from jobs.store import open_store

    store = open_store(ws.home)
    try:
        features = store.get_feature_service(service)
    except FeatureServiceNotFoundException as error:
        raise NotReadyError(f"Feast knows no service '{service}'. Run `headwater apply` first.") from error
    job: Any = store.get_historical_features(str(labels.resolve()), features=features, full_feature_names=True)
    return job


def _request(ws: Workspace, service: str, labels: Path | None) -> dict[str, Any]:
    """Say what the training set is made from: equal requests give equal rows."""
    record = {consumer["name"]: consumer for consumer in ws.ledger.consumers()}.get(service)
    if record is None:
        raise NotReadyError(f"The consumer '{service}' is not registered. Run `headwater apply` first.")
    views = record["record"]["views"]
    snapshots = {view: [snapshot.sha256 for snapshot in ws.ledger.snapshots(view, accepted=True)] for view in views}
    digest = hashlib.sha256(json.dumps(snapshots, sort_keys=True).encode()).hexdigest()
    request = {
        "service": service,
        "views": views,
        "fingerprint": ws.log.fingerprint,
        "splits": ws.splits.model_dump(mode="json"),
        "snapshots": digest,
        "shard_rows": SHARD_ROWS,
    }
    where = ws.config.consumer(service).where
    if where and labels is None:
        request["where"] = where
    if labels is not None:
        contents = [sha256_of(file) for file in parquet_files(labels)]
        request["labels"] = hashlib.sha256("".join(contents).encode()).hexdigest()
    return request


def _manifest(
    ws: Workspace, consumer: Consumer, request: dict[str, Any], files: list[Path], labels_in: int, name: str
) -> dict[str, Any]:
    """Audit what was written and say what it is.

    Raises
    ------
    LakeError
        If the audit fails: then there is no manifest, and so nothing that anyone would train on.
    """
    from jobs.leaks import leak_report

    report = leak_report(ws, files, request["views"])
    rows = pl.scan_parquet(files)
    outcome = LABELS.get(consumer.task)
    label = outcome if outcome in pq.read_schema(files[0]).names else None
    moment = pl.col("event_timestamp")
    facts = rows.select(
        pl.len().alias("rows"),
        moment.min().alias("start"),
        moment.max().alias("end"),
        (pl.col(label).mean() if label else pl.lit(None)).alias("label_rate"),
    ).collect()
    manifest = {
        "request": request,
        "service": consumer.name,
        "dataset": ws.log.record.name,
        "task": consumer.task,
        "versions": list(consumer.versions),
        "spaces": {version: ws.ledger.version(version).space_id for version in consumer.versions},
        **facts.row(0, named=True),
        "hit_rates": report.hit_rates,
        "leaks": report.leaks,
        "leak_report": report.counts,
        "files": [file.name for file in files],
        "gate": None,
    }
    if label is not None and manifest["rows"]:
        past = _past(ws, consumer, label, name, manifest["start"])
        verdict = _verdict(files, request["views"], label, report.leaks, labels_in, past, ws.config)
        manifest["gate"] = verdict.to_dict()
        if not verdict.accepted:
            failed = "; ".join(f"{check.name} {check.observed} ({check.bound})" for check in verdict.failures())
            raise LakeError(
                f"The gate refused the training set in {files[0].parent}: {failed or verdict.error}. It must not be "
                "used. Remove the folder and run again; if it stays so, look at the labels and the feature views. "
                "If the label rate really changed so much, raise label_rate_factor in config.yaml."
            )
    elif report.leaks or manifest["rows"] != labels_in:
        raise LakeError(
            f"{files[0].parent} must not be used: {manifest['rows']:,} rows from {labels_in:,} labels, of which "
            f"{report.leaks:,} carry a feature newer than their label. Remove the folder and run again."
        )
    return manifest


@dataclass(frozen=True)
class _Past:
    """What was usual so far: label rate and the rows it is of, and hit rates by view."""

    rate: tuple[float, int] | None
    hit_rates: dict[str, float]


def _past(ws: Workspace, consumer: Consumer, label: str, name: str, start: datetime) -> _Past:
    """Return what the last training set of this name held; for the log's own labels the log before the first of them.

    Labels of one's own may be sampled in any way, so the log says nothing about their rate. Training sets of another
    dataset do not count.
    """
    for last in ws.ledger.training_sets():
        if last.get("dataset") == ws.log.record.name and last["service"] == name and last.get("label_rate") is not None:
            return _Past(_usable(last["label_rate"], last["rows"]), last["hit_rates"])
    if name != consumer.name:
        return _Past(None, {})
    from jobs.features.labels import opportunities

    rows = opportunities(ws.log, end=start)
    if consumer.task == "cvr":
        rows = rows.filter(pl.col("click").fill_null(True))
    rows = rows.filter(*_tests(ws, consumer.where))
    labels = rows[label].drop_nulls()
    return _Past(_usable(float(labels.sum() / max(len(labels), 1)), len(labels)), {})


def _usable(rate: float, rows: int) -> tuple[float, int] | None:
    """Return a past rate with its rows; None where nothing ever happened, as a log that began later looks so."""
    return (rate, rows) if 0 < rate < 1 else None


def _verdict(
    files: list[Path], views: list[str], label: str, leaks: int, labels_in: int, past: _Past, config: Config
) -> Verdict:
    """Let the gate judge the narrow columns of all shards as one file."""
    from validation.gate import Gate
    from validation.specs import Bounds, TrainingSetSpec

    clocks = [f"{view}__available_us" for view in views]
    with TemporaryDirectory() as scratch:
        narrow = Path(scratch) / "narrow.parquet"
        writer: pq.ParquetWriter | None = None
        for file in files:
            table = pq.ParquetFile(file).read(columns=["event_timestamp", label, *clocks])
            for clock in clocks:
                moments = pc.cast(table[clock], pa.timestamp("us", tz="UTC"))
                table = table.set_column(table.schema.get_field_index(clock), clock, moments)
            writer = writer or pq.ParquetWriter(narrow, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        spec = TrainingSetSpec(
            name="training_set",
            labels_in=labels_in,
            label_rates={label: (0.0, 1.0)},
            hit_floors=dict.fromkeys(clocks, LEAST_HIT_RATE),
            feature_times=clocks,
            leaks=leaks,
            past_rates={label: past.rate} if past.rate else {},
            past_hits={f"{view}__available_us": past.hit_rates[view] for view in views if view in past.hit_rates},
        )
        gate = Gate(Bounds(label_rate_factor=config.label_rate_factor))
        return gate.check_training_set(narrow, spec, workdir=Path(scratch) / "gate")
