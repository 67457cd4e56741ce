"""A server in a thread of this process: for the demo, tests and measurements."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from feature_repo.contracts.errors import NotReadyError
from jobs.serving.app import create_app
from jobs.serving.settings import ServeSettings


def free_port() -> int:
    """Return a port of this machine that nobody uses right now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(settings: ServeSettings, *, wait_s: float = 60) -> Iterator[str]:
    """Serve while the body runs; yields the address, once a release is loaded.

    Raises
    ------
    NotReadyError
        If none is loaded in time; the message says why.
    """
    app = create_app(settings)
    config = uvicorn.Config(app, settings.host, settings.port or free_port(), log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + wait_s
        holder = app.state.serving.holder
        while not server.started or holder._served is None:
            if time.monotonic() > end or not thread.is_alive():
                raise NotReadyError(f"The server did not get ready: {holder.problem}")
            time.sleep(0.02)
        yield f"http://{settings.host}:{config.port}"
    finally:
        server.should_exit = True
        thread.join(settings.shutdown_s + 5)
