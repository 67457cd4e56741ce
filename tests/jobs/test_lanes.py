"""Work in several processes: every piece once, errors come home, and nobody outlives whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ConfigError, HeadwaterError
from jobs.lanes import side_by_side
from jobs.workspace import Progress


def note(folder: Path, pieces: Iterator[int], progress: Progress) -> None:
    """Write down who worked on each piece; wait for the other lane before the first one ends."""
    for piece in pieces:
        progress(f"piece {piece}", 0, 1)
        (folder / f"{piece}-{os.getpid()}").touch()
        wait_for(lambda: len({path.name.split("-")[1] for path in folder.iterdir()}) > 1)


def fail(pieces: Iterator[int], progress: Progress) -> None:
    for piece in pieces:
        if piece == 1:
            raise ConfigError("piece 1 does not fit")
        time.sleep(600)


class Awkward(HeadwaterError):
    """Cannot be rebuilt from its message, as an error that carries a verdict."""

    exit_code = 3

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what} ({code})")


def fail_awkwardly(pieces: Iterator[int], progress: Progress) -> None:
    for _ in pieces:
        raise Awkward(4, "refused")


def fail_unexpectedly(pieces: Iterator[int], progress: Progress) -> None:
    for piece in pieces:
        {}[piece]


def die(pieces: Iterator[int], progress: Progress) -> None:
    for piece in pieces:
        progress(f"piece {piece}", 0, 1)
        if piece == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


def sleep(folder: Path, pieces: Iterator[int], progress: Progress) -> None:
    for _ in pieces:
        (folder / str(os.getpid())).touch()
        time.sleep(600)


def wait_for(true: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_piece_is_worked_off_once_and_by_more_than_one_process(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    side_by_side(
        partial(note, tmp_path),
        range(5),
        processes=2,
        progress=tell,
    )
    names = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(int(piece) for piece, _ in names) == list(range(5))
    assert len({pid for _, pid in names}) == 2 and str(os.getpid()) not in {pid for _, pid in names}
    assert told[-1][1:] == (5, 5)
    assert any("piece 0" in what and "piece 1" in what for what, _, _ in told)


def test_one_process_suffices_for_one_piece(tmp_path: Path) -> None:
    seen = []

    def here(pieces: Iterator[int], progress: Progress) -> None:
        seen.extend((piece, os.getpid()) for piece in pieces)

    side_by_side(here, [7], processes=4)
    side_by_side(here, [8, 9], processes=1)
    side_by_side(here, [], processes=2)
    assert seen == [(7, os.getpid()), (8, os.getpid()), (9, os.getpid())]


def test_the_first_error_stops_all(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="piece 1 does not fit"):
        side_by_side(fail, range(2), processes=2)
    assert time.monotonic() - started < 60  # the other lane was going to sleep for ten minutes


def test_an_error_keeps_its_exit_code_and_its_place() -> None:
    with pytest.raises(HeadwaterError, match=r"^refused \(4\)$") as refused:
        side_by_side(fail_awkwardly, range(2), processes=2)
    assert refused.value.exit_code == 3
    with pytest.raises(KeyError) as unexpected:
        side_by_side(fail_unexpectedly, range(2), processes=2)
    assert "{}[piece]" in unexpected.value.__notes__[0]


def test_a_killed_lane_is_told_of() -> None:
    with pytest.raises(HeadwaterError, match=r"'piece 1' died \(exit code -9"):
        side_by_side(die, range(2), processes=2)


def test_lanes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from pathlib import Path; from tests.jobs.test_lanes import sleep;"
        "from jobs.lanes import side_by_side\n"
        f"if __name__ == '__main__': side_by_side(partial(sleep, Path({str(tmp_path)!r})), [0, 1], processes=2)"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root}) as parent:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.kill()
    for path in tmp_path.iterdir():
        wait_for(lambda pid=int(path.name): not alive(pid))
