"""Failpoints: die by SIGKILL right before or right after a named durable write.

Every durable write of the platform passes through :func:`durable`. In production nothing happens there. The crash
matrix (benchmarks/crash_matrix.py) first lets an operation run with ``HEADWATER_FAILPOINT_LOG=FILE``, which lists the
steps that it takes, and then runs it once for each with ``HEADWATER_FAILPOINT=WHEN:N``, WHEN being ``before`` or
``after`` and N the number of the step, from 1 on. ``WHEN:NAME`` names the first step of that name instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE, LOG = "HEADWATER_FAILPOINT", "HEADWATER_FAILPOINT_LOG"
_steps = 0


@contextmanager
def durable(name: str) -> Iterator[None]:
    """Surround one durable write; `name` says which, e.g. ``ledger snapshots`` or ``file v1/20170716.parquet``."""
    wanted, log = os.environ.get(VARIABLE), os.environ.get(LOG)
    if wanted is None and log is None:
        yield
        return
    global _steps
    _steps += 1
    step = _steps
    if log is not None:
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(name + "\n")
    _die(wanted, "before", step, name)
    yield
    _die(wanted, "after", step, name)


def _die(wanted: str | None, when: str, step: int, name: str) -> None:
    if wanted in (f"{when}:{step}", f"{when}:{name}"):
        # Not an exception: no clean-up, no flush, as if the machine had lost its power.
        os.kill(os.getpid(), signal.SIGKILL)
