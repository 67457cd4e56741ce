"""Rehearse giving a model up: what do an old version's rankers lose when a bridge continues it, and what do they gain?

In a scratch copy of the home folder the old version has no snapshots of its own from some moment on. Every scheduled
moment from there on is bridged in it, through the gate. The version's rankers then score the same test rows with what
they would have read: its own vectors, the bridged ones, the last ones before. Nothing of the home folder is changed.

Legend: N rows, S seeds, V vectors, D embedding dim.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from feature_repo import ledger_tables as tables
from feature_repo.contracts.errors import ConfigError, NotReadyError, SnapshotRefusedError
from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.contracts.types import Entity, Snapshot
from feature_repo.lake import read_json, write_json
from feature_repo.ledger import VARIABLE
from jobs import bridge
from jobs.train_downstream import seeds_in
from jobs.training_set import LABELS
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs.features.ranking import TrainingSet

WAYS = OWN, BRIDGED, STOPPED, KEPT = "its own", "bridged", "stopped", "stopped, never expiring"


@dataclass(frozen=True)
class Result:
    """What happened.

    Attributes
    ----------
    start
        The first moment that was bridged.
    snapshots
        Per moment and entity: ``accepted``, or why the gate refused.
    rankers
        One row per ranker and way of feeding it: AUC on the test rows, its difference in percent to the old ranker
        with its own vectors, and the 95% interval over users of that (the same rows and resamples for all).
    path
        Where the same lies as JSON.
    """

    start: datetime
    snapshots: list[dict[str, str]]
    rankers: list[dict[str, Any]]
    path: Path


def run(ws: Workspace, new: str, into: str, start: datetime | None = None, *, progress: Progress = silent) -> Result:
    """Bridge every scheduled moment from `start` on in a scratch copy, and score the rankers of both versions.

    Parameters
    ----------
    new, into
        The version whose model goes on, and the one whose rankers go on reading.
    start
        The end of the validation period by default, where the test rows begin.

    Raises
    ------
    NotReadyError
        If no ranker reads `into` alone, or the versions have no moment in common before `start`.
    """
    ws.use_threads()
    begin = start or ws.splits.valid_end
    moments = [item for item in ws.refresh_moments(ws.splits.upstream_end, ws.splits.end) if item >= begin]
    old_rankers = list(_rankers(ws, into))
    if not old_rankers:
        raise NotReadyError(f"No ranker reads {into} alone. Train one: `headwater train-downstream NAME`.")
    with _scratch(ws, into, begin) as scratch:
        found = []
        for step, moment in enumerate(moments):
            progress(f"bridge {new} into {into} as of {moment:%Y-%m-%d}", step, len(moments))
            found += _bridged(scratch, new, into, moment)
        feeds = _feeds(ws, scratch, into, begin)
        rows: list[dict[str, Any]] = []
        for step, ranker in enumerate(old_rankers):
            progress(f"score the rankers of {into}", step, len(old_rankers))
            rows += _score(ws, ranker, into, new, begin, feeds)
    progress(f"rehearsed {new} into {into}", 1, 1)
    path = ws.home.reports / f"rehearsal-{new}-{into}.json"
    write_json({"start": begin.isoformat(), "snapshots": found, "rankers": rows}, path)
    return Result(begin, found, rows, path)


@contextmanager
def _scratch(ws: Workspace, version: str, start: datetime) -> Iterator[Workspace]:
    """Yield a copy of the home folder, made of links, in which a version has no snapshots from a moment on."""
    if VARIABLE in os.environ:
        raise ConfigError(
            f"A rehearsal copies the ledger's file, and {VARIABLE} names a database. Rehearse without it."
        )
    # The name of a half-written folder: should this process be killed, `headwater doctor` removes it.
    root = ws.home.root / f".rehearsal.{os.getpid()}.part"
    views = [embedding_view(entity, version) for entity in ENTITIES]
    try:
        for folder in ("lake", "artifacts", *(f"lake/{view}" for view in views)):
            (root / folder).mkdir(parents=True)
        for path in [*ws.home.lake.iterdir(), *ws.home.artifacts.iterdir(), ws.home.training_sets]:
            if path.name not in views and not path.name.startswith("bridge-"):
                (root / path.relative_to(ws.home.root)).symlink_to(path)
        if (ws.home.root / "config.yaml").exists():
            shutil.copy2(ws.home.root / "config.yaml", root / "config.yaml")
        with (
            closing(sqlite3.connect(ws.home.ledger_file)) as source,
            closing(sqlite3.connect(root / "ledger.db")) as to,
        ):
            source.backup(to)
        scratch = Workspace.open(root)
        kept = [item for view in views for item in ws.ledger.snapshots(view, accepted=True) if item.as_of < start]
        for item in kept:
            (root / item.path).symlink_to(ws.home.root / item.path)
        known = {item.snapshot_id for item in kept}
        gone = [
            item.snapshot_id for view in views for item in ws.ledger.snapshots(view) if item.snapshot_id not in known
        ]
        with scratch.ledger.transaction("rehearsal") as connection:
            for table in (tables.snapshots, tables.bridged):
                connection.execute(sa.delete(table).where(table.c.snapshot_id.in_(gone)))
        yield scratch
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _bridged(scratch: Workspace, new: str, into: str, moment: datetime) -> list[dict[str, str]]:
    """Bridge one moment; a refusal leaves the version without a snapshot of it, as it would be."""
    try:
        bridge.run(scratch, new, into, moment)
    except SnapshotRefusedError as error:
        return [{"as_of": moment.isoformat(), "result": str(error).split(". The previous")[0]}]
    return [{"as_of": moment.isoformat(), "result": "accepted"}]


@dataclass(frozen=True)
class _Feed:
    """Published vectors of one entity by id and clock; `ttl` None never expires."""

    snapshots: list[Snapshot]
    root: Path
    ttl: timedelta | None

    def joined(self, entity: Entity, ids: pl.Series, times: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors float32 [V, D] and, for each row of ids and times [N], its position in them or -1."""
        from jobs.refresh import read_vectors

        key, parts, clocks = join_key(entity), [], []
        for item in self.snapshots:
            known, vectors = read_vectors(self.root / item.path, key)
            parts.append(vectors)
            clocks.append(pl.DataFrame({"id": known, "time": pl.repeat(item.available_at, len(known), eager=True)}))
        stored = pl.concat(clocks).with_row_index("at").with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
        asked = pl.DataFrame({"id": ids, "time": times.cast(pl.Datetime("us", "UTC"))}).with_row_index("row")
        found = asked.sort("time").join_asof(
            stored.sort("time"), on="time", by="id", strategy="backward", tolerance=self.ttl, check_sortedness=False
        )
        places = found.sort("row")["at"].cast(pl.Int64).fill_null(-1).to_numpy()
        return np.concatenate(parts), places


def _feeds(ws: Workspace, scratch: Workspace, version: str, start: datetime) -> dict[str, dict[Entity, _Feed]]:
    """Return the ways in which the version's rankers could have been fed, by name."""
    feeds: dict[str, dict[Entity, _Feed]] = {OWN: {}, BRIDGED: {}, STOPPED: {}, KEPT: {}}
    reach = start - ws.config.ttl - timedelta(days=1)
    for entity in ENTITIES:
        view = embedding_view(entity, version)
        own = [item for item in ws.ledger.snapshots(view, accepted=True) if item.as_of >= reach]
        carried = [item for item in scratch.ledger.snapshots(view, accepted=True) if item.as_of >= reach]
        before = [item for item in own if item.as_of < start]
        feeds[OWN][entity] = _Feed(own, ws.home.root, ws.config.ttl)
        feeds[BRIDGED][entity] = _Feed(carried, scratch.home.root, ws.config.ttl)
        feeds[STOPPED][entity] = _Feed(before, ws.home.root, ws.config.ttl)
        feeds[KEPT][entity] = _Feed(before, ws.home.root, None)
    return feeds


@dataclass(frozen=True)
class _Ranker:
    """A trained ranker that reads the views of one version and no other embedding."""

    consumer: str
    task: str
    artifact: Path
    folder: str

    @property
    def seeds(self) -> list[Path]:
        """Where its seeds lie."""
        return [self.artifact / self.folder / f"seed-{seed}" for seed in range(seeds_in(self.artifact))]

    @property
    def recorded(self) -> np.ndarray:
        """What it predicted for the test rows when it was trained: logits [S, N]."""
        return np.stack([np.load(place / "test.npz")["logit"] for place in self.seeds])


def _rankers(ws: Workspace, version: str) -> Iterator[_Ranker]:
    views = {embedding_view(entity, version) for entity in ENTITIES}
    for consumer in ws.ledger.consumers():
        if consumer["task"] in LABELS and "artifact" in consumer["record"]:
            artifact = ws.home.root / consumer["record"]["artifact"]
            for variant in read_json(artifact / "consumer.json")["variants"]:
                if set(variant["views"]) == views:
                    yield _Ranker(consumer["name"], consumer["task"], artifact, "-".join(variant["views"]))


def _score(
    ws: Workspace,
    ranker: _Ranker,
    version: str,
    new: str,
    start: datetime,
    feeds: dict[str, dict[Entity, _Feed]],
) -> list[dict[str, Any]]:
    from jobs.features.ranking import TrainingSet
    from models.bootstrap import bootstrap_lift

    source = TrainingSet(ws.home.training_sets / ranker.consumer, LABELS[ranker.task])
    test = source.between(ws.splits.valid_end, None)
    rows = np.flatnonzero(test & source.between(max(start, ws.splits.valid_end), None))
    inside = np.flatnonzero(np.isin(np.flatnonzero(test), rows))
    logits = {name: _logits(ws, ranker, version, source, rows, feed) for name, feed in feeds.items()}
    named = {f"{ranker.consumer} with {version} {name}": values for name, values in logits.items()}
    saved = np.load(ranker.artifact / "test.npz")
    label, weight, user = (saved[name][inside] for name in ("label", "weight", "user"))
    for other in _rankers(ws, new):
        theirs = np.load(other.artifact / "test.npz")
        same = all(np.array_equal(theirs[name], saved[name]) for name in ("label", "weight", "user"))
        if other.task == ranker.task and same:
            named[f"{other.consumer} with {new} {OWN}"] = other.recorded[:, inside]
    base = f"{ranker.consumer} with {version} {OWN}"
    seeds = min(map(len, named.values()))  # consumers may have trained several each; pairs are of those that all have
    named = {name: values[:seeds] for name, values in named.items()}
    table = bootstrap_lift(label, weight, user, named.pop(base), named, resamples=ws.config.bootstrap)
    return [
        {
            "task": ranker.task,
            "ranker and vectors": base if name == "baseline" else name,
            "rows": len(rows),
            "auc": row.auc.value,
            "lift": row.relative_auc_lift.value,
            "ci95": list(row.relative_auc_lift.ci95),
            "log_loss": row.log_loss.value,
            "seeds": seeds,
        }
        for name, row in table.items()
    ]


def _logits(
    ws: Workspace, ranker: _Ranker, version: str, source: TrainingSet, rows: np.ndarray, feed: dict[Entity, _Feed]
) -> np.ndarray:
    """Return logits [S, N] of the ranker's seeds for the given rows with one way of feeding it."""
    from jobs.features.ranking import RankerEncoder
    from models.downstream.artifact import load_ranker
    from models.downstream.fit import predict

    space = ws.ledger.version(version).space_id
    times = source.frame["event_timestamp"]
    vectors: dict[str, Any] = {}
    for entity in ENTITIES:
        at = np.full(len(times), -1, np.int64)
        table, at[rows] = feed[entity].joined(entity, source.frame[join_key(entity)][rows], times[rows])
        vectors[embedding_view(entity, version)] = (table, at)
    data = source.data(RankerEncoder.load(ranker.artifact / "encoder.json"), vectors).take(rows)
    found = []
    for seed in ranker.seeds:
        saved = load_ranker(seed, dict.fromkeys(vectors, space))
        found.append(predict(saved.model, data) + saved.extra["offset"])
    return np.stack(found)
