"""Independent pieces of work in processes of their own: as many side by side as the settings allow.

A small model gains nothing from a second thread; two trainings on two cores take little longer than one. Each piece
leaves its result on disk, so that nothing is lost when any process dies, and the same call goes on from there.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from typing import Any

from feature_repo.contracts.errors import HeadwaterError
from jobs.workspace import Progress, silent

Lane = Callable[[Iterator[Any], Progress], None]
"""Works off the pieces that it is given, one after the other. Importable by name: other processes call it, too."""


def side_by_side(lane: Lane, pieces: Sequence[Any], *, processes: int, progress: Progress = silent) -> None:
    """Work off `pieces` in up to so many processes; each takes the next piece when it has finished one.

    Parameters
    ----------
    lane
        What one process does. Where one process suffices it is called in this one.
    pieces
        Small values that can be sent to another process.
    processes
        At most so many at once.
    progress
        Told what every lane is at, and how many pieces are done.

    Raises
    ------
    HeadwaterError
        The first error of a lane, or that a lane died; the other lanes are stopped then.
    """
    count = min(processes, len(pieces))
    if count <= 1:
        lane(iter(pieces), progress)
        return
    # A copy of this process would hold the locks of threads that it does not have: start new ones.
    context = multiprocessing.get_context("spawn")
    lanes: dict[Connection, Any] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(lane, theirs), daemon=True)
            process.start()
            theirs.close()
            lanes[ours] = process
        _serve(lanes, pieces, progress)
    finally:
        for process in lanes.values():
            process.terminate()
        for process in lanes.values():
            process.join()


def _serve(lanes: dict[Connection, Any], pieces: Sequence[Any], progress: Progress) -> None:
    """Give each lane a piece when it asks for one, and pass on what the lanes tell, until all have ended."""
    telling: dict[Connection, str] = {}
    given, done, running = 0, 0, list(lanes)
    while running:
        for connection in wait(running):
            assert isinstance(connection, Connection)
            try:
                kind, value = connection.recv()
            except EOFError:
                lanes[connection].join()
                raise HeadwaterError(
                    f"A process that worked on '{telling.get(connection, 'its first piece')}' died (exit code "
                    f"{lanes[connection].exitcode}; -9 often means that memory ran out). Run the same command again "
                    "to go on from here, with `processes: 1` in config.yaml where memory is short."
                ) from None
            if kind == "error":
                raise value
            if kind == "next":
                connection.send(list(pieces[given : given + 1]))
                given += 1
                continue
            if kind == "end":
                running.remove(connection)
                telling.pop(connection, None)
                continue
            if kind == "done":
                done += 1
            else:
                telling[connection] = value
            progress(" | ".join(telling.values()), done, len(pieces))


def _work(lane: Lane, parent: Connection) -> None:
    """Run one lane in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it stops it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from jobs.cli_output import quiet

    quiet()

    def asking() -> Iterator[Any]:
        while True:
            parent.send(("next", None))
            piece = parent.recv()
            if not piece:
                return
            yield piece[0]
            parent.send(("done", None))

    def telling(what: str, done: int, total: int) -> None:
        parent.send(("at", f"{what} {done}/{total}" if total > 1 else what))

    try:
        lane(asking(), telling)
        parent.send(("end", None))
    except BaseException as error:
        parent.send(("error", _sendable(error)))
    parent.close()
    # Libraries that wait for their threads, or print at exit, have nothing left to do here; semaphores are given back.
    util._exit_function()  # type: ignore[attr-defined]
    os._exit(0)


def _sendable(error: BaseException) -> BaseException:
    """Return the error if another process can read it, else one that says the same."""
    if not isinstance(error, HeadwaterError):
        error.add_note("".join(traceback.format_exception(error)))  # where it happened does not travel by itself
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        same = HeadwaterError(str(error) if isinstance(error, HeadwaterError) else f"{type(error).__name__}: {error}")
        same.exit_code = getattr(error, "exit_code", 1)
        return same


def _die_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
