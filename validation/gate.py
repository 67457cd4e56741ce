"""The gate: what a snapshot must pass before anyone can read it. It fails closed.

Order: the raw file (footer, columns, types), then one streaming pass that writes two narrow tables of
statistics, then Great Expectations over those tables. A snapshot is accepted only if every critical check
ran and is exactly True; whatever goes wrong inside the gate itself is a refusal too, with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from feature_repo.contracts.types import Check, Verdict
from validation.files import check_file, check_row_groups, snapshot_schema
from validation.rules import Rule, Table, snapshot_rules
from validation.specs import Bounds, SnapshotSpec
from validation.statistics import SnapshotStatistics, snapshot_statistics
from validation.suites import SuiteRunner


class Gate:
    """Checks snapshots one after another with one Great Expectations context.

    Parameters
    ----------
    bounds
        Declared floors and ceilings.
    extra
        Rules of one's own, run beside the built-in ones (docs/gate.md).
    """

    def __init__(self, bounds: Bounds | None = None, extra: Sequence[Rule] = ()) -> None:
        self.bounds = bounds or Bounds()
        self.extra = tuple(extra)
        self._runner: SuiteRunner | None = None

    @property
    def runner(self) -> SuiteRunner:
        """The Great Expectations context; the first use imports it, which takes seconds."""
        if self._runner is None:
            self._runner = SuiteRunner()
        return self._runner

    def check(
        self,
        path: Path,
        spec: SnapshotSpec,
        *,
        workdir: Path,
        previous: Path | None = None,
        history: Sequence[Verdict] = (),
    ) -> Verdict:
        """Return the verdict on one embedding snapshot; see :func:`check_snapshot`."""
        checks: list[Check] = []
        try:
            checks += check_file(path, snapshot_schema(spec.entity, spec.id_type))
            if not all(check.passed is True for check in checks):
                return Verdict(False, tuple(checks), "The file is no snapshot; its values were not read.")
            statistics, broken = _measure(path, spec, workdir, previous)
            checks.append(check_row_groups(path, broken))
            if statistics is None:
                return Verdict(False, tuple(checks), "The file has damaged pages; its values were not read.")
            rules = [*snapshot_rules(spec, self.bounds, statistics.summary, history), *self.extra]
            tables: dict[Table, Path] = {"rows": statistics.rows_path, "summary": statistics.summary_path}
            checks += self.runner.run(tables, rules)
        except Exception as error:
            # Fails closed: a gate that crashed has checked nothing.
            reason = f"The gate could not finish: {type(error).__name__}: {error}"
            return Verdict(False, tuple(checks), reason)
        return decide(checks)


def _measure(
    path: Path, spec: SnapshotSpec, workdir: Path, previous: Path | None
) -> tuple[SnapshotStatistics | None, Exception | None]:
    try:
        return (
            snapshot_statistics(
                path,
                entity=spec.entity,
                dim=spec.dim,
                as_of=spec.as_of,
                available_at=spec.available_at,
                stem=spec.snapshot_id,
                workdir=workdir,
                checked_at=spec.checked_at,
                previous=previous,
                known_ids=spec.known_ids,
            ),
            None,
        )
    except (OSError, pa.ArrowException) as error:
        return None, error


def decide(checks: Sequence[Check]) -> Verdict:
    """Return the verdict: accepted only if there are critical checks and all are exactly True."""
    critical = [check for check in checks if check.severity == "critical"]
    accepted = bool(critical) and all(check.passed is True for check in critical)
    return Verdict(accepted, tuple(checks), None if critical else "No critical check ran.")


_default_gate: Gate | None = None


def default_gate() -> Gate:
    """Return the gate of this process with the default bounds, made on first use."""
    global _default_gate
    if _default_gate is None:
        _default_gate = Gate()
    return _default_gate


def check_snapshot(
    path: Path,
    spec: SnapshotSpec,
    *,
    workdir: Path,
    previous: Path | None = None,
    history: Sequence[Verdict] = (),
) -> Verdict:
    """Hold one embedding snapshot against what it claims to be.

    Parameters
    ----------
    path
        The snapshot's Parquet file.
    spec
        What it claims: entity, dimension, moments, row bounds.
    workdir
        Scratch folder; ``<snapshot_id>.rows.parquet`` and ``<snapshot_id>.summary.parquet`` are left there.
    previous
        The last accepted snapshot of the same view, or None for the first.
    history
        Verdicts of earlier accepted snapshots of the same view, oldest first.

    Returns
    -------
    Verdict
        With every check's value and bound. Never raises for a bad file.
    """
    return default_gate().check(path, spec, workdir=workdir, previous=previous, history=history)
