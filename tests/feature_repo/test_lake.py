"""Publication is whole or not at all, and a home folder belongs to one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.errors import BusyError, LakeError
from feature_repo.lake import Home, read_json, replacing, sha256_of, write_json, write_parquet

ROOT = Path(__file__).resolve().parents[2]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "view" / "a.parquet"
    write_parquet(pa.table({"x": [1]}), final)
    before = sha256_of(final)
    with pytest.raises(RuntimeError, match="half way"), replacing(final) as staged:
        staged.write_bytes(b"half")
        raise RuntimeError("half way")
    assert sha256_of(final) == before
    assert [path.name for path in final.parent.iterdir()] == ["a.parquet"]


def test_a_killed_write_is_invisible_and_swept_by_the_next(tmp_path: Path) -> None:
    final = tmp_path / "a.parquet"
    code = (
        "import sys, time; from pathlib import Path; from feature_repo.lake import replacing\n"
        "with replacing(Path(sys.argv[1])) as staged:\n"
        "    staged.write_bytes(b'half'); print('staged', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(final)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == b"staged\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not final.exists() and len(list(tmp_path.iterdir())) == 1
    write_parquet(pa.table({"x": [1]}), final)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert pq.read_table(final).num_rows == 1


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="Free space"), replacing(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"rows": ')
    with pytest.raises(LakeError, match=r"manifest\.json"):
        read_json(path)


def test_json_round_trip(tmp_path: Path) -> None:
    write_json({"a": [1, 2.5, None]}, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None]}


def test_second_process_is_told_that_the_home_is_taken(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from feature_repo.lake import Home\n"
        "with Home(Path(sys.argv[1])).lock('run'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match="Wait for it"), Home(tmp_path).lock("run"):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    time.sleep(0.05)
    with Home(tmp_path).lock("run"):
        assert (tmp_path / ".run.lock").exists()
