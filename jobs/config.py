"""The settings of one home folder: what is trained, how often it is refreshed, who consumes it.

Settings live in ``<home>/config.yaml``; a missing file means the defaults below. Every default works
on any event log: what depends on the data (the splits) is derived from its time range.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.naming import check_version
from feature_repo.lake import Home, replacing

Task = Literal["ctr", "cvr", "retrieval"]
# In the first weeks of a log features know too little to learn from: training leaves them out.
WARM_UP = timedelta(days=28)
DhenModule = Literal["masknet", "transformer", "mlp"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Splits(_Settings):
    """The moments that cut the log into upstream training, downstream training, validation and test.

    Upstream trains before `upstream_end`; downstream trains on labels from there to `train_end`,
    chooses its epoch on `train_end` to `valid_end`, and is judged on `valid_end` to `end`.
    """

    upstream_end: AwareDatetime
    train_end: AwareDatetime
    valid_end: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _in_order(self) -> Splits:
        moments = [self.upstream_end, self.train_end, self.valid_end, self.end]
        if any(later <= earlier for earlier, later in itertools.pairwise(moments)):
            raise ValueError("upstream_end < train_end < valid_end < end must hold")
        return self


class Upstream(_Settings):
    """One upstream model: the version its space gets, what it is, and the weight of each loss."""

    version: str
    kind: Literal["derm", "content"] = Field(
        "derm", description="derm learns from events; content factorizes the attributes of items (docs/training.md)"
    )
    content_dim: int | None = Field(None, ge=2, description="floats per vector of a content embedding; null: 64")
    description: str = ""
    train_end: AwareDatetime | None = Field(
        None, description="nothing from here on is trained on; null: the splits' upstream_end"
    )
    click_weight: float = Field(1.0, ge=0)
    conversion_weight: float = Field(1.0, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    positives: Literal["click", "conversion"] = Field(
        "conversion", description="outcome that, beside the activity, makes a pair attract in the contrastive loss"
    )
    conversion_events: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="event types after a click that the conversion head learns, e.g. [add_to_cart, conversion]: what "
        "happens often on the way to what is rare; null: conversion",
    )
    profiles: bool | None = Field(
        None,
        description="counts and rates of every event type within coverage_days among the inputs of users and items; "
        "null: counts of 7 and 28 days alone",
    )
    epochs: int | None = Field(None, ge=1, description="passes of its training; null: those of the home folder")
    out_dim: int | None = Field(None, ge=1, description="floats per output token of the vectors; null: the preset's")
    fold_in: float | None = Field(
        None,
        gt=0,
        description="fold recent choices into the vectors at every refresh; so many of today count as much as the "
        "model's own vector (of outcomes: the precision of the prior). null: the model alone",
    )
    fold_in_of: Literal["choices", "outcomes", "conversions"] | None = Field(
        None,
        description="choices: whatever was shown, by matrix factorization; outcomes: impressions with a click or "
        "without, and the activity beside them, by logistic regressions; conversions: clicks with one of "
        "conversion_events or without, by the same. null: choices",
    )
    fold_in_half_life_days: float | None = Field(
        None,
        gt=0,
        description="days after which a choice that is folded in counts half; null: 30, of outcomes 60 for users and "
        "30 for items",
    )
    fold_in_numbers: tuple[str, ...] | None = Field(
        None,
        description="numeric attributes of items, such as a price, of which each user has slopes of his own where "
        "outcomes are folded in; null: the first eight by name, fewer for short vectors",
    )
    seed: int = 0
    start_from: str | None = Field(
        None,
        description="space whose weights training goes on from, with the rows since its cut-off; null: from scratch",
    )
    alignment: float | None = Field(
        None, ge=0, description="weight of the loss that keeps vectors near those of start_from; null: 0"
    )
    modules: tuple[tuple[DhenModule, DhenModule], ...] | None = Field(
        None, min_length=1, description="DHEN modules of all towers: one pair, or one per layer; null: the preset's"
    )
    conversion_loss: Literal["clicked", "esmm"] | None = Field(None, description="null: clicked")
    weighting: Literal["fixed", "uncertainty"] | None = Field(None, description="of the losses; null: fixed")
    sources: Literal["joint", "alternating"] | None = Field(
        None, description="a data source for each head, both in every batch or in turns; null: one stream for both"
    )
    negatives: float | None = Field(None, gt=0, le=1, description="share of unclicked opportunities kept; null: all")
    conversion_rows: int | None = Field(None, ge=1, description="clicked rows per batch; null: see docs/training.md")
    conversion_share: float | None = Field(None, gt=0, lt=1, description="of alternating steps; null: each row once")
    uniform_negatives: int | None = Field(None, ge=1, description="items per batch drawn beside its own; null: none")
    precision: Literal["float32", "bfloat16"] | None = Field(None, description="of the towers; null: the preset's")
    compile: bool | None = Field(None, description="whether torch compiles the model; null: the preset's")
    table_optimizer: Literal["adamw", "rowwise_adagrad"] | None = Field(
        None, description="of id and attribute tables; row-wise keeps one number per row; null: adamw"
    )
    device: Literal["cpu", "cuda"] | None = Field(None, description="of training; null: cuda where there is one")

    @model_validator(mode="after")
    def _named(self) -> Upstream:
        check_version(self.version)
        if self.kind == "derm" and self.content_dim is not None:
            raise ValueError("content_dim belongs to kind: content; a DERM's preset says how long its vectors are")
        how = (self.fold_in_half_life_days, self.fold_in_of, self.fold_in_numbers)
        if self.fold_in is None and how != (None, None, None):
            raise ValueError(
                "fold_in_half_life_days, fold_in_of and fold_in_numbers say how choices are folded in: set fold_in too"
            )
        if self.fold_in_numbers and self.fold_in_of in (None, "choices"):
            raise ValueError("fold_in_numbers: choices tell nothing of numbers; set fold_in_of, or leave it out")
        if self.kind == "content":
            known = {"version", "kind", "description", "train_end", "content_dim", "seed"}
            fields = type(self).model_fields
            idle = [name for name in fields if name not in known and getattr(self, name) != fields[name].default]
            if idle:
                raise ValueError(f"{', '.join(idle)}: no setting of a content embedding, which learns from no event")
        return self


class Consumer(_Settings):
    """One downstream model: its task, the embedding versions its FeatureService carries, and how it reads them."""

    name: str
    task: Task
    versions: tuple[str, ...]
    owner: str = "downstream team"
    each_alone: bool = Field(
        False, description="also train rankers with each further version alone: does more add to the best of them?"
    )
    where: dict[str, str] = Field(
        {}, description="context columns and the value that they must have, e.g. {surface: search}: a ranker of its own"
    )
    tokens: bool = Field(False, description="read an upstream's vectors as the out_tokens tokens that they are")
    attention_heads: int = Field(0, ge=0, description="heads of an attention among the tokens; 0: none")
    centred: bool = Field(True, description="multiply user and item vectors less their means (docs/adr/0064)")
    calibration: Literal["platt", "isotonic"] | None = Field(
        None, description="fitted on the validation period and served with the ranker; null: none"
    )

    seeds: int | None = Field(
        None, ge=1, description="rankers per row of the lift table; null: as many as the home says"
    )

    @model_validator(mode="after")
    def _for_rankers(self) -> Consumer:
        own = ("each_alone", "where", "tokens", "attention_heads", "centred", "calibration", "seeds")
        fields = type(self).model_fields
        idle = [name for name in own if getattr(self, name) != fields[name].default]
        if self.task == "retrieval" and idle:
            raise ValueError(f"{', '.join(idle)}: settings of a ranker; {self.name} is retrieval")
        if not self.versions:
            raise ValueError(f"{self.name} reads no version; name at least one")
        return self


class Config(_Settings):
    """All settings of one home folder."""

    preset: Literal["debug", "small", "full"] = "small"
    epochs: int | None = Field(None, ge=1, description="passes of upstream training; null: the preset's")
    splits: Splits | None = None
    refresh_days: int = Field(7, ge=1, description="days between two refreshes")
    training_grid_days: int | None = Field(
        None,
        ge=1,
        description="days between the moments at which training reads users and items; null: refresh_days",
    )
    availability_lag_minutes: int = Field(60, ge=0, description="as_of to the first moment of reading")
    coverage_days: int = Field(90, ge=1, description="entities without an event for this long get no row")
    min_item_events: int = Field(5, ge=1, description="items with fewer events within coverage_days get no row")
    ttl_days: int = Field(30, ge=1, description="age past which a snapshot's row is not read any more")
    smoothing: float | None = Field(0.8, ge=0, lt=1, description="share of the previous vector; null: off")
    history_actions: tuple[str, ...] | None = Field(
        None, description="event types that make up a user's history; null: all but impressions"
    )
    retrieval_actions: tuple[str, ...] | None = Field(
        None, description="event types that retrieval has to foresee; null: conversions, or clicks without any"
    )
    own_choices: int = Field(200, ge=0, description="of a user's own items that are published for retrieval; 0: none")
    own_choices_half_life_days: float = Field(
        180.0, gt=0, le=36_500, description="days after which a choice of one's own counts half"
    )
    upstreams: tuple[Upstream, ...] = (
        Upstream(version="v1", description="DERM trained on clicks and conversions"),
        Upstream(version="v2", description="DERM trained on conversions", click_weight=0.0, conversion_weight=1.0),
    )
    consumers: tuple[Consumer, ...] = (
        Consumer(name="ctr_ranker", task="ctr", versions=("v1", "v2")),
        Consumer(name="cvr_ranker", task="cvr", versions=("v1", "v2")),
        Consumer(name="retrieval", task="retrieval", versions=("v1",)),
    )
    label_rate_factor: float = Field(
        3.0, gt=1, description="a training set whose label rate is so many times that of the past, or less, is refused"
    )
    truth: Path | None = Field(
        None, description="folder of Parquet with the true probabilities by impression_id; null: nobody knows them"
    )
    seeds: int = Field(3, ge=1, description="downstream models per row of the lift table")
    bootstrap: int = Field(200, ge=20, description="resamples of users for an interval")
    threads: int = Field(1, ge=1, description="of one training; another number gives other last bits")
    processes: int = Field(2, ge=1, description="trainings at once; has no influence on any result")

    @property
    def refresh_every(self) -> timedelta:
        """Time between two refreshes."""
        return timedelta(days=self.refresh_days)

    @property
    def training_grid(self) -> timedelta:
        """Time between the moments at which an upstream's training reads users and items."""
        return timedelta(days=self.training_grid_days or self.refresh_days)

    @property
    def availability_lag(self) -> timedelta:
        """Time from `as_of` to the first moment a consumer could read the value."""
        return timedelta(minutes=self.availability_lag_minutes)

    @property
    def coverage(self) -> timedelta:
        """How far back activity reaches."""
        return timedelta(days=self.coverage_days)

    @property
    def ttl(self) -> timedelta:
        """Age past which a row is not read."""
        return timedelta(days=self.ttl_days)

    def upstream(self, version: str) -> Upstream:
        """Return the upstream of a version; ConfigError if there is none."""
        for upstream in self.upstreams:
            if upstream.version == version:
                return upstream
        known = ", ".join(upstream.version for upstream in self.upstreams)
        raise ConfigError(f"No upstream has version '{version}' (there are: {known}). See config.yaml.")

    def seeds_of(self, consumer: Consumer) -> int:
        """Return how many rankers of a consumer are trained per row of the lift table."""
        return self.seeds if consumer.seeds is None else consumer.seeds

    def consumer(self, name: str) -> Consumer:
        """Return a consumer by name; ConfigError if there is none."""
        for consumer in self.consumers:
            if consumer.name == name:
                return consumer
        known = ", ".join(consumer.name for consumer in self.consumers)
        raise ConfigError(f"No consumer is named '{name}' (there are: {known}). See config.yaml.")


def derive_splits(start: datetime, end: datetime, refresh_every: timedelta) -> Splits:
    """Cut a log at 55%, 80% and 85% of its time range, each moved back to a refresh's boundary.

    Raises
    ------
    ConfigError
        If the range is too short for that many refreshes.
    """

    def cut(share: float) -> datetime:
        steps = int((end - start) * share / refresh_every)
        return start + steps * refresh_every

    moments = [cut(0.55), cut(0.80), cut(0.85)]
    if moments[2] == moments[1]:
        moments[2] = moments[1] + refresh_every
    try:
        return Splits(upstream_end=moments[0], train_end=moments[1], valid_end=moments[2], end=end)
    except ValidationError as error:
        raise ConfigError(
            f"The log runs from {start} to {end}: too short for a refresh every {refresh_every.days} days. "
            "Set refresh_days lower or give splits in config.yaml."
        ) from error


def check_length(start: datetime, end: datetime, refresh_every: timedelta) -> None:
    """Check that derived splits leave an upstream something to train on.

    Raises
    ------
    ConfigError
        If they do not; it names the length that they need.
    """
    if _trainable(start, end, refresh_every):
        return
    needed = _shortest(refresh_every)
    shorter = range(refresh_every.days - 1, 0, -1)
    fitting = next((days for days in shorter if _trainable(start, end, timedelta(days=days))), None)
    if fitting is not None:
        remedy = f"Set refresh_days to {fitting} in config.yaml, give splits there, or ingest a longer log."
    elif end - start > WARM_UP + timedelta(days=7):
        first = start + WARM_UP + timedelta(days=1)
        remedy = f"Give splits in config.yaml with an upstream_end from {first:%Y-%m-%d} on, or ingest a longer log."
    else:
        remedy = "Ingest a longer log."
    raise ConfigError(
        f"The log is {(end - start) / timedelta(days=1):.1f} days long, {start:%Y-%m-%d} to {end:%Y-%m-%d}. "
        f"Training takes its first 55% less the first {WARM_UP.days} days, and with refresh_days {refresh_every.days} "
        f"that needs a log of {needed} days. {remedy}"
    )


def _trainable(start: datetime, end: datetime, refresh_every: timedelta) -> bool:
    try:
        return derive_splits(start, end, refresh_every).upstream_end > start + WARM_UP
    except ConfigError:
        return False


def _shortest(refresh_every: timedelta) -> int:
    """Return the days from which on every log is long enough."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    longest = 10 * refresh_every.days + 2 * WARM_UP.days
    too_short = [n for n in range(longest) if not _trainable(start, start + timedelta(days=n), refresh_every)]
    return too_short[-1] + 1


def load(home: Home) -> Config:
    """Read ``config.yaml`` of a home folder; the defaults where there is none.

    Raises
    ------
    ConfigError
        If the file is no YAML or a setting is unknown or out of bounds.
    """
    path = home.root / "config.yaml"
    if not path.exists():
        return Config()
    return read(path)


def read(path: Path) -> Config:
    """Read a configuration file; ConfigError says which setting is wrong."""
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"Could not read {path}: {error}") from error
    except ValidationError as error:
        reasons = "\n".join(
            f"  - {'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(f"{path} has settings that do not fit:\n{reasons}") from error


def save(config: Config, home: Home) -> None:
    """Write ``config.yaml`` of a home folder."""
    with replacing(home.root / "config.yaml") as staged:
        staged.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
