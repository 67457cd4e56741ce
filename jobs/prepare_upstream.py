"""What an upstream is trained on: its encodings, its rows in files, the model's config, the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.types import Space
from jobs.config import WARM_UP
from jobs.features.sampling import Sampling
from jobs.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    import polars as pl

    from jobs.config import Upstream
    from jobs.features.batches import Grid, TrainingRows
    from jobs.features.encode import Encoder
    from jobs.features.labels import Opportunities
    from jobs.features.row_summary import RowSummary
    from jobs.features.tables import Tables
    from models.presets import Preset
    from models.training import TrainConfig
    from models.upstream.derm import DERM
    from models.upstream.inputs import InputSpec

AHEAD = 2  # batches; one is made while a step is computed, and one waits


@dataclass(frozen=True)
class Prepared:
    """All that a training needs but the first weights."""

    rows: TrainingRows
    encoder: Encoder
    tables: Tables
    model: DERM.Config
    train: TrainConfig
    cutoff: datetime


@dataclass(frozen=True)
class Start:
    """What a training goes on from: a model with its encodings, and the moment from which its rows are new."""

    model: DERM
    encoder: Encoder
    since: datetime

    @classmethod
    def load(cls, ws: Workspace, space: Space) -> Start:
        """Load the model of a space."""
        from jobs.features.encode import Encoder
        from models.upstream.derm import DERM

        folder = ws.home.root / space.artifact
        return cls(DERM.load(folder), Encoder.load(folder / "encoder.json"), space.train_end)


def prepare(
    ws: Workspace,
    settings: Upstream,
    preset: Preset,
    folder: Path,
    *,
    old: Start | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Learn the encodings and write the training rows into a folder.

    Raises
    ------
    ConfigError
        If the settings do not go together.
    NotReadyError
        If no labelled row with a history lies before the cut-off.
    """
    from jobs import train_ranks
    from jobs.features.batches import Grid, TrainingRows, input_spec
    from jobs.features.batches import moments as moments_between
    from jobs.features.labels import CONVERSION, Opportunities
    from jobs.features.row_summary import RowSummary
    from jobs.features.tables import Tables, fit_encoder

    sampling = sampling_of(settings)
    cutoff, since = settings.train_end or ws.splits.upstream_end, old.since if old else None
    step = ws.config.training_grid
    begin = ws.log.start + WARM_UP
    if cutoff <= begin:
        raise NotReadyError(
            f"{settings.version} is trained on what lies before {cutoff:%Y-%m-%d %H:%M}, but training leaves out the "
            f"first {WARM_UP.days} days of a log, here up to {begin:%Y-%m-%d %H:%M}. Set a later upstream_end under "
            "splits, or a later train_end of the upstream, in config.yaml."
        )
    moments = moments_between(begin, cutoff, step)
    if since is not None:
        moments = [moment for moment in moments if moment + step > since]
    grid = Grid(tuple(moments), ws.config.availability_lag, cutoff)
    conversions = settings.conversion_events or CONVERSION
    opportunities = Opportunities(ws.log, since=since, known_at=cutoff, conversions=conversions)
    label = f"train {settings.version}: count rows"
    summary = RowSummary(ws.log, _counted(opportunities, grid, label, progress))
    if not moments or summary.rows == 0:
        raise NotReadyError(
            f"No labelled row lies between {since or begin} and the upstream cut-off {cutoff}. "
            "Ingest a longer log or set splits in config.yaml."
        )
    if not opportunities.has_impressions and (sampling.sources is not None or sampling.negatives < 1):
        raise ConfigError(
            f"{settings.version} samples opportunities by their clicks, but the log has no impressions: "
            "leave `sources` and `negatives` out in config.yaml."
        )
    actions, coverage = ws.config.history_actions, ws.config.coverage
    encoder = (
        old.encoder
        if old is not None
        else fit_encoder(
            ws.log,
            summary,
            moments,
            actions,
            coverage,
            sequence_length=preset.sequence_length,
            interests=preset.interests,
            top_items=preset.top_items,
            profiles=bool(settings.profiles),
        )
    )
    tables = Tables(ws.log, encoder, actions, coverage)
    folder.mkdir(parents=True, exist_ok=True)
    parts = train_ranks.write_rows(
        train_ranks.Reading(folder, encoder, grid, since, conversions, catalogue=sampling.uniform_negatives > 0),
        tables,
        opportunities,
        device=training_device(settings),
        progress=lambda done, total: progress(f"train {settings.version}: read rows", done, total),
    )
    ws.log.check_same()
    positives = settings.positives if summary.conversions else "click"
    training = TrainingRows.bind(folder, tables, parts, positives=positives, sampling=sampling)
    if training.rows == 0:
        raise NotReadyError("No labelled row belongs to a user with a history. Ingest a longer log.")
    spec = input_spec(tables, preset.sequence_length)
    config = (
        old.model.config
        if old is not None
        else model_config(settings, preset, spec, summary, opportunities.has_impressions)
    )
    return Prepared(training, encoder, tables, config, train_config(settings, preset), cutoff)


def sampling_of(settings: Upstream) -> Sampling:
    """Return how an upstream's epochs are drawn; ConfigError if its settings do not go together."""
    if settings.sources is not None and settings.conversion_loss == "esmm":
        raise ConfigError(
            f"{settings.version}: esmm learns conversions from all opportunities, so there is no second data source. "
            "Leave `sources` out, or use `conversion_loss: clicked`."
        )
    return Sampling(
        sources=settings.sources,
        negatives=1.0 if settings.negatives is None else settings.negatives,
        conversion_rows=settings.conversion_rows,
        conversion_share=settings.conversion_share,
        uniform_negatives=settings.uniform_negatives or 0,
    )


def _counted(opportunities: Opportunities, grid: Grid, label: str, progress: Progress) -> Iterator[pl.DataFrame]:
    windows = grid.windows()
    for done, window in enumerate(windows):
        progress(label, done, len(windows))
        yield opportunities.between(*window)
    progress(label, len(windows), len(windows))


def model_config(
    settings: Upstream, preset: Preset, spec: InputSpec, rows: RowSummary, has_impressions: bool
) -> DERM.Config:
    """Return the config of a model of the preset's size with what the settings choose."""
    config = preset.model(spec)
    losses = replace(
        config.losses,
        click_weight=settings.click_weight if has_impressions else 0.0,
        conversion_weight=settings.conversion_weight,
        contrastive_weight=settings.contrastive_weight,
        conversion=settings.conversion_loss or config.losses.conversion,
        weighting=settings.weighting or config.losses.weighting,
    )
    config = replace(
        config,
        seed=settings.seed,
        out_dim=settings.out_dim or config.out_dim,
        click_rate=_rate(rows.click_rate if has_impressions else 0.0),
        conversion_rate=_rate(rows.conversion_rate),
        losses=losses,
    )
    if settings.modules is None:
        return config
    first, *more = settings.modules

    def tower(built: Any) -> Any:
        dhen = replace(built.dhen, modules=first)
        return replace(built, dhen=replace(dhen, layers=1 + len(more), pairs=settings.modules) if more else dhen)

    return replace(config, user=tower(config.user), item=tower(config.item), interaction=tower(config.interaction))


def train_config(settings: Upstream, preset: Preset) -> TrainConfig:
    """Return how to train."""
    return replace(
        preset.train,
        seed=settings.seed,
        ahead=AHEAD,
        precision=settings.precision or preset.train.precision,
        table_optimizer=settings.table_optimizer or preset.train.table_optimizer,
        compile=preset.train.compile if settings.compile is None else settings.compile,
    )


def training_device(settings: Upstream) -> str:
    """Return the device to train on: cuda where there is one and nothing else is asked for.

    Raises
    ------
    ConfigError
        If cuda is asked for and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise ConfigError(
            f"{settings.version} asks for cuda, but torch finds no such device. "
            "Install a build of torch with CUDA, or leave `device` out."
        )
    if settings.device == "cpu" or not there:
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products ask for
    return "cuda"


def _rate(mean: float) -> float:
    """Return a share that the heads can start from: strictly between 0 and 1."""
    return min(max(mean, 1e-4), 1 - 1e-4)
