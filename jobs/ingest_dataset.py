"""What is known of an ingested dataset, and the canonical form and fingerprint it is known by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Entity
from feature_repo.lake import Home, read_json

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["categorical", "numeric"]

# A string column that hardly ever repeats says nothing as a category: names, titles, request ids.
TEXT_DISTINCT = 1000
TEXT_SHARE = 0.5
# Whole numbers with more values than this are quantities (prices in cents), with fewer they are codes.
CODE_DISTINCT = 1000

# What events at one moment caused each other in this order; equal times are common in logs.
_RANK = {"impression": 0, "click": 1, "conversion": 2}
_HASHED_ROWS = 1 << 20


@dataclass(frozen=True)
class Column:
    """A context or attribute column: what it holds, its number of distinct values and of missing ones."""

    name: str
    kind: Kind
    distinct: int
    missing: int


@dataclass(frozen=True)
class Table:
    """The users or items table; `timed` says that its rows carry ``event_timestamp``."""

    rows: int
    timed: bool
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Dataset:
    """The record of an ingested dataset, stored as ``lake/dataset.json``.

    Attributes
    ----------
    fingerprint
        SHA-256 of the canonical content; independent of file format, layout and row order.
    id_type
        Of ``user_id`` and ``item_id``: ``int64`` or ``string``.
    counts
        Event rows by event type.
    start, end
        First and last event time.
    users, items
        Distinct ids in the events.
    opportunity
        ``impression``; ``click`` in a log without impressions; None without both.
    context
        Further event columns. `missing` counts rows of the opportunity type only.
    user_table, item_table
        None where no such input was given.
    quarantined
        Bad rows that were tolerated, by reason.
    notes
        What was left out and why, for a person.
    files
        Size in bytes of each file, by path below ``lake/``.
    """

    name: str
    fingerprint: str
    id_type: str
    rows: int
    counts: dict[str, int]
    start: datetime
    end: datetime
    users: int
    items: int
    opportunity: str | None
    context: tuple[Column, ...]
    user_table: Table | None
    item_table: Table | None
    quarantined: dict[str, int]
    notes: tuple[str, ...]
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"start": self.start.isoformat(), "end": self.end.isoformat()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Dataset:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            **values
            | {
                "start": datetime.fromisoformat(values["start"]),
                "end": datetime.fromisoformat(values["end"]),
                "context": tuple(Column(**column) for column in values["context"]),
                "user_table": _table(values["user_table"]),
                "item_table": _table(values["item_table"]),
                "notes": tuple(values["notes"]),
            }
        )


def _table(values: dict[str, Any] | None) -> Table | None:
    if values is None:
        return None
    return Table(values["rows"], values["timed"], tuple(Column(**column) for column in values["columns"]))


def record_file(home: Home) -> Path:
    """Return where the record of a home folder's dataset lies; its presence means that the lake is complete."""
    return home.lake / "dataset.json"


def load(home: Home) -> Dataset:
    """Return the record of the dataset in a home folder.

    Raises
    ------
    NotReadyError
        If nothing was ingested yet.
    LakeError
        If the record is damaged.
    """
    path = record_file(home)
    if not path.exists():
        raise NotReadyError(f"{home.root} holds no dataset yet. Run: headwater ingest (or make demo) first.")
    return Dataset.from_dict(read_json(path))


def split_text(
    frame: pl.DataFrame, core: tuple[str, ...], table: str, notes: list[str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drop text and empty columns, telling `notes`; return the rest with the distinct values of each column."""
    import polars as pl

    distinct: dict[str, int] = {}
    dropped = []
    for name in frame.columns:
        if name in core:
            continue
        known = frame[name].drop_nulls()
        distinct[name] = known.n_unique()
        if not len(known):
            notes.append(f"{table}: column '{name}' is left out: it holds no value.")
            dropped.append(name)
        elif known.dtype == pl.String and distinct[name] > max(TEXT_DISTINCT, TEXT_SHARE * len(known)):
            notes.append(
                f"{table}: column '{name}' is left out as text: {distinct[name]:,} distinct values "
                f"in {len(known):,} rows."
            )
            dropped.append(name)
    return frame.drop(dropped), {name: count for name, count in distinct.items() if name not in dropped}


def describe(frame: pl.DataFrame, distinct: dict[str, int], *, integers_are_codes: bool) -> tuple[Column, ...]:
    """Return the kind, distinct and missing values of the columns that `distinct` names."""

    def kind(name: str) -> Kind:
        dtype = frame.schema[name]
        if dtype.is_float():
            return "numeric"
        if dtype.is_integer() and not integers_are_codes and distinct[name] > CODE_DISTINCT:
            return "numeric"
        return "categorical"

    return tuple(Column(name, kind(name), distinct[name], frame[name].null_count()) for name in sorted(distinct))


def canonical_table(
    table: pl.DataFrame | None, events: pl.DataFrame, entity: Entity, notes: list[str]
) -> tuple[pl.DataFrame | None, Table | None]:
    """Return a users or items table in canonical order with its record; (None, None) where there is none."""
    if table is None:
        return None, None
    key = join_key(entity)
    core = tuple(name for name in (key, "event_timestamp") if name in table.columns)
    table, distinct = split_text(table, core, f"{entity}s", notes)
    unknown = events.select(key).unique().join(table, on=key, how="anti").height
    if unknown:
        notes.append(f"{entity}s: {unknown:,} {entity}s of the events have no row; their attributes are missing.")
    record = Table(len(table), len(core) > 1, describe(table, distinct, integers_are_codes=False))
    return in_canonical_order(table, core), record


def in_canonical_order(frame: pl.DataFrame, keys: tuple[str, ...]) -> pl.DataFrame:
    """Sort rows by every column, `keys` first: the same rows give the same table, however they came.

    Nulls of the first key must not occur.
    """
    import polars as pl

    first, *others = [*keys, *sorted(set(frame.columns) - set(keys))]
    by: list[str | pl.Expr] = list(others)
    if "event_type" in others:
        by.insert(0, pl.col("event_type").replace_strict(_RANK, default=len(_RANK), return_dtype=pl.UInt8))
    frame = frame.sort(first)
    key = frame[first]
    tied = ((key == key.shift(1)) | (key == key.shift(-1))).fill_null(False)
    if not by or not tied.any():
        return frame
    # Comparing long strings is what costs, so only rows that share the first key are ordered by the others.
    places = tied.arg_true()
    ordered = frame.filter(tied).select(pl.arg_sort_by([first, *by], nulls_last=True)).to_series()
    return frame[
        pl.int_range(len(frame), dtype=pl.get_index_type(), eager=True).scatter(places, places.gather(ordered))
    ]


def fingerprint(tables: dict[str, pl.DataFrame]) -> str:
    """Return a SHA-256 over canonical tables: names, types and values, nothing of how they are stored."""
    digest = hashlib.sha256()
    for table, frame in sorted(tables.items()):
        columns = [[name, str(frame.schema[name])] for name in frame.columns]
        digest.update(json.dumps([table, len(frame), columns]).encode())
        for name in frame.columns:
            for start in range(0, len(frame), _HASHED_ROWS):
                for part in _bytes_of(frame[name].slice(start, _HASHED_ROWS)):
                    digest.update(part)
    return digest.hexdigest()


def _bytes_of(column: pl.Series) -> list[bytes]:
    """Return validity and values of a column slice; nulls count as zero, so no stray bytes get in."""
    import polars as pl

    parts = [np.packbits(column.is_not_null().to_numpy()).tobytes()]
    if column.dtype == pl.String:
        text = column.fill_null("")
        parts.append(text.str.len_bytes().to_numpy().astype("<u4").tobytes())
        parts.append("".join(text.to_list()).encode())
    else:
        values = column.to_physical().fill_null(False if column.dtype == pl.Boolean else 0).to_numpy()
        parts.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return parts
