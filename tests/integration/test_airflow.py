"""The exported DAG in the real Airflow: `make test-airflow`. Outside CI: Airflow needs its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import schedule

AIRFLOW = os.environ.get("AIRFLOW_PYTHON")
pytestmark = [
    pytest.mark.skipif(not AIRFLOW, reason="outside CI: run `make test-airflow`"),
    pytest.mark.timeout(1800),  # making Airflow's database takes minutes on a busy machine
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of an Airflow with a database of its own."""
    folder = tmp_path_factory.mktemp("airflow")
    environment = {**os.environ, "AIRFLOW_HOME": str(folder), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    assert AIRFLOW is not None
    subprocess.run([AIRFLOW, "-m", "airflow", "db", "migrate"], check=True, env=environment, capture_output=True)
    return environment


def airflow(
    tmp_path: Path, database: dict[str, str], *arguments: str, code: str = "exit 0"
) -> tuple[dict[str, Any], list[str], Path]:
    """Export a cycle whose commands do `code`; return what Airflow made of it, what was asked, the alert's file."""
    home, command, asked, told = (tmp_path / name for name in ("home", "headwater", "asked", "told"))
    home.mkdir()
    command.write_text(f'#!/bin/sh\necho "$*" >> {asked}\n{code}\n')
    command.chmod(0o755)
    alert = f'echo "$HEADWATER_STEP $HEADWATER_EXIT" >> {told}'
    plan = schedule.Schedule(home=home, command=command, alert=alert, attempts=2, pause=1, name="my-cycle")
    file = schedule.run(plan, "airflow", tmp_path / "dags").files[1]
    environment = {**database, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags")}
    assert AIRFLOW is not None
    script = Path(__file__).with_name("airflow_script.py")
    done = subprocess.run(
        [AIRFLOW, str(script), str(file), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen, asked.read_text().splitlines() if asked.exists() else [], told


def test_airflow_loads_the_file_and_runs_every_step(tmp_path: Path, database: dict[str, str]) -> None:
    seen, asked, told = airflow(tmp_path, database, "--run")
    assert seen["errors"] == {}
    assert seen["order"] == ["backfill", "apply", "materialize", "audit"]
    assert (seen["dag"], seen["timezone"], seen["schedule"]) == ("my-cycle", "UTC", "30 1 * * *")
    assert (seen["catchup"], seen["max_active_runs"], seen["retries"]) == (False, 1, [1])
    assert seen["state"].endswith("success")
    assert asked == ["backfill", "apply", "materialize", "audit skew"]
    assert not told.exists()


def test_a_refused_snapshot_fails_the_run_at_once_and_is_told(tmp_path: Path, database: dict[str, str]) -> None:
    seen, asked, told = airflow(tmp_path, database, "--run", code='[ "$1" != apply ] || exit 3')
    assert seen["state"].endswith("failed")
    assert asked == ["backfill", "apply"]
    assert told.read_text() == "apply 3\n"
