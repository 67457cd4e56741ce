"""The twin of a snapshot: the same rows as uncompressed Arrow, sorted by key, to be mapped into memory.

Parquet is the truth. A twin is derived from one Parquet file, lies in ``_twin/`` beside it, names the bytes it
was made from (size and SHA-256), and is made again, or passed over, when they are others. Vectors of one
length become fixed-size lists, so that row i of a twin is at a known address and nothing is decoded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.errors import LakeError
from feature_repo.lake import replacing, sha256_of
from feature_repo.stores.assembly import in_one_piece, vectors_of

FOLDER = "_twin"
FORMAT = b"2"


@dataclass(frozen=True)
class Twin:
    """One twin that is known to be current.

    Attributes
    ----------
    keys
        The columns by which the rows are sorted.
    ascending
        Whether there is one integer key and every row has another, larger one than the row before.
    constants
        Timestamp columns that hold one value in all rows, with that value in the column's own unit. A refresh
        writes all rows of a snapshot with the same clocks, so a reader need not look at them row by row.
    """

    path: Path
    rows: int
    keys: tuple[str, ...]
    schema: pa.Schema
    ascending: bool
    constants: Mapping[str, int]

    def table(self) -> pa.Table:
        """Return the rows, mapped: nothing is read until it is touched, and closed with the last reference."""
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()


def twin_path(parquet: Path) -> Path:
    """Return where the twin of a Parquet file lies; readers of the folder pass over names that begin with _."""
    return parquet.parent / FOLDER / f"{parquet.stem}.arrow"


def current(parquet: Path) -> Twin | None:
    """Return the twin of a Parquet file if it is there and was made from exactly these bytes.

    Equal modification times stand for equal bytes (:func:`build` makes them equal). Where they differ, as in a
    copied folder, the file is hashed once and the times are made equal again.
    """
    path = twin_path(parquet)
    try:
        source, own = parquet.stat(), path.stat()
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            schema = reader.schema
            notes = schema.metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    if notes.get(b"twin") != FORMAT or notes.get(b"source_size") != str(source.st_size).encode():
        return None
    if own.st_mtime_ns != source.st_mtime_ns:
        if notes.get(b"source_sha256") != sha256_of(parquet).encode():
            return None
        _same_time(path, source)
    return _from_notes(path, schema)


def build(parquet: Path, keys: Sequence[str]) -> Twin:
    """Write the twin of a Parquet file, replacing what was there.

    Parameters
    ----------
    parquet
        The snapshot. All its rows are read at once.
    keys
        Join keys, by which the rows are sorted; rows of equal keys keep their order.

    Raises
    ------
    LakeError
        If the snapshot cannot be read or the disk refuses.
    """
    source = parquet.stat()
    try:
        # Not read_table: it takes the folder's name for a partition where that contains an equals sign.
        table = pq.ParquetFile(parquet).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise LakeError(f"Could not read the snapshot {parquet}: {error}. Publish that moment again.") from error
    if not _ascending(table, keys):
        table = table.take(pc.sort_indices(table, sort_keys=[(key, "ascending") for key in keys]))
    table = pa.table([fixed_size(column) for column in table.columns], names=table.column_names)
    notes = {
        "twin": FORMAT.decode(),
        "keys": "\x1f".join(keys),
        "rows": str(table.num_rows),
        "ascending": json.dumps(_ascending(table, keys, strictly=True)),
        "constants": json.dumps(_constants(table)),
        "source_size": str(source.st_size),
        "source_sha256": sha256_of(parquet),
    }
    after = parquet.stat()
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (source.st_ino, source.st_size, source.st_mtime_ns):
        raise LakeError(f"{parquet} was replaced while its twin was made. Run the command again.")
    path = twin_path(parquet)
    schema = table.schema.with_metadata(notes)
    with (
        replacing(path) as staged,
        pa.OSFile(str(staged), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        # One batch, so that a column is one buffer.
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    _same_time(path, source)
    return _from_notes(path, schema)


def _from_notes(path: Path, schema: pa.Schema) -> Twin:
    notes = {name.decode(): value.decode() for name, value in schema.metadata.items()}
    return Twin(
        path=path,
        rows=int(notes["rows"]),
        keys=tuple(notes["keys"].split("\x1f")),
        schema=schema.remove_metadata(),
        ascending=json.loads(notes["ascending"]),
        constants=json.loads(notes["constants"]),
    )


def _constants(table: pa.Table) -> dict[str, int]:
    found = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_timestamp(field.type) and len(column) and not column.null_count:
            ends = pc.min_max(column.cast(pa.int64()))
            if ends["min"] == ends["max"]:
                found[field.name] = ends["min"].as_py()
    return found


def current_or_built(parquet: Path, keys: Sequence[str]) -> Twin | None:
    """Return the current twin, made now if need be; None where it cannot be written (a read-only folder)."""
    twin = current(parquet)
    if twin is not None and twin.keys == tuple(keys):
        return twin
    try:
        return build(parquet, keys)
    except LakeError:
        return None


def _same_time(path: Path, source: os.stat_result) -> None:
    try:
        os.utime(path, ns=(source.st_atime_ns, source.st_mtime_ns))
    except OSError:
        # Somebody else's file: it is hashed every time, which is slower and just as right.
        return


def _ascending(table: pa.Table, keys: Sequence[str], *, strictly: bool = False) -> bool:
    if len(keys) != 1 or not pa.types.is_integer(table.schema.field(keys[0]).type) or table[keys[0]].null_count:
        return False
    values = table[keys[0]].to_numpy()
    return bool((values[1:] > values[:-1]).all() if strictly else (values[1:] >= values[:-1]).all())


def fixed_size(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Return vectors of one length without gaps as a fixed-size list; any other column as it is."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or column.null_count or len(column) == 0:
        return column
    if not pa.types.is_floating(kind.value_type):
        return column
    vectors_ND = vectors_of(in_one_piece(column))
    if vectors_ND is None:
        return column
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
