"""What a file claims to be (specs) and how far it may stray (bounds). The gate holds the file against both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Entity

IdType = Literal["int64", "string"]


@dataclass(frozen=True)
class SnapshotSpec:
    """What an embedding snapshot claims to be.

    Attributes
    ----------
    snapshot_id
        Names the tables that the gate leaves in its scratch folder; must be usable as a file name.
    id_type
        ``int64`` or ``string``.
    dim
        Length D of each vector.
    as_of, available_at
        Timezone-aware. Every `event_timestamp` must equal `available_at`, no `created` may be before `as_of`.
    min_rows, max_rows
        Row count bounds; `max_rows` None is open.
    checked_at
        When given, rows created more than a minute later are refused as coming from the future.
    known_ids
        When given, ids outside it are refused.
    active_ids
        When given, the entities that must have a row, and the only ones that should.
    smoothing
        Share of the previous vector that was mixed in before normalizing again; None where nothing was.
        Above one half the gate takes the smoothing off before it compares, since it hides bad vectors.
    of_attributes
        Made of attributes alone, as a content embedding of items is: that rows stay as they are and that equal entities
        share a vector is no news.
    """

    snapshot_id: str
    entity: Entity
    id_type: IdType
    dim: int
    as_of: datetime
    available_at: datetime
    min_rows: int = 1
    max_rows: int | None = None
    checked_at: datetime | None = None
    known_ids: pa.Array | None = None
    active_ids: pa.Array | None = None
    smoothing: float | None = None
    of_attributes: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError where the claim itself makes no sense."""
        _check_moments(self.snapshot_id, self.as_of, self.available_at, self.checked_at)
        if self.dim < 1 or self.min_rows < 1:
            raise ConfigError(f"{self.snapshot_id}: dim and min_rows must be at least 1.")
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            raise ConfigError(f"{self.snapshot_id}: smoothing {self.smoothing} is no share; use 0 to below 1, or None.")


@dataclass(frozen=True)
class FeatureSpec:
    """What a snapshot of plain features (counts, attributes) claims to be.

    Attributes
    ----------
    columns
        Feature columns and their types; `<entity>_id`, `event_timestamp` and `created` come on top.
    nullable, may_be_negative
        Columns in which nulls, or numbers below zero, are normal. Numbers must be finite everywhere.
    own_times
        Whether each row has a moment of its own (attributes that change): `event_timestamp` is then free,
        and an entity may have several rows of different moments.
    distinct
        Columns of lists in which a value must not occur twice. All lists of a row are of one length.
    """

    snapshot_id: str
    entity: Entity
    id_type: IdType
    columns: Mapping[str, pa.DataType]
    as_of: datetime
    available_at: datetime
    min_rows: int = 1
    max_rows: int | None = None
    checked_at: datetime | None = None
    nullable: frozenset[str] = frozenset()
    may_be_negative: frozenset[str] = frozenset()
    own_times: bool = False
    distinct: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Raise ConfigError where the claim itself makes no sense."""
        _check_moments(self.snapshot_id, self.as_of, self.available_at, self.checked_at)
        unknown = sorted((self.nullable | self.may_be_negative | self.distinct) - set(self.columns))
        if unknown:
            raise ConfigError(f"{self.snapshot_id}: {', '.join(unknown)} are named but are no feature columns.")
        if not self.columns or self.min_rows < 1:
            raise ConfigError(f"{self.snapshot_id}: there must be at least one feature column and one row.")


@dataclass(frozen=True)
class EventsSpec:
    """What an ingested event log claims to be.

    Attributes
    ----------
    rows_in, rows_refused
        Event rows that were read, and those among them that were set aside as bad.
    tolerated
        How many bad rows may be set aside.
    now
        Timezone-aware; events later than a day after it are from the future.
    known_ids
        Entity to the ids of its attribute table, for those that came with one.
    """

    name: str
    rows_in: int
    rows_refused: int
    tolerated: int
    now: datetime
    known_ids: Mapping[Entity, pl.Series] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSetSpec:
    """What a training set claims to be: every label once, joined only with what was known at its moment.

    Attributes
    ----------
    name
        Names the table that the gate leaves in its scratch folder.
    labels_in
        Rows of the label table that went into the join; exactly as many must come out.
    label_rates
        Label column (values 0 and 1) to the bounds of its mean.
    past_rates
        Label column to its mean in the past and the rows that it is a mean of; narrows the bounds.
    hit_floors
        Feature column to the least share of rows in which it is not null (the join's hit rate).
    past_hits
        Feature column to that share in the last training set of this name; raises the floor.
    feature_times
        Columns that hold when a row's features became readable; none may be later than `time_column`.
    leaks
        Rows with a feature newer than their label, where the caller has counted them already.
    """

    name: str
    labels_in: int
    label_rates: Mapping[str, tuple[float, float]]
    hit_floors: Mapping[str, float] = field(default_factory=dict)
    feature_times: Sequence[str] = ()
    leaks: int | None = None
    past_rates: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    past_hits: Mapping[str, float] = field(default_factory=dict)
    time_column: str = "event_timestamp"

    def __post_init__(self) -> None:
        """Raise ConfigError where the claim itself makes no sense."""
        _check_name(self.name)
        if self.labels_in < 1 or not self.label_rates:
            raise ConfigError(f"{self.name}: a training set needs at least one row and one label column.")
        strangers = sorted(
            (set(self.past_rates) - set(self.label_rates)) | (set(self.past_hits) - set(self.hit_floors))
        )
        if strangers:
            raise ConfigError(f"{self.name}: {', '.join(strangers)} have a past but are neither label nor feature.")


@dataclass(frozen=True)
class Bounds:
    """Declared floors and ceilings; pass another instance to `Gate` to change them (docs/gate.md).

    The plain names block. Those that begin with ``usual`` only warn. Where a version has a history of at
    least `min_history` accepted snapshots, the bounds of drift are tightened to what is normal for it: its
    median and `history_spreads` robust standard deviations, never nearer than a slack of each check.
    """

    norm_tolerance: float = 1e-2
    usual_norm_tolerance: float = 1e-3
    mean_vector_norm: float = 0.995
    usual_mean_vector_norm: float = 0.9
    usual_duplicate_share: float = 0.2
    usual_rank_share: float = 0.1
    row_ratio: tuple[float, float] = (0.55, 10.0)
    usual_row_ratio: tuple[float, float] = (0.9, 2.0)
    coverage: float = 0.55
    usual_coverage: float = 0.9
    new_share: float = 0.9
    usual_new_share: float = 0.5
    cosine_mean: float = 0.2
    usual_cosine_mean: float = 0.6
    cosine_p01: float = -0.5
    usual_cosine_p01: float = 0.0
    turned_share: float = 0.15
    usual_turned_share: float = 0.05
    identity: float = 0.7
    usual_identity: float = 0.9
    space_gain: float = 0.5
    usual_space_gain: float = 0.1
    dimension_correlation: float = -0.2
    usual_dimension_correlation: float = 0.3
    rank_ratio: float = 0.4
    usual_rank_ratio: float = 0.8
    raw_norm_ratio: tuple[float, float] = (0.1, 10.0)
    usual_raw_norm_ratio: tuple[float, float] = (0.5, 2.0)
    usual_neighbour_overlap: float = 0.1
    usual_psi: float = 0.25
    usual_unchanged_share: float = 0.99
    active_coverage: float = 0.98
    usual_active_coverage: float = 0.999
    inactive_share: float = 0.02
    anchor_cosine_mean: float = 0.0
    anchor_identity: float = 0.7
    anchor_space_gain: float = 0.1
    usual_anchor_space_gain: float = 0.03
    agreement: float = 0.9995
    usual_agreement: float = 0.99999
    canary_fall: float = 0.002
    canary_recall_fall: float = 0.005
    canary_noises: float = 3.0
    label_rate_factor: float = 3.0
    usual_label_rate_factor: float = 1.5
    hit_share: float = 0.5
    usual_hit_share: float = 0.9
    max_seconds_after_previous: float | None = None
    min_history: int = 5
    history_spreads: float = 8.0
    steady_cosine_p01: float = 0.85


def _check_name(name: str) -> None:
    if not name or "/" in name or "\\" in name:
        raise ConfigError(f"'{name}' names the gate's tables and cannot be a file name; leave out slashes.")


def _check_moments(name: str, as_of: datetime, available_at: datetime, checked_at: datetime | None) -> None:
    _check_name(name)
    for label, moment in (("as_of", as_of), ("available_at", available_at), ("checked_at", checked_at)):
        if moment is not None and moment.tzinfo is None:
            raise ConfigError(f"{name}: {label} {moment} has no time zone; pass UTC.")
    if available_at < as_of:
        raise ConfigError(f"{name}: available_at {available_at} is before as_of {as_of}; add the lag to as_of.")
