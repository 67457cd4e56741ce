"""Reading ahead: a thread makes the next batches while a step is computed."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


def read_ahead(source: Iterator[T], count: int) -> Generator[T, None, None]:
    """Yield what `source` yields, in its order, while a thread keeps up to `count` further values ready.

    An error of `source` is raised where its value would have come. Closing this generator ends the thread.

    Parameters
    ----------
    source
        Read in the thread alone, from the first value that is asked for on.
    count
        0 starts no thread.
    """
    if count == 0:
        yield from source
        return
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(count)
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((kind, value), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for value in source:
                if not put("value", value):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
