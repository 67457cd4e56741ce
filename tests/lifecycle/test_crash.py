"""A part of the crash matrix: real kills at durable writes, run again, same end. `make crash-matrix` runs all."""

from __future__ import annotations

from pathlib import Path

from benchmarks.crash_matrix import Matrix


def test_killed_operations_end_as_undisturbed_ones(tmp_path: Path) -> None:
    rows = list(Matrix(tmp_path, feast=False).rows(["refresh", "bridge", "prune"], every=7))
    assert len(rows) >= 6 and {row.when for row in rows} == {"before", "after"}
    assert [row for row in rows if not row.converged or row.reader_errors] == []
    assert all(row.reads >= 1 for row in rows)
