"""Lineage: what anything was made from and what was made of it, from the events' fingerprint to the AUC."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import NotFoundError
from feature_repo.lake import read_json
from jobs.versions import reaches
from jobs.workspace import Workspace

NAMESPACE = "headwater"
PRODUCER = "urn:headwater"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/definitions/RunEvent"


@dataclass(frozen=True)
class Node:
    """One artifact: what it is, when it came to be in the data's time, and what is known of it."""

    kind: str
    name: str
    at: datetime
    facts: dict[str, Any]

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
        """Return the artifact of a name, a key, or the beginning of an event fingerprint.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        exact = [node for key, node in self.nodes.items() if name in (key, node.name)]
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
        """Return everything that was made of an artifact, nearest first."""
        products: dict[str, list[str]] = {}
        for product, sources in self.sources.items():
            for source in sources:
                products.setdefault(source, []).append(product)
        return self._walk(key, products)

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
    """Read the ledger into a graph. Sources are added before what is made of them."""
    found = Graph()
    ledger = ws.ledger
    spaces = {space.space_id: space for space in ledger.spaces()}
    for space in spaces.values():
        events = Node("events", space.data_fingerprint, space.train_end, {"fingerprint": space.data_fingerprint})
        found.nodes.setdefault(events.key, events)
        found.sources.setdefault(events.key, [])
        facts = {"floats": space.dim, "trained before": f"{space.train_end:%Y-%m-%d}", "weights": space.artifact}
        found.add(Node("space", space.space_id, space.train_end, facts), [events.key])
    for version in ledger.versions():
        space = spaces[version.space_id]
        facts = {"owner": version.owner, "description": version.description, "space": space.space_id}
        found.add(Node("version", version.version, space.train_end, facts), [f"space/{space.space_id}"])
    _add_snapshots(found, ws)
    _add_consumers(found, ws)
    for release in releases.every(ledger):
        parts = [f"consumer/{name}" for name in release.consumers]
        parts += [f"snapshot/{release.index['snapshot_id']}"] if release.index else []
        parts += [f"version/{name}" for name in release.versions]
        live = releases.current_release(ledger)
        facts = {"live": live is not None and live.name == release.name, "spaces": release.versions}
        found.add(Node("release", release.name, release.created, facts), parts)
    return found


def _add_snapshots(found: Graph, ws: Workspace) -> None:
    carried = lifecycle.bridged(ws.ledger)
    smoothing = {version.version: version.smoothing for version in ws.ledger.versions()}
    previous: dict[str, str] = {}
    for item in ws.ledger.snapshots(accepted=True):
        sources = [] if item.version is None else [f"version/{item.version}"]
        facts = {"as_of": f"{item.as_of:%Y-%m-%d}", "rows": item.rows, "sha256": item.sha256, "space": item.space_id}
        if item.snapshot_id in carried:
            bridge = carried[item.snapshot_id]
            sources.append(f"space/{bridge['from_space']}")
            facts["bridge"] = bridge["artifact"]
        if item.view in previous and smoothing.get(item.version or "") is not None:
            sources.append(previous[item.view])
        node = Node("snapshot", item.snapshot_id, item.available_at, facts)
        found.add(node, sources)
        previous[item.view] = node.key
    for view in ws.ledger.views():
        snapshots = [node for node in found.nodes.values() if node.name.startswith(f"{view.name}-")]
        if snapshots:
            facts = {"snapshots": len(snapshots), "latest": snapshots[-1].name}
            found.add(Node("view", view.name, snapshots[-1].at, facts), [node.key for node in snapshots])


def _add_consumers(found: Graph, ws: Workspace) -> None:
    views = {view.name: view for view in ws.ledger.views()}
    summary_file = ws.home.reports / "summary.json"
    summary = read_json(summary_file) if summary_file.exists() else {}
    for manifest in ws.ledger.training_sets():
        wanted = manifest["request"]["views"]
        read = [item for item in ws.ledger.snapshots(accepted=True) if item.view in wanted]
        sources = [f"snapshot/{item.snapshot_id}" for item in read if reaches(manifest, item, views[item.view])]
        facts = {"rows": manifest.get("rows"), "leaks": manifest.get("leaks"), "spaces": manifest.get("spaces")}
        at = datetime.fromisoformat(manifest["end"])
        events = f"events/{manifest['request']['fingerprint']}"
        found.add(Node("training set", manifest["service"], at, facts), [events, *sources])
    for consumer in ws.ledger.consumers():
        record, name = consumer["record"], consumer["name"]
        sources = [f"training set/{name}"]
        if "snapshot" in record:
            sources.append(f"snapshot/{record['snapshot']}")
        facts = {"task": consumer["task"], "versions": consumer["versions"], "artifact": record.get("artifact")}
        lift = [row for row in summary.get("lift", []) if row["task"] == consumer["task"]]
        if lift:
            facts["AUC"] = {row["embeddings"]: round(row["auc"], 5) for row in lift}
        if consumer["task"] == "retrieval" and summary.get("retrieval"):
            facts["recall at 100"] = {row["model"]: round(row["recall_at_100"], 4) for row in summary["retrieval"]}
        known = [found.nodes[key].at for key in sources if key in found.nodes]
        if known:
            found.add(Node("consumer", name, max(known), facts), sources)


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
        spaces = ", ".join(sorted({str(node.facts["space"]) for node in snapshots if node.facts["space"]}))
        facts = f"{len(snapshots)} as of {span}" + (f", space: {spaces}" if spaces else "")
        found.append({"kind": "snapshots", "name": view, "facts": facts})
    return found


def _row(node: Node) -> dict[str, str]:
    facts = ", ".join(f"{key}: {value}" for key, value in node.facts.items() if value is not None)
    return {"kind": node.kind, "name": node.name, "facts": facts}


def openlineage(whole: Graph, name: str) -> list[dict[str, Any]]:
    """Return one OpenLineage run event per artifact involved, sources first.

    Times are those of the data (what an artifact describes, or when a release was made): the same home folder gives
    the same events.
    """
    start = whole.find(name)
    involved = {node.key for node in (start, *whole.upstream(start.key), *whole.downstream(start.key))}
    return [_event(whole, node) for key, node in whole.nodes.items() if key in involved and whole.sources[key]]


def _event(whole: Graph, node: Node) -> dict[str, Any]:
    facet = {"_producer": PRODUCER, "_schemaURL": f"{SCHEMA.split('#')[0]}#/definitions/DatasetFacet", **node.facts}
    return {
        "eventType": "COMPLETE",
        "eventTime": node.at.isoformat(),
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{node.key}"))},
        "job": {"namespace": NAMESPACE, "name": f"make {node.kind}"},
        "inputs": [{"namespace": NAMESPACE, "name": source} for source in whole.sources[node.key]],
        "outputs": [{"namespace": NAMESPACE, "name": node.key, "facets": {"headwater": facet}}],
    }
