"""The demo on Spark: training sets as on DuckDB, row for row and bit for bit; vectors as of one process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from feature_repo.profile import REPOSITORY
from jobs import refresh
from jobs.cli import app
from jobs.measuring import FAN, scan_of
from jobs.workspace import Workspace
from validation.specs import SnapshotSpec
from validation.statistics import scan_here, snapshot_statistics

pytest.importorskip("pyspark", reason="needs the extra `spark`: pip install -e '.[spark]', and Java 17")
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore")]


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return done.output


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))])


def test_the_training_set_is_the_same_on_spark(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "home"
    shutil.copytree(home, root)
    monkeypatch.setenv("HEADWATER_PROFILE", "")  # so that what --profile sets is taken back
    registry = root / "feast" / "registry.db"
    embedded = registry.read_bytes()
    command("--profile", "spark", "apply", "--home", str(root))
    assert registry.read_bytes() == embedded and (root / "feast" / "registry-spark.db").exists()
    for service in ("ctr_ranker", "cvr_ranker"):
        out = tmp_path / service
        command("--profile", "spark", "training-set", "--service", service, "--out", str(out), "--home", str(root))
        ours, sparks = rows_of(root / "training_sets" / service), rows_of(out)
        assert sparks.schema.equals(ours.schema)
        assert sparks.num_rows == ours.num_rows > 0
        for name in ours.column_names:
            assert sparks[name].combine_chunks().equals(ours[name].combine_chunks()), name


def test_the_gate_starts_beside_spark_in_a_process_without_a_file() -> None:
    # Such as the workers of the tests. PySpark takes it for its own doctests and, where these lack a package, ends it.
    code = "from validation.suites import SuiteRunner; SuiteRunner(); print('started')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY.parent)
    assert "started" in done.stdout, done.stderr


def test_a_refresh_on_spark_publishes_the_vectors_of_one_process(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "")
    monkeypatch.setattr(refresh, "INFERENCE_ROWS", 32)  # several tasks for a small log
    as_of = Workspace.open(home).ledger.snapshots("user_embedding_v1", accepted=True)[-1].as_of + timedelta(days=3)
    files: dict[str, list[Path]] = {}
    for name in ("one process", "spark"):
        root = tmp_path / name
        shutil.copytree(home, root)
        profile = ["--profile", "spark"] if name == "spark" else []
        command(*profile, "refresh", "v1", "--as-of", as_of.isoformat(), "--home", str(root))
        ledger = Workspace.open(root).ledger
        found = [ledger.snapshots(f"{entity}_embedding_v1", accepted=True)[-1] for entity in ("user", "item")]
        assert {snapshot.as_of for snapshot in found} == {as_of}
        files[name] = [root / snapshot.path for snapshot in found]
        assert not list(root.glob(".inference-*"))
    for one, spark in zip(files["one process"], files["spark"], strict=True):
        expected, got = pq.read_table(one), pq.read_table(spark)
        assert expected.num_rows > 32
        assert got.column(0).equals(expected.column(0))
        # The same batches through the same model; threads of torch may add in another order.
        for name in ("embedding", "norm"):
            values = [table[name].combine_chunks() for table in (got, expected)]
            if name == "embedding":
                values = [column.flatten() for column in values]
            np.testing.assert_allclose(values[0].to_numpy(), values[1].to_numpy(), rtol=0, atol=1e-6)


def test_the_gate_measures_on_spark_what_it_measures_here(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "spark")
    root = tmp_path / "home"
    shutil.copytree(home, root)
    ws = Workspace.open(root)
    snapshot = ws.ledger.snapshots("user_embedding_v1", accepted=True)[-1]
    path = root / "many_groups.parquet"
    dim = ws.ledger.space(snapshot.space_id).dim
    table = pq.read_table(root / snapshot.path)
    vectors = table["embedding"].to_pylist()
    # Equal ones in groups that are merged at the end, and one of every offence.
    vectors[-1] = vectors[1] = vectors[0]
    vectors[5], vectors[40], vectors[41], vectors[60] = None, [0.0] * dim, [float("nan")] * dim, [1.0]
    place = table.schema.get_field_index("embedding")
    broken = pa.array(vectors, table.schema.field(place).type)
    pq.write_table(table.set_column(place, "embedding", broken), path, row_group_size=2)
    spec = SnapshotSpec(
        "many_groups", "user", "int64", dim=dim, as_of=snapshot.as_of, available_at=snapshot.available_at
    )
    one, other = (
        snapshot_statistics(path, spec, workdir=tmp_path / name, scan=scan)
        for name, scan in {"here": scan_here, "spark": scan_of(ws.home, path)}.items()
    )
    rows = pq.read_table(one.rows_path)
    assert pq.read_metadata(path).num_row_groups > FAN and rows.num_rows > 64
    # Texts, because NaN is not NaN.
    assert str(pq.read_table(other.rows_path).to_pylist()) == str(rows.to_pylist())
    assert one.summary["duplicate_vectors"] == 2
    assert one.summary.keys() == other.summary.keys()
    for name, value in one.summary.items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-9, nan_ok=True)
        assert other.summary[name] == expected, name
    assert scan_of(ws.home, tmp_path / "elsewhere.parquet") is scan_here
    damaged = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(2).column(1)
    damaged[column.data_page_offset + 30 : column.data_page_offset + 90] = b"\xff" * 60
    path.write_bytes(damaged)
    for scan in (scan_here, scan_of(ws.home, path)):
        with pytest.raises(OSError):
            snapshot_statistics(path, spec, workdir=tmp_path / "damaged", scan=scan)
