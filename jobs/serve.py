"""Serve one home folder over HTTP: the release that the pointer names, and the next one when it moves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from feature_repo import releases
from feature_repo.contracts.errors import ConfigError, NotReadyError
from jobs.serving.settings import LOOPBACK, TOKEN_VARIABLE, VARIABLE, ServeSettings
from jobs.workspace import Workspace


def run(ws: Workspace, settings: ServeSettings) -> None:
    """Serve until told to stop (SIGTERM or SIGINT): requests in flight are answered first.

    Raises
    ------
    NotReadyError
        If no release is live.
    ConfigError
        If other machines could reach it and it asks for no token.
    """
    if settings.host not in LOOPBACK and settings.token is None:
        raise ConfigError(
            f"On {settings.host} other machines reach this server, so it needs a token: set {TOKEN_VARIABLE}, or stay "
            "on 127.0.0.1."
        )
    if releases.current_release(ws.ledger) is None:
        raise NotReadyError("No release is live. Run `headwater release create`, then `headwater release promote`.")
    import uvicorn

    os.environ[VARIABLE] = settings.to_variable()
    if settings.token is not None:
        os.environ[TOKEN_VARIABLE] = settings.token.get_secret_value()
    shared = _metrics_folder(ws) if settings.workers > 1 else None
    try:
        uvicorn.run(
            "jobs.serving.app:from_environment",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            log_level="info",
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
    finally:
        if shared is not None:
            shutil.rmtree(shared, ignore_errors=True)


def _metrics_folder(ws: Workspace) -> Path:
    """Make the folder in which several workers count together."""
    folder = ws.home.root / "serving" / f"metrics-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return folder
