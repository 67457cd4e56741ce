"""Every user and item of one moment as encoded arrays: the input of training and of a refresh alike.

Training and refresh read the same function with the same `as_of`, so a vector inferred on schedule is
computed from exactly what the model saw in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Entity
from jobs.features.encode import (
    Encoder,
    IdTable,
    Standardizer,
    Vocabulary,
    attributes_as_of,
    numeric_matrix,
)
from jobs.features.history import STATS, Activity, UserHistory, known_items, profile, profile_columns, stats
from jobs.features.log import EventLog
from jobs.features.row_summary import RowSummary

MIN_ITEM_COUNT = 5
ID_BUCKETS = 16_384


@dataclass(frozen=True)
class UserTable:
    """Encoded users of one moment; row i is user `code[i]` (codes ascend).

    cats int64 [U, Cu], nums float32 [U, Nu], history with U rows; item_cats int32 [items, A], the attributes that
    items had at that moment, by item code.
    """

    code: np.ndarray
    cats: np.ndarray
    nums: np.ndarray
    history: UserHistory
    item_cats: np.ndarray


@dataclass(frozen=True)
class ItemTable:
    """Encoded items of one moment; row i is item `code[i]` (codes ascend).

    row int64 [I] of the id table, cats int64 [I, A], nums float32 [I, Ni].
    """

    code: np.ndarray
    row: np.ndarray
    cats: np.ndarray
    nums: np.ndarray


class Tables:
    """Reads the log as of any moment, encoded for one upstream model.

    Parameters
    ----------
    log
        The ingested log.
    encoder
        Encodings of the model.
    actions
        Event types of a user's history; None for all but impressions.
    coverage
        How far back activity reaches.
    min_item_events
        Items with fewer events within `coverage` are cold.
    """

    def __init__(
        self,
        log: EventLog,
        encoder: Encoder,
        actions: tuple[str, ...] | None,
        coverage: timedelta,
        min_item_events: int = 1,
    ) -> None:
        self._log = log
        self._encoder = encoder
        self._coverage = coverage
        self._min_item_events = min_item_events
        self.activity = Activity(log, actions)
        self.action_index = np.array(
            [0] + [1 + encoder.actions.index(name) if name in encoder.actions else 0 for name in self.activity.actions],
            np.int64,
        )
        self.item_rows = encoder.item_ids.encode(log.codes["item"]["item_id"])
        self._item_cats: np.ndarray | None = None

    @property
    def encoder(self) -> Encoder:
        """The encodings."""
        return self._encoder

    def item_cats(self, as_of: datetime) -> np.ndarray:
        """Return encoded attributes of all items by code: int32 [items, A]."""
        if self._item_cats is None or "event_timestamp" in self._log.attributes("item").columns:
            frame = attributes_as_of(self._log, "item", as_of)
            self._item_cats = self._encoder.categories("item", frame).astype(np.int32)
        return self._item_cats

    def actions(self, history: UserHistory) -> np.ndarray:
        """Return a history's actions as the model's indices: int64 [U, T], 0 for padding."""
        return self.action_index[history.action.astype(np.int64) + 1]

    def users(self, as_of: datetime) -> UserTable:
        """Encode every user with a history before `as_of`."""
        item_cats = self.item_cats(as_of)
        history = self.activity.before(
            as_of,
            length=self._encoder.sequence_length,
            interests=self._encoder.interests,
            top_items=self._encoder.top_items,
            item_values=item_cats,
            coverage=self._coverage,
        )
        frame = self._joined("user", as_of, history.user_code)
        return UserTable(
            history.user_code,
            self._encoder.categories("user", frame),
            self._encoder.numbers("user", frame),
            history,
            item_cats,
        )

    def items(self, as_of: datetime, codes: np.ndarray | None = None) -> ItemTable:
        """Encode items; None encodes those that are not cold."""
        if codes is None:
            codes = known_items(self._log, as_of, self._coverage, self._min_item_events)["item_code"].to_numpy()
        frame = self._joined("item", as_of, codes)
        return ItemTable(
            codes,
            self.item_rows[codes],
            self.item_cats(as_of)[codes].astype(np.int64),
            self._encoder.numbers("item", frame),
        )

    def _joined(self, entity: Entity, as_of: datetime, codes: np.ndarray) -> pl.DataFrame:
        """Return attributes and counts for the codes, in their order; counts of the unseen are 0."""
        return joined(self._log, entity, as_of, codes, self._coverage, profiles=self._encoder.reads_profiles)


def joined(
    log: EventLog, entity: Entity, as_of: datetime, codes: np.ndarray, coverage: timedelta, *, profiles: bool = False
) -> pl.DataFrame:
    """Return attributes and counts as of a moment for the given codes, in their order; with `profiles` these too."""
    key = f"{entity}_code"
    attributes = attributes_as_of(log, entity, as_of)
    counts = stats(log, entity, as_of, coverage).select(key, *STATS)
    frame = (
        pl.DataFrame({key: codes})
        .join(attributes, on=key, how="left", maintain_order="left")
        .join(counts, on=key, how="left", maintain_order="left")
        .with_columns(pl.col(*STATS).fill_null(0))
    )
    if not profiles:
        return frame
    # Of who was never seen the counts are 0 and the rates those of everybody.
    unseen = [pl.col(name).fill_null(1.0 if name.endswith(" rate") else 0.0) for name in profile_columns(log)]
    more = profile(log, entity, as_of, coverage)
    return frame.join(more, on=key, how="left", maintain_order="left").with_columns(unseen)


def fit_encoder(
    log: EventLog,
    rows: RowSummary,
    grid: list[datetime],
    actions: tuple[str, ...] | None,
    coverage: timedelta,
    *,
    sequence_length: int,
    interests: int,
    top_items: int,
    profiles: bool = False,
) -> Encoder:
    """Learn all encodings from what was known at the end of a training grid.

    Parameters
    ----------
    rows
        Summary of the opportunities as known at the training cut-off.
    grid
        The moments at which training reads features, ascending; the last is before the cut-off.
    profiles
        Whether counts and rates of every event type are inputs too.
    """
    last = grid[-1]
    activity = Activity(log, actions)
    before = activity.time_us < int(last.timestamp() * 1_000_000)
    of_item = rows.of_item + np.bincount(activity.item[before], minlength=len(rows.of_item))
    seen = {"user": np.flatnonzero(rows.of_user), "item": np.flatnonzero(of_item)}
    item_ids = log.codes["item"]["item_id"][seen["item"]].cast(pl.String)
    columns: dict[str, list[str]] = {}
    vocabularies: dict[str, Vocabulary] = {}
    standardizers: dict[str, Standardizer] = {}
    for entity in ENTITIES:
        kinds = log.attribute_columns(entity)
        frame = joined(log, entity, last, seen[entity], coverage, profiles=profiles)
        columns[f"{entity}_cats"] = list(kinds.categorical)
        columns[f"{entity}_nums"] = [*kinds.numeric, *STATS, *(profile_columns(log) if profiles else ())]
        for name in kinds.categorical:
            vocabularies[f"{entity}:{name}"] = Vocabulary.fit(frame[name])
        standardizers[entity] = Standardizer.fit(numeric_matrix(frame, columns[f"{entity}_nums"]))
    context = log.context_columns
    columns["context_cats"], columns["context_nums"] = list(context.categorical), list(context.numeric)
    for name in context.categorical:
        vocabularies[f"context:{name}"] = rows.vocabulary(name)
    standardizers["context"] = rows.standardizer()
    return Encoder(
        vocabularies=vocabularies,
        standardizers=standardizers,
        item_ids=IdTable.of_counts(
            pl.DataFrame({"value": item_ids, "len": of_item[seen["item"]]}),
            min_count=MIN_ITEM_COUNT,
            buckets=ID_BUCKETS,
        ),
        actions=list(activity.actions),
        sequence_length=sequence_length,
        interests=interests,
        top_items=top_items,
        columns=columns,
    )
