"""Registry and ledger in a Postgres server of the tests' own: the same guarantees, and the whole way to a read."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

import jobs.store
from benchmarks import online_home
from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import ConfigError, LedgerError, MissingExtraError
from feature_repo.contracts.types import Check, Snapshot, Space, Verdict, Version
from feature_repo.lake import Home
from feature_repo.ledger import VARIABLE, Ledger
from feature_repo.stores.packed import EmbeddingReader
from jobs import doctor, rehearsal
from jobs.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore")
T = datetime(2024, 1, 1, tzinfo=UTC)


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = shutil.which("initdb") or (str(found[-1]) if found else None)
    return Path(path).resolve().parent if path else None


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Start a server and yield its URL without a database; root, which Postgres refuses, runs it as `postgres`."""
    programs = _programs()
    if programs is None:
        pytest.skip("Postgres is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="pip install 'headwater[postgres]'")
    as_user: list[str] = []
    if os.getuid() == 0:
        if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("root cannot run Postgres, and there is no user `postgres`")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = Path(tempfile.mkdtemp(prefix="headwater-postgres-"))
    if as_user:
        shutil.chown(folder, "postgres")

    def do(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder, timeout=120)

    control = [str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    try:
        do(str(programs / "initdb"), "-D", str(folder / "data"), "-U", "me", "-A", "trust", "-E", "UTF8", "--no-sync")
        do(*control, "-l", str(folder / "log"), "-o", f"-p {port} -k {folder} -h 127.0.0.1", "start")
        yield f"postgresql+psycopg://me:secret@127.0.0.1:{port}"
        do(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """Return the URL of a new database."""
    import sqlalchemy as sa

    name = f"d{abs(hash(request.node.name))}"
    engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def snapshot(number: int, value: float) -> Snapshot:
    verdict = Verdict(True, (Check("rows", "critical", True, value, ">= 1"),))
    as_of = T + timedelta(hours=number)
    return Snapshot(f"s{number}", "user_embedding_v1", "user", "v1", "a", as_of, as_of, 5, "lake/x", "0", True, verdict)


def test_the_profile_differs_from_the_default_in_the_registry_alone() -> None:
    folder = Path(jobs.store.REPOSITORY)
    default = yaml.safe_load((folder / "feature_store.yaml").read_text(encoding="utf-8"))
    postgres = yaml.safe_load((folder / "profiles/postgres.yaml").read_text(encoding="utf-8"))
    assert default.pop("registry") != postgres.pop("registry")
    assert default == postgres


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "postgres")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=VARIABLE):
        jobs.store.open_store(Home(tmp_path))
    with pytest.raises(LedgerError, match=r"postgresql\+psycopg://user"):
        Ledger("localhost:5432")
    with pytest.raises(MissingExtraError, match="the driver"):
        Ledger("postgresql+pg8000://me@127.0.0.1/x")


def test_a_ledger_in_postgres_keeps_what_it_is_told(database: str) -> None:
    ledger = Ledger(database)
    assert "secret" not in ledger.where
    ledger.put_space(Space("a", 8, T, "print", "artifacts/a", {"dim": 8}))
    ledger.put_version(Version("v1", "a", "first", "me", None))
    # A version refers to the space; it is replaced all the same.
    ledger.put_space(Space("a", 8, T, "print", "artifacts/a", {"dim": 9}))
    for number in (2, 1):
        ledger.put_snapshot(snapshot(number, 3.0))
    ledger.put_snapshot(snapshot(1, math.nan))
    lifecycle.publish(ledger, [snapshot(3, math.inf)])
    for number in range(3):
        releases.move(ledger, "promote", f"r{number}", T, "me", {})
    again = Ledger(database)
    assert again.space("a").config == {"dim": 9}
    found = again.snapshots(accepted=True)
    assert [item.as_of for item in found] == [T + timedelta(hours=number) for number in (1, 2, 3)]
    assert math.isnan(found[0].verdict.checks[0].observed) and found[2].verdict.checks[0].observed == math.inf
    assert [move.release for move in releases.history(again)] == ["r0", "r1", "r2"]
    with pytest.raises(RuntimeError), again.transaction("nothing") as connection:
        connection.exec_driver_sql("DELETE FROM snapshots")
        raise RuntimeError
    assert len(ledger.snapshots()) == 3


def test_writers_of_a_ledger_in_postgres_follow_one_another(database: str) -> None:
    problems: list[str] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        start.wait()
        try:
            # Also who makes the tables.
            ledger = Ledger(database)
            for turn in range(15):
                ledger.put_training_set("same", {"by": number, "turn": turn})
                lifecycle.publish(ledger, [snapshot(turn, float(number))])
        except LedgerError as error:
            problems.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(Ledger(database).training_sets()) == 1 and len(Ledger(database).snapshots()) == 15


def test_from_publication_to_a_read(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, database)
    monkeypatch.setenv("HEADWATER_PROFILE", "postgres")
    ws = online_home.build(tmp_path / "home", items=40, users=10)
    online_home.refresh(ws, online_home.START + timedelta(days=7), {"user": 10, "item": 40})
    from jobs import apply, materialize

    apply.run(ws)
    materialize.run(ws, online_home.NOW)
    assert not ws.home.ledger_file.exists() and not list(ws.home.feast.glob("registry*"))
    opened = Workspace.open(tmp_path / "home")
    assert releases.current_release(opened.ledger) is not None
    store = jobs.store.open_store(opened.home)
    answer = EmbeddingReader(store, "item_embedding_v1", "embedding").read(range(40), online_home.NOW)
    assert answer.found.all() and answer.vectors.shape == (40, online_home.DIM)
    response = store.get_online_features(["item_embedding_v1:embedding"], [{"item_id": 7}]).to_dict()
    assert response["embedding"][0] == answer.vectors[7].tolist()
    # The made-up home has vectors and no model.
    assert [finding.what.partition(":")[0] for finding in doctor.run(opened).findings] == ["The model of v1 is gone"]
    with pytest.raises(ConfigError, match=VARIABLE), rehearsal._scratch(opened, "v1", T):
        pass
