"""The stored rows of one view, as files that are read in parts: Parquet, its mapped twins, or a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.errors import InputDataError, LakeError
from feature_repo.contracts.types import Problem
from feature_repo.stores import twin
from feature_repo.stores.assembly import assembled
from feature_repo.stores.clocks import MISSING, Int64Array, Naive, microseconds

Twins = Literal["off", "use", "build"]
_DECODED_ROWS = 1024
_EARLIEST, _LATEST = -(2**62), 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Clocks:
    """Which columns of the files say when a row could be read and when it was written, and how to take them.

    Attributes
    ----------
    lag
        Declared availability lag in microseconds: a row can be read that much after its time.
    naive, naive_created
        What becomes of timestamps without a time zone. Where `created` only orders rows, its zone is all one.
    """

    time: str
    created: str | None
    lag: int = 0
    naive: Naive = "error"
    naive_created: Naive = "utc"


@dataclass(frozen=True)
class Unit:
    """The smallest part that is read at once: a row group, or a whole mapped file.

    Attributes
    ----------
    first
        Number of its first row within the view.
    low, high
        Bounds of its rows' times (microseconds, lag included).
    """

    file: int
    group: int
    first: int
    rows: int
    low: int
    high: int


class File(Protocol):
    """A file of a view."""

    schema: pa.Schema

    def groups(self, clocks: Clocks) -> Iterator[tuple[int, int, int]]:
        """Yield (rows, low, high) of each part, without the lag."""

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one part."""

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Return about how many bytes a row of some columns takes."""

    def constant(self, group: int, column: str) -> pa.Array | None:
        """Return the one value that all rows of a part's clock have, shape (1,), if known without reading them."""

    def ascends(self, keys: Sequence[str]) -> bool:
        """Return whether it is known that every row has a larger key than the row before."""


class ParquetFile:
    """Rows in Parquet; a part is a row group, bounded by its statistics."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(), pq.ParquetFile(path, memory_map=True) as file:
            self._metadata, self.schema = file.metadata, file.schema_arrow
        self._names = [self._metadata.schema.column(i).path for i in range(self._metadata.num_columns)]

    def groups(self, clocks: Clocks) -> Iterator[tuple[int, int, int]]:
        at = self._names.index(clocks.time)
        for number in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(number)
            statistics = group.column(at).statistics
            if statistics is not None and statistics.has_min_max:
                yield group.num_rows, _moment(statistics.min), _moment(statistics.max) + 1
            else:
                yield group.num_rows, _EARLIEST, _LATEST

    def constant(self, group: int, column: str) -> pa.Array | None:
        kind = self.schema.field(column).type
        if not pa.types.is_timestamp(kind):
            return None
        statistics = self._metadata.row_group(group).column(self._names.index(column)).statistics
        if statistics is None or not (statistics.has_min_max and statistics.has_null_count):
            return None
        if statistics.null_count or statistics.min != statistics.max:
            return None
        return pa.array([statistics.min], kind)

    def ascends(self, keys: Sequence[str]) -> bool:
        return False

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([field for field in self.schema if field.name in columns])
        with self._errors(), pq.ParquetFile(self._path, memory_map=True, metadata=self._metadata) as file:
            # Decoding a whole group of lists at once touches five times its memory, and new memory is slow.
            batches = file.iter_batches(_DECODED_ROWS, [group], schema.names, use_threads=False)
            return assembled(batches, schema, self._metadata.row_group(group).num_rows)

    def row_bytes(self, columns: Sequence[str]) -> float:
        groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
        size = sum(
            chunk.total_uncompressed_size
            for group in groups
            for chunk in (group.column(i) for i in range(group.num_columns))
            if chunk.path_in_schema.split(".")[0] in columns
        )
        return size / max(self._metadata.num_rows, 1)

    def _errors(self) -> _AsLakeError:
        return _AsLakeError(self._path)


class TwinFile:
    """Rows in a mapped twin: one part. It is opened for each read, so that pages are given back."""

    def __init__(self, path: Path, found: twin.Twin) -> None:
        self._path, self._twin, self.schema = path, found, found.schema

    def groups(self, clocks: Clocks) -> Iterator[tuple[int, int, int]]:
        column = self.constant(0, clocks.time)
        if column is None:
            column = self.read(0, [clocks.time])[clocks.time]
        times = microseconds(column, "up", file=str(self._path), name=clocks.time, naive=clocks.naive)
        yield self._twin.rows, *_bounds(times)

    def constant(self, group: int, column: str) -> pa.Array | None:
        value = self._twin.constants.get(column)
        return None if value is None else pa.array([value]).cast(self.schema.field(column).type)

    def ascends(self, keys: Sequence[str]) -> bool:
        return self._twin.ascending and self._twin.keys == tuple(keys)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        with _AsLakeError(self._path):
            return self._twin.table().select(list(columns))

    def row_bytes(self, columns: Sequence[str]) -> float:
        table = self.read(0, columns)
        return table.nbytes / max(table.num_rows, 1)


class TableFile:
    """Rows in memory: one part."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self.schema = table, table.schema

    def constant(self, group: int, column: str) -> pa.Array | None:
        return None

    def ascends(self, keys: Sequence[str]) -> bool:
        return False

    def groups(self, clocks: Clocks) -> Iterator[tuple[int, int, int]]:
        times = microseconds(self._table[clocks.time], "up", file="the source", name=clocks.time, naive=clocks.naive)
        yield len(times), *_bounds(times)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        return self._table.select(list(columns))

    def row_bytes(self, columns: Sequence[str]) -> float:
        return self.read(0, columns).nbytes / max(self._table.num_rows, 1)


class Source:
    """All stored rows of one view, numbered file by file.

    Parameters
    ----------
    files
        Its files, in the order in which equal rows override each other: the last wins.
    clocks
        Their clock columns.
    """

    def __init__(self, files: Sequence[File], clocks: Clocks) -> None:
        self.clocks = clocks
        self._files = list(files)
        units, first = [], 0
        for number, file in enumerate(self._files):
            _check_clocks(file, clocks)
            for group, (rows, low, high) in enumerate(file.groups(clocks)):
                units.append(Unit(number, group, first, rows, low + clocks.lag, high + clocks.lag))
                first += rows
        self.units = [unit for unit in units if unit.rows]
        self.rows = first
        self._starts = np.array([unit.first for unit in self.units], np.int64)
        self._constants: dict[Unit, tuple[int, int] | None] = {}

    def type_of(self, column: str) -> pa.DataType:
        """Return a column's type in the first file; null where the view has no file yet."""
        for file in self._files:
            require(file, [column])
        return self._files[0].schema.field(column).type if self._files else pa.null()

    def row_bytes(self, columns: Sequence[str]) -> float:
        """Return about how many bytes a row of some columns takes, by the first part with rows."""
        if not self.units:
            return 0.0
        return max(self._files[0].row_bytes(columns), self._files[-1].row_bytes(columns))

    def read(self, unit: Unit, columns: Sequence[str]) -> pa.Table:
        """Read some columns of one part."""
        return self._files[unit.file].read(unit.group, columns)

    def clock_constants(self, unit: Unit) -> tuple[int, int] | None:
        """Return the clocks that all rows of a part share, if they are known without reading it."""
        if unit not in self._constants:
            self._constants[unit] = self._read_constants(unit)
        return self._constants[unit]

    def _read_constants(self, unit: Unit) -> tuple[int, int] | None:
        columns = {}
        for name in (self.clocks.time, self.clocks.created):
            if name is not None:
                column = self._files[unit.file].constant(unit.group, name)
                if column is None:
                    return None
                columns[name] = column
        times, created = self.clock_columns(unit, pa.table(columns))
        return int(times[0]), int(created[0])

    def ascends(self, unit: Unit, keys: Sequence[str]) -> bool:
        """Return whether it is known that every row of a part has a larger key than the row before."""
        return self._files[unit.file].ascends(keys)

    def clock_columns(self, unit: Unit, table: pa.Table) -> tuple[Int64Array, Int64Array]:
        """Return (first moment of reading, moment of writing) of a part's rows: int64 [M], see `asof.Rows`."""
        clocks, where = self.clocks, f"file {unit.file} of the source"
        times = microseconds(table[clocks.time], "up", file=where, name=clocks.time, naive=clocks.naive)
        if clocks.lag:
            times = np.where(times == MISSING, MISSING, times + clocks.lag)
        if clocks.created is None:
            return times, np.zeros(len(times), np.int64)
        return times, microseconds(
            table[clocks.created], "up", file=where, name=clocks.created, naive=clocks.naive_created
        )

    def spans(self, numbers: Int64Array) -> list[tuple[Unit, int, int]]:
        """Cut ascending row numbers by the part they lie in: (part, start, stop) with stop > start."""
        edges = np.append(np.searchsorted(numbers, self._starts), len(numbers))
        return [
            (unit, int(start), int(stop))
            for unit, (start, stop) in zip(self.units, itertools.pairwise(edges), strict=True)
            if stop > start
        ]


def open_files(path: Path, keys: Sequence[str], twins: Twins) -> list[File]:
    """Open a Parquet file, a folder of them, or a glob, in the order of their names.

    Parameters
    ----------
    keys
        Join keys in the files: a twin is sorted by them.
    twins
        Whether to pass over twins, use those that are current, or make those that are not.

    Raises
    ------
    LakeError
        If nothing is there or a file cannot be read.
    """
    files: list[File] = []
    for file in parquet_files(path):
        found = None
        if twins == "build" and keys:
            found = twin.current_or_built(file, keys)
        elif twins == "use":
            found = twin.current(file)
        files.append(TwinFile(file, found) if found is not None else ParquetFile(file))
    return files


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files at a path, below a folder or matching a glob; names with a leading _ or . are not data.

    Raises
    ------
    LakeError
        If there is none.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        base, found = path, list(path.rglob("*.parquet"))
    else:
        parts = path.parts
        wild = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
        base = Path(*parts[:wild])
        found = list(base.glob(str(Path(*parts[wild:])))) if wild < len(parts) else []
    files = sorted(
        file for file in found if not any(part.startswith(("_", ".")) for part in file.relative_to(base).parts)
    )
    if not files:
        raise LakeError(f"There is no Parquet file at {path}. Check the path of the source or of the labels.")
    return files


class _AsLakeError:
    """Turns what reading a damaged file raises into one error that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, pa.ArrowInvalid)):
            raise LakeError(f"Could not read {self._path}: {error}. Write the file again.") from error


def require(file: Any, columns: Sequence[str]) -> None:
    """Refuse a source (anything with `schema.names`) that lacks columns; InputDataError says which there are."""
    missing = [name for name in columns if name not in file.schema.names]
    if missing:
        there = ", ".join(file.schema.names)
        raise InputDataError(
            [Problem("the source", missing[0], f"is missing (there are: {there})", 0, "Check the view's definition.")]
        )


def _check_clocks(file: File, clocks: Clocks) -> None:
    """Refuse clocks that are missing or no timestamps, before any row is read or passed over."""
    for name, naive in ((clocks.time, clocks.naive), (clocks.created, clocks.naive_created)):
        if name is not None:
            require(file, [name])
            nothing = pa.array([], file.schema.field(name).type)
            microseconds(nothing, "up", file="the source", name=name, naive=naive)


def _bounds(times: Int64Array) -> tuple[int, int]:
    times = times[times != MISSING]
    return (int(times.min()), int(times.max())) if len(times) else (_EARLIEST, _EARLIEST)


def _moment(value: Any) -> int:
    """Return a statistic as microseconds, rounded down."""
    if hasattr(value, "value"):  # a pandas Timestamp, which nanoseconds come as
        return int(value.as_unit("ns").value // 1000)
    if not isinstance(value, datetime):
        return _EARLIEST
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    delta = aware - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
