"""The demo's training sets on Spark and on DuckDB are the same, row for row and bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app

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
