"""A small good snapshot, its previous one, and the means to write variants of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from validation.gate import Gate, default_gate
from validation.specs import SnapshotSpec

DIM = 16
ROWS = 400
WEEK = timedelta(days=7)
AS_OF = datetime(2017, 8, 7, tzinfo=UTC)
LAG = timedelta(hours=6)


def base_vectors(rows: int = ROWS, seed: int = 1) -> np.ndarray:
    """Return vectors (rows, DIM) as a trained space has them: uneven spectrum, a mean that is not zero."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(DIM, DIM)) * np.linspace(1.5, 0.4, DIM)
    return rng.normal(size=(rows, DIM)) @ mixing + 0.5


def snapshot_table(
    vectors: np.ndarray, ids: np.ndarray | list[str] | None = None, at: datetime = AS_OF, entity: str = "user"
) -> pa.Table:
    """Return a snapshot of vectors (rows, D): normalized, with both clocks."""
    norm = np.linalg.norm(vectors, axis=1)
    unit = (vectors / norm[:, None]).astype(np.float32)
    rows, dim = unit.shape
    offsets = pa.array(np.arange(0, (rows + 1) * dim, dim, dtype=np.int32))
    clock = pa.timestamp("us", "UTC")
    available_us = int((at + LAG).timestamp()) * 1_000_000
    return pa.table(
        {
            f"{entity}_id": pa.array(np.arange(rows) if ids is None else ids),
            "embedding": pa.ListArray.from_arrays(offsets, pa.array(unit.ravel())),
            "norm": norm.astype(np.float32),
            "available_us": pa.array([available_us] * rows, pa.int64()),
            "event_timestamp": pa.array([at + LAG] * rows, clock),
            "created": pa.array([at + LAG] * rows, clock),
        }
    )


def spec_of(name: str = "snapshot", at: datetime = AS_OF, **changes: object) -> SnapshotSpec:
    """Return the claim that :func:`snapshot_table` keeps."""
    values: dict[str, object] = {
        "snapshot_id": name,
        "entity": "user",
        "id_type": "int64",
        "dim": DIM,
        "as_of": at,
        "available_at": at + LAG,
        "min_rows": 300,
        "checked_at": at + LAG + timedelta(hours=1),
    }
    return SnapshotSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def gate() -> Gate:
    """The gate of the process: Great Expectations is imported once for all tests."""
    return default_gate()


class Kit:
    """Makes snapshots and claims; a fixture, because test modules cannot import from here."""

    dim, rows, as_of, lag, week = DIM, ROWS, AS_OF, LAG, WEEK
    vectors = staticmethod(base_vectors)
    table = staticmethod(snapshot_table)
    spec = staticmethod(spec_of)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, table: pa.Table, name: str) -> Path:
        """Write a table in small row groups, so that most files have several."""
        path = self.folder / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=150)
        return path

    def previous(self) -> Path:
        """Return the snapshot of the week before, with natural drift to the good one."""
        drift = np.random.default_rng(2).normal(size=(ROWS, DIM)) * 0.4
        return self.write(snapshot_table(base_vectors() + drift, at=AS_OF - WEEK), "previous")


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """The kit, writing under the test's own folder."""
    return Kit(tmp_path)
