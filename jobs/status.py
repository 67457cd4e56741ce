"""Status: what exists in a home folder and how fresh it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from jobs.ingest_dataset import record_file
from jobs.refresh_plain import ALWAYS
from jobs.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """Rows for a person: one list per kind of thing, each row a mapping of column to text."""

    tables: dict[str, list[dict[str, str]]]


def run(ws: Workspace, now: datetime) -> Result:
    """Read the ledger: data, spaces, versions, snapshots with their freshness at `now`, consumers."""
    ledger = ws.ledger
    data = []
    if record_file(ws.home).exists():
        record = ws.log.record
        data.append(
            {
                "data set": record.name,
                "fingerprint": record.fingerprint[:12],
                "events": f"{record.rows:,}",
                "from": f"{record.start:%Y-%m-%d}",
                "to": f"{record.end:%Y-%m-%d}",
            }
        )
    versions = [
        {
            "version": version.version,
            "space": version.space_id,
            "trained before": f"{ledger.space(version.space_id).train_end:%Y-%m-%d}",
            "smoothing": "off" if version.smoothing is None else f"{version.smoothing:g}",
            "owner": version.owner,
            "description": version.description,
        }
        for version in ledger.versions()
    ]
    views = []
    for view in ledger.views():
        snapshots = ledger.snapshots(view.name)
        accepted = [snapshot for snapshot in snapshots if snapshot.accepted]
        latest = accepted[-1] if accepted else None
        views.append(
            {
                "view": view.name,
                "snapshots": str(len(accepted)),
                "refused": str(len(snapshots) - len(accepted)),
                "latest as_of": _moment(latest.as_of) if latest else "-",
                "rows": f"{latest.rows:,}" if latest else "-",
                "age": _age(now, latest.available_at) if latest else "-",
            }
        )
    consumers = [
        {
            "consumer": consumer["name"],
            "task": consumer["task"],
            "versions": ", ".join(consumer["versions"]),
            "artifact": consumer["record"].get("artifact", "not trained"),
        }
        for consumer in ledger.consumers()
    ]
    return Result({"Data": data, "Versions": versions, "Views": views, "Consumers": consumers})


def _moment(as_of: datetime) -> str:
    return "always" if as_of == ALWAYS else f"{as_of:%Y-%m-%d %H:%M}"


def _age(now: datetime, then: datetime) -> str:
    if then == ALWAYS:
        return "-"
    days = (now - then).days
    return f"{days} d" if days else f"{(now - then).seconds // 3600} h"
