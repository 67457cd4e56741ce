"""Rows in another order than they are read in, without holding them: sorted into pieces of a temporary file."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.stores import wire
from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.twin import fixed_size


def ordered(
    tables: Iterable[pa.Table], ranks: Int64Array, rows: int, piece: int, folder: Path
) -> Iterator[tuple[pa.Table, bool]]:
    """Yield all rows by rank: chunks of `rows` rows in pieces of `piece`, and whether a piece ends its chunk.

    A piece is put into order when it is asked for, so that memory is touched that the piece before gave back.

    Parameters
    ----------
    tables
        Tables of one schema, of N rows together; one is held at a time.
    ranks
        Which place each of the rows takes: a permutation of 0 to N - 1.
    rows
        How many rows are held at once.
    folder
        Where the temporary file lies. It has no name there, so that it is gone with the process.
    """
    edges = np.arange(0, len(ranks) + rows, rows)
    chunks: list[list[tuple[int, Int64Array]]] = [[] for _ in edges[:-1]]
    first, written = 0, itertools.count()
    with tempfile.TemporaryFile(dir=folder) as file:
        writer: pa.RecordBatchFileWriter | None = None
        for table in tables:
            own = ranks[first : first + table.num_rows]
            first += table.num_rows
            order = np.argsort(own)
            if len(ranks) <= rows and len(own) == len(ranks):
                yield from _pieces(_plain(table), order, piece)
                return
            own, sorted_rows = own[order], _plain(table).take(pa.array(order)).combine_chunks()
            writer = writer or pa.ipc.new_file(file, sorted_rows.schema)
            cuts = np.searchsorted(own, edges)
            for chunk, (start, stop) in zip(chunks, itertools.pairwise(cuts.tolist()), strict=True):
                for batch in sorted_rows.slice(start, stop - start).to_batches():
                    writer.write_batch(batch)
                    chunk.append((next(written), own[start:stop]))
        if writer is None:
            return
        writer.close()
        reader = pa.ipc.open_file(file)
        for chunk in chunks:
            table = pa.Table.from_batches([reader.get_batch(number) for number, _ in chunk])
            yield from _pieces(table, np.argsort(np.concatenate([own for _, own in chunk])), piece)


def _pieces(table: pa.Table, order: Int64Array, piece: int) -> Iterator[tuple[pa.Table, bool]]:
    """Yield the rows of a table in an order, piece by piece, and whether it is the last one."""
    even = pa.table({name: fixed_size(table[name]) for name in table.column_names})
    for start in range(0, len(order), piece):
        yield even.take(pa.array(order[start : start + piece])), start + piece >= len(order)


def _plain(table: pa.Table) -> pa.Table:
    """Return a table whose dictionaries are decoded: a file holds one dictionary for all pieces."""
    return pa.table({name: wire.combined(table[name]) for name in table.column_names})
