"""Labels as a stream of tables: from a frame in memory, or from Parquet that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.errors import LakeError
from feature_repo.stores.sources import parquet_files


class Labels(Protocol):
    """N label rows.

    Attributes
    ----------
    rows
        N.
    row_bytes
        About how many bytes of memory a row takes.
    """

    schema: pa.Schema
    rows: int
    row_bytes: float

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """Yield the labels in their order, `rows` at a time and the rest at last."""

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column, file by file."""


class TableLabels:
    """Labels in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema, self.rows = table.schema, table.num_rows
        self.row_bytes = table.nbytes / max(table.num_rows, 1)

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """Yield slices; one empty table where there is no label."""
        for start in range(0, max(self.rows, 1), rows):
            yield self._table.slice(start, rows)

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column."""
        yield self._table[name]


class FileLabels:
    """Labels in Parquet files, read in the order of their names.

    Parameters
    ----------
    path
        A file, a folder or a glob.

    Raises
    ------
    LakeError
        If there is no file, one cannot be read, or their columns differ.
    """

    def __init__(self, path: Path) -> None:
        self._files = parquet_files(path)
        footers = []
        for file in self._files:
            try:
                footers.append(pq.read_metadata(file))
            except (OSError, pa.ArrowInvalid) as error:
                raise LakeError(f"Could not read the labels in {file}: {error}. Write the file again.") from error
        self.schema = footers[0].schema.to_arrow_schema().remove_metadata()
        for file, footer in zip(self._files, footers, strict=True):
            if not footer.schema.to_arrow_schema().equals(self.schema):
                raise LakeError(f"The labels in {file} have other columns than {self._files[0]}. Make them equal.")
        self.rows = sum(footer.num_rows for footer in footers)
        groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
        self.row_bytes = 2 * sum(group.total_byte_size for group in groups) / max(self.rows, 1)

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """Yield the labels across file borders; one empty table where there is no label."""
        held: list[pa.Table] = []
        count = 0
        for batch in self._batches(min(rows, 128 * 1024)):
            held.append(batch)
            count += batch.num_rows
            while count >= rows:
                whole = pa.concat_tables(held)
                yield whole.slice(0, rows)
                held, count = [whole.slice(rows)], count - rows
        if count or not self.rows:
            yield pa.concat_tables(held) if held else self.schema.empty_table()

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield one column, file by file."""
        for path in self._files:
            with pq.ParquetFile(path) as file:
                yield file.read(columns=[name])[name]

    def _batches(self, rows: int) -> Iterator[pa.Table]:
        for path in self._files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=rows):
                    yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def time_range(times: Iterable[pa.ChunkedArray]) -> tuple[datetime | None, datetime | None]:
    """Return the first and the last of the labels' times, file by file; None where there is no label."""
    ends = [pc.min_max(column.cast(pa.timestamp("us", tz="UTC"), safe=False)) for column in times]
    first = [end["min"].as_py() for end in ends if end["min"].is_valid]
    last = [end["max"].as_py() for end in ends if end["max"].is_valid]
    return min(first, default=None), max(last, default=None)
