"""Which stored rows an online store gets: per entity the latest one of a time range.

Local Parquet files are read keys and clocks first; the features of the chosen rows follow in pieces, so that
memory does not grow with the history (docs/adr/0021-online-keys-first.md). Anything else is read by Feast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.stores import wire
from feature_repo.stores.batches import ViewColumns
from feature_repo.stores.clocks import Int64Array
from feature_repo.stores.key_order import ordered
from feature_repo.stores.sources import Clocks, Source, TableFile, Unit, open_files

# Keys and clocks that are held at once.
_ROWS_HELD = 4_000_000
# A source of one part and no more rows than these is read whole.
_ROWS_AT_ONCE = 65_536
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class _Chosen:
    """Candidate rows: keys (int64 or serialized), clocks, number of the row in the source."""

    keys: pa.Array
    times: Int64Array
    created: Int64Array
    numbers: Int64Array

    def latest(self) -> _Chosen:
        """Return the latest row of each key; of equal clocks the last one."""
        codes = _codes(self.keys)
        together = np.sort(codes)
        if (together[1:] > together[:-1]).all():
            return self
        order = np.lexsort((self.numbers, self.created, self.times, codes))
        ordered = codes[order]
        last = np.ones(len(order), np.bool_)
        last[:-1] = ordered[1:] != ordered[:-1]
        return self.take(np.sort(order[last]))

    def take(self, positions: Int64Array) -> _Chosen:
        return _Chosen(
            self.keys.take(pa.array(positions)), self.times[positions], self.created[positions], self.numbers[positions]
        )


@dataclass(frozen=True)
class StoredRows:
    """The rows of a source by their numbers; can be sent to another process that reaches the files.

    Attributes
    ----------
    names
        Name in the view -> name in the source.
    """

    source: Source
    names: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The columns in the source, each once."""
        return list(dict.fromkeys(self.names.values()))

    def batches(self, numbers: Int64Array, rows: int, read: dict[Unit, pa.Table] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of ascending numbers, at most `rows` at a time, columns named as in the view.

        Parameters
        ----------
        read
            Parts that were read already; what is used is taken out.
        """
        for unit, start, stop in self.source.spans(numbers):
            inside = numbers[start:stop] - unit.first
            held = read.pop(unit, None) if read else None
            table = self.source.read(unit, self.columns) if held is None else held
            for first in range(0, len(inside), rows):
                part = _rows_of(table, inside[first : first + rows])
                yield pa.table({name: part[stored] for name, stored in self.names.items()})


class LatestRows:
    """The latest row per entity of a source.

    Parameters
    ----------
    source
        Stored rows; `names` are their columns as the view calls them.
    names
        Name in the view -> name in the source, for keys, features and clocks.
    start, end
        Event times, microseconds, both inside.
    """

    def __init__(self, source: Source, names: dict[str, str], columns: ViewColumns, start: int, end: int) -> None:
        self.stored = StoredRows(source, names)
        self._source, self._names, self._columns = source, names, columns
        self._read: dict[Unit, pa.Table] = {}
        self._chosen = self._choose(start, end)
        self.rows = len(self._chosen.numbers)

    @property
    def numbers(self) -> Int64Array:
        """Which stored rows were chosen, ascending: int64 [rows]."""
        return self._chosen.numbers

    @property
    def row_bytes(self) -> float:
        """About how many bytes a row takes."""
        return self._source.row_bytes(self.stored.columns)

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """Yield the chosen rows, at most `rows` at a time, columns named as in the view."""
        return self.stored.batches(self.numbers, rows, self._read)

    def in_key_order(self, rows: int, piece: int, folder: Path) -> Iterator[tuple[pa.Table, bool]]:
        """Yield the chosen rows in the order of their serialized keys, and whether a table ends a chunk.

        Chunks of `rows` rows come in pieces of `piece`.

        Parameters
        ----------
        folder
            Where a temporary file may lie that holds the rows if they are more than one batch.
        """
        ranks = np.empty(self.rows, np.int64)
        ranks[_by_bytes(self._chosen.keys)] = np.arange(self.rows)
        return ordered(self.batches(rows), ranks, rows, piece, folder)

    def _choose(self, start: int, end: int) -> _Chosen:
        held: list[_Chosen] = []
        for unit in self._source.units:
            if unit.high < start or unit.low > end:
                continue
            held.append(self._candidates(unit, start, end))
            if sum(len(piece.numbers) for piece in held) > _ROWS_HELD:
                held = [_together(held).latest()]
        nothing = np.zeros(0, np.int64)
        return _together(held).latest() if held else _Chosen(pa.array(nothing), nothing, nothing, nothing)

    def _candidates(self, unit: Unit, start: int, end: int) -> _Chosen:
        clocks = self._source.clocks
        keys = [name for name, _ in self._columns.keys]
        stored = [self._names[name] for name in keys]
        wanted = dict.fromkeys([*stored, clocks.time, *([clocks.created] if clocks.created else [])])
        if len(self._source.units) == 1 and unit.rows <= _ROWS_AT_ONCE:
            # A small file is read once: to open it again would take as long as its keys.
            table = self._read[unit] = self._source.read(unit, self.stored.columns)
        else:
            table = self._source.read(unit, list(wanted))
        times, created = self._source.clock_columns(unit, table)
        inside = np.flatnonzero((times >= start) & (times <= end))
        table = table.take(pa.array(inside)) if len(inside) < table.num_rows else table
        kinds = [kind for _, kind in self._columns.keys]
        columns = [(name, table[at], kind) for name, at, kind in zip(keys, stored, kinds, strict=True)]
        whole = wire.combined(columns[0][1])
        plain = len(columns) == 1 and pa.types.is_integer(whole.type) and not whole.null_count
        packed = whole.cast(pa.int64()) if plain else wire.entity_keys(columns)
        return _Chosen(packed, times[inside], created[inside], unit.first + inside)


def of_files(
    path: Path, columns: ViewColumns, field_mapping: dict[str, str], start: datetime, end: datetime
) -> LatestRows | None:
    """Return the latest rows of local Parquet files; None where only Feast can read them (partition columns).

    Parameters
    ----------
    path
        A file, a folder or a glob.
    field_mapping
        Name in the files -> name in the view.
    start, end
        Event times, both inside.

    Raises
    ------
    LakeError
        If nothing is there or a file cannot be read.
    CannotPackError
        If a key is null or of a type that is not packed.
    """
    back = {new: old for old, new in field_mapping.items()}
    names = {name: back.get(name, name) for name in columns.names}
    files = open_files(path, [names[name] for name, _ in columns.keys], "use")
    if not all(set(names.values()) <= set(file.schema.names) for file in files):
        return None
    clocks = Clocks(names[columns.time], names[columns.created] if columns.created else None, 0, "utc", "utc")
    return LatestRows(Source(files, clocks), names, columns, _microseconds(start), _microseconds(end))


def of_table(table: pa.Table, columns: ViewColumns) -> LatestRows:
    """Return the latest rows of a table that Feast read and that holds no other times."""
    source = Source([TableFile(table)], Clocks(columns.time, columns.created, 0, "utc", "utc"))
    limits = np.iinfo(np.int64)
    return LatestRows(source, {name: name for name in columns.names}, columns, limits.min + 1, limits.max)


def _rows_of(table: pa.Table, positions: Int64Array) -> pa.Table:
    """Return rows by their ascending positions; a run of neighbours is not copied."""
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return table.slice(positions[0], len(positions))
    return table.take(pa.array(positions))


def _microseconds(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _by_bytes(keys: pa.Array) -> Int64Array:
    """Return the positions of keys in the order of their bytes; those of an integer begin with its lowest."""
    if pa.types.is_integer(keys.type):
        return np.argsort(keys.to_numpy().astype("<i8").view(">u8"))
    return pc.array_sort_indices(keys.cast(pa.binary())).to_numpy().astype(np.int64)


def _codes(keys: pa.Array) -> Int64Array:
    if pa.types.is_integer(keys.type):
        codes: Int64Array = keys.to_numpy()
        return codes
    return pc.dictionary_encode(keys).indices.to_numpy().astype(np.int64)


def _together(pieces: Sequence[_Chosen]) -> _Chosen:
    if len(pieces) == 1:
        return pieces[0]
    return _Chosen(
        pa.concat_arrays([piece.keys for piece in pieces]),
        *(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("times", "created", "numbers")),
    )
