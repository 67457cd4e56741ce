"""Train upstream models and register the space that each spans as a version."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Space, Version
from feature_repo.lake import read_json, sweep, write_json
from jobs import folding
from jobs.lanes import side_by_side
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.config import Upstream
    from jobs.features.encode import Encoder
    from jobs.features.tables import Tables
    from models.presets import Preset
    from models.upstream.derm import DERM

# A small log gets more passes, up to a bound: below some two hundred steps no space has formed yet.
MIN_STEPS, MAX_EPOCHS = 180, 20
# Settings that say what a model is called and what its refreshes do, and have no part in its weights.
NOT_OF_WEIGHTS = ("version", "description", "fold_in", "fold_in_half_life_days", "fold_in_of", "fold_in_numbers")


@dataclass(frozen=True)
class Result:
    """The trained space and how its training went; `weights_of` names the space that had its weights before, if any."""

    version: str
    space: Space
    rows: int
    curve: list[dict[str, float]]
    reused: bool = False
    weights_of: str | None = None


@dataclass(frozen=True)
class Results:
    """The trained spaces, in the order in which their versions were named."""

    trained: tuple[Result, ...]

    @property
    def reused(self) -> bool:
        """Whether every one was trained before."""
        return all(result.reused for result in self.trained)


def run_all(ws: Workspace, versions: Sequence[str], *, progress: Progress = silent) -> Results:
    """Train the upstreams of several versions, side by side in up to ``processes`` processes.

    Where torchrun started several processes each training is shared out among them (:mod:`jobs.train_ranks`).

    Raises
    ------
    ConfigError, NotReadyError
        As :func:`run`, for any of the versions.
    """
    _ = ws.ledger  # one process makes it
    folders = {version: _training(ws, ws.config.upstream(version))[1] for version in versions}
    missing = [version for version, folder in folders.items() if not (folder / "training.json").exists()]
    side_by_side(partial(_lane, ws.home.root), missing, processes=ws.config.processes, progress=progress)
    return Results(tuple(replace(run(ws, version), reused=version not in missing) for version in versions))


def _lane(root: Path, versions: Iterator[str], progress: Progress) -> None:
    ws = Workspace.open(root)
    for version in versions:
        run(ws, version, progress=progress)


def run(ws: Workspace, version: str, *, progress: Progress = silent) -> Result:
    """Train the upstream of `version` on what was known before its cut-off.

    A version that was trained on this log before the same cut-off with the same settings is kept. One that differs from
    a trained one in its name or in what its refreshes fold in takes over its weights.
    Killed, a training goes on from its last checkpoint and ends with the same weights.

    Raises
    ------
    ConfigError
        If no upstream has that version, or it is published and was trained differently.
    NotReadyError
        If nothing is ingested or no labelled row lies before the cut-off.
    """
    settings = ws.config.upstream(version)
    result = train(ws, settings, progress=progress)
    if not result.reused or all(known.version != version for known in ws.ledger.versions()):
        ws.ledger.put_version(
            Version(version, result.space.space_id, settings.description, "upstream team", ws.config.smoothing)
        )
    return result


def train(ws: Workspace, settings: Upstream, *, progress: Progress = silent) -> Result:
    """Train an upstream as :func:`run` does, and record its space under no version's name; raises the same."""
    version = settings.version
    request, folder = _training(ws, settings)
    done = folder / "training.json"
    if done.exists():
        record = read_json(done)
        space = ws.ledger.space(record["space_id"])
        return Result(version, space, record["rows"], record["curve"], True, record.get("weights_of"))
    if ws.ledger.is_published(version):
        raise ConfigError(
            f"{version} is published and was trained with other settings or data. A version never changes its "
            "space: name the new model as the next version in config.yaml, or use another --home."
        )
    from models import presets, ranks
    from models.upstream.derm import space_id

    if ranks.launched() and ranks.world() == 1:
        raise ConfigError(
            "torchrun shares out `train-upstream` alone. Run this command by itself; what it would train can be "
            "trained before by `headwater train-upstream VERSION --ranks N`."
        )
    folds = _folds(ws, settings)
    folding.check(folds, ws.log)
    ws.use_threads()
    fitted: Any
    before: dict[str, Any] | None = None
    if settings.kind == "content":
        from jobs.content import fit_content

        progress(f"factorize {version}", 0, 1)
        fitted = fit_content(ws, settings)
    elif (before := _same_weights(ws, request)) is not None:
        fitted = Fitted.load(ws.home.artifacts / before["space_id"], before)
    else:
        fitted = fit_upstream(
            ws, settings, presets.by_name(ws.config.preset), checkpoints=folder / "checkpoint", progress=progress
        )
    config = {**fitted.model.config.to_dict(), **folds}
    identity = space_id(fitted.model.state_dict(), config, ws.log.fingerprint)
    artifact = ws.home.artifacts / identity
    fitted.save(artifact)
    space = Space(
        space_id=identity,
        dim=fitted.model.dim,
        train_end=settings.train_end or ws.splits.upstream_end,
        data_fingerprint=ws.log.fingerprint,
        artifact=str(artifact.relative_to(ws.home.root)),
        config=config,
    )
    enter_log(ws)
    ws.ledger.put_space(space)
    facts = {"space_id": identity, "rows": fitted.rows, "curve": fitted.curve}
    weights_of = None if before is None else before["space_id"]
    write_json({"request": request, **facts, **({"weights_of": weights_of} if weights_of else {})}, done)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return Result(version, space, fitted.rows, fitted.curve, weights_of=weights_of)


def _folds(ws: Workspace, settings: Upstream) -> dict[str, Any]:
    """Return how the space of an upstream folds in what happened lately."""
    from models import presets
    from models.upstream.inputs import InputSpec

    shape = presets.by_name(ws.config.preset).model(InputSpec((), 0, (), 0, 1, 1, 0, 0, 0))
    dim = shape.out_tokens * (settings.out_dim or shape.out_dim)
    folds = folding.setting(
        settings.fold_in,
        settings.fold_in_half_life_days,
        settings.fold_in_of,
        settings.conversion_events,
        folding.numbers_of(ws.log, settings.fold_in_numbers, dim),
        settings.train_end or ws.splits.upstream_end,
    )
    if settings.start_from is None:
        return folds
    given = {"numbers": settings.fold_in_numbers, "fades_days": settings.fold_in_half_life_days}
    told = [name for name, value in given.items() if value is not None]
    return folding.continued(folds, ws.ledger.space(settings.start_from).config, told)


def _same_weights(ws: Workspace, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what is recorded of a finished training that ended with the weights of this one, if they are there."""

    def deciding(asked: dict[str, Any]) -> str:
        own = {name: value for name, value in asked["upstream"].items() if name not in NOT_OF_WEIGHTS}
        return json.dumps({**asked, "upstream": own}, sort_keys=True)

    records = [read_json(path) for path in sorted(ws.home.artifacts.glob("training-*/training.json"))]
    there = [record for record in records if (ws.home.artifacts / record["space_id"]).is_dir()]
    return next((record for record in there if deciding(record["request"]) == deciding(request)), None)


def enter_log(ws: Workspace) -> None:
    """Write the ingested log into the ledger: it is known there when another one replaces it in the lake."""
    facts = ws.log.record.to_dict()
    kept = {name: facts[name] for name in ("rows", "counts", "start", "end", "users", "items")}
    ws.ledger.put_dataset(ws.log.fingerprint, facts["name"], kept)


def _training(ws: Workspace, settings: Upstream) -> tuple[dict[str, Any], Path]:
    """Return all that decides how an upstream is trained, and the folder of that very training."""
    ws.check_length(settings)
    cutoff = settings.train_end or ws.splits.upstream_end
    # Without what is not set, so that a setting that is new changes no training that does not use it.
    told = settings.model_dump(mode="json", exclude_none=True)
    request = {
        "upstream": {name: value for name, value in told.items() if (name, value) != ("kind", "derm")},
        "preset": ws.config.preset,
        "epochs": ws.config.epochs,
        "cutoff": cutoff.isoformat(),
        "fingerprint": ws.log.fingerprint,
        "refresh_days": ws.config.training_grid_days or ws.config.refresh_days,
        "coverage_days": ws.config.coverage_days,
        "availability_lag_minutes": ws.config.availability_lag_minutes,
        "history_actions": ws.config.history_actions and list(ws.config.history_actions),
        "threads": ws.config.threads,
    }
    # One folder per request: a checkpoint is only taken up by the very same training.
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    folder = ws.home.artifacts / f"training-{settings.version}-{key}"
    return request, folder


@dataclass(frozen=True)
class Fitted:
    """A trained model with the encodings it reads, and how its training went."""

    model: DERM
    encoder: Encoder
    rows: int
    curve: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path, record: dict[str, Any]) -> Fitted:
        """Read what :meth:`save` wrote, with what is recorded of the training; LakeError where it is damaged."""
        from jobs.features.encode import Encoder
        from models.upstream.derm import DERM

        return cls(DERM.load(folder), Encoder.load(folder / "encoder.json"), record["rows"], record["curve"])

    def save(self, folder: Path) -> None:
        """Write model and encodings where a refresh finds them."""
        self.model.save(folder)
        self.encoder.save(folder / "encoder.json")


def fit_upstream(
    ws: Workspace, settings: Upstream, preset: Preset, *, checkpoints: Path | None = None, progress: Progress = silent
) -> Fitted:
    """Train one upstream model on what was known before its cut-off; register nothing.

    Parameters
    ----------
    settings
        Weights of the losses and the seed.
    preset
        What is read, what is built and how it is trained.
    checkpoints
        Folder from which a killed training goes on.

    Raises
    ------
    NotReadyError
        If no labelled row with a history lies before the cut-off.
    """
    from jobs import train_ranks
    from jobs.prepare_upstream import Start, prepare, training_device
    from models import ranks
    from models.training import fit
    from models.upstream.alignment import Aligned
    from models.upstream.derm import DERM

    version = settings.version
    if settings.start_from is not None and ranks.world() > 1:
        raise ConfigError(f"{version} goes on from another model's weights, which one process does: leave out --ranks.")
    old = None if settings.start_from is None else Start.load(ws, ws.ledger.space(settings.start_from))
    beside = checkpoints.parent if checkpoints else ws.home.artifacts
    with scratch(beside, "rows") as folder:
        ready = prepare(ws, settings, preset, folder, old=old, progress=progress)
        steps, device = ready.rows.steps(preset.batch_rows), training_device(settings)
        random: Any = None
        if old is None:
            model = DERM(ready.model)
            random = model.items.rows.weight.detach().clone()
            seed_item_rows(model, ready.tables, ready.cutoff)
            trained: Any = model.to(device)
            passes = max(preset.train.epochs, min(MAX_EPOCHS, ceil(MIN_STEPS / steps)))
        else:
            model, passes = old.model.to(device), preset.train.epochs
            trained = Aligned(model, copy.deepcopy(model), settings.alignment or 0.0)
        train = replace(ready.train, epochs=settings.epochs or ws.config.epochs or passes)
        shard = (ranks.rank(), ranks.world())
        train_ranks.lead(
            train_ranks.Task(
                rows=folder,
                positives=ready.rows.positives,
                sampling=ready.rows.sampling,
                model=model.config.to_dict(),
                train=train,
                batch_rows=preset.batch_rows,
                seed=settings.seed,
                steps=steps,
                device=device,
                checkpoints=checkpoints,
            )
        )
        history = fit(
            trained,
            lambda epoch: ready.rows.epoch(epoch, batch_rows=preset.batch_rows, seed=settings.seed, shard=shard),
            config=train,
            steps_per_epoch=steps,
            progress=lambda step, total, metrics: progress(
                f"train {version}: loss {metrics['total']:.4f}", step, total
            ),
            checkpoint_dir=checkpoints,
        )
        model = model.to("cpu")
        if random is not None:
            clear_untouched(model, random)
        return Fitted(model, ready.encoder, ready.rows.rows, history.records)


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder that is gone afterwards; what killed processes left of theirs goes as well."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder / name)
    made = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=f".{os.getpid()}.part", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def clear_untouched(model: DERM, random: Tensor) -> None:
    """Set the rows of the id table to zero that are still what chance made them, float32 [rows, E].

    An item that comes after the training reads one of them, alone or in somebody's history: noise as long as a vector,
    where zero says what the towers learned from rows that were dropped, that nothing is known of this id.
    """
    import torch

    with torch.no_grad():
        table = model.items.rows.weight
        table[(table == random).all(dim=1)] = 0.0


def seed_item_rows(model: DERM, tables: Tables, cutoff: datetime) -> None:
    """Start the id table from a factorization of who acted on what before the cut-off.

    The paper's towers read pre-trained representations; this is one: a truncated SVD of the user x item matrix
    of log counts, each item's factors scaled to length 1. An item that nobody acted on keeps its random row.
    """
    import numpy as np
    import torch
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    activity = tables.activity
    before = activity.time_us < int(cutoff.timestamp() * 1_000_000)
    rows = tables.item_rows[activity.item[before]]
    table = model.items.rows.weight
    users = int(activity.user.max()) + 1 if len(activity.user) else 0
    rank = min(table.shape[1], users - 1, len(np.unique(rows)) - 1)
    if rank < 1:
        return
    counts = coo_matrix((np.ones(len(rows)), (activity.user[before], rows)), shape=(users, table.shape[0])).tocsr()
    counts.data = np.log1p(counts.data)
    # Popular items would take the first factors for themselves: each item counts by the root of its size.
    size = np.sqrt(np.asarray(counts.power(2).sum(axis=0)).ravel())
    scale = np.where(size > 0, 1.0 / np.sqrt(np.maximum(size, 1e-12)), 0.0)
    _, strength, factors = svds(counts.multiply(scale[None, :]).tocsc(), k=rank, random_state=0)
    vectors = np.zeros(table.shape)
    vectors[:, :rank] = factors.T * np.sqrt(strength)
    length = np.linalg.norm(vectors, axis=1)
    known = length > 1e-9
    with torch.no_grad():
        table[torch.from_numpy(known)] = torch.from_numpy(vectors[known] / length[known, None]).float()
