"""Reading ahead: the same values in the same order, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from models.read_ahead import read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_values_come_in_their_order(count: int) -> None:
    assert list(read_ahead(iter(range(50)), count)) == list(range(50))
    assert threads() == []


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_is_raised_where_its_value_would_have_come(count: int) -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        for value in read_ahead(broken(), count):
            seen.append(value)
    assert seen == [1, 2] and threads() == []


def test_no_more_is_read_than_was_asked_for() -> None:
    read: list[int] = []

    def counted() -> Iterator[int]:
        for value in range(100):
            read.append(value)
            yield value

    ahead = read_ahead(counted(), 2)
    assert read == [] and next(ahead) == 0
    time.sleep(0.3)
    assert len(read) <= 4  # given, two that wait, one in the hand of the thread
    ahead.close()
    assert threads() == [] and len(read) <= 5
