"""A real standalone cluster of two workers on the loopback, Redis online, and a worker killed midway.

Not part of the tests: `make test-cluster`. Needs the extra `spark`, Java 17 and redis-server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pyspark
import pytest
import redis
import yaml

from feature_repo.profile import REPOSITORY
from jobs.serving.background import free_port
from jobs.workspace import Workspace

pytestmark = [pytest.mark.spark, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
SPARK = Path(pyspark.__file__).parent
WAIT = 600.0


class Cluster:
    """A master and two workers of one core each, every one a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"spark://127.0.0.1:{self.port}"
        self.master = self._start("master", "master.Master", "--port", str(self.port))
        until(lambda: "Starting Spark master" in self.log("master"), "the master does not start")
        self.workers = [self.add(f"worker-{number}") for number in range(2)]
        until(lambda: self.log("master").count("Registering worker") >= 2, "the workers do not register")

    def add(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self._start(name, "worker.Worker", "--cores", "1", "--memory", "1g", self.url)

    def _start(self, name: str, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        folder = self._folder / name
        folder.mkdir()
        address = ["--host", "127.0.0.1", "--webui-port", "0"]
        work = ["--work-dir", str(folder)] if "Worker" in what else []
        environment = {**os.environ, "SPARK_DAEMON_MEMORY": "256m", "SPARK_LOCAL_DIRS": str(folder / "local")}
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [SPARK / "bin" / "spark-class", f"org.apache.spark.deploy.{what}", *address, *work, *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def has_shuffled(self, number: int) -> bool:
        """Return whether a worker holds part of a running job's shuffle."""
        return any((self._folder / f"worker-{number}" / "local").rglob("shuffle_*.data"))

    def kill(self, number: int) -> None:
        """Kill a worker with the executors and Python processes below it."""
        below = psutil.Process(self.workers[number].pid).children(recursive=True)
        for process in [*below, psutil.Process(self.workers[number].pid)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> None:
        """End all processes."""
        for process in [*self.workers, self.master]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def until(true: Callable[[], bool], otherwise: str) -> None:
    """Wait for something."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    found = Cluster(folder)
    yield found
    found.stop()


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[tuple[str, redis.Redis]]:
    """A Redis server and a profile of one's own that names it."""
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    settings = yaml.safe_load((REPOSITORY / "profiles" / "spark_redis.yaml").read_text(encoding="utf-8"))
    settings["online_store"]["connection_string"] = f"127.0.0.1:{port}"
    settings["offline_store"]["spark_conf"] |= {
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.executor.memory": "768m",
    }
    file = REPOSITORY / "profiles" / f"cluster_{port}.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    # The same with Redis loaded by the workers.
    settings["batch_engine"]["spark_from_rows"] = 0
    by_workers = file.with_stem(f"{file.stem}_workers")
    by_workers.write_text(yaml.safe_dump(settings), encoding="utf-8")
    yield file.stem, redis.Redis(port=port)
    file.unlink()
    by_workers.unlink()
    server.terminate()
    server.wait()


def hashes_of(online: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    """Return every hash of a server."""
    return {key: online.hgetall(key) for key in online.scan_iter(count=10_000)}


def rows_of(folder: Path) -> dict[str, bytes]:
    """Return the part files of a training set."""
    return {part.name: part.read_bytes() for part in sorted(folder.glob("part-*.parquet"))}


def test_two_workers_and_one_that_is_killed(
    home: Path, tmp_path: Path, cluster: Cluster, profile: tuple[str, redis.Redis]
) -> None:
    name, online = profile
    root = tmp_path / "home"
    shutil.copytree(home, root)
    environment = {**os.environ, "MASTER": cluster.url, "OMP_NUM_THREADS": "1"}

    def start(*arguments: str, profile: str = name) -> subprocess.Popen[str]:
        command = [Path(sys.executable).with_name("headwater"), "--profile", profile, *arguments]
        return subprocess.Popen(
            [*command, "--home", str(root)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY.parent,
        )

    def run(*arguments: str, profile: str = name) -> float:
        began = time.monotonic()
        process = start(*arguments, profile=profile)
        told, _ = process.communicate(timeout=WAIT * 2)
        assert process.returncode == 0, told
        print(f"{arguments[0]}: {time.monotonic() - began:.0f} s")
        return time.monotonic() - began

    run("apply")
    as_of = Workspace.open(root).ledger.snapshots("user_embedding_v1", accepted=True)[-1].as_of + timedelta(days=3)
    run("refresh", "v1", "--as-of", as_of.isoformat())
    refreshed = Workspace.open(root).ledger.snapshots("item_embedding_v1", accepted=True)[-1]
    assert refreshed.as_of == as_of and refreshed.verdict.accepted
    assert cluster.log("master").count("Registered app") >= 1
    run("materialize")
    assert online.dbsize() >= pq.read_metadata(root / refreshed.path).num_rows
    by_driver = hashes_of(online)
    online.flushall()
    registered = cluster.log("master").count("Registered app")
    run("materialize", "--again", profile=f"{name}_workers")
    assert cluster.log("master").count("Registered app") > registered
    assert hashes_of(online) == by_driver

    # What two workers write, and what is left when one of them dies on the way.
    run("training-set", "--service", "cvr_ranker", "--out", str(tmp_path / "whole"))
    whole = rows_of(tmp_path / "whole")
    assert whole
    shutil.rmtree(cluster._folder / "worker-0" / "local", ignore_errors=True)
    process = start("training-set", "--service", "cvr_ranker", "--out", str(tmp_path / "killed"))
    until(lambda: cluster.has_shuffled(0) or process.poll() is not None, "worker 0 got no work")
    assert process.poll() is None, "the training set was done before the worker could be killed"
    cluster.kill(0)
    told, _ = process.communicate(timeout=WAIT * 2)
    print(f"the job whose worker was killed ended with {process.returncode}")
    if process.returncode != 0:
        assert not (tmp_path / "killed" / "manifest.json").exists(), told
        run("training-set", "--service", "cvr_ranker", "--out", str(tmp_path / "killed"))
    assert rows_of(tmp_path / "killed") == whole
    assert sorted(file.name for file in (tmp_path / "killed").iterdir()) == sorted(
        file.name for file in (tmp_path / "whole").iterdir()
    )
