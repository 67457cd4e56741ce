"""Publish the plain feature views: attributes, counts as of one moment, and what users chose up to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import lifecycle
from feature_repo.contracts.naming import (
    ENTITIES,
    attributes_view,
    choices_view,
    join_key,
    snapshot_name,
    stats_view,
)
from feature_repo.contracts.types import Entity, Verdict, View
from jobs.publication import Publication, clocked, latest_before, publish, published
from jobs.workspace import Progress, Workspace, silent

# Attributes without a time of their own hold from here on.
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Result:
    """The plain snapshots of one moment."""

    as_of: datetime
    publications: tuple[Publication, ...]


def run(ws: Workspace, as_of: datetime, *, progress: Progress = silent) -> Result:
    """Publish user and item counts and users' own choices as of a moment, and the attributes once.

    A moment that is published already is left as it is, and so is one that was pruned.

    Raises
    ------
    SnapshotRefusedError
        If the gate refused a snapshot.
    """
    publications = []
    for step, entity in enumerate(ENTITIES):
        progress(f"counts of {entity}s as of {as_of:%Y-%m-%d}", step, len(ENTITIES))
        publications.append(_attributes(ws, entity))
        publications.append(_counts(ws, entity, as_of))
    publications.append(_choices(ws, as_of))
    return Result(as_of, tuple(publication for publication in publications if publication is not None))


def _pruned(ws: Workspace, view: str, as_of: datetime) -> bool:
    horizon = lifecycle.horizons(ws.ledger).get(view)
    return horizon is not None and as_of < horizon


def _counts(ws: Workspace, entity: Entity, as_of: datetime) -> Publication | None:
    from jobs.features.history import STATS, stats

    view = stats_view(entity)
    done = published(ws, view, as_of)
    if done is not None:
        return Publication(done, 0.0, reused=True)
    if _pruned(ws, view, as_of):
        return None
    frame = stats(ws.log, entity, as_of, ws.config.coverage).select(join_key(entity), *STATS)
    available_at = as_of + ws.config.availability_lag
    table = clocked(_arrow(frame), available_at)
    return _publish(ws, view, entity, table, as_of, available_at, ws.config.ttl_days)


def _choices(ws: Workspace, as_of: datetime) -> Publication | None:
    """Publish what users chose themselves, for all who have counts; None where the settings say so.

    A moment that was published with other settings is published again: strengths of two kinds do not compare.
    """
    from jobs.features.choices import own_choices
    from jobs.features.history import stats
    from jobs.retrieve_questions import actions_of

    view, kept = choices_view(), ws.config.own_choices
    if not kept:
        return None
    actions, half_life = actions_of(ws), timedelta(days=ws.config.own_choices_half_life_days)
    made_by = f"{kept} of {', '.join(actions)}, half after {half_life}"
    done = published(ws, view, as_of)
    if done is not None and _metadata(ws.home.root / done.path).get("choices") == made_by:
        return Publication(done, 0.0, reused=True)
    if _pruned(ws, view, as_of):
        return None
    users = stats(ws.log, "user", as_of, ws.config.coverage)[join_key("user")]
    frame = own_choices(ws.log, users, as_of, actions, half_life, kept)
    available_at = as_of + ws.config.availability_lag
    table = clocked(_arrow(frame), available_at).replace_schema_metadata({"choices": made_by})
    return _publish(ws, view, "user", table, as_of, available_at, ws.config.ttl_days, distinct="items")


def _metadata(path: Path) -> dict[str, str]:
    """Return what was written into a Parquet file beside its columns."""
    return {name.decode(): value.decode() for name, value in (pq.read_schema(path).metadata or {}).items()}


def _attributes(ws: Workspace, entity: Entity) -> Publication | None:
    columns = ws.log.attribute_columns(entity)
    names = [*columns.categorical, *columns.numeric]
    if not names:
        return None
    view = attributes_view(entity)
    done = published(ws, view, ALWAYS)
    if done is not None:
        return Publication(done, 0.0, reused=True)
    frame = ws.log.attributes(entity)
    own_clock = "event_timestamp" in frame.columns
    key = join_key(entity)
    clocks = [pl.col("event_timestamp").dt.epoch("us").alias("available_us"), pl.col("event_timestamp")]
    # Categories are text in the lake, whatever type they came in: one type for every reader.
    chosen = frame.select(
        key,
        *(pl.col(name).cast(pl.String) for name in columns.categorical),
        *(pl.col(name).cast(pl.Float64) for name in columns.numeric),
        *(clocks if own_clock else []),
    )
    if own_clock:
        created = pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")).alias("created")
        table = _arrow(chosen.with_columns(created))
    else:
        table = clocked(_arrow(chosen), ALWAYS)
    return _publish(ws, view, entity, table, ALWAYS, ALWAYS, 0)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    table = frame.to_arrow()
    return table.cast(pa.schema([pa.field(field.name, _small(field.type)) for field in table.schema]))


def _small(kind: pa.DataType) -> pa.DataType:
    """Return a type as the lake has it, with offsets of 32 bits."""
    if pa.types.is_large_list(kind):
        return pa.list_(_small(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) else kind


def _told(kind: pa.DataType) -> str:
    """Return a type as views tell it."""
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def _publish(
    ws: Workspace,
    view: str,
    entity: Entity,
    table: pa.Table,
    as_of: datetime,
    available_at: datetime,
    ttl_days: int,
    distinct: str | None = None,
) -> Publication:
    """Gate and publish a table; `distinct` names its lists whose values are ids, and lists lie side by side."""
    from validation.gate import default_gate
    from validation.specs import FeatureSpec

    key = join_key(entity)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "events": ws.log.fingerprint})
    fields = {
        field.name: _told(field.type) for field in table.schema if field.name not in (key, "event_timestamp", "created")
    }
    id_type = "int64" if table.schema.field(key).type == pa.int64() else "string"

    def gate(staged: Path) -> Verdict:
        # Attributes may be missing, and their times are their own; counts are complete, and of one moment.
        timed = as_of != ALWAYS
        spec = FeatureSpec(
            snapshot_id=snapshot_name(view, as_of),
            entity=entity,
            id_type="int64" if id_type == "int64" else "string",
            columns={name: table.schema.field(name).type for name in fields},
            as_of=as_of,
            available_at=available_at,
            nullable=frozenset() if timed else frozenset(fields),
            may_be_negative=frozenset() if timed else frozenset(fields),
            own_times=not timed and "event_timestamp" in ws.log.attributes(entity).columns,
            distinct=frozenset([distinct] if distinct else []),
            checked_at=datetime.now(UTC),
        )
        before = latest_before(ws, view, as_of)
        previous = None if before is None else ws.home.root / before.path
        with TemporaryDirectory() as scratch:
            return default_gate().check_features(staged, spec, workdir=Path(scratch), previous=previous)

    return publish(
        ws,
        View(view, entity, None, id_type, fields, ttl_days),
        table,
        as_of,
        space_id=None,
        available_at=available_at,
        gate=gate,
    )
