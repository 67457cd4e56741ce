"""The ingested event log and attribute tables as frames, with ids turned into dense codes.

A code is the position of an id in the sorted list of all ids that the log or the attribute tables
know. Codes are internal to one run; models see encodings (see `encode.py`), never codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import polars as pl

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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the log's content."""
        return self.record.fingerprint

    @cached_property
    def events(self) -> pl.DataFrame:
        """All events by time: event_timestamp, ids, event_type, impression_id, weight, context."""
        files = sorted((self._home.lake / "events").glob("month=*/*.parquet"))
        frames = [pl.read_parquet(file, hive_partitioning=False) for file in files]
        return pl.concat(frames, how="diagonal_relaxed").with_columns(pl.col("event_type").cast(pl.Categorical))

    def attributes(self, entity: Entity) -> pl.DataFrame:
        """Return the attribute table of an entity; ids alone where none was ingested."""
        path = self._home.lake / f"{entity}s.parquet"
        key = join_key(entity)
        if path.exists():
            return pl.read_parquet(path)
        return self.events.select(pl.col(key).unique().sort())

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
        ids = pl.concat([self.events.select(key), self.attributes(entity).select(key)])
        return (
            ids.unique()
            .sort(key)
            .with_row_index(f"{entity}_code")
            .with_columns(pl.col(f"{entity}_code").cast(pl.Int64))
        )

    @cached_property
    def coded(self) -> pl.DataFrame:
        """The events with user_code and item_code, sorted by time, user and item."""
        return (
            self.events.join(self.codes["user"], on="user_id", how="left")
            .join(self.codes["item"], on="item_id", how="left")
            .sort("event_timestamp", "user_code", "item_code", "event_type", maintain_order=True)
        )

    def window(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the coded events in [start, end) without reading the others."""
        times = self.coded["event_timestamp"]
        low, high = (int(times.search_sorted(moment, side="left")) for moment in (start, end))
        return self.coded.slice(low, high - low)

    def forget(self) -> None:
        """Let go of the events; whoever asks for them reads them again."""
        for name in ("events", "coded"):
            self.__dict__.pop(name, None)

    @property
    def start(self) -> datetime:
        """Time of the first event."""
        return self.events["event_timestamp"].min()  # type: ignore[return-value]

    @property
    def end(self) -> datetime:
        """Time of the last event."""
        return self.events["event_timestamp"].max()  # type: ignore[return-value]


def _by_kind(columns: Sequence[Column]) -> Columns:
    return Columns(
        categorical=tuple(column.name for column in columns if column.kind == "categorical"),
        numeric=tuple(column.name for column in columns if column.kind == "numeric"),
    )
