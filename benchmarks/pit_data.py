"""Files for benchmarks/pit.py: daily snapshots of user and item vectors as a refresh publishes them, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.stores import twin

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = 86_400_000_000
DIM = 64
TTL = timedelta(days=7)
ENTITIES = ("user", "item")
CLOCK = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Size:
    """One set of files: `views` of users and items in turn, each with `snapshots` daily files."""

    name: str
    labels: int
    users: int
    items: int
    snapshots: int
    views: int

    def scaled(self, factor: float) -> Size:
        """Return the size with so many times the labels and entities."""
        counts = [max(100, int(count * factor)) for count in (self.labels, self.users, self.items)]
        return Size(self.name, *counts, self.snapshots, self.views)

    @property
    def view_names(self) -> list[str]:
        """``user_embedding_v1``, ``item_embedding_v1``, ``user_embedding_v2`` ..."""
        return [f"{ENTITIES[i % 2]}_embedding_v{i // 2 + 1}" for i in range(self.views)]

    @property
    def stored(self) -> str:
        """Folder that this size shares with others of the same entities and snapshots."""
        return f"{self.users}x{self.items}x{self.snapshots}"


def key_of(view: str) -> str:
    """Return a view's join key."""
    return f"{view.split('_')[0]}_id"


def prepare(size: Size, folder: Path) -> None:
    """Write what is missing of a size: snapshots with twins, and labels spread evenly over the time they cover."""
    for number, view in enumerate(size.view_names):
        count = size.users if key_of(view) == "user_id" else size.items
        place = folder / size.stored / view
        if (place / ".whole").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        block = np.random.default_rng(number).standard_normal((count, DIM), np.float32)
        for day in range(size.snapshots):
            file = place / f"{day:04d}.parquet"
            # Rolling moves every vector to another entity: other contents each day, as random as before.
            _write_snapshot(file, key_of(view), np.roll(block, day, axis=0), day)
            twin.build(file, [key_of(view)])
        (place / ".whole").touch()
    labels = labels_file(size, folder)
    if not labels.exists():
        _write_labels(size, labels)


def labels_file(size: Size, folder: Path) -> Path:
    """Return where the labels of a size lie."""
    return folder / size.stored / f"labels-{size.labels}.parquet"


def _write_snapshot(file: Path, key: str, vectors: np.ndarray, day: int) -> None:
    count = len(vectors)
    moment = pa.array(np.full(count, _micros(START) + day * DAY), pa.int64()).cast(CLOCK)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * DIM)
    table = pa.table(
        {
            key: np.arange(count),
            "embedding": pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
            "event_timestamp": moment,
            "created": moment,
        }
    )
    pq.write_table(table, file, compression="zstd", row_group_size=64 * 1024)


def _write_labels(size: Size, file: Path) -> None:
    rng = np.random.default_rng(99)
    with pq.ParquetWriter(file, _LABELS, compression="lz4") as writer:
        for start in range(0, size.labels, 1_000_000):
            count = min(1_000_000, size.labels - start)
            times = _micros(START) + rng.integers(0, size.snapshots * DAY, count)
            columns = [
                pa.array(np.arange(start, start + count)),
                pa.array(rng.integers(0, size.users, count)),
                pa.array(rng.integers(0, size.items, count)),
                pa.array(times).cast(CLOCK),
            ]
            writer.write_table(pa.table(columns, schema=_LABELS))


_LABELS = pa.schema([("row", pa.int64()), ("user_id", pa.int64()), ("item_id", pa.int64()), ("event_timestamp", CLOCK)])


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
