"""Prove the gate on a home folder's real snapshots, print the confusion table and write it as JSON.

Every fault of `validation/faults.py` is applied to one good snapshot of each entity and gated as a refresh would gate
it, with the history, the model and the live rankers of that home. Then every accepted snapshot of the version is
gated again: refusing one of those is a false alarm. Exit code 1 where anything is not as expected.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

from feature_repo.contracts.naming import ENTITIES, embedding_view
from jobs import gate_faults
from jobs.gate_faults import Outcome
from jobs.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "gate_faults.json"


def main() -> None:
    """Run all faults and all clean refreshes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".headwater"), help="home folder of a finished demo")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--other", default="v2", help="the version that a fault mixes in")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ws = Workspace.open(options.home)
    outcomes: list[Outcome] = []
    refused: list[str] = []
    seconds: list[float] = []
    for entity in ENTITIES:
        view = embedding_view(entity, options.version)
        moments = [snapshot.as_of for snapshot in ws.ledger.snapshots(view, accepted=True)]
        at = moments[2 * len(moments) // 3]
        outcomes += gate_faults.inject(ws, options.version, options.other, entity, at, progress=_tell)
        outcomes.append(gate_faults.slow_drift(ws, options.version, entity, moments[0]))
        started = time.perf_counter()
        verdicts = gate_faults.clean(ws, options.version, entity, progress=_tell)
        seconds.append((time.perf_counter() - started) / len(verdicts))
        refused += [name for name, verdict in verdicts if not verdict.accepted]
        if entity == ENTITIES[0]:
            checks = len(verdicts[-1][1].checks)
            clean_runs = 0
        clean_runs += len(verdicts)
    report = {
        "faults": [{**asdict(row), "failed": list(row.failed), "right": row.right} for row in outcomes],
        "clean_runs": clean_runs,
        "false_alarms": len(refused),
        "refused_clean": refused,
        "checks": checks,
        "seconds_per_fault": round(median(row.seconds for row in outcomes), 3),
        "seconds_per_clean_run": round(median(seconds), 3),
        "seconds_per_check": round(median(seconds) / checks, 5),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _print(outcomes, report)
    raise SystemExit(0 if not refused and all(row.right for row in outcomes) else 1)


def _print(outcomes: list[Outcome], report: dict[str, object]) -> None:
    for row in outcomes:
        found = ", ".join(row.failed) or "-"
        print(f"{'ok   ' if row.right else 'WRONG'} {row.entity:<5}{row.fault:<34}{row.verdict:<9} {found[:90]}")
    bad = [row for row in outcomes if row.expected == "refused"]
    harmless = [row for row in outcomes if row.expected == "accepted"]
    caught = sum(row.verdict == "refused" for row in bad)
    reasoned = sum(row.right for row in bad)
    passed = sum(row.verdict == "accepted" for row in harmless)
    alarms, clean = report["false_alarms"], report["clean_runs"]
    print(
        f"\n{'':<32}{'refused':>9}{'accepted':>10}\n"
        f"{f'{len(bad)} corruptions':<32}{caught:>9}{len(bad) - caught:>10}   {reasoned} for the right reason\n"
        f"{f'{len(harmless)} harmless changes':<32}{len(harmless) - passed:>9}{passed:>10}\n"
        f"{f'{clean} clean refreshes':<32}{alarms:>9}{clean - alarms:>10}\n"  # type: ignore[operator]
        f"\n{report['seconds_per_clean_run']} s per clean refresh with live rankers, {report['checks']} checks, "
        f"{report['seconds_per_check']} s per check; {report['seconds_per_fault']} s per fault (median)"
    )


def _tell(what: str, done: int, total: int) -> None:
    if done in (0, total):
        print(f"{what}: {done}/{total}", file=sys.stderr)


if __name__ == "__main__":
    main()
