"""All vectors of one published snapshot, mapped into memory: for processes that rank hundreds of candidates."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.errors import LakeError
from feature_repo.stores import twin, wire
from feature_repo.stores.clocks import MISSING, BoolArray, Int64Array, microseconds
from feature_repo.stores.embeddings import Embeddings, Freshness, Ids, id_column


class ItemBank:
    """The rows of a snapshot's twin by id. Processes that map the same twin share its memory.

    A bank holds one snapshot. An item that the snapshot lacks is not found here, though an online store may still
    hold its vector of an earlier one.

    Parameters
    ----------
    parquet
        The published snapshot; its twin is made if it is not there or was made from other bytes.
    key, feature
        Columns of the ids (integer or string, each once) and the vectors.
    ttl
        Of the view; None or zero for ever.
    max_age
        Vectors older than this count as not found too.

    Raises
    ------
    LakeError
        If the snapshot cannot be read, its ids occur twice, or its vectors are not all there in one width.
    """

    def __init__(
        self,
        parquet: Path,
        key: str,
        feature: str,
        *,
        time_column: str = "event_timestamp",
        ttl: timedelta | None = None,
        max_age: timedelta | None = None,
    ) -> None:
        found = twin.current(parquet)
        if found is None or found.keys != (key,):
            found = twin.build(parquet, [key])
        table = found.table()
        missing = {key, feature, time_column} - set(table.column_names)
        if missing:
            raise LakeError(f"{parquet} has no column {', '.join(sorted(missing))}. Name the snapshot of another view.")
        vectors = wire.combined(table[feature])
        if not pa.types.is_fixed_size_list(vectors.type) or vectors.type.value_type != pa.float32():
            raise LakeError(
                f"{parquet}: the vectors in '{feature}' are {vectors.type}, not float32 of one width without gaps. "
                "Publish the snapshot again, or read it with EmbeddingReader."
            )
        self._table = table  # holds the mapping
        # A refresh writes it into the file; a file from elsewhere may name none.
        named = (pq.read_schema(parquet).metadata or {}).get(b"space_id")
        self.space_id: str | None = None if named is None else named.decode()
        self.vectors: npt.NDArray[np.float32] = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
        self._ids = wire.combined(table[key])
        self._integer = pa.types.is_integer(self._ids.type)
        if not self._integer and not self._ids.type.equals(pa.string()):
            self._ids = self._ids.cast(pa.string())
        self._numbers = self._ids.cast(pa.int64()).to_numpy() if self._integer else None
        self._times = microseconds(table[time_column], "down", file=str(parquet), name=time_column, naive="utc")
        self._key, self._freshness = key, Freshness(ttl, max_age)
        if self._ids.null_count or self._repeated():
            raise LakeError(f"{parquet}: ids in '{key}' are null or occur twice. Publish the snapshot again.")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.vectors.shape[1])

    @property
    def ids(self) -> pa.Array:
        """The ids, ascending; row i of `vectors` belongs to id i."""
        return self._ids

    def read(self, ids: Ids, now: datetime | None = None) -> Embeddings:
        """Return the vectors of ids, in their order; an id may occur more than once.

        Raises
        ------
        InputDataError
            If ids are of another type.
        """
        rows, there = self._rows(id_column(ids, self._integer, self._key))
        times = np.full(len(rows), MISSING)
        times[there] = self._times[rows[there]]
        found, age = self._freshness.judge(times, now)
        if found.all():
            return Embeddings(self.vectors[rows], found, age, self.space_id)
        vectors = np.zeros((len(rows), self.dim), np.float32)
        vectors[found] = self.vectors[rows[found]]
        return Embeddings(vectors, found, age, self.space_id)

    def _rows(self, asked: pa.Array) -> tuple[Int64Array, BoolArray]:
        """Return each id's row, any row where it has none, and whether it has one."""
        if not len(self):
            return np.zeros(len(asked), np.int64), np.zeros(len(asked), np.bool_)
        if self._numbers is not None:
            wanted = asked.to_numpy()
            rows = np.minimum(np.searchsorted(self._numbers, wanted), len(self) - 1)
            return rows, self._numbers[rows] == wanted
        rows = np.minimum(pc.search_sorted(self._ids, asked).to_numpy().astype(np.int64), len(self) - 1)
        return rows, pc.equal(self._ids.take(pa.array(rows)), asked).to_numpy(zero_copy_only=False)

    def _repeated(self) -> bool:
        if self._numbers is not None:
            return bool((self._numbers[1:] == self._numbers[:-1]).any())
        return bool(pc.any(pc.equal(self._ids[1:], self._ids[:-1])).as_py()) if len(self) > 1 else False
