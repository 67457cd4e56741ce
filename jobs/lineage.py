"""Lineage: what anything was made from and what was made of it, from the events' fingerprint to the AUC."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import NotFoundError
from feature_repo.contracts.naming import ENTITIES, embedding_view, moment_stem
from feature_repo.contracts.types import Snapshot, Space
from feature_repo.lake import read_json
from jobs.refresh import SMOOTHED_WITH
from jobs.versions import continued_by, reaches
from jobs.workspace import Workspace

NAMESPACE = "headwater"
PRODUCER = "urn:headwater"
MAKING = {name.encode() for name in ("events", "made_by", SMOOTHED_WITH)}
MEASURED = {"AUC": "auc", "recall at 100": "recall_at_100"}
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs"


@dataclass(frozen=True)
class Node:
    """One artifact: what it is, when it came to be in the data's time, what is known of it, and where it lies."""

    kind: str
    name: str
    at: datetime
    facts: dict[str, Any]
    path: str | None = None

    @property
    def key(self) -> str:
        """Name that is unique over all kinds."""
        return f"{self.kind}/{self.name}"


@dataclass
class Graph:
    """Artifacts by key, and for each the keys of what it was made from."""

    nodes: dict[str, Node] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def add(self, node: Node, sources: Iterable[str] = ()) -> None:
        """Add an artifact; sources that are not known are left out."""
        self.nodes[node.key] = node
        self.sources[node.key] = [key for key in dict.fromkeys(sources) if key in self.nodes]

    def find(self, name: str) -> Node:
        """Return the artifact of a name, a key, a path below the home folder, or the beginning of an event fingerprint.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        path = name.rstrip("/")
        exact = [
            node
            for key, node in self.nodes.items()
            if name in (key, node.name) or (node.path is not None and f"/{path}".endswith(f"/{node.path}"))
        ]
        close = [node for node in self.nodes.values() if node.kind == "events" and node.name.startswith(name)]
        if not exact and not (close and name):
            kinds = ", ".join(sorted({node.kind for node in self.nodes.values()}))
            raise NotFoundError(f"Nothing is named '{name}'. Name one of: {kinds}; `headwater status` lists them.")
        # A consumer and its training set share a name; the consumer is the later one.
        return (exact or close)[-1]

    def upstream(self, key: str) -> list[Node]:
        """Return everything that an artifact was made from, nearest first."""
        return self._walk(key, self.sources)

    def downstream(self, key: str) -> list[Node]:
        """Return everything that was made of an artifact, nearest first; of a view: what was made of its snapshots."""
        products: dict[str, list[str]] = {}
        for product, sources in self.sources.items():
            for source in sources:
                products.setdefault(source, []).append(product)
        if self.nodes[key].kind != "view":
            return self._walk(key, products)
        own = self.sources[key]
        products[key] = [product for snapshot in own for product in products[snapshot]]
        return [node for node in self._walk(key, products) if node.key not in (key, *own)]

    def _walk(self, start: str, steps: dict[str, list[str]]) -> list[Node]:
        found: dict[str, None] = {}
        queue = list(steps.get(start, []))
        while queue:
            key = queue.pop(0)
            if key not in found:
                found[key] = None
                queue += steps.get(key, [])
        return [self.nodes[key] for key in found]


def graph(ws: Workspace) -> Graph:
    """Read the ledger, and what the files say of their making, into a graph: sources before what is made of them."""
    found = Graph()
    ledger = ws.ledger
    spaces = {space.space_id: space for space in ledger.spaces()}
    _add_events(found, ws, spaces)
    started = _starts(ws)
    for space in spaces.values():
        facts: dict[str, Any] = {"floats": space.dim, "trained before": f"{space.train_end:%Y-%m-%d}"}
        if space.space_id in started:
            facts["trained on from"] = started[space.space_id]
        sources = [f"events/{space.data_fingerprint}", f"space/{started.get(space.space_id)}"]
        found.add(Node("space", space.space_id, space.train_end, facts, space.artifact), sources)
    for version in ledger.versions():
        space = spaces[version.space_id]
        facts = {"owner": version.owner, "description": version.description, "space": space.space_id}
        facts["continued by"] = continued_by(ws, version.version)
        found.add(Node("version", version.version, space.train_end, facts), [f"space/{space.space_id}"])
    carried = lifecycle.bridged(ledger)
    _add_snapshots(found, ws, [item for item in ledger.snapshots(accepted=True) if item.snapshot_id not in carried])
    _add_bridges(found, ws)
    _add_snapshots(found, ws, [item for item in ledger.snapshots(accepted=True) if item.snapshot_id in carried])
    _add_views(found, ws)
    _add_consumers(found, ws)
    _add_indexes(found, ws)
    live = releases.current_release(ledger)
    for release in releases.every(ledger):
        parts = [f"consumer/{name}" for name in release.consumers]
        parts += [f"index/{Path(release.index['artifact']).name}"] if release.index else []
        parts += [f"snapshot/{name}" for name in release.snapshots.values()]
        parts += [f"version/{name}" for name in release.versions]
        facts = {"live": live is not None and live.name == release.name, "spaces": release.versions}
        found.add(Node("release", release.name, release.created, facts), parts)
    return found


def _add_events(found: Graph, ws: Workspace, spaces: dict[str, Space]) -> None:
    """Add every event log that was ingested or trained on, by its fingerprint."""
    known = {row["fingerprint"]: row for row in ws.ledger.datasets()}
    ends = {space.data_fingerprint: space.train_end for space in spaces.values()}
    ends |= {name: datetime.fromisoformat(row["record"]["end"]) for name, row in known.items()}
    for fingerprint, end in ends.items():
        facts = {"fingerprint": fingerprint}
        if fingerprint in known:
            record = known[fingerprint]["record"]
            facts |= {"log": known[fingerprint]["name"], "rows": record["rows"]}
            facts |= {"from": record["start"][:10], "to": record["end"][:10]}
        found.add(Node("events", fingerprint, end, facts))


def _starts(ws: Workspace) -> dict[str, str]:
    """Return, by space, the space whose weights its training went on from."""
    records = [read_json(path) for path in sorted(ws.home.artifacts.glob("training-*/training.json"))]
    starts = {record["space_id"]: record["request"]["upstream"].get("start_from") for record in records}
    return {space: start for space, start in starts.items() if start is not None}


def _add_snapshots(found: Graph, ws: Workspace, snapshots: list[Snapshot]) -> None:
    carried = lifecycle.bridged(ws.ledger)
    logs = [node.name for node in found.nodes.values() if node.kind == "events"]
    for item in snapshots:
        told = ({"events": logs[0]} if len(logs) == 1 else {}) | _told(ws, item)
        sources = [f"events/{told['events']}"] if "events" in told else []
        facts: dict[str, Any] = {"as_of": _moment(item.as_of), "rows": item.rows, "sha256": item.sha256}
        if item.version is not None:
            sources.append(f"version/{item.version}")
            facts["space"] = item.space_id
        if "made_by" in told:
            sources.append(f"space/{told['made_by']}")
            facts["made by"] = told["made_by"]
        if item.snapshot_id in carried:
            bridge = carried[item.snapshot_id]
            sources += [f"space/{bridge['from_space']}", f"bridge/{Path(bridge['artifact']).name}"]
            facts["bridge"] = bridge["artifact"]
        if SMOOTHED_WITH in told:
            sources.append(f"snapshot/{told[SMOOTHED_WITH]}")
        found.add(Node("snapshot", item.snapshot_id, item.available_at, facts, item.path), sources)


def _moment(as_of: datetime) -> str:
    return f"{as_of:%Y-%m-%d}" if as_of.hour == as_of.minute == as_of.second == 0 else f"{as_of:%Y-%m-%dT%H:%M:%S}"


def _told(ws: Workspace, item: Snapshot) -> dict[str, str]:
    """Return what a snapshot's file says of its making; nothing where it is gone."""
    try:
        said = pq.read_schema(ws.home.root / item.path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return {}
    return {name.decode(): value.decode() for name, value in said.items() if name in MAKING}


def _add_bridges(found: Graph, ws: Workspace) -> None:
    for path in sorted(ws.home.artifacts.glob("bridge-*/bridge.json")):
        told = read_json(path)
        moments = [datetime.fromisoformat(moment) for moment in told["moments"]]
        pairs = [(entity, version) for entity in ENTITIES for version in (told["from"], told["into"])]
        sources = [
            f"snapshot/{embedding_view(entity, version)}-{moment_stem(moment)}"
            for entity, version in pairs
            for moment in moments
        ]
        facts = {"from": told["from"], "into": told["into"], "spaces": told["spaces"]}
        folder = path.parent
        node = Node("bridge", folder.name, max(moments), facts, str(folder.relative_to(ws.home.root)))
        found.add(node, [*(f"space/{space}" for space in told["spaces"].values()), *sources])


def _add_views(found: Graph, ws: Workspace) -> None:
    for view in ws.ledger.views():
        snapshots = [
            node
            for node in found.nodes.values()
            if node.kind == "snapshot" and node.name.rsplit("-", 1)[0] == view.name
        ]
        if snapshots:
            newest = max(snapshots, key=lambda node: node.at)
            facts = {"snapshots": len(snapshots), "latest": newest.name, "space": newest.facts.get("space")}
            node = Node("view", view.name, newest.at, facts, f"lake/{view.name}")
            found.add(node, [node.key for node in snapshots])


def _add_consumers(found: Graph, ws: Workspace) -> None:
    views = {view.name: view for view in ws.ledger.views()}
    spaces = {version.version: version.space_id for version in ws.ledger.versions()}
    for manifest in ws.ledger.training_sets():
        wanted = manifest["request"]["views"]
        read = [item for item in ws.ledger.snapshots(accepted=True) if item.view in wanted]
        sources = [f"snapshot/{item.snapshot_id}" for item in read if reaches(manifest, item, views[item.view])]
        facts = {"rows": manifest.get("rows"), "leaks": manifest.get("leaks"), "spaces": manifest.get("spaces")}
        at, name = datetime.fromisoformat(manifest["end"]), manifest["service"]
        events = f"events/{manifest['request']['fingerprint']}"
        found.add(Node("training set", name, at, facts, f"training_sets/{name}"), [events, *sources])
    for consumer in ws.ledger.consumers():
        record, name = consumer["record"], consumer["name"]
        sources = [f"training set/{name}"]
        if "snapshot" in record:
            moment = record["snapshot"].rsplit("-", 1)[1]
            sources += [f"snapshot/{view}-{moment}" for view in record["views"]]
        pinned = {version: spaces.get(version, "unknown") for version in consumer["versions"]}
        facts = {"task": consumer["task"], "spaces": pinned}
        facts |= {word: record[key] for word, key in MEASURED.items() if key in record}
        known = [found.nodes[key].at for key in sources if key in found.nodes]
        if known:
            found.add(Node("consumer", name, max(known), facts, record.get("artifact")), sources)


def _add_indexes(found: Graph, ws: Workspace) -> None:
    for path in sorted(ws.home.artifacts.glob("index-*/index.json")):
        told = read_json(path)
        made_of = f"snapshot/{told['snapshot_id']}"
        if made_of in found.nodes:
            facts = {"space": told["space_id"], "items": told.get("items")}
            folder = path.parent
            at = found.nodes[made_of].at
            found.add(Node("index", folder.name, at, facts, str(folder.relative_to(ws.home.root))), [made_of])


def rows(whole: Graph, name: str) -> dict[str, list[dict[str, str]]]:
    """Return the artifact, what it was made from and what was made of it, as rows for a person."""
    node = whole.find(name)
    return {
        "This": [_row(node)],
        "Made from": _summed(whole.upstream(node.key)),
        "Made of it": _summed(whole.downstream(node.key)),
    }


def _summed(nodes: list[Node]) -> list[dict[str, str]]:
    """Return one row per artifact, but one per view for its snapshots."""
    views: dict[str, list[Node]] = {}
    for node in nodes:
        if node.kind == "snapshot":
            views.setdefault(node.name.rsplit("-", 1)[0], []).append(node)
    found = [_row(node) for node in nodes if node.kind != "snapshot"]
    for view, snapshots in sorted(views.items()):
        moments = sorted(str(node.facts["as_of"]) for node in snapshots)
        span = moments[0] if len(moments) == 1 else f"{moments[0]} to {moments[-1]}"
        spaces = ", ".join(sorted({str(node.facts["space"]) for node in snapshots if "space" in node.facts}))
        facts = f"{len(snapshots)} as of {span}" + (f", space: {spaces}" if spaces else "")
        found.append({"kind": "snapshots", "name": view, "facts": facts})
    return found


def _row(node: Node) -> dict[str, str]:
    facts = ", ".join(f"{key}: {value}" for key, value in node.facts.items() if value is not None)
    return {"kind": node.kind, "name": node.name, "facts": facts}


def openlineage(whole: Graph, name: str) -> list[dict[str, Any]]:
    """Return the OpenLineage run of every artifact involved, a START and a COMPLETE event each, sources first.

    Times are those of the data (what an artifact describes, or when a release was made): the same home folder gives
    the same events.
    """
    start = whole.find(name)
    involved = {node.key for node in (start, *whole.upstream(start.key), *whole.downstream(start.key))}
    made = [node for key, node in whole.nodes.items() if key in involved and whole.sources[key]]
    return [_event(whole, node, kind) for node in made for kind in ("START", "COMPLETE")]


def _event(whole: Graph, node: Node, kind: str) -> dict[str, Any]:
    facet = {"_producer": PRODUCER, "_schemaURL": f"{SCHEMA}/DatasetFacet", **node.facts}
    output = {"namespace": NAMESPACE, "name": node.key, "facets": {"headwater": facet}}
    return {
        "eventType": kind,
        "eventTime": node.at.isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{SCHEMA}/RunEvent",
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{node.key}"))},
        "job": {"namespace": NAMESPACE, "name": f"make {node.kind}"},
        "inputs": [{"namespace": NAMESPACE, "name": source} for source in whole.sources[node.key]],
        "outputs": [output] if kind == "COMPLETE" else [],
    }
