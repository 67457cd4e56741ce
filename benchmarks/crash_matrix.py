"""Kill every operation before and after each of its durable writes, run it again, and compare with an undisturbed run.

A real SIGKILL of a child process, on a copy of a home folder each time; a reader in a third process reads all the
while. ``make crash-matrix`` writes benchmarks/results/crash_matrix.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import small_home
from feature_repo import failpoints

RESULTS = Path(__file__).parent / "results" / "crash_matrix.json"
WHEN = ("before", "after")
PRELOADED = ("benchmarks.crash_operations", "benchmarks.crash_reader", "models.downstream.index_files")
FEAST = ("ibis", "ibis.backends.duckdb", "feature_repo.views", "feature_repo.stores.pit", "feature_repo.stores.spaces")
PATIENCE = 120.0


@dataclass(frozen=True)
class Row:
    """One kill: the durable write at which it happened, and what was found afterwards."""

    operation: str
    step: str
    when: str
    converged: bool
    reader_errors: int
    reads: int
    difference: str = ""


class Matrix:
    """Runs operations in children of a server that has imported everything, so that a child starts at once.

    Parameters
    ----------
    folder
        Where the home folders are made.
    feast
        Whether operations will need Feast, whose import takes seconds.
    """

    def __init__(self, folder: Path, *, feast: bool = True) -> None:
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOADED, *(FEAST if feast else ())])

    def rows(self, operations: Iterable[str], *, every: int = 1) -> Iterator[Row]:
        """Yield one row per operation, step and moment; `every` 2 takes each second one."""
        seed = self._folder / "seed"
        small_home.build(seed)
        for name in operations:
            base = self._folder / "base"
            shutil.copytree(seed, base)
            self._child(_prepare, name, base)
            reference, log = self._folder / "reference", self._folder / "steps.log"
            shutil.copytree(base, reference)
            log.unlink(missing_ok=True)
            code = self._child(_run, name, reference, {failpoints.LOG: str(log)})
            assert code == 0, f"{name} fails undisturbed ({code})"
            steps = log.read_text().splitlines()
            assert steps, f"{name} writes nothing"
            wanted = self._state(reference)
            cases = [(number, step, when) for number, step in enumerate(steps, 1) for when in WHEN]
            for number, step, when in cases[::every]:
                yield self._case(name, base, number, step, when, wanted)
            shutil.rmtree(base)
            shutil.rmtree(reference)

    def _case(self, name: str, base: Path, number: int, step: str, when: str, wanted: dict[str, Any]) -> Row:
        home = self._folder / "home"
        shutil.copytree(base, home)
        ready, stop, found = self._context.Event(), self._context.Event(), self._context.Queue()
        reader = self._context.Process(target=_watch, args=(name, home, ready, stop, found))
        reader.start()
        assert ready.wait(PATIENCE), "the reader does not come up"
        code = self._child(_run, name, home, {failpoints.VARIABLE: f"{when}:{number}"})
        assert code == -signal.SIGKILL, f"{name} was not killed {when} {step} ({code})"
        again = self._child(_run, name, home)
        stop.set()
        reads, examples, errors = found.get(timeout=PATIENCE)
        reader.join(PATIENCE)
        after = self._state(home)
        different = [f"{part}" for part in wanted if after[part] != wanted[part]]
        if again != 0:
            different.append(f"the second run ended with {again}")
        shutil.rmtree(home)
        return Row(name, step, when, not different, errors, reads, "; ".join([*different, *examples]))

    def _child(self, target: Any, name: str, home: Path, environment: dict[str, str] | None = None) -> int:
        process = self._context.Process(target=target, args=(name, home, environment or {}))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"{name} hangs"
        return process.exitcode

    def _state(self, home: Path) -> dict[str, Any]:
        found = self._context.Queue()
        process = self._context.Process(target=_state, args=(home, found))
        process.start()
        answer: dict[str, Any] = found.get(timeout=PATIENCE)
        process.join(PATIENCE)
        return answer


def _prepare(name: str, home: Path, _: dict[str, str]) -> None:
    from benchmarks.crash_operations import OPERATIONS
    from jobs.workspace import Workspace

    OPERATIONS[name].prepare(Workspace.open(home))
    _leave()


def _run(name: str, home: Path, environment: dict[str, str]) -> None:
    from benchmarks.crash_operations import OPERATIONS
    from jobs.workspace import Workspace

    os.environ.update(environment)
    OPERATIONS[name].run(Workspace.open(home))
    _leave()


def _watch(name: str, home: Path, ready: Any, stop: Any, found: Any) -> None:
    from benchmarks.crash_operations import OPERATIONS
    from benchmarks.crash_reader import watch

    watch(home, OPERATIONS[name].feast, ready, stop, found)


def _state(home: Path, found: Any) -> None:
    from benchmarks.crash_operations import state

    found.put(state(home))


def _leave() -> None:
    # DuckDB's bindings print a page at an orderly exit.
    os._exit(0)


def main() -> None:
    """Run the whole matrix, print a line per operation, write the rows."""
    from benchmarks.crash_operations import OPERATIONS

    started = time.monotonic()
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        for name in OPERATIONS:
            found = list(matrix.rows([name]))
            shutil.rmtree(Path(folder) / "seed")
            rows += found
            good = sum(row.converged and not row.reader_errors for row in found)
            reads = sum(row.reads for row in found)
            print(f"{name:16} {good:3} of {len(found):3} converged without a wrong read ({reads} reads)", flush=True)
            for row in found:
                if not row.converged or row.reader_errors:
                    print("   ", row, flush=True)
    good = sum(row.converged and not row.reader_errors for row in rows)
    print(f"{good} of {len(rows)} in {time.monotonic() - started:.0f} s")
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    raise SystemExit(good != len(rows))


if __name__ == "__main__":
    main()
