"""The stored rows of a view on Spark: clocks as microseconds, keys as they are compared, and a number for each row.

All clocks become 64-bit integers here, so that nothing after it depends on a session's time zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pyspark.errors import AnalysisException
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type, to_arrow_type
from pyspark.sql.types import DataType, IntegralType, LongType, TimestampType

from feature_repo.contracts.errors import LakeError
from feature_repo.stores.clocks import MISSING, Naive, Rounding, microseconds
from feature_repo.stores.keys import key_type
from feature_repo.stores.reading import Reading
from feature_repo.stores.sources import require

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

# Columns of our own among those of labels and views.
ROW, TIME, PLACE, SEEN = "_hw_row", "_hw_time", "_hw_place", "_hw_seen"
# A file may hold 2^40 rows; its number stands above them.
_FILE_BITS = 40
_SCHEMES = ("file:/", "file://", "file:///")


@dataclass(frozen=True)
class SparkView:
    """One view to join.

    Attributes
    ----------
    frame
        The stored rows, with `PLACE` where `placed`.
    placed
        Whether rows have numbers that last: then keys are joined first and features read afterwards.
    """

    read: Reading
    frame: DataFrame
    placed: bool


def named(name: str) -> Column:
    """Return a column by its whole name, dots included."""
    return F.col(f"`{name}`")


def read_parquet(session: SparkSession, paths: Iterable[str]) -> DataFrame:
    """Open Parquet files or folders; LakeError where there is none."""
    paths = list(paths)
    try:
        return session.read.parquet(*paths)
    except AnalysisException as error:
        raise LakeError(f"Spark found no Parquet at {', '.join(paths)}: {str(error).splitlines()[0]}") from error


def number_files(frame: DataFrame) -> dict[str, int]:
    """Return the first number of each file's rows: files follow one another by their names, as in our DuckDB store."""
    files = sorted(frame.inputFiles(), key=lambda file: PurePosixPath(plain_path(file)))
    return {file: number << _FILE_BITS for number, file in enumerate(files)}


def with_numbers(frame: DataFrame, starts: Mapping[str, int], name: str) -> DataFrame:
    """Add each row's number: its file's start plus its place in the file, the same however often it is read.

    Parameters
    ----------
    starts
        By file, as ``frame.inputFiles()`` names them.
    """
    # How many slashes follow the scheme depends on where one asks; asking for both costs less than a change per row.
    forms = {re.sub("^file:/+", scheme, file): start for file, start in starts.items() for scheme in _SCHEMES}
    files, numbers = pa.array(forms.keys(), pa.string()), pa.array(forms.values(), pa.int64())
    known = frame.sparkSession.createDataFrame(pa.table({"_hw_file": files, "_hw_start": numbers}))
    tagged = frame.withColumns({"_hw_file": F.col("_metadata.file_path"), "_hw_at": F.col("_metadata.row_index")})
    lost = F.raise_error(F.lit("A file was read that was not there when the join was planned.")).cast("bigint")
    return (
        tagged.join(F.broadcast(known), "_hw_file", "left")
        .withColumn(name, F.coalesce("_hw_start", lost) + F.col("_hw_at"))
        .drop("_hw_file", "_hw_at", "_hw_start")
    )


def plain_path(file: str) -> str:
    """Return a local file that Spark names as its path, without escapes; any other as it is."""
    return unquote(urlparse(file).path) if file.startswith("file:") else file


def stored_type(frame: DataFrame, name: str) -> pa.DataType:
    """Return a column's Arrow type; what Spark calls a long may be nanoseconds, which only the file says."""
    kind = frame.schema[name].dataType
    if isinstance(kind, LongType) and frame.inputFiles():
        system, path = fs.FileSystem.from_uri(frame.inputFiles()[0])
        with system.open_input_file(path) as file:
            return pq.read_schema(file).field(name).type
    return arrow_type(kind)


def check_clock(kind: pa.DataType, where: str, name: str, naive: Naive) -> None:
    """Refuse a clock column as our DuckDB store does."""
    microseconds(pa.array([], kind), "up", file=where, name=name, naive=naive)


def micros(frame: DataFrame, name: str, rounding: Rounding) -> Column:
    """Return a checked clock as microseconds since 1970."""
    column, kind = named(name), frame.schema[name].dataType
    if isinstance(kind, LongType):
        rest = F.pmod(column, F.lit(1000))
        whole = F.call_function("div", column - rest, F.lit(1000))
        return whole + (rest > 0).cast("bigint") if rounding == "up" else whole
    return F.unix_micros(column if isinstance(kind, TimestampType) else column.cast("timestamp"))


def key_of(frame: DataFrame, name: str) -> Column:
    """Return a key in the type in which keys are compared."""
    kind = frame.schema[name].dataType
    return named(name).cast("bigint") if isinstance(kind, IntegralType) else named(name)


def key_kinds(views: Iterable[SparkView]) -> dict[str, pa.DataType]:
    """Return the Arrow type of every key, by its name among the labels."""
    return {
        asked: key_type(arrow_type(view.frame.schema[stored].dataType))
        for view in views
        for asked, stored in view.read.keys
    }


def arrow_type(kind: DataType) -> pa.DataType:
    """Return Arrow's name of a Spark type."""
    return to_arrow_type(kind, timezone="UTC")


def spark_type(kind: pa.DataType) -> str:
    """Return Spark's name of an Arrow type."""
    return from_arrow_type(kind).simpleString()


def checked(read: Reading, frame: DataFrame) -> None:
    """Refuse a source that lacks columns or whose clocks are none; InputDataError says why."""
    clocks = read.clocks
    require(frame, [*(name for _, name in read.keys), *(name for _, name in read.features)])
    for name, naive in ((clocks.time, clocks.naive), (clocks.created, clocks.naive_created)):
        if name is not None:
            require(frame, [name])
            check_clock(stored_type(frame, name), "the source", name, naive)


def stored_rows(view: SparkView, name: str, span: tuple[int, int], *, strict: bool) -> DataFrame:
    """Return what the search needs of every row that some label may see: keys, `SEEN`, and a struct `name`.

    The struct is (time, created, place): the greatest is the row that a label gets. `SEEN` is the moment from
    which on labels see the row. Where rows have no lasting place, their features are in the struct.

    Parameters
    ----------
    span
        First and last label time, microseconds.
    """
    read, frame = view.read, view.frame
    clocks = read.clocks
    hides = strict and clocks.created is not None
    created = F.lit(0) if clocks.created is None else micros(frame, clocks.created, "up")
    rows = _in_span(view, span).select(
        *(key_of(frame, stored).alias(asked) for asked, stored in read.keys),
        (micros(frame, clocks.time, "up") + clocks.lag).alias("_hw_time"),
        created.cast("bigint").alias("_hw_created"),
        (F.col(PLACE) if view.placed else F.monotonically_increasing_id()).alias(PLACE),
        *(() if view.placed else (named(stored).alias(f"f{at}") for at, (_, stored) in enumerate(read.features))),
    )
    rows = rows.dropna(subset=["_hw_time", *(asked for asked, _ in read.keys), *(["_hw_created"] if hides else [])])
    seen = F.greatest("_hw_time", "_hw_created") if hides else F.col("_hw_time")
    carried = () if view.placed else (f"f{at}" for at in range(len(read.features)))
    row = F.struct("_hw_time", F.coalesce("_hw_created", F.lit(MISSING)).alias("_hw_created"), PLACE, *carried)
    return rows.select(*(named(asked) for asked, _ in read.keys), seen.alias(SEEN), row.alias(name))


def _in_span(view: SparkView, span: tuple[int, int]) -> DataFrame:
    """Leave out rows that are too new or too old for every label; on timestamps Parquet's statistics answer that."""
    read, frame = view.read, view.frame
    first, last = span
    column, kind = named(read.clocks.time), frame.schema[read.clocks.time].dataType

    def moment(value: int) -> Column:
        return F.timestamp_micros(F.lit(value)) if isinstance(kind, TimestampType) else F.lit(value)

    time = column if isinstance(kind, TimestampType) else micros(frame, read.clocks.time, "up")
    frame = frame.filter(time <= moment(last - read.clocks.lag))
    return frame.filter(time >= moment(first - read.ttl - read.clocks.lag)) if read.ttl else frame
