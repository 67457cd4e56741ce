"""Prove the gate on a home folder's real snapshots, print the confusion table and write it as JSON.

Every fault of `validation/faults.py` is applied to one good snapshot of each entity and gated as a refresh would gate
it, with the history, the model and the live consumers of that home. Then every accepted snapshot of the version is
gated again: refusing one of those is a false alarm. Exit code 1 where anything is not as expected.

Killed and run again, it goes on where it was, unless the gate's code or the snapshots changed in between.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from feature_repo.contracts.naming import ENTITIES, embedding_view
from jobs import gate_faults
from jobs.gate_faults import Outcome
from jobs.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "gate_faults.json"
ROOT = Path(__file__).parents[1]
# What a stored outcome depends on; pages and the checks of other kinds of files are not among it.
CODE = ("validation/*.py", "jobs/canary*.py", "jobs/snapshot_gate.py", "jobs/gate_faults.py")


class Kept:
    """Outcomes of an unfinished run, one JSON object per line, valid for one state of the gate's code."""

    def __init__(self, path: Path) -> None:
        digest = hashlib.sha256()
        for file in sorted(file for pattern in CODE for file in ROOT.glob(pattern)):
            digest.update(file.read_bytes())
        self._code, self._path = digest.hexdigest(), path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the last line of a killed run may be half a line
            path.write_text(whole, encoding="utf-8")
        lines = whole.splitlines()
        entries = [json.loads(line) for line in lines]
        self._known = {entry["key"]: entry["outcome"] for entry in entries if entry["code"] == self._code}

    def once(self, key: str, ask: Callable[[], Outcome]) -> Outcome:
        """Return the outcome of an earlier run, or ask the gate and keep what it says."""
        if key in self._known:
            known = self._known[key]
            return Outcome(**{**known, "failed": tuple(known["failed"])})
        found = ask()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "code": self._code, "outcome": asdict(found)}) + "\n")
        return found

    def forget(self) -> None:
        """Remove the file: the run is finished."""
        self._path.unlink(missing_ok=True)


def main() -> None:
    """Run all faults and all clean refreshes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".headwater"), help="home folder of a finished demo")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--other", default="v2", help="the version that a fault mixes in")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    ws = Workspace.open(options.home)
    kept = Kept(ws.home.reports / "gate_faults.jsonl")
    faults: list[Outcome] = []
    clean: list[Outcome] = []
    parts: dict[str, dict[str, float]] = {}
    for entity in ENTITIES:
        view = embedding_view(entity, options.version)
        snapshots = ws.ledger.snapshots(view, accepted=True)
        chosen = snapshots[2 * len(snapshots) // 3]
        tell = Told()
        faults += gate_faults.inject(
            ws, options.version, options.other, entity, chosen.as_of, once=kept.once, progress=tell
        )
        first = snapshots[0]
        faults.append(
            kept.once(
                f"{first.sha256} slow drift",
                lambda entity=entity, first=first: gate_faults.slow_drift(ws, options.version, entity, first.as_of),  # type: ignore[misc]
            )
        )
        clean += gate_faults.clean(ws, options.version, entity, once=kept.once, progress=Told())
        parts[entity] = gate_faults.seconds_per_part(ws, options.version, entity, chosen.as_of)
    report = _report(faults, clean, parts)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    kept.forget()
    _print(faults, report)
    raise SystemExit(0 if all(row.right for row in [*faults, *clean]) else 1)


def _report(faults: list[Outcome], clean: list[Outcome], parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    refused = [row for row in clean if row.verdict != "accepted"]
    checks = max(row.checks for row in clean)
    per_run = median(row.seconds for row in clean)
    return {
        "faults": [{**asdict(row), "failed": list(row.failed), "right": row.right} for row in faults],
        "clean_runs": len(clean),
        "false_alarms": len(refused),
        "refused_clean": [{"snapshot": row.fault, "failed": list(row.failed)} for row in refused],
        "checks": checks,
        "seconds_per_fault": round(median(row.seconds for row in faults), 3),
        "seconds_per_clean_run": round(per_run, 3),
        "seconds_per_check": round(per_run / checks, 5),
        "seconds_per_part": parts,
    }


def _print(outcomes: list[Outcome], report: dict[str, Any]) -> None:
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
        f"{f'{clean} clean refreshes':<32}{alarms:>9}{clean - alarms:>10}\n"
        f"\n{report['seconds_per_clean_run']} s per clean refresh with live consumers, {report['checks']} checks, "
        f"{report['seconds_per_check']} s per check; {report['seconds_per_fault']} s per fault (median)"
    )
    for entity, parts in report["seconds_per_part"].items():
        print(f"{entity}: " + ", ".join(f"{name} {seconds} s" for name, seconds in parts.items()))


class Told:
    """Says every ten steps how far it is and how long the rest will take."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print one line to stderr."""
        if done % 10 == 0 or done == total:
            left = (time.monotonic() - self._started) / done * (total - done) if done else None
            rest = "" if left is None or done == total else f", about {left / 60:.0f} min left"
            print(f"{what}: {done}/{total}{rest}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
