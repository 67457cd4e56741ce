"""Materialization by Spark's workers: each packs and stores its share of the rows, with the bytes of one process.

Of Parquet files the driver chooses the rows by their keys and sends row numbers only; workers read the files. Of any
other source Spark chooses the rows, and they come to the workers as Arrow. Either way no feature passes through the
driver (docs/adr/0093-workers-load-redis.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.repo_config import RepoConfig
from feast.utils import _validate_vector_field_lengths

from feature_repo.contracts.errors import HeadwaterError, OnlineStoreError
from feature_repo.stores.batches import ViewColumns, pack
from feature_repo.stores.latest import LatestRows, StoredRows
from feature_repo.stores.online_redis import RedisWriter
from feature_repo.stores.places import RedisPlace, place_of
from feature_repo.stores.wire import CannotPackError

if TYPE_CHECKING:
    from pyspark import Accumulator
    from pyspark.sql import DataFrame, SparkSession

# A task that is lost with its worker costs so many rows; about a second of work.
_ROWS_PER_TASK = 131_072
_RESULT = "rows bigint, error string, packs boolean"


@dataclass(frozen=True)
class Target:
    """Where a view's rows go, as it can be sent to a worker.

    Attributes
    ----------
    store
        The online store's class.
    """

    config: RepoConfig
    store: type
    view: FeatureView
    columns: ViewColumns

    def writer(self) -> RedisWriter:
        """Return what writes there, with connections of its own."""
        place = place_of(self.config, self.store(), self.view)
        assert isinstance(place, RedisPlace)
        return RedisWriter(place)


def of_files(
    session: SparkSession, rows: LatestRows, size: int, target: Target, advance: Callable[[int], object]
) -> None:
    """Store chosen rows of files that every worker reaches under their paths, `size` of them at once.

    Raises
    ------
    OnlineStoreError
        If a worker could not read or store its rows, or fewer were stored than chosen.
    CannotPackError
        If a column is of a type that only Feast converts.
    """
    parts = [(part.tobytes(),) for part in np.array_split(rows.numbers, math.ceil(rows.rows / _ROWS_PER_TASK) or 1)]
    frame = session.createDataFrame(session.sparkContext.parallelize(parts, len(parts)), "numbers binary")
    stored = _run(frame, partial(_tables_of_files, rows=rows.stored, size=size), target, advance)
    if stored != rows.rows:
        raise OnlineStoreError(
            f"Spark's workers stored {stored:,} of {rows.rows:,} rows of {target.view.name}. Run the command again."
        )


def of_frame(frame: DataFrame, names: dict[str, str], target: Target, advance: Callable[[int], object]) -> None:
    """Store the rows of a frame, one for each entity.

    Parameters
    ----------
    names
        Name in the frame -> name in the view, where they differ.

    Raises
    ------
    OnlineStoreError
        If a worker could not store its rows.
    CannotPackError
        If a column is of a type that only Feast converts.
    """
    _run(frame, partial(_tables_of_frame, names=names), target, advance)


def _run(
    frame: DataFrame, tables: Callable[..., Iterator[pa.Table]], target: Target, advance: Callable[[int], object]
) -> int:
    counter = frame.sparkSession.sparkContext.accumulator(0)
    load = partial(_load, tables=tables, target=target, counter=counter)
    with _watched(counter, advance):
        results = frame.mapInArrow(load, _RESULT).collect()
    for result in results:
        if result.error is not None:
            raise OnlineStoreError(result.error) if result.packs else CannotPackError(result.error)
    return sum(result.rows for result in results)


@contextmanager
def _watched(counter: Accumulator[int], advance: Callable[[int], object]) -> Iterator[None]:
    """Pass on what finished tasks have stored, every second."""
    over, seen = threading.Event(), 0

    def pass_on() -> None:
        nonlocal seen
        now = counter.value
        advance(now - seen)
        seen = now

    def watch() -> None:
        while not over.wait(1.0):
            pass_on()

    thread = threading.Thread(target=watch, name="materialize", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        pass_on()


def _load(
    batches: Iterator[pa.RecordBatch],
    tables: Callable[..., Iterator[pa.Table]],
    target: Target,
    counter: Accumulator[int],
) -> Iterator[pa.RecordBatch]:
    """Store the rows that one task was given, on a worker; what a person can mend comes back as a sentence."""
    rows, told, packs = 0, None, True
    try:
        with closing(target.writer()) as writer:
            for table in tables(batches):
                _validate_vector_field_lengths(table, target.view)
                writer.write(pack(table, target.columns))
                rows += table.num_rows
    except (HeadwaterError, CannotPackError, ValueError) as error:
        told, packs = str(error), not isinstance(error, CannotPackError)
    counter.add(rows)
    yield pa.RecordBatch.from_pydict({"rows": [rows], "error": pa.array([told], pa.string()), "packs": [packs]})


def _tables_of_files(batches: Iterator[pa.RecordBatch], rows: StoredRows, size: int) -> Iterator[pa.Table]:
    for batch in batches:
        for numbers in batch.column(0):
            yield from rows.batches(np.frombuffer(numbers.as_py(), np.int64), size)


def _tables_of_frame(batches: Iterator[pa.RecordBatch], names: dict[str, str]) -> Iterator[pa.Table]:
    for batch in batches:
        yield pa.Table.from_batches([batch]).rename_columns([names.get(name, name) for name in batch.schema.names])
