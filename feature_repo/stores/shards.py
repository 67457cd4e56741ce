"""Shards of a training set: files of a fixed number of rows, each there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.lake import replacing

ShardFormat = Literal["parquet", "arrow"]


def shard_name(number: int, form: ShardFormat) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05d}.{form}"


def write_shard(tables: Iterator[pa.Table], part: Path, form: ShardFormat) -> None:
    """Write at least one table to one file."""
    first = next(tables)
    with replacing(part) as staged:
        if form == "arrow":
            with pa.ipc.new_file(str(staged), first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table.cast(first.schema))
            return
        # Dictionaries pay for ids and categories; of float vectors they only make the attempt.
        plain = [field.name for field in first.schema if not pa.types.is_nested(field.type)]
        with pq.ParquetWriter(staged, first.schema, compression="lz4", use_dictionary=plain) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.cast(first.schema))
