"""Home folders for measuring: copies that share files with their source, and rankers fitted on a training set."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.lake import Home, replacing
from jobs import config as settings
from jobs.config import Config
from jobs.features.ranking import RankerEncoder, TrainingSet
from jobs.train_downstream import LABELS, fit_config
from jobs.workspace import Workspace
from models.downstream.fit import FitConfig, fit_ranker, predict
from models.downstream.inputs import RankerData, RankerSpec

WRITTEN_IN_PLACE = (".db", ".db-wal", ".db-shm")


def borrow(source: Path, target: Path, *, lake_only: bool = False, config: Config | None = None) -> Workspace:
    """Return a copy of a home folder in which anything may be done: its files are hard links, its databases copies.

    Parameters
    ----------
    lake_only
        Take the ingested log alone, as if nothing had been trained yet.
    config
        Settings of the copy; None keeps the source's.
    """
    if not (target / "borrowed").exists():
        shutil.rmtree(target, ignore_errors=True)
        if lake_only:
            for name in ("events", "users.parquet", "items.parquet", "dataset.json"):
                _copy(source / "lake" / name, target / "lake" / name)
        else:
            _copy(source, target)
        (target / "borrowed").touch()
    settings.save(config or settings.load(Home(source)), Home(target))
    ws = Workspace.open(target)
    for dataset in Workspace.open(source).ledger.datasets():
        ws.ledger.put_dataset(**dataset)
    return ws


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    elif source.exists():
        _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    if source.endswith(WRITTEN_IN_PLACE):
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)  # files of a home are replaced, never written into
    except OSError:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Rows:
    """A consumer's rows as its rankers read them: labels as they had arrived, and the test period's as they are."""

    train: RankerData
    valid: RankerData
    test: RankerData
    spec: RankerSpec
    fit: FitConfig


def read_rows(ws: Workspace, name: str, encoder: RankerEncoder | None = None) -> Rows:
    """Read a consumer's training set as `headwater train-downstream` does."""
    splits, consumer = ws.splits, ws.config.consumer(name)
    source = TrainingSet(ws.home.training_sets / name, LABELS[consumer.task])
    chosen = source.between(splits.upstream_end, splits.train_end)
    encoder = encoder or source.encoder(ws.log, consumer.versions, chosen)
    vectors = {view: source.vectors(view) for view in source.views}
    data = source.data(encoder, vectors)
    valid = source.between(splits.train_end, splits.valid_end)
    return Rows(
        replace(data, label=source.known_by(splits.train_end)).take(chosen),
        replace(data, label=source.known_by(splits.valid_end)).take(valid),
        data.take(source.between(splits.valid_end, None)),
        encoder.spec({view: table.shape[1] for view, (table, _) in vectors.items()}),
        fit_config(len(data)),
    )


def scores(rows: Rows, views: tuple[str, ...], seeds: int, folder: Path, progress: Any = None) -> np.ndarray:
    """Return the test logits [S, N] of rankers with some embeddings; what lies in `folder` is read, not fitted."""
    found = []
    for seed in range(seeds):
        file = folder / f"seed-{seed}.npy"
        if not file.exists():
            if progress:
                progress(f"ranker {folder.name}, seed {seed}", seed, seeds)
            fitted = fit_ranker(rows.train, rows.valid, rows.spec.with_embeddings(views), rows.fit, seed)
            with replacing(file) as staged, staged.open("wb") as out:
                np.save(out, predict(fitted.model, rows.test) + fitted.offset)
        found.append(np.load(file))
    return np.stack(found)
