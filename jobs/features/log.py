"""The ingested event log, read from Parquet in parts, and the attribute tables, with ids turned into dense codes.

A code is the position of an id in the sorted list of all ids that the log or the attribute tables
know. Codes are internal to one run; models see encodings (see `encode.py`), never codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import polars as pl

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Entity
from feature_repo.lake import Home
from jobs import ingest_dataset
from jobs.ingest_dataset import Column, Dataset

OUTCOMES = ("impression", "click", "conversion")
RESERVED = ("event_timestamp", "user_id", "item_id", "event_type", "impression_id", "weight", "sampling_rate")


@dataclass(frozen=True)
class Columns:
    """Names of columns by how a model takes them."""

    categorical: tuple[str, ...]
    numeric: tuple[str, ...]


class EventLog:
    """What was ingested into one home folder.

    Parameters
    ----------
    home
        Home folder with an ingested log.

    Raises
    ------
    NotReadyError
        If nothing was ingested.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.record: Dataset = ingest_dataset.load(home)
        self._seen: dict[str, pl.DataFrame] = {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the log's content."""
        return self.record.fingerprint

    def scan(self) -> pl.LazyFrame:
        """Return all events by time, to be read in part: time, ids, event_type, impression_id, weight and context.

        Nothing is read before it is collected; a test of `event_timestamp` skips the row groups of other times.
        """
        return pl.scan_parquet(self._files, hive_partitioning=False)

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(self._home.lake / name for name in self.record.files if name.startswith("events/"))

    def window(self, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        """Return the events in [start, end), to be read; None for no bound."""
        found, moment = self.scan(), pl.col("event_timestamp")
        if start is not None:
            found = found.filter(moment >= start)
        return found if end is None else found.filter(moment < end)

    def attributes(self, entity: Entity) -> pl.DataFrame:
        """Return the attribute table of an entity; ids alone where none was ingested."""
        path = self._home.lake / f"{entity}s.parquet"
        key = join_key(entity)
        if path.exists():
            return pl.read_parquet(path)
        return self._ids(key)

    def attribute_columns(self, entity: Entity) -> Columns:
        """Return an entity's attributes by kind."""
        table = self.record.user_table if entity == "user" else self.record.item_table
        return _by_kind(table.columns if table is not None else ())

    @property
    def context_columns(self) -> Columns:
        """The context columns of an impression by kind."""
        return _by_kind(self.record.context)

    @cached_property
    def codes(self) -> dict[Entity, pl.DataFrame]:
        """Per entity a frame of id and code (0, 1, ... in the order of the ids)."""
        return {entity: self._codes(entity) for entity in ("user", "item")}

    def _codes(self, entity: Entity) -> pl.DataFrame:
        key = join_key(entity)
        return (
            pl.concat([self._ids(key), self.attributes(entity).select(key)])
            .unique()
            .sort(key)
            .with_row_index(f"{entity}_code")
            .with_columns(pl.col(f"{entity}_code").cast(pl.Int64))
        )

    def _ids(self, key: str) -> pl.DataFrame:
        """Return the distinct ids of the events, sorted; they are read once."""
        if key not in self._seen:
            self._seen[key] = self.scan().select(key).unique().collect(engine="streaming").sort(key)
        return self._seen[key]

    def check_same(self) -> None:
        """Raise NotReadyError if another log was ingested over this one: what was read may be of both."""
        if ingest_dataset.load(self._home).fingerprint != self.fingerprint:
            raise NotReadyError(
                f"Another log was ingested into {self._home.root} while this one was read. Run the command again."
            )

    def coded(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """Return events with user_code and item_code, in their order."""
        for entity, codes in self.codes.items():
            events = events.join(codes.lazy(), on=join_key(entity), how="left", maintain_order="left")
        return events

    @property
    def start(self) -> datetime:
        """Time of the first event."""
        return self.record.start

    @property
    def end(self) -> datetime:
        """Time of the last event."""
        return self.record.end


def _by_kind(columns: Sequence[Column]) -> Columns:
    return Columns(
        categorical=tuple(column.name for column in columns if column.kind == "categorical"),
        numeric=tuple(column.name for column in columns if column.kind == "numeric"),
    )
