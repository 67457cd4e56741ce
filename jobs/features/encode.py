"""Encodings: ids, categories and numbers as a model takes them, learned once and kept with the model.

Index 0 always means padding, missing or unknown. Vocabularies are learned from what was known before
the training cut-off; later values read as unknown.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Entity
from feature_repo.lake import read_json, write_json
from jobs.features.log import EventLog

MAX_VOCABULARY = 50_000
# Up to here a look-up per value is faster than to hand the whole vocabulary over, as for one request.
FEW_ROWS = 2_000


def attributes_as_of(log: EventLog, entity: Entity, as_of: datetime) -> pl.DataFrame:
    """Return one row per entity code with the attributes known before `as_of`, by code.

    Attributes without a time hold at any time; attributes with one hold from then on.
    """
    table = log.attributes(entity)
    if "event_timestamp" in table.columns:
        table = (
            table.filter(pl.col("event_timestamp") < as_of)
            .sort("event_timestamp", maintain_order=True)
            .unique(join_key(entity), keep="last", maintain_order=True)
        )
    codes = log.codes[entity]
    return codes.join(table, on=join_key(entity), how="left", maintain_order="left")


@dataclass(frozen=True)
class Standardizer:
    """Mean and standard deviation per column, learned on training rows; log1p comes before."""

    mean: list[float]
    std: list[float]

    @classmethod
    def fit(cls, values: np.ndarray) -> Standardizer:
        """Learn from values [rows, columns]; NaN is left out."""
        return Spread(values.shape[1]).add(values).standardizer()

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return standardized float32 values [rows, columns]; missing becomes the mean (0)."""
        scaled = (_signed_log(values.astype(np.float64)) - np.array(self.mean)) / np.array(self.std)
        return np.nan_to_num(np.clip(scaled, -8, 8)).astype(np.float32)


class Spread:
    """Means and squared deviations of columns, added up piece by piece (Chan, Golub and LeVeque 1979).

    The same pieces in the same order give the same bits.
    """

    def __init__(self, columns: int) -> None:
        self._rows, self._mean, self._squares = np.zeros((3, columns))

    def add(self, values: np.ndarray) -> Spread:
        """Take in values [rows, columns]; NaN is left out. Returns itself."""
        logs = _signed_log(values.astype(np.float64))
        known = ~np.isnan(logs)
        rows = known.sum(axis=0)
        mean = np.where(known, logs, 0.0).sum(axis=0) / np.maximum(rows, 1)
        squares = np.where(known, (logs - mean) ** 2, 0.0).sum(axis=0)
        both = np.maximum(self._rows + rows, 1)
        step = mean - self._mean
        self._mean = self._mean + step * (rows / both)
        self._squares = self._squares + squares + step**2 * (self._rows * rows / both)
        self._rows = self._rows + rows
        return self

    def standardizer(self) -> Standardizer:
        """Return what the values so far say; a column without a value, or with one value only, keeps its scale."""
        std = np.sqrt(self._squares / np.maximum(self._rows, 1))
        return Standardizer(self._mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist())


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


@dataclass(frozen=True)
class Vocabulary:
    """The known values of one categorical column, as text, by frequency."""

    values: list[str]

    @classmethod
    def fit(cls, column: pl.Series, *, min_count: int = 1) -> Vocabulary:
        """Learn the values seen at least `min_count` times, the most frequent first."""
        return cls.of_counts(counted(column), min_count=min_count)

    @classmethod
    def of_counts(cls, counts: pl.DataFrame, *, min_count: int = 1) -> Vocabulary:
        """Learn as :meth:`fit` does, from how often each value was seen (:func:`counted`); equal values add up."""
        kept = (
            counts.group_by("value")
            .agg(pl.col("len").sum())
            .filter(pl.col("len") >= min_count)
            .sort(["len", "value"], descending=[True, False])
            .head(MAX_VOCABULARY)
        )
        return cls(kept["value"].to_list())

    @property
    def size(self) -> int:
        """Number of indices, 0 (unknown) included."""
        return len(self.values) + 1

    @cached_property
    def _places(self) -> dict[str | None, int]:
        return {value: index for index, value in enumerate(self.values, start=1)}

    def encode(self, column: pl.Series) -> np.ndarray:
        """Return int64 indices; 0 for null and unknown."""
        known = self._places
        if not known:
            return np.zeros(len(column), np.int64)
        text = column.cast(pl.String)
        if len(text) <= FEW_ROWS:
            return np.fromiter((known.get(value, 0) for value in text.to_list()), np.int64, len(text))
        return text.replace_strict(known, default=0, return_dtype=pl.Int64).fill_null(0).to_numpy()


def counted(column: pl.Series) -> pl.DataFrame:
    """Return the values of a column as text and how often each occurs: value, len; nulls are left out."""
    return pl.DataFrame({"value": column.cast(pl.String)}).drop_nulls().group_by("value").len()


@dataclass(frozen=True)
class IdTable:
    """Rows of an id embedding: one per frequent id, and shared buckets for the long tail.

    Row 0 is padding; rows 1..len(frequent) are the frequent ids' own; the buckets follow. Without buckets
    the long tail reads as unknown, row 0.
    """

    frequent: list[str]
    buckets: int

    @classmethod
    def fit(cls, ids: pl.Series, *, min_count: int, buckets: int) -> IdTable:
        """Give ids seen at least `min_count` times a row of their own."""
        return cls.of_counts(counted(ids), min_count=min_count, buckets=buckets)

    @classmethod
    def of_counts(cls, counts: pl.DataFrame, *, min_count: int, buckets: int) -> IdTable:
        """Learn as :meth:`fit` does, from how often each id was seen (:func:`counted`)."""
        return cls(Vocabulary.of_counts(counts, min_count=min_count).values, buckets)

    @property
    def rows(self) -> int:
        """Rows of the table, padding included."""
        return 1 + len(self.frequent) + self.buckets

    @cached_property
    def _own(self) -> Vocabulary:
        return Vocabulary(self.frequent)

    def encode(self, ids: pl.Series) -> np.ndarray:
        """Return int64 rows; an id without a row of its own gets a bucket by its hash."""
        own = self._own.encode(ids)
        if self.buckets == 0:
            return own
        text = ids.cast(pl.String)
        missing = np.flatnonzero((own == 0) & text.is_not_null().to_numpy())
        hashed = [_bucket(text[int(position)], self.buckets) for position in missing]
        own = own.copy()
        own[missing] = np.array(hashed, np.int64) + 1 + len(self.frequent)
        return own


def _bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % buckets


@dataclass(frozen=True)
class Encoder:
    """All encodings of one upstream model."""

    vocabularies: dict[str, Vocabulary]
    standardizers: dict[str, Standardizer]
    item_ids: IdTable
    actions: list[str]
    sequence_length: int
    interests: int
    top_items: int
    columns: dict[str, list[str]] = field(default_factory=dict)

    @property
    def reads_profiles(self) -> bool:
        """Whether counts and rates of every event type are among the inputs."""
        return any(name.startswith("profile:") for kind in ("user", "item") for name in self.columns[f"{kind}_nums"])

    def save(self, path: Path) -> None:
        """Write the encodings as JSON."""
        write_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Read what :meth:`save` wrote."""
        values = read_json(path)
        return cls(
            vocabularies={name: Vocabulary(**item) for name, item in values["vocabularies"].items()},
            standardizers={name: Standardizer(**item) for name, item in values["standardizers"].items()},
            item_ids=IdTable(**values["item_ids"]),
            actions=values["actions"],
            sequence_length=values["sequence_length"],
            interests=values["interests"],
            top_items=values["top_items"],
            columns=values["columns"],
        )

    def categories(self, kind: str, frame: pl.DataFrame) -> np.ndarray:
        """Encode the categorical columns of `kind` (user, item, context): int64 [rows, columns]."""
        names = self.columns[f"{kind}_cats"]
        encoded = [self.vocabularies[f"{kind}:{name}"].encode(frame[name]) for name in names]
        return np.stack(encoded, axis=1) if encoded else np.zeros((frame.height, 0), np.int64)

    def numbers(self, kind: str, frame: pl.DataFrame) -> np.ndarray:
        """Standardize the numeric columns of `kind`: float32 [rows, columns]."""
        return self.standardizers[kind].apply(numeric_matrix(frame, self.columns[f"{kind}_nums"]))

    def sizes(self, kind: str) -> tuple[int, ...]:
        """Vocabulary sizes of the categorical columns of `kind`."""
        return tuple(self.vocabularies[f"{kind}:{name}"].size for name in self.columns[f"{kind}_cats"])


def numeric_matrix(frame: pl.DataFrame, names: list[str]) -> np.ndarray:
    """Return numeric columns as float64 [rows, columns], null as NaN."""
    if not names:
        return np.zeros((frame.height, 0))
    columns = [frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in names]
    return np.stack(columns, axis=1)
