"""From a training set to a ranker's arrays: encodings learned on training rows, embeddings as they were joined.

Legend: N rows, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads

from feature_repo.contracts.naming import ENTITIES, attributes_view, embedding_view, join_key, stats_view
from feature_repo.lake import read_json, write_json
from jobs.features.encode import IdTable, Vocabulary
from jobs.features.history import STATS
from jobs.features.log import Columns, EventLog

if TYPE_CHECKING:
    from models.downstream.inputs import RankerData, RankerSpec

MIN_ID_COUNT = 5
CROSS_BUCKETS = 2**17
CROSS_VOCABULARY = (10, 20_000)
CROSSES = 3


@dataclass(frozen=True)
class Fields:
    """Which columns of a training set a ranker reads, by kind, under their names in the training set."""

    ids: tuple[str, ...]
    cats: tuple[str, ...]
    nums: tuple[str, ...]
    crosses: tuple[tuple[str, str], ...]
    versions: tuple[str, ...]


@dataclass(frozen=True)
class RankerEncoder:
    """Encodings of one consumer, learned on its training rows."""

    fields: Fields
    ids: dict[str, IdTable]
    vocabularies: dict[str, Vocabulary]

    def spec(self, dims: dict[str, int]) -> RankerSpec:
        """Return the ranker's inputs with every embedding; `dims` maps embedding views to D."""
        from models.downstream.inputs import RankerSpec

        cats = [(name, self.ids[name].rows, 4) for name in self.fields.ids]
        cats += [
            (name, self.vocabularies[name].size, 8 if self.vocabularies[name].size > 20 else 4)
            for name in self.fields.cats
        ]
        return RankerSpec(
            cats=tuple(cats),
            nums=len(self.fields.nums) + len(_RATES),
            crosses=tuple((f"{left} x {right}", CROSS_BUCKETS, 4) for left, right in self.fields.crosses),
            embeddings=tuple((view, dim) for view, dim in dims.items()),
            pairs=tuple(
                (embedding_view("user", version), embedding_view("item", version)) for version in self.fields.versions
            ),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, under their names in a training set."""
        return (*self.fields.ids, *self.fields.cats, *self.fields.nums)

    @property
    def numbers_read(self) -> tuple[str, ...]:
        """Names of all numeric inputs in their order; a rate is named as if its view had it."""
        rates = tuple(f"{top.split('__')[0]}__{name.split(' ', 1)[1]}" for name, top, _, _ in _RATES)
        return (*self.fields.nums, *rates)

    def encode(self, frame: pl.DataFrame) -> dict[str, np.ndarray]:
        """Return those of the ranker's columns that a frame has, encoded, by name.

        Ids and categories become int64 [N], 0 for null and unknown; numbers become float64 [N], NaN for null.
        """
        encoded: dict[str, np.ndarray] = {}
        for name in self.columns:
            if name not in frame.columns:
                continue
            table: Any = self.ids.get(name) or self.vocabularies.get(name)
            encoded[name] = frame[name].cast(pl.Float64).to_numpy() if table is None else table.encode(frame[name])
        return encoded

    def arrays(self, encoded: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a ranker's inputs but its embeddings, from all encoded columns of N rows.

        Training and serving share the parts of it, so that a row means the same to both.

        Returns
        -------
        cats, crosses, nums
            int32 [N, C], int64 [N, X], float32 [N, M].
        """
        fields = self.fields
        cats = np.stack([encoded[name] for name in (*fields.ids, *fields.cats)], axis=1).astype(np.int32)
        return cats, self.crosses(cats), np.stack(list(self.numbers(encoded, fields.nums).values()), axis=1)

    def crosses(self, cats: np.ndarray) -> np.ndarray:
        """Return the buckets of the crosses, int64 [N, X], from ids and categories [N, C]."""
        from models.downstream.inputs import hash_cross

        names = (*self.fields.ids, *self.fields.cats)
        found = np.empty((len(cats), len(self.fields.crosses)), np.int64)
        for at, (left, right) in enumerate(self.fields.crosses):
            found[:, at] = hash_cross(cats[:, names.index(left)], cats[:, names.index(right)], CROSS_BUCKETS)
        return found

    def numbers(self, encoded: Mapping[str, np.ndarray], names: Collection[str]) -> dict[int, np.ndarray]:
        """Return a ranker's numeric inputs that some columns make: position among the M -> float32 [N].

        The columns as they are, for the ranker takes logs and bins itself; then the rates of those counts.
        """
        nums = self.fields.nums
        found = {nums.index(name): encoded[name] for name in names}
        for at, (_, top, bottom, prior) in enumerate(_RATES, start=len(nums)):
            if top in names:
                found[at] = (encoded[top] + prior * 0.02) / (encoded[bottom] + prior)
        return {at: values.astype(np.float32) for at, values in found.items()}

    def save(self, path: Path) -> None:
        """Write the encodings as JSON."""
        write_json(
            {
                "fields": self.fields.__dict__,
                "ids": {name: asdict(table) for name, table in self.ids.items()},
                "vocabularies": {name: item.values for name, item in self.vocabularies.items()},
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> RankerEncoder:
        """Read what :meth:`save` wrote."""
        values = read_json(path)
        fields = values["fields"]
        return cls(
            Fields(
                tuple(fields["ids"]),
                tuple(fields["cats"]),
                tuple(fields["nums"]),
                tuple((left, right) for left, right in fields["crosses"]),
                tuple(fields["versions"]),
            ),
            {name: IdTable(**table) for name, table in values["ids"].items()},
            {name: Vocabulary(items) for name, items in values["vocabularies"].items()},
        )


# Smoothed rates from the 28-day counts: (name, numerator, denominator, added to both).
_RATES = tuple(
    (f"{entity} {top}/{bottom}", f"{stats_view(entity)}__{top}_28d", f"{stats_view(entity)}__{bottom}_28d", prior)
    for entity in ENTITIES
    for top, bottom, prior in (("clicks", "impressions", 100.0), ("conversions", "clicks", 20.0))
)


def fields_of(log: EventLog, versions: tuple[str, ...], categories: dict[str, int]) -> Fields:
    """Choose a ranker's fields: ids, attributes, counts, context, and the user crossed with item categories.

    Parameters
    ----------
    categories
        Distinct values per item attribute column in the training rows: the largest vocabularies that are
        still shared by many items are crossed with the user.
    """
    attributes: dict[str, Columns] = {entity: log.attribute_columns(entity) for entity in ENTITIES}
    context = log.context_columns

    def named(kind: str) -> list[str]:
        return [
            f"{attributes_view(entity)}__{name}" for entity in ENTITIES for name in getattr(attributes[entity], kind)
        ]

    low, high = CROSS_VOCABULARY
    crossable = sorted((name for name, size in categories.items() if low <= size <= high), key=lambda n: -categories[n])
    return Fields(
        ids=("user_id", "item_id"),
        cats=(*named("categorical"), *context.categorical),
        nums=(
            *(f"{stats_view(entity)}__{name}" for entity in ENTITIES for name in STATS),
            *named("numeric"),
            *context.numeric,
        ),
        crosses=tuple(("user_id", name) for name in crossable[:CROSSES]),
        versions=versions,
    )


class TrainingSet:
    """A training set read back as a ranker's arrays.

    Parameters
    ----------
    folder
        Folder of the shards and the manifest.
    label
        ``click`` or ``conversion``.
    shards
        Names of the shards to read; None for all.
    within
        Read only the rows in [first, second); None for all.
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        shards: Sequence[str] | None = None,
        within: tuple[datetime, datetime] | None = None,
    ) -> None:
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self._files = [str(folder / name) for name in shards or self.manifest["files"]]
        self._label = label
        vectors = [
            f"{view}__embedding" for view in self.manifest["request"]["views"] if view.split("_")[1] == "embedding"
        ]
        self.views = [name.removesuffix("__embedding") for name in vectors]
        moment = pads.field("event_timestamp")
        self._chosen = None if within is None else (moment >= within[0]) & (moment < within[1])
        names = pads.dataset(self._files).schema.names
        self.frame = pl.read_parquet(self._files, columns=[name for name in names if name not in vectors])
        if within is not None:
            self.frame = self.frame.filter(pl.col("event_timestamp").is_between(*within, closed="left"))

    def between(self, start: datetime, end: datetime | None) -> np.ndarray:
        """Return which rows lie in [start, end), or from start on: bool [N]."""
        times = self.frame["event_timestamp"]
        chosen = times >= start if end is None else times.is_between(start, end, closed="left")
        return chosen.to_numpy()

    def known_by(self, moment: datetime) -> np.ndarray:
        """Return the labels as they were known at a moment: float32 [N]; what arrived later reads as 0."""
        arrived = pl.col(f"{self._label}_timestamp") < moment
        return self.frame.select(arrived.fill_null(False).cast(pl.Float32)).to_series().to_numpy()

    def vectors(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the joined vectors of a view: a table float32 [V, D] and for each row its position or -1.

        Rows that read the same entity of the same snapshot share one vector, so V is several times smaller than
        the number of rows.
        """
        read = [join_key("user" if view.startswith("user") else "item"), f"{view}__available_us"]
        rows = self.frame.select(read).with_row_index("row")
        distinct = rows.drop_nulls(read[1]).unique(read, keep="first", maintain_order=True).with_row_index("at")
        joined = rows.join(distinct.select(*read, "at"), on=read, how="left", maintain_order="left")
        index = joined["at"].cast(pl.Int64).fill_null(-1).to_numpy()
        column = pads.dataset(self._files).to_table([f"{view}__embedding"], filter=self._chosen).column(0)
        taken = column.take(pa.array(distinct["row"].to_numpy()))
        parts = [chunk.flatten() for chunk in taken.chunks]
        values = pa.chunked_array(parts, pa.float32()).to_numpy()
        return values.reshape(distinct.height, len(values) // max(distinct.height, 1)), index

    def encoder(self, log: EventLog, versions: tuple[str, ...], rows: np.ndarray) -> RankerEncoder:
        """Learn encodings on the given training rows (bool [N])."""
        chosen = self.frame.filter(pl.Series(rows))
        items = [
            f"{attributes_view('item')}__{name}"
            for name in log.attribute_columns("item").categorical
            if f"{attributes_view('item')}__{name}" in chosen.columns
        ]
        fields = fields_of(log, versions, {name: chosen[name].n_unique() for name in items})
        return RankerEncoder(
            fields,
            {name: IdTable.fit(chosen[name], min_count=MIN_ID_COUNT, buckets=0) for name in fields.ids},
            {name: Vocabulary.fit(chosen[name], min_count=2) for name in fields.cats},
        )

    def data(self, encoder: RankerEncoder, vectors: dict[str, Any]) -> RankerData:
        """Return all rows as a ranker's arrays; the label is what had happened by the end of the log."""
        from models.downstream.inputs import RankerData

        frame = self.frame
        cats, crosses, nums = encoder.arrays(encoder.encode(frame))
        return RankerData(
            cats=cats,
            crosses=crosses,
            nums=nums,
            embeddings=vectors,
            label=frame[self._label].cast(pl.Float32).to_numpy(),
            weight=frame["weight"].to_numpy(),
            user=frame["user_id"].rank("dense").cast(pl.Int64).to_numpy() - 1,
        )
