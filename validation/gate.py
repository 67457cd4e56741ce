"""The gate: what a file must pass before anyone can read it. It fails closed.

Order: the raw file (footer, columns, types), then one streaming pass that writes narrow tables of
statistics, then Great Expectations over those tables. A file is accepted only if every critical check
ran and is exactly True; whatever goes wrong inside the gate itself is a refusal too, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa

from feature_repo.contracts.types import Check, Verdict
from validation.drift_rules import anchor_rules, drift_rules
from validation.event_sets import event_rules, event_statistics
from validation.evidence import Evidence, evidence_rules, evidence_statistics
from validation.features import feature_rules, feature_schema, feature_statistics
from validation.files import check_file, check_row_groups, snapshot_schema
from validation.rules import OF_WHAT_IS_LEARNED, Rule, Table, snapshot_rules
from validation.specs import Bounds, EventsSpec, FeatureSpec, SnapshotSpec, TrainingSetSpec
from validation.statistics import Scan, scan_here, snapshot_statistics
from validation.suites import SuiteRunner
from validation.training_sets import training_set_rules, training_set_schema, training_set_statistics

Measured = tuple[dict[Table, Path], list[Rule]]


class Gate:
    """Checks files one after another with one Great Expectations context. Not thread-safe.

    Parameters
    ----------
    bounds
        Declared floors and ceilings.
    extra
        Rules of one's own for embedding snapshots, run beside the built-in ones (docs/gate.md).
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
        anchor: Path | None = None,
        history: Sequence[Verdict] = (),
        evidence: Callable[[], Evidence] | None = None,
        scan: Scan = scan_here,
    ) -> Verdict:
        """Return the verdict on one embedding snapshot; see :func:`check_snapshot`.

        Parameters
        ----------
        scan
            Where the snapshot's rows are measured.
        """

        def measure() -> Measured:
            found = snapshot_statistics(path, spec, workdir=workdir, previous=previous, anchor=anchor, scan=scan)
            rules = snapshot_rules(spec, self.bounds, int(found.summary["rows"]))
            rules += drift_rules(self.bounds, found.summary, history)
            if spec.of_attributes:
                rules = [rule for rule in rules if rule.name not in OF_WHAT_IS_LEARNED]
            rules += anchor_rules(self.bounds, found.summary)
            return {"rows": found.rows_path, "summary": found.summary_path}, [*rules, *self.extra]

        verdict = self._judge(path, snapshot_schema(spec.entity, spec.id_type), measure)
        # Running models on rows that are refused already would only bury the reason under their errors.
        if evidence is not None and verdict.accepted:
            verdict = self._with_evidence(verdict, path, spec, previous, evidence, workdir)
        return _with_page(verdict, spec)

    def _with_evidence(
        self,
        verdict: Verdict,
        path: Path,
        spec: SnapshotSpec,
        previous: Path | None,
        evidence: Callable[[], Evidence],
        workdir: Path,
    ) -> Verdict:
        try:
            found = evidence()
            rules = evidence_rules(found, self.bounds)
            if not rules:
                return verdict
            table, _ = evidence_statistics(path, spec, previous, found, self.bounds, workdir)
            judged, doubts = self.runner.run({"summary": table}, rules)
        except Exception as error:
            return Verdict(False, verdict.checks, f"The evidence is missing: {type(error).__name__}: {error}")
        return decide([*verdict.checks, *judged], doubts)

    def check_features(self, path: Path, spec: FeatureSpec, *, workdir: Path, previous: Path | None = None) -> Verdict:
        """Return the verdict on one snapshot of plain features; see :func:`check_feature_snapshot`."""

        def measure() -> Measured:
            table, summary = feature_statistics(path, spec, workdir, previous)
            return {"summary": table}, feature_rules(spec, self.bounds, summary)

        return _with_page(self._judge(path, feature_schema(spec), measure), spec)

    def check_training_set(self, path: Path, spec: TrainingSetSpec, *, workdir: Path) -> Verdict:
        """Return the verdict on one training set; see :func:`check_training_set`."""

        def measure() -> Measured:
            table, _ = training_set_statistics(path, spec, workdir)
            return {"summary": table}, training_set_rules(spec, self.bounds)

        return self._judge(path, training_set_schema(spec), measure, exact=False)

    def check_events(self, events: pl.DataFrame, spec: EventsSpec, *, workdir: Path) -> Verdict:
        """Return the verdict on an event log that was read and checked row by row; see `validation/event_sets.py`."""
        checks: list[Check] = []
        try:
            table, summary = event_statistics(events, spec, workdir)
            checks, doubts = self.runner.run({"summary": table}, event_rules(spec, self.bounds, summary))
        except Exception as error:
            return Verdict(False, tuple(checks), f"The gate could not finish: {type(error).__name__}: {error}")
        return decide(checks, doubts)

    def _judge(
        self,
        path: Path,
        schema: Mapping[str, pa.DataType | None],
        measure: Callable[[], Measured],
        exact: bool = True,
    ) -> Verdict:
        checks: list[Check] = []
        try:
            checks += check_file(path, schema, exact=exact)
            if not all(check.passed is True for check in checks):
                return Verdict(False, tuple(checks), "The file is not what it must be; no value was read.")
            try:
                tables, rules = measure()
            except (OSError, pa.ArrowException) as error:
                checks.append(check_row_groups(path, error))
                return Verdict(False, tuple(checks), "The values could not be read; nothing was judged.")
            checks.append(check_row_groups(path, None))
            judged, doubts = self.runner.run(tables, rules)
            checks += judged
        except Exception as error:
            # Fails closed: a gate that crashed has checked nothing.
            reason = f"The gate could not finish: {type(error).__name__}: {error}"
            return Verdict(False, tuple(checks), reason)
        return decide(checks, doubts)


def _with_page(verdict: Verdict, spec: SnapshotSpec | FeatureSpec) -> Verdict:
    """Return the verdict with its page; one that nobody could be shown is a refusal."""
    try:
        from validation.docs import page

        return replace(verdict, page=page(spec.snapshot_id, verdict, spec.checked_at or spec.available_at))
    except Exception as error:
        reason = f"The page of the verdict could not be made: {type(error).__name__}: {error}"
        return replace(verdict, accepted=False, error=verdict.error or reason)


def decide(checks: Sequence[Check], doubts: Sequence[str] = ()) -> Verdict:
    """Return the verdict: accepted only without doubts, with critical checks, and with all of them True."""
    critical = [check for check in checks if check.severity == "critical"]
    if doubts or not critical:
        reasons = doubts or ["no critical check ran"]
        return Verdict(False, tuple(checks), "Results that prove nothing: " + "; ".join(reasons))
    return Verdict(all(check.passed is True for check in critical), tuple(checks))


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
    anchor: Path | None = None,
    history: Sequence[Verdict] = (),
    evidence: Callable[[], Evidence] | None = None,
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
    anchor
        An old accepted snapshot of the same view, where small steps of many refreshes have added up.
    history
        Verdicts of earlier accepted snapshots of the same view, oldest first.
    evidence
        Called only when everything else is accepted: the model's own output again, and live consumers. What
        it raises is a refusal.

    Returns
    -------
    Verdict
        With every check's value and bound. Never raises for a bad file.
    """
    return default_gate().check(
        path, spec, workdir=workdir, previous=previous, anchor=anchor, history=history, evidence=evidence
    )


def check_feature_snapshot(path: Path, spec: FeatureSpec, *, workdir: Path, previous: Path | None = None) -> Verdict:
    """Hold one snapshot of plain features against what it claims to be.

    Checked: schema, keys, nulls, finite and non-negative numbers, row count, clocks; against a previous
    snapshot row ratio, coverage and order. Never raises for a bad file.
    """
    return default_gate().check_features(path, spec, workdir=workdir, previous=previous)


def check_training_set(path: Path, spec: TrainingSetSpec, *, workdir: Path) -> Verdict:
    """Hold one training set against what it claims to be.

    Checked: as many rows as labels, valid labels, label rates, join hit rates, and no feature newer than
    its label. Never raises for a bad file.
    """
    return default_gate().check_training_set(path, spec, workdir=workdir)
