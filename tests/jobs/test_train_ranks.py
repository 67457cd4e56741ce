"""Two real processes train one upstream: they read disjoint windows of the log, and one of them may fail."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import ingest
from jobs.config import Config, Upstream
from jobs.config import save as save_config
from jobs.features.labels import Opportunities
from jobs.prepare_upstream import WARM_UP
from jobs.workspace import Workspace

START, DAYS = datetime(2024, 1, 1, tzinfo=UTC), 84
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    draw, rows = np.random.default_rng(2), []
    for number in range(4000):
        time = START + timedelta(minutes=int(draw.integers(0, DAYS * 1440)))
        user, item = f"u{draw.integers(40)}", f"i{int(60 * draw.random() ** 2)}"
        rows.append((time, user, item, "impression", f"n{number}"))
        if draw.random() < 0.4:
            rows.append((time + timedelta(minutes=1), user, item, "click", f"n{number}"))
            if draw.random() < 0.3:
                rows.append((time + timedelta(minutes=2), user, item, "conversion", f"n{number}"))
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "events.parquet")
    root = tmp_path / "home"
    ingest.run(
        ingest.IngestConfig(
            home=root, name="random", events=(str(tmp_path / "events.parquet"),), now=START + timedelta(days=400)
        )
    )
    opened = Workspace.open(root)
    save_config(Config(preset="debug", epochs=1, upstreams=(Upstream(version="v1"),), consumers=()), opened.home)
    return root


def trained(home: Path, ranks: int, code: str = "") -> subprocess.CompletedProcess[str]:
    """Train v1 as so many ranks; `code` runs in each of them before."""
    script = home.parent / "rank.py"
    script.write_text(f"{code}\nfrom jobs.cli import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*torchrun, str(script), "train-upstream", "v1", "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


WATCHED = """
import os
import jobs.features.batches as batches
write = batches.write_moments
def watched(rows_folder, tables, rows, grid, **settings):
    between = rows.between
    def told(start, end):
        found = between(start, end)
        name = f"{os.environ['RANK']}-{len(os.listdir(folder))}.parquet"
        found.select("impression_id").write_parquet(os.path.join(folder, name))
        return found
    rows.between = told
    return write(rows_folder, tables, rows, grid, **settings)
batches.write_moments = watched
"""


def test_two_ranks_read_every_row_once_and_train_one_upstream(home: Path, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    done = trained(home, 2, f"folder = {str(tmp_path / 'read')!r}{WATCHED}")
    assert done.returncode == 0, done.stderr
    read = {
        rank: pl.concat([pl.read_parquet(file) for file in (tmp_path / "read").glob(f"{rank}-*.parquet")])
        for rank in range(2)
    }
    together = pl.concat(read.values())
    opened = Workspace.open(home)
    first = opened.refresh_moments(opened.log.start + WARM_UP, opened.splits.upstream_end)[0]
    rows = Opportunities(opened.log, known_at=opened.splits.upstream_end)
    expected = rows.between(first + opened.config.availability_lag, None)["impression_id"]
    assert together["impression_id"].sort().to_list() == expected.sort().to_list()
    assert len(expected) > 500 and min(part.height for part in read.values()) > len(expected) / 4
    (known,) = opened.ledger.versions()
    assert known.version == "v1" and opened.ledger.space(known.space_id).dim > 0
    assert not list(opened.home.artifacts.glob("**/.rows*"))


def test_a_rank_that_fails_ends_the_others_with_a_word(home: Path) -> None:
    fault = """
import os
import jobs.features.batches as batches
if os.environ["RANK"] == "1":
    def broken(*_, **__):
        raise OSError("disk trouble on rank 1")
    batches.write_moments = broken
"""
    done = trained(home, 2, fault)
    assert done.returncode != 0 and "disk trouble on rank 1" in done.stderr
    assert not Workspace.open(home).ledger.versions()
