"""A small home folder to serve, and ``headwater serve`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import online_home
from jobs.serving.background import free_port
from jobs.serving.settings import ServeSettings
from jobs.workspace import Workspace
from tests.integration.http_client import call

ITEMS, USERS = 300, 40


def small_home(root: Path, *, text_ids: bool = False) -> Workspace:
    """Make it: every user and item has a vector, and two rankers nobody trained are released."""
    return online_home.build(root, items=ITEMS, users=USERS, text_ids=text_ids)


def settings(ws: Workspace, **changes: Any) -> ServeSettings:
    """Return settings that log everything and take any free port."""
    values = {"home": ws.home.root, "port": 0, "now": online_home.NOW, "timeout_s": 30.0, "log_sample": 1.0}
    return ServeSettings.model_validate({**values, **changes})


@contextmanager
def served(ws: Workspace, *options: str) -> Iterator[tuple[str, int, subprocess.Popen[bytes]]]:
    """Run it and yield its address, port and process; what of it still runs at the end is killed."""
    port = free_port()
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "serve", "--home", str(ws.home.root)]
    command += ["--port", str(port), "--now", online_home.NOW.isoformat(), "--log-sample", "1", "--timeout", "30"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [*command, *options], cwd=root, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url, port, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a worker is ready."""
    end, ready = time.monotonic() + 240, False
    while not ready:
        assert time.monotonic() < end and process.poll() is None, "the server did not get ready"
        try:
            ready = call(f"{url}/readyz")[0] == 200
        except (urllib.error.URLError, OSError):
            ready = False
        time.sleep(0.1)
