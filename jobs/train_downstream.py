"""Train one consumer: rankers with and without each embedding group, over several seeds; or retrieval."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import embedding_view
from feature_repo.contracts.spaces import check_pins
from feature_repo.lake import read_json, replacing, write_json
from jobs.lanes import side_by_side
from jobs.training_set import LABELS
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from jobs.config import Consumer
    from models.downstream.fit import FitConfig

STEPS_PER_EPOCH, SMALLEST_BATCH, LARGEST_BATCH = 200, 128, 2048


@dataclass(frozen=True)
class Variant:
    """One row of the lift table: its name and the embedding views the ranker reads."""

    name: str
    views: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Folder name of its artifacts."""
        return "-".join(self.views) or "none"


@dataclass(frozen=True)
class Result:
    """Where a consumer's rankers and their test predictions lie."""

    consumer: str
    folder: Path
    variants: tuple[Variant, ...]
    reused: bool = False


def variants_of(versions: tuple[str, ...], each_alone: bool = False) -> tuple[Variant, ...]:
    """Return the rows of the lift table, like the paper's: none, user, user and item, then each further upstream.

    With `each_alone` the further upstreams also have rows of their own, before they are added.
    """
    first, *others = versions
    views = [embedding_view("user", first)]
    found = [Variant("none", ()), Variant("user", tuple(views))]
    views.append(embedding_view("item", first))
    found.append(Variant("user+item", tuple(views)))
    for version in others if each_alone else ():
        pair = (embedding_view("user", version), embedding_view("item", version))
        found.append(Variant(f"user+item of {version}", pair))
    for version in others:
        views += [embedding_view("user", version), embedding_view("item", version)]
        found.append(Variant(f"user+item, {version} added", tuple(views)))
    return tuple(found)


def run(ws: Workspace, name: str, *, progress: Progress = silent) -> Result:
    """Train the rankers of a consumer and predict the test period.

    Every variant has the same fields, budget and seeds, and differs in its embeddings alone. Rankers train on
    labels between the upstream cut-off and ``train_end``, as they had arrived by then; the epoch is chosen on
    the validation period. A ranker that is there with the same inputs is kept, so a killed run goes on.

    Raises
    ------
    NotReadyError
        If the training set is missing, or one of the periods has one class only.
    SpaceMismatchError
        If the training set holds vectors of another space than its versions stand for.
    """
    consumer = ws.config.consumer(name)
    manifest_file = ws.home.training_sets / name / "manifest.json"
    if not manifest_file.exists():
        raise NotReadyError(f"'{name}' has no training set yet. Run `headwater training-set {name}` first.")
    manifest = read_json(manifest_file)
    spaces = {version: ws.ledger.version(version).space_id for version in consumer.versions}
    check_pins(manifest.get("spaces", spaces), spaces, who=f"The training set of {name}")
    config = fit_config(manifest["rows"], consumer)
    request = _request(ws, consumer, manifest, config)
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    folder = ws.home.artifacts / f"{name}-{key}"
    variants = variants_of(consumer.versions, consumer.each_alone)
    done = folder / "consumer.json"
    if not done.exists():
        # The largest first: then no process is left with a long one at the end.
        missing = [
            (variant, seed)
            for variant in reversed(variants)
            for seed in range(ws.config.seeds_of(consumer))
            if not (_place(folder, variant, seed) / "curve.json").exists()
        ]
        lane = partial(_lane, ws.home.root, name, config, folder)
        side_by_side(lane, missing, processes=ws.config.processes, progress=progress)
        write_json({"request": request, "spaces": spaces, "variants": [asdict(item) for item in variants]}, done)
        reused = False
    else:
        reused = True
    artifact = str(folder.relative_to(ws.home.root))
    record = {"views": manifest["request"]["views"], "artifact": artifact, "owner": consumer.owner}
    ws.ledger.put_consumer(name, consumer.task, list(consumer.versions), record)
    return Result(name, folder, variants, reused)


def seeds_in(artifact: Path) -> int:
    """Return how many rankers lie in a consumer's artifact per variant, whatever the settings say by now."""
    return int(read_json(artifact / "consumer.json")["request"]["seeds"])


def _request(ws: Workspace, consumer: Consumer, manifest: dict[str, Any], config: FitConfig) -> dict[str, Any]:
    """Say what decides the trained rankers, without what is not set: a new setting changes no ranker without it."""
    fit = asdict(config)
    for name in ("attention_heads", "centred"):
        if not fit["ranker"][name]:
            del fit["ranker"][name]
    request = {"training_set": manifest["request"], "seeds": ws.config.seeds_of(consumer), "fit": fit}
    own = {"each_alone": consumer.each_alone, "tokens": consumer.tokens, "calibration": consumer.calibration}
    return request | {name: value for name, value in own.items() if value}


def fit_config(rows: int, consumer: Consumer | None = None) -> FitConfig:
    """Return how a consumer's rankers are trained on a training set of so many rows.

    Batches are chosen for some two hundred steps per epoch, looks at the validation rows for fifty steps between
    them, and epochs for at least twelve hundred steps in all: early stopping, and not the budget, ends training.
    """
    from models.downstream.fit import FitConfig
    from models.downstream.ranker import RankerConfig

    batch = min(max(2 ** int(math.log2(max(rows, 1) / STEPS_PER_EPOCH + 1)), SMALLEST_BATCH), LARGEST_BATCH)
    steps = max(1, rows // batch)
    return FitConfig(
        ranker=RankerConfig(centred=True)
        if consumer is None
        else RankerConfig(attention_heads=consumer.attention_heads, centred=consumer.centred),
        batch_size=batch,
        # On the demo's validation rows as good as 7e-4, in three quarters of the steps; 2e-3 costs the baseline some.
        learning_rate=1.2e-3,
        evaluations_per_epoch=min(max(round(steps / 50), 1), 4),
        max_epochs=min(max(math.ceil(1200 / steps), 3), 12),
    )


def _place(folder: Path, variant: Variant, seed: int) -> Path:
    return folder / variant.folder / f"seed-{seed}"


def _lane(
    root: Path, name: str, config: FitConfig, folder: Path, runs: Iterator[tuple[Variant, int]], progress: Progress
) -> None:
    """Train and test one ranker after the other."""
    from jobs.features.ranking import TrainingSet
    from models.downstream.artifact import save_ranker
    from models.downstream.calibration import fit_calibration
    from models.downstream.fit import fit_ranker, predict

    ws = Workspace.open(root)
    ws.use_threads()
    progress(f"{name}: read the training set", 0, 1)
    splits, consumer = ws.splits, ws.config.consumer(name)
    source = TrainingSet(ws.home.training_sets / name, LABELS[consumer.task])
    train_rows = source.between(splits.upstream_end, splits.train_end)
    encoder = source.encoder(ws.log, consumer.versions, train_rows)
    vectors = {view: source.vectors(view) for view in source.views}
    dims = {view: table.shape[1] for view, (table, _) in vectors.items()}
    data = source.data(encoder, vectors)
    train = replace(data, label=source.known_by(splits.train_end)).take(train_rows)
    valid = replace(data, label=source.known_by(splits.valid_end)).take(
        source.between(splits.train_end, splits.valid_end)
    )
    test = data.take(source.between(splits.valid_end, None))
    for period, rows in (("training", train), ("validation", valid), ("test", test)):
        if len(rows) == 0 or rows.label.min() == rows.label.max():
            raise NotReadyError(
                f"The {period} period of '{name}' has {len(rows):,} rows of one class only. "
                "Set other splits in config.yaml."
            )
    encoder.save(folder / "encoder.json")
    _save_array(folder / "test.npz", label=test.label, weight=test.weight, user=test.user)
    spec = encoder.spec(dims)
    if consumer.tokens:
        spec = replace(spec, tokens=_tokens(ws, source.views))
    spaces = {view: ws.ledger.version(view.rsplit("_", 1)[1]).space_id for view in source.views}
    for variant, seed in runs:
        progress(f"{name}: {variant.name}, seed {seed}", 0, 1)
        place = _place(folder, variant, seed)
        fitted = fit_ranker(train, valid, spec.with_embeddings(variant.views), config, seed)
        extra: dict[str, Any] = {"offset": fitted.offset}
        logits = {"logit": predict(fitted.model, test) + fitted.offset}
        read = {view: spaces[view] for view in variant.views}
        if consumer.calibration is not None:
            odds = predict(fitted.model, valid) + fitted.offset
            learned = fit_calibration(consumer.calibration, valid.label, odds, valid.weight)
            extra["calibration"] = learned.to_dict()
            logits = {"logit": learned.apply(logits["logit"]), "uncalibrated": logits["logit"]}
        save_ranker(fitted.model, place, read, extra)
        _save_array(place / "test.npz", **logits)
        curve = [
            {
                "epoch": item.epoch,
                "train_loss": item.train_loss,
                "valid_loss": item.valid_log_loss,
                "valid_auc": item.valid_auc,
            }
            for item in fitted.history
        ]
        write_json({"seconds": fitted.seconds, "points": curve}, place / "curve.json")
    progress(f"{name}: trained", 1, 1)


def _tokens(ws: Workspace, views: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return of how many tokens the vectors of each view are; a view of one is not named."""
    configs = {view: ws.ledger.space(ws.ledger.version(view.rsplit("_", 1)[1]).space_id).config for view in views}
    counts = {view: int(config.get("out_tokens", 1)) for view, config in configs.items()}
    return tuple((view, count) for view, count in counts.items() if count > 1)


def _save_array(path: Path, **arrays: np.ndarray) -> None:
    with replacing(path) as staged, open(staged, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
