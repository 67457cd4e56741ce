"""Moves a checked dataset into the lake: staged beside it, then renamed; `dataset.json` comes last.

``lake/dataset.json`` is the commit: it goes first and comes last, so whoever sees it sees a whole dataset. A process
that is killed in between leaves a lake without it, which the next run fills from the start.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.lake import Home, write_json, write_parquet
from jobs.ingest_dataset import Dataset, load, record_file
from jobs.ingest_read import read_files
from validation.bad_rows import PLACE, BadRows

_STAGING = ".staging-ingest-"


@dataclass(frozen=True)
class Tables:
    """The canonical tables of one dataset, sorted."""

    events: pl.DataFrame
    users: pl.DataFrame | None
    items: pl.DataFrame | None

    def named(self) -> dict[str, pl.DataFrame]:
        """Return the tables that are there, by name."""
        tables = {"events": self.events, "users": self.users, "items": self.items}
        return {name: table for name, table in tables.items() if table is not None}


def clear_staging(home: Home) -> None:
    """Remove what a killed run left behind; call it with the lock held."""
    for left in home.lake.glob(f"{_STAGING}*"):
        shutil.rmtree(left)


def stored(home: Home, fingerprint: str, *, may_replace: bool) -> Dataset | None:
    """Return the record of the dataset if exactly it lies in the lake already, None if it is to be stored.

    Raises
    ------
    ConfigError
        If another dataset lies there and `may_replace` is False.
    """
    if not record_file(home).exists():
        return None
    try:
        present = load(home)
    except LakeError as error:
        if may_replace:
            return None
        raise ConfigError(f"{error} Give --replace to do so.") from error
    if present.fingerprint == fingerprint:
        whole = all(
            (home.lake / name).is_file() and (home.lake / name).stat().st_size == size
            for name, size in present.files.items()
        )
        return present if whole else None
    if not may_replace:
        raise ConfigError(
            f"{home.root} already holds the dataset '{present.name}' ({present.fingerprint[:12]}), and this one is "
            f"different ({fingerprint[:12]}). Give another --home, or --replace to drop the old events."
        )
    return None


def publish(home: Home, tables: Tables, dataset: Dataset, quarantine: pl.DataFrame | None) -> Dataset:
    """Store a dataset and return its record with the sizes of its files.

    Parameters
    ----------
    quarantine
        The tolerated bad rows (:func:`bad_row_table`), None if there are none.

    Raises
    ------
    LakeError
        If the disk refuses.
    """
    lake = home.lake
    staging = lake / f"{_STAGING}{dataset.fingerprint[:12]}"
    names = _stage(staging, tables)
    files = {name: (staging / name).stat().st_size for name in names}
    dataset = replace(dataset, files=files)
    if quarantine is not None:
        write_parquet(_to_arrow(quarantine), staging / "quarantine" / "rows.parquet")
        write_json({"counts": dataset.quarantined}, staging / "quarantine" / "reasons.json")
    write_json(dataset.to_dict(), staging / "dataset.json")
    record_file(home).unlink(missing_ok=True)
    if quarantine is not None:
        _move(staging / "quarantine", home.quarantine / f"ingest-{dataset.fingerprint}", staging)
    for name in ("events", "users.parquet", "items.parquet"):
        _move(staging / name, lake / name, staging)
    (staging / "dataset.json").rename(record_file(home))
    shutil.rmtree(staging)
    return dataset


def _stage(staging: Path, tables: Tables) -> list[str]:
    """Write the tables as they shall lie in the lake; return the paths below it."""
    names = []
    months = tables.events["event_timestamp"].dt.strftime("%Y-%m").rle().struct.unnest()
    start = 0
    # Sorted by time, so that each month is one run of rows.
    for length, month in months.iter_rows():
        name = f"events/month={month}/part-0.parquet"
        write_parquet(_to_arrow(tables.events.slice(start, length)), staging / name)
        names.append(name)
        start += length
    for table, frame in (("users", tables.users), ("items", tables.items)):
        if frame is not None:
            write_parquet(_to_arrow(frame), staging / f"{table}.parquet")
            names.append(f"{table}.parquet")
    return names


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    """Return an Arrow table with plain strings: not every reader of the lake knows large ones."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(plain))


def _move(staged: Path, final: Path, staging: Path) -> None:
    """Put `staged` in the place of `final`, or only take `final` away if nothing was staged."""
    if final.exists():
        # A folder can't be replaced by a rename, so the old one steps aside into what is removed at the end.
        aside = staging / "old" / final.name
        aside.parent.mkdir(exist_ok=True)
        final.rename(aside)
    if staged.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(final)


def bad_row_table(bad: Sequence[BadRows], files: Sequence[str], kinds: Sequence[str]) -> pl.DataFrame:
    """Return the bad rows as they were read, each with file, row, column and reason.

    Parameters
    ----------
    bad
        The rows.
    files, kinds
        Path of each input file and which table it belongs to, by ``__file``.
    """
    places = pl.concat(
        [
            found.rows.select(PLACE).with_columns(column=pl.lit(found.column, pl.String), reason=pl.lit(found.reason))
            for found in bad
        ]
    )
    parts = []
    for (index,), rows in places.sort("__file", "__row", "column", "reason").group_by("__file", maintain_order=True):
        ((raw,), _) = read_files([files[index]], kinds[index])
        texts = raw.frame.select(raw=pl.struct(pl.exclude(pl.Binary, pl.Object)).struct.json_encode())
        row = rows["__row"]
        parts.append(
            rows.select(file=pl.lit(files[index]), row="__row", column="column", reason="reason").with_columns(
                raw=texts["raw"].gather(row - 1)
            )
        )
    return pl.concat(parts)
