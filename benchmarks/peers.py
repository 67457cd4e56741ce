"""What people would use instead, trained with equal care on the same rows, labels and periods.

Clicks and conversions: LightGBM on the ranker's plain features, with the vectors of a plain SVD, and with ours; our
ranker with the SVD's vectors in place of ours, and with those of each further upstream alone; and a monolith, the
ranker with the upstream's towers inside, as the ceiling, with what a request costs. Retrieval: ALS, BPR and item-kNN of
`implicit`, and SASRec of RecBole where it is installed. Settings are chosen before the test period, lifts are against
our ranker without vectors, intervals resample users.
docs/peers.md says what was compared and how it came out.

    make bench-peers                                   # on the demo's home folder
    python -m benchmarks.peers --home HOME --parts trees retrieval
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers_monolith, peers_retrieval, peers_sasrec, peers_trees, quality_records
from benchmarks.peers_rows import Rows, Vectors, digest, oracle_of, our_logits, rows_of, svd_vectors
from benchmarks.peers_tables import ALL, OURS, SVD, alone, lift_row, records, show
from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.lake import read_json, replacing, write_json
from jobs.refresh import Upstream
from jobs.train_downstream import fit_config
from jobs.workspace import Workspace
from models.bootstrap import bootstrap_lift
from models.downstream.fit import fit_ranker, predict

RESULTS = Path(__file__).parent / "results" / "peers.json"
PARTS = ("retrieval", "rankers", "trees", "cost", "monolith")
PLAIN = ("ranker", "none")
Name = tuple[str, str]  # model, embeddings


def main() -> None:
    """Measure the chosen parts, print the tables, keep the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".headwater"), help="home folder after `headwater run`")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--tasks", nargs="*", default=["ctr", "cvr"], choices=["ctr", "cvr"])
    parser.add_argument("--sasrec-python", type=Path, help="interpreter of an environment with RecBole")
    parser.add_argument("--dataset", help="name in the records; the ingested log's by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ws = Workspace.open(arguments.home.resolve())
    ws.use_threads()
    dataset = arguments.dataset or ws.log.record.name
    report = read_json(arguments.out) if arguments.out.exists() else {}
    found: dict[str, Any] = report.setdefault(dataset, {})
    started = time.monotonic()

    def tell(what: str, done: int = 0, total: int = 0) -> None:
        count = f" ({done} of {total})" if total else ""
        print(f"[{time.monotonic() - started:6.0f} s] {what}{count}", flush=True)

    if "retrieval" in arguments.parts:
        found["retrieval"] = retrieval(ws, tell, arguments.sasrec_python)
    for consumer in ws.config.consumers:
        if consumer.task in arguments.tasks and set(arguments.parts) - {"retrieval"}:
            contest = Contest(ws, rows_of(ws, consumer.name), tell)
            found[consumer.task] = contest.run(arguments.parts, found.get(consumer.task))
        write_json(report, arguments.out)
    write_json(report, arguments.out)
    show(found)
    quality_records.put(records(dataset, found))
    print(f"Written to {arguments.out} and {quality_records.RESULTS}")


def place_of(ws: Workspace) -> Path:
    """Return the folder of what is done already, so that a killed run goes on."""
    return ws.home.root / "benchmarks" / "peers"


def retrieval(ws: Workspace, tell: Callable[..., None], python: Path | None) -> list[dict[str, Any]]:
    """Return the rows of the retrieval table."""
    consumer = next((consumer for consumer in ws.config.consumers if consumer.task == "retrieval"), None)
    if consumer is None:
        raise NotReadyError(f"{ws.home.root} has no consumer for retrieval: add one to config.yaml.")
    version = consumer.versions[0]
    space = ws.ledger.version(version).space_id
    folder = place_of(ws) / f"retrieval-{digest(space, ws.log.fingerprint)}"
    others = {}
    if python is not None:
        others["SASRec"] = lambda asked: peers_sasrec.scored(asked, python, folder / "sasrec", tell)
    return peers_retrieval.compare(ws, version, folder, ws.config.seeds, tell, others)


@dataclass
class Contest:
    """One task's models, each kept as its test logits [S, N]."""

    ws: Workspace
    rows: Rows
    tell: Callable[..., None]

    @cached_property
    def folder(self) -> Path:
        """Where logits are kept: another training set or budget has another folder."""
        request = self.rows.source.manifest["request"]
        return place_of(self.ws) / f"{self.rows.name}-{digest(request, asdict(fit_config(len(self.rows.data))))}"

    @property
    def count(self) -> int:
        """How many seeds each model has: as many as our rankers."""
        return self.ws.config.seeds_of(self.ws.config.consumer(self.rows.name))

    @cached_property
    def svd(self) -> dict[str, Vectors]:
        """The plain SVD's vectors."""
        self.tell("SVD of the counts at every refresh")
        return svd_vectors(self.ws, self.rows)

    @property
    def ours(self) -> dict[str, Vectors]:
        """The published vectors."""
        return dict(self.rows.data.embeddings)  # type: ignore[arg-type]

    @cached_property
    def further(self) -> dict[str, dict[str, Vectors]]:
        """The published vectors of each further upstream by the name that the table has for it alone."""
        versions = self.ws.config.consumer(self.rows.name).versions[1:]
        views = {version: [embedding_view(entity, version) for entity in ENTITIES] for version in versions}
        return {alone(each): {view: self.rows.source.vectors(view) for view in views[each]} for each in versions}

    def vectors(self, name: str) -> dict[str, Vectors]:
        """Return embeddings by the name that the table has for them."""
        if name in self.further:
            return self.further[name]
        return {"none": lambda: {}, SVD: lambda: self.svd, OURS: lambda: self.ours}[name]()

    def run(self, parts: list[str], known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Train what is missing; return the rows of the table, comparisons and costs.

        What is not asked for stays as `known` has it, costs and lifts alike: neither depends on the other.
        """
        if known is not None and set(parts) - {"retrieval"} == {"cost"}:
            return known | {"ranking_cost": self._cost()}
        own = our_logits(self.ws, self.rows)
        logits: dict[Name, np.ndarray] = {PLAIN: own["none"], ("ranker", OURS): own["v1"], ("ranker", ALL): own["all"]}
        facts: dict[str, Any] = {}
        if "rankers" in parts:
            for embeddings in (SVD, *self.further):
                name = f"ranker-{embeddings.replace(' ', '-')}"
                # With `each_alone` the home folder has the rankers of further versions already.
                trained = own.get("-".join(self.further.get(embeddings, ())))
                fitted = self.seeds(name, partial(self._ranker, embeddings)) if trained is None else trained
                logits["ranker", embeddings] = fitted
        if "trees" in parts:
            for embeddings in ("none", SVD, OURS):
                logits["LightGBM", embeddings], facts[f"LightGBM, {embeddings}"] = self._trees(embeddings)
        if "monolith" in parts:
            monolith, facts["monolith"] = self._monolith()
            logits |= monolith
        cost = self._cost() if "cost" in parts else (known or {}).get("ranking_cost")
        return self._table(logits) | {"settings": facts, "ranking_cost": cost}

    @cached_property
    def upstream(self) -> Upstream:
        """The model that the first version's vectors come from."""
        version = self.rows.views[0].rsplit("_", 1)[1]
        return Upstream(self.ws, self.ws.ledger.space(self.ws.ledger.version(version).space_id))

    @cached_property
    def known(self) -> peers_monolith.Histories:
        """What was known of users and items at every refresh."""
        self.tell(f"{self.rows.task}: users and items at every refresh")
        return peers_monolith.histories(self.ws, self.rows, self.upstream)

    def kept(self, name: str, compute: Callable[[], tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, Any]:
        """Return test logits [N] and facts, computed once."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            self.tell(f"{self.rows.task}: {name}")
            logits, facts = compute()
            with replacing(file) as staged, staged.open("wb") as out:
                np.savez(out, logits=logits, facts=json.dumps(facts))
        with np.load(file) as found:
            return found["logits"], json.loads(str(found["facts"]))

    def seeds(self, name: str, compute: Callable[[int], tuple[np.ndarray, dict[str, Any]]]) -> np.ndarray:
        """Return test logits [S, N] of all seeds."""

        def one(seed: int) -> np.ndarray:
            return self.kept(f"{name}-seed-{seed}", lambda: compute(seed))[0]

        return np.stack([one(seed) for seed in range(self.count)])

    def _ranker(self, embeddings: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        vectors = self.vectors(embeddings)
        train, valid, test = self.rows.periods(vectors)
        fitted = fit_ranker(train, valid, self.rows.spec(vectors), fit_config(len(self.rows.data)), seed)
        loss = min(point.valid_log_loss for point in fitted.history)
        return predict(fitted.model, test) + fitted.offset, {"valid_log_loss": loss, "seconds": fitted.seconds}

    def _trees(self, embeddings: str) -> tuple[np.ndarray, dict[str, Any]]:
        tables: dict[str, peers_trees.Table] = {}

        def fitted(setting: peers_trees.Setting, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
            if setting.weeks not in tables:
                tables[setting.weeks] = peers_trees.features(self.rows, setting.weeks, self.vectors(embeddings))
            found = peers_trees.fit(self.rows, tables[setting.weeks], setting, seed)
            return found.logits, {"valid_log_loss": found.valid_log_loss, "rounds": found.rounds}

        def one(setting: peers_trees.Setting, seed: int) -> tuple[np.ndarray, Any]:
            name = f"trees-{embeddings.replace(' ', '-')}-{digest(asdict(setting))}-seed-{seed}"
            return self.kept(name, lambda: fitted(setting, seed))

        tried = [one(setting, 0)[1] for setting in peers_trees.SEARCH]
        best = int(np.argmin([facts["valid_log_loss"] for facts in tried]))
        setting = peers_trees.SEARCH[best]
        logits = np.stack([one(setting, seed)[0] for seed in range(self.count)])
        return logits, {**asdict(setting), **tried[best], "tried": len(tried)}

    def _monolith(self) -> tuple[dict[Name, np.ndarray], dict[str, Any]]:
        def fitted(start: str, rates: dict[str, float], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
            found = peers_monolith.fit(self.ws, self.rows, self.known, self.upstream, start, rates, seed)
            return found.logits, {"valid_log_loss": found.valid_log_loss, "seconds": found.seconds}

        def one(start: str, rates: dict[str, float], seed: int) -> tuple[np.ndarray, Any]:
            name = f"monolith-{start}-{digest(rates)}-seed-{seed}"
            return self.kept(name, lambda: fitted(start, rates, seed))

        logits: dict[Name, np.ndarray] = {}
        facts: dict[str, Any] = {}
        for start in peers_monolith.STARTS:
            tried = [one(start, rates, 0)[1] for rates in peers_monolith.SEARCH]
            best = int(np.argmin([each["valid_log_loss"] for each in tried]))
            rates = peers_monolith.SEARCH[best]
            logits["monolith", f"inside, {start} start"] = np.stack(
                [one(start, rates, seed)[0] for seed in range(self.count)]
            )
            facts[start] = {"rates": rates, **tried[best], "tried": len(tried)}
        return logits, facts

    def _cost(self) -> dict[str, Any]:
        """Return milliseconds of a request of 500 candidates; what the weights are makes no difference to them."""
        self.tell(f"{self.rows.task}: time requests")
        readers = {OURS: self.ours, **self.further}
        readers[ALL] = {view: found for each in readers.values() for view, found in each.items()}
        model = peers_monolith.untrained(self.rows, self.upstream)
        times, candidates = peers_monolith.ranking_cost(self.rows, self.known, model, readers)
        return {
            "candidates": candidates,
            "milliseconds": {kind: float(np.median(values)) for kind, values in times.items()},
            "fastest_milliseconds": {kind: float(np.min(values)) for kind, values in times.items()},
        }

    def _table(self, logits: dict[Name, np.ndarray]) -> dict[str, Any]:
        test = self.rows.chosen[2]
        facts = self.rows.data.label[test], self.rows.data.weight[test], self.rows.data.user[test]
        oracle = oracle_of(self.ws, self.rows)
        resamples = self.ws.config.bootstrap
        named = {" | ".join(name): values for name, values in logits.items()}
        baseline = named.pop(" | ".join(PLAIN))
        self.tell(f"{self.rows.task}: intervals")
        table = bootstrap_lift(*facts, baseline, named, oracle=oracle, resamples=resamples)
        table = {" | ".join(PLAIN) if name == "baseline" else name: row for name, row in table.items()}
        against = []
        for treatment, other in (
            (("ranker", OURS), ("ranker", SVD)),
            (("LightGBM", SVD), ("LightGBM", "none")),
            (("LightGBM", OURS), ("LightGBM", "none")),
            (("LightGBM", OURS), ("LightGBM", SVD)),
            (("ranker", OURS), ("LightGBM", OURS)),
            (("ranker", OURS), ("LightGBM", "none")),
            (("ranker", ALL), ("ranker", OURS)),
            (("ranker", ALL), ("ranker", SVD)),
            *((("ranker", ALL), ("ranker", name)) for name in self.further),
            (("ranker", ALL), ("LightGBM", SVD)),
            *(
                (("ranker", name), monolith)
                for name in (*self.further, ALL)
                for monolith in logits
                if monolith[0] == "monolith"
            ),
        ):
            if treatment in logits and other in logits:
                name = " | ".join(treatment)
                pair = bootstrap_lift(*facts, logits[other], {name: logits[treatment]}, resamples=resamples)
                lift = pair[name].relative_auc_lift
                against.append(
                    {"model": name, "against": " | ".join(other), "lift": lift.value, "ci95": list(lift.ci95)}
                )
        return {
            "lift": [lift_row(name, row) for name, row in table.items()],
            "against": against,
            "rows": len(facts[0]),
            "positives": int(facts[0].sum()),
            "seeds": self.count,
        }


if __name__ == "__main__":
    main()
