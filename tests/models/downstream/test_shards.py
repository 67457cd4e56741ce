from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from feature_repo.contracts.errors import InputDataError, LakeError
from models.downstream.shards import ShardDataset


def table(start: int, rows: int, gaps: bool = False) -> pa.Table:
    """Rows whose vector and label can be told from their number."""
    numbers = np.arange(start, start + rows)
    vectors = [None if gaps and number % 3 == 0 else [float(number), -float(number)] for number in numbers]
    return pa.table(
        {
            "number": pa.array(numbers, pa.int64()),
            "click": pa.array(numbers % 2 == 0),
            "age": pa.array([None if number % 5 == 0 else float(number) for number in numbers], pa.float32()),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
        }
    )


@pytest.fixture(params=["parquet", "arrow"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """Three shards of 40, 25 and 0 rows in parts of 16."""
    files = []
    for number, (start, rows) in enumerate([(0, 40), (40, 25), (65, 0)]):
        file = tmp_path / f"part-{number:05d}.{request.param}"
        if request.param == "parquet":
            pq.write_table(table(start, rows, gaps=True), file, row_group_size=16)
        else:
            with pa.ipc.new_file(str(file), table(0, 1).schema) as writer:
                writer.write_table(table(start, rows, gaps=True), max_chunksize=16)
        files.append(file)
    return files


def test_rows_come_in_order_without_a_buffer(shards: list[Path]) -> None:
    dataset = ShardDataset(shards, ["number", "click", "age"], {"vector": 2}, batch_size=10)
    batches = list(dataset)
    assert [len(batch["number"]) for batch in batches] == [10] * 6 + [5]
    numbers = torch.cat([batch["number"] for batch in batches])
    assert numbers.tolist() == list(range(65))
    assert torch.equal(torch.cat([batch["click"] for batch in batches]).bool(), numbers % 2 == 0)
    found = torch.cat([batch["vector/found"] for batch in batches])
    assert torch.equal(found, numbers % 3 != 0)
    vectors = torch.cat([batch["vector"] for batch in batches])
    assert torch.equal(vectors, torch.stack([numbers * found, -numbers * found], dim=1).float())
    age = torch.cat([batch["age"] for batch in batches])
    assert torch.equal(age.isnan(), numbers % 5 == 0)


def test_a_shuffled_pass_has_every_row_once_and_keeps_rows_together(shards: list[Path]) -> None:
    dataset = ShardDataset(shards, ["number"], {"vector": 2}, batch_size=8, buffer_rows=30, seed=3)
    batches = list(dataset)
    numbers = torch.cat([batch["number"] for batch in batches])
    assert sorted(numbers.tolist()) == list(range(65)) != numbers.tolist()
    for batch in batches:
        assert torch.equal(batch["vector"][:, 0], batch["number"] * batch["vector/found"])
    again = torch.cat([batch["number"] for batch in dataset])
    assert torch.equal(again, numbers)
    dataset.set_epoch(1)
    assert not torch.equal(torch.cat([batch["number"] for batch in dataset]), numbers)


def test_workers_share_the_shards(shards: list[Path]) -> None:
    dataset = ShardDataset(shards, ["number"], batch_size=16, buffer_rows=16)
    loaded = DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(number for batch in loaded for number in batch["number"].tolist()) == list(range(65))


def test_tensors_share_the_memory_of_a_mapped_shard(tmp_path: Path) -> None:
    file = tmp_path / "part-00000.arrow"
    with pa.ipc.new_file(str(file), table(0, 1).schema) as writer:
        writer.write_table(table(1, 100))
    with pa.memory_map(str(file)) as mapped:
        before = pa.total_allocated_bytes()
        batches = list(ShardDataset([file], ["number"], {"vector": 2}, batch_size=25))
        # The test of which rows have a vector allocates; 100 x 2 floats and 100 int64 would be 1,600 bytes more.
        assert pa.total_allocated_bytes() - before < 1600
        assert mapped.size() > 1600
    starts = [batch["vector"].data_ptr() for batch in batches]
    assert np.diff(starts).tolist() == [25 * 2 * 4] * 3, "batches are views of one buffer"


@pytest.mark.parametrize(
    ("columns", "vectors", "says"),
    [
        (["missing"], {}, "is missing"),
        (["number"], {"vector": 3}, "have not 3 numbers"),
        (["text"], {}, "no number"),
        (["gap"], {}, "nulls"),
    ],
)
def test_columns_that_make_no_tensor_are_refused(
    tmp_path: Path, columns: list[str], vectors: dict[str, int], says: str
) -> None:
    file = tmp_path / "part-00000.parquet"
    rows = table(0, 4).append_column("text", pa.array(["a"] * 4)).append_column("gap", pa.array([1, None, 3, 4]))
    pq.write_table(rows, file)
    with pytest.raises(InputDataError, match=says):
        list(ShardDataset([file], columns, vectors, batch_size=2))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    file = tmp_path / "part-00000.arrow"
    file.write_bytes(b"nothing")
    with pytest.raises(LakeError, match="part-00000"):
        list(ShardDataset([file], ["number"], batch_size=2))
