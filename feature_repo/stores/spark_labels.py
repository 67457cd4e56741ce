"""Labels for the join on Spark: a data frame, Parquet files that every worker can read, or a Spark frame or query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.types import Problem
from feature_repo.stores.clocks import MISSING, Naive, microseconds
from feature_repo.stores.keys import as_key
from feature_repo.stores.labels import FileLabels, TableLabels
from feature_repo.stores.sources import parquet_files
from feature_repo.stores.spark_rows import (
    ROW,
    TIME,
    check_clock,
    micros,
    named,
    plain_path,
    read_parquet,
    spark_type,
    with_numbers,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_WHERE = "the labels"


class SparkLabels(Protocol):
    """N labels.

    Attributes
    ----------
    rows
        N.
    """

    schema: pa.Schema
    rows: int

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column."""

    def sought(self, time: str, keys: Mapping[str, pa.DataType], naive: Naive) -> DataFrame:
        """Return `ROW`, `TIME` and the keys, each in the type in which it is compared."""

    def whole(self) -> DataFrame:
        """Return `ROW` and all columns."""

    def arrow(self) -> pa.Table | None:
        """Return all columns in their order; None where only Spark can read them."""


class FrameLabels:
    """Labels in a pandas frame: keys and times go to Spark, the other columns stay here."""

    def __init__(self, session: SparkSession, table: pa.Table) -> None:
        self._session, self._table, self._labels = session, table, TableLabels(table)
        self.schema, self.rows = table.schema, table.num_rows

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column."""
        return self._labels.column(name)

    def sought(self, time: str, keys: Mapping[str, pa.DataType], naive: Naive) -> DataFrame:
        """Return `ROW`, `TIME` and the keys."""
        times = microseconds(self._table[time], "down", file=_WHERE, name=time, naive=naive)
        columns = {
            ROW: pa.array(np.arange(self.rows)),
            TIME: pa.array(times, mask=times == MISSING),
            **{name: as_key(self._table[name], kind, name).cast(kind) for name, kind in keys.items()},
        }
        return self._session.createDataFrame(pa.table(columns))

    def whole(self) -> DataFrame:
        """Return `ROW` and all columns, in types that Spark has."""
        fields = [pa.field(field.name, _sparks(field.type)) for field in self.schema]
        table = self._table.cast(pa.schema(fields))
        return self._session.createDataFrame(table.append_column(ROW, pa.array(np.arange(self.rows))))

    def arrow(self) -> pa.Table:
        """Return the frame."""
        return self._table


class ParquetLabels:
    """Labels in Parquet files, numbered in the order of their names."""

    def __init__(self, session: SparkSession, path: Path) -> None:
        files = parquet_files(path)
        self._labels = FileLabels(path)
        self.schema, self.rows = self._labels.schema, self._labels.rows
        counts = [pq.read_metadata(file).num_rows for file in files]
        starts = np.cumsum([0, *counts[:-1]]).tolist()
        frame = read_parquet(session, [f"file://{file}" for file in files])
        first = dict(zip(map(str, files), starts, strict=True))
        self._frame = with_numbers(frame, {file: first[plain_path(file)] for file in frame.inputFiles()}, ROW)

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column, file by file."""
        return self._labels.column(name)

    def sought(self, time: str, keys: Mapping[str, pa.DataType], naive: Naive) -> DataFrame:
        """Return `ROW`, `TIME` and the keys."""
        return _sought(self._frame, self.schema, time, keys, naive)

    def whole(self) -> DataFrame:
        """Return `ROW` and all columns."""
        return self._frame

    def arrow(self) -> pa.Table:
        """Read the files."""
        return pa.concat_tables(self._labels.chunks(max(self.rows, 1)))


class QueryLabels:
    """Labels in a Spark frame: computed once, for another time might give them another order."""

    def __init__(self, frame: DataFrame) -> None:
        self.schema = to_arrow_schema(frame.schema, timezone="UTC")
        numbered = frame.withColumn("_hw_at", F.monotonically_increasing_id()).localCheckpoint()
        # Numbers without gaps: each partition's start is how many rows the ones before it have.
        part = F.shiftright("_hw_at", 33)
        counts = {row["part"]: row["count"] for row in numbered.groupBy(part.alias("part")).count().collect()}
        starts, total = {}, 0
        for number in sorted(counts):
            starts[number], total = total - (number << 33), total + counts[number]
        table = pa.table(
            {"_hw_part": pa.array(starts.keys(), pa.int64()), "_hw_start": pa.array(starts.values(), pa.int64())}
        )
        known = F.broadcast(frame.sparkSession.createDataFrame(table))
        self._frame = (
            numbered.withColumn("_hw_part", part)
            .join(known, "_hw_part")
            .withColumn(ROW, F.col("_hw_start") + F.col("_hw_at"))
            .drop("_hw_part", "_hw_start", "_hw_at")
        )
        self.rows = total

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield the first and the last value, which is all that is asked for."""
        ends = self._frame.agg(F.min(named(name)).alias("first"), F.max(named(name)).alias("last")).toArrow()
        yield pa.chunked_array([*ends["first"].chunks, *ends["last"].chunks])

    def sought(self, time: str, keys: Mapping[str, pa.DataType], naive: Naive) -> DataFrame:
        """Return `ROW`, `TIME` and the keys."""
        return _sought(self._frame, self.schema, time, keys, naive)

    def whole(self) -> DataFrame:
        """Return `ROW` and all columns."""
        return self._frame

    def arrow(self) -> None:
        """Return nothing: the columns come back with the features."""
        return


def _sought(frame: DataFrame, schema: pa.Schema, time: str, keys: Mapping[str, pa.DataType], naive: Naive) -> DataFrame:
    check_clock(schema.field(time).type, _WHERE, time, naive)
    columns: list[Column] = []
    for name, kind in keys.items():
        own = schema.field(name).type
        as_key(pa.array([], own), kind, name)
        if pa.types.is_floating(own):
            _refuse_fractions(frame, name)
        columns.append(named(name).cast(spark_type(kind)).alias(name))
    return frame.select(ROW, micros(frame, time, "down").alias(TIME), *columns)


def _refuse_fractions(frame: DataFrame, name: str) -> None:
    """Floats may stand for integers with gaps, as pandas makes them, and for nothing else."""
    column = named(name)
    broken = frame.filter(F.isnan(column) | (column != F.floor(column))).count()
    if broken:
        reason = "does not fit the key of the view's files (it has fractions)"
        raise InputDataError([Problem("join keys", name, reason, broken, "Make the types equal.")])


def _sparks(kind: pa.DataType) -> pa.DataType:
    """Return the type in which Spark holds values of an Arrow type."""
    if pa.types.is_dictionary(kind):
        return _sparks(kind.value_type)
    if pa.types.is_unsigned_integer(kind):
        return pa.int64() if kind.bit_width < 64 else pa.decimal128(20)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return kind
