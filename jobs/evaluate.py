"""Evaluate: the lift table on the test period, and the summary that report and people read."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.errors import NotReadyError
from feature_repo.lake import read_json, write_json
from jobs.evaluate_paper import adjust, published
from jobs.train_downstream import seeds_in
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Result:
    """The summary and where it lies."""

    path: Path
    summary: dict[str, Any]


def run(
    ws: Workspace,
    *,
    truth: Path | None = None,
    skipped: list[dict[str, str]] | None = None,
    progress: Progress = silent,
) -> Result:
    """Compute the lift table of every trained consumer and write ``reports/summary.json``.

    Parameters
    ----------
    truth
        Folder with the true probabilities of the log (`jobs.truth`), by default what the settings say: with it,
        every row says which share of the possible gain it has.
    skipped
        Tasks that could not run, as ``{"task": ..., "why": ...}``.

    Raises
    ------
    NotReadyError
        If no consumer was trained.
    ConfigError
        If the truth is that of another log.
    """
    truth = truth or ws.config.truth
    trained = [consumer for consumer in ws.ledger.consumers() if "artifact" in consumer["record"]]
    if not trained:
        raise NotReadyError("No consumer is trained yet. Run `headwater train-downstream NAME` first.")
    lift: list[dict[str, Any]] = []
    oracle: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    together: list[dict[str, Any]] = []
    curves = _upstream_curves(ws)
    found: dict[str, dict[str, Any]] = {}
    for step, consumer in enumerate(trained):
        progress(f"evaluate {consumer['name']}", step, len(trained))
        folder = ws.home.root / consumer["record"]["artifact"]
        if consumer["task"] == "retrieval":
            found[consumer["name"]] = read_json(folder / "scores.json")
            table = found[consumer["name"]]["table"]
            scores = {"recall_at_100": {row["model"]: round(row["recall_at_100"], 4) for row in table}}
        else:
            task = _task(consumer, folder)
            scored = Scored.read(ws, consumer, folder, truth)
            rows = _lift(ws, scored, task)
            oracle += [row for row in rows if row["embeddings"] == "oracle"]
            lift += [row for row in rows if row["embeddings"] != "oracle"]
            curves += [{**curve, "name": f"{task} {curve['name']}"} for curve in scored.curves]
            together += [{"task": task, **row} for row in _together(ws, scored)]
            progress(f"evaluate {consumer['name']}: sub-groups", step, len(trained))
            groups += [{"task": task, **row} for row in _groups(ws, scored)]
            scores = {"auc": {row["embeddings"]: round(row["auc"], 5) for row in rows if row["embeddings"] != "oracle"}}
        # Where lineage and Feast's tags find them; a consumer that is trained again has none until it is evaluated.
        record = {**consumer["record"], **scores}
        ws.ledger.put_consumer(consumer["name"], consumer["task"], consumer["versions"], record)
    adjust(lift)
    retrieval = _retrieval(found)
    progress("evaluate", len(trained), len(trained))
    timings = ws.home.reports / "timings.json"
    summary = {
        "dataset": _dataset(ws),
        "splits": ws.splits.model_dump(mode="json"),
        "versions": _versions(ws),
        "gate": _gate(ws),
        "training_sets": [_training_set(manifest) for manifest in ws.ledger.training_sets()],
        "lift": lift,
        "oracle": oracle,
        "together": together,
        "groups": groups,
        "bootstrap": ws.config.bootstrap,
        "skipped": skipped or [],
        "retrieval": retrieval.get("table", []),
        "retrieval_by_surface": retrieval.get("by_surface", []),
        "retrieval_setup": retrieval.get("setup"),
        "retrieval_validation": retrieval.get("validation"),
        "learning_curves": curves,
        "timings_s": read_json(timings) if timings.exists() else {},
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()},
    }
    path = ws.home.reports / "summary.json"
    write_json(summary, path)
    return Result(path, summary)


def _retrieval(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of all retrieval consumers as one; rows of several say whose they are, as do their users."""
    if len(found) < 2:
        return next(iter(found.values()), {})

    def rows(table: str, of: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        each = ((name, row) for name, scores in of.items() for row in scores.get(table) or [])
        return [{**row, "model": f"{name}: {row['model']}"} for name, row in each]

    before = {name: scores["validation"] for name, scores in found.items() if scores.get("validation")}
    return {
        **next(iter(found.values())),
        "table": rows("table", found),
        "by_surface": rows("by_surface", found),
        "validation": {**next(iter(before.values())), "table": rows("table", before)} if before else None,
    }


def _task(consumer: dict[str, Any], folder: Path) -> str:
    """Return the task of a consumer, with the part of the log that it is for where it has one."""
    request = read_json(folder / "consumer.json").get("request", {})
    where = request.get("training_set", {}).get("where", {})
    return str(consumer["task"]) + "".join(f" {name}={value}" for name, value in where.items())


@dataclass(frozen=True)
class Scored:
    """The test rows of a consumer with the logits of every ranker: N rows, S seeds.

    Attributes
    ----------
    facts
        Label, weight and user, [N] each.
    baseline, treatments
        Logits [S, N] without embeddings, and by name with them.
    oracle
        Logits of the true probabilities [N], where they are known.
    rows
        What else is known of the rows.
    """

    facts: tuple[np.ndarray, np.ndarray, np.ndarray]
    baseline: np.ndarray
    treatments: dict[str, np.ndarray]
    oracle: np.ndarray | None
    rows: pl.DataFrame
    curves: list[dict[str, Any]]

    @classmethod
    def read(cls, ws: Workspace, consumer: dict[str, Any], folder: Path, truth: Path | None) -> Scored:
        from jobs.truth import oracle_logits

        test = np.load(folder / "test.npz")
        logits, curves = {}, []
        for variant in read_json(folder / "consumer.json")["variants"]:
            place = folder / ("-".join(variant["views"]) or "none")
            seeds = [place / f"seed-{seed}" for seed in range(seeds_in(folder))]
            logits[variant["name"]] = np.stack([np.load(seed / "test.npz")["logit"] for seed in seeds])
            curves.append({"name": variant["name"], "points": read_json(seeds[0] / "curve.json")["points"]})
        rows = _test_rows(ws, consumer["name"], len(test["label"]))
        oracle = None if truth is None else oracle_logits(truth, consumer["task"], rows["impression_id"])
        facts = test["label"], test["weight"], test["user"]
        return cls(facts, logits.pop("none"), logits, oracle, rows, curves)


def _lift(ws: Workspace, scored: Scored, task: str) -> list[dict[str, Any]]:
    from jobs.evaluate_groups import too_few
    from models.bootstrap import bootstrap_lift

    label, _, user = scored.facts
    table = bootstrap_lift(
        *scored.facts,
        scored.baseline,
        scored.treatments,
        oracle=scored.oracle,
        resamples=ws.config.bootstrap,
        seed=0,
    )
    conversion_versions = [upstream.version for upstream in ws.config.upstreams if upstream.click_weight == 0]
    rows = []
    for key, row in table.items():
        name = "none" if key == "baseline" else key
        rows.append(
            {
                "task": task,
                "embeddings": name,
                "auc": row.auc.value,
                "log_loss": row.log_loss.value,
                "normalized_entropy": row.normalized_entropy.value,
                "calibration": row.calibration.value,
                "expected_calibration_error": _calibration_error(scored, key),
                "relative_auc_lift": row.relative_auc_lift.value,
                "ci95": list(row.relative_auc_lift.ci95),
                "lift_error": row.relative_auc_lift.error,
                "published_lift": published(task, name, conversion_versions),
                "auc_ci95": list(row.auc.ci95),
                "seed_auc_lifts": list(row.seed_auc_lifts),
                "share_of_possible_gain": share.value if (share := row.share_of_possible_gain) else None,
                "share_ci95": list(share.ci95) if share else None,
                "seeds": 1 if key == "oracle" else len(scored.baseline),
                "rows": len(label),
                "positives": int(label.sum()),
                "too_few": too_few(label, user),
            }
        )
    return rows


def _calibration_error(scored: Scored, key: str) -> float | None:
    """Return how far predictions lie from the observed rate of their bin, mean over seeds; None for an oracle."""
    from models.metrics import calibration

    logits = scored.baseline if key == "baseline" else scored.treatments.get(key)
    if logits is None:
        return None
    label, weight, _ = scored.facts
    return float(np.mean([calibration(label, row, weight).expected_error for row in logits]))


def _together(ws: Workspace, scored: Scored) -> list[dict[str, Any]]:
    """Hold the ranker with every embedding against each with the embeddings of one upstream: what does more add?"""
    from models.bootstrap import bootstrap_lift

    *others, last = scored.treatments
    rows = []
    for name in (name for name in others if name != "user"):
        compared = {last: scored.treatments[last]}
        found = bootstrap_lift(*scored.facts, scored.treatments[name], compared, resamples=ws.config.bootstrap)
        lift = found[last].relative_auc_lift
        rows.append({"embeddings": last, "against": name, "relative_auc_lift": lift.value, "ci95": list(lift.ci95)})
    return rows


def _groups(ws: Workspace, scored: Scored) -> list[dict[str, Any]]:
    from jobs.evaluate_groups import groups_of, lift_by_group

    # The row that the headline is about, and the one with everything in it.
    names = [name for name in ("user+item", list(scored.treatments)[-1]) if name in scored.treatments]
    return lift_by_group(
        groups_of(ws, scored.rows),
        scored.facts,
        scored.baseline,
        {name: scored.treatments[name] for name in names},
        oracle=scored.oracle,
        resamples=ws.config.bootstrap,
    )


def _test_rows(ws: Workspace, name: str, expected: int) -> pl.DataFrame:
    """Return ids and context of a consumer's test rows, in the order of its scores."""
    import polars as pl

    folder = ws.home.training_sets / name
    files = [folder / part for part in read_json(folder / "manifest.json")["files"]]
    known = set(pl.read_parquet_schema(files[0]))
    context = [column for column in ws.log.context_columns.categorical if column in known]
    columns = ["event_timestamp", "impression_id", "user_id", "item_id", *context]
    rows = pl.read_parquet(files, columns=columns)
    rows = rows.filter(pl.col("event_timestamp") >= ws.splits.valid_end)
    if rows.height != expected:
        raise NotReadyError(
            f"'{name}' was trained on another training set than lies there. Run `headwater train-downstream {name}`."
        )
    return rows


def _upstream_curves(ws: Workspace) -> list[dict[str, Any]]:
    curves = []
    for version in ws.ledger.versions():
        for path in sorted(ws.home.artifacts.glob(f"training-{version.version}-*/training.json")):
            record = read_json(path)
            if record["space_id"] == version.space_id and record["curve"]:
                points = [
                    {
                        "step": point["step"],
                        "loss": point["total"],
                        "click_loss": point["click"],
                        "conversion_loss": point["conversion"],
                        "contrastive_loss": point["contrastive"],
                    }
                    for point in record["curve"]
                ]
                curves.append({"name": f"upstream {version.version}", "points": points})
    return curves


def _dataset(ws: Workspace) -> dict[str, Any]:
    record = ws.log.record
    outcomes = ("impression", "click", "conversion")
    return {
        "name": record.name,
        **{f"{kind}s": record.counts.get(kind, 0) for kind in outcomes},
        "activity": sum(count for kind, count in record.counts.items() if kind not in outcomes),
        "users": record.users,
        "items": record.items,
        "start": record.start,
        "end": record.end,
        "fingerprint": record.fingerprint,
    }


def _versions(ws: Workspace) -> list[dict[str, Any]]:
    rows = []
    for version in ws.ledger.versions():
        space = ws.ledger.space(version.space_id)
        snapshots = [s for s in ws.ledger.snapshots(accepted=True) if s.version == version.version]
        rows.append(
            {
                "version": version.version,
                "space_id": space.space_id,
                "dim": space.dim,
                "snapshots": len(snapshots),
                "description": version.description,
                "train_end": space.train_end.isoformat(),
                "smoothing": version.smoothing,
            }
        )
    return rows


def _gate(ws: Workspace) -> dict[str, Any]:
    snapshots = ws.ledger.snapshots()
    return {
        "accepted": sum(snapshot.accepted for snapshot in snapshots),
        "refused": sum(not snapshot.accepted for snapshot in snapshots),
        "snapshots": [
            {
                "snapshot_id": snapshot.snapshot_id,
                "view": snapshot.view,
                "as_of": snapshot.as_of.isoformat(),
                "rows": snapshot.rows,
                "accepted": snapshot.accepted,
                "checks": snapshot.verdict.to_dict()["checks"],
                "seconds": snapshot.verdict.seconds,
            }
            for snapshot in snapshots
        ],
    }


def _training_set(manifest: dict[str, Any]) -> dict[str, Any]:
    kept = ("service", "rows", "leaks", "rows_per_s", "seconds", "hit_rates", "leak_report")
    return {name: manifest[name] for name in kept}
