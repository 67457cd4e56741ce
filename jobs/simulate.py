"""``headwater simulate``: write the log of a world with known truth, a day at a time, and the truth beside it.

Beside ``events/``, ``users.parquet`` and ``items.parquet`` lie ``truth/``, ``world.json`` (settings and calibration),
``config.yaml`` (settings for `headwater run`) and, at the end, ``summary.json``. Memory holds the population, one day's
sessions and one block; it does not grow with the number of impressions.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import Home, read_json, replacing, write_json, write_parquet
from jobs.config import Config, Splits, Upstream
from jobs.workspace import Progress, silent
from jobs.world.config import WorldConfig

if TYPE_CHECKING:
    from jobs.world.world import Calibration, World

COUNTS = "headwater.counts"
# Chosen on the days before the test period of one world (docs/adr/0096, 0098).
UPSTREAMS = (
    Upstream(
        version="v1",
        description="DERM trained on clicks and conversions",
        negatives=0.25,
        epochs=4,
        fold_in=100.0,
        fold_in_of="outcomes",
    ),
    Upstream(
        version="v2",
        description="DERM trained on carts and conversions",
        click_weight=0.0,
        contrastive_weight=0.1,
        conversion_events=("add_to_cart", "conversion"),
        sources="joint",
        negatives=0.1,
        conversion_rows=4096,
        out_dim=8,
        profiles=True,
        fold_in=30.0,
        fold_in_of="conversions",
    ),
    Upstream(version="v3", kind="content", description="what items are: their attributes, and whose they were"),
)
SHORTEST_RUN_DAYS = 45  # upstream training leaves out four weeks at the start, in which features warm up


@dataclass(frozen=True)
class Result:
    """What was written.

    Attributes
    ----------
    summary
        Counts of the whole world, with its rates.
    days_made
        Days that this run wrote; the others were there.
    rows_per_s
        Impressions per second of those days; None where nothing was left to do.
    """

    folder: Path
    summary: dict[str, Any]
    days_made: int
    rows_per_s: float | None
    seconds: float


def run(config: WorldConfig, folder: Path, *, progress: Progress = silent) -> Result:
    """Write the log of a world to a folder; days that are there already are kept, so a killed run goes on.

    Raises
    ------
    ConfigError
        If the folder holds another world, or files that are no world.
    BusyError
        If another process writes there.
    LakeError
        If the disk refuses.
    """
    from jobs.world.tables import items_table, users_table
    from jobs.world.world import World

    folder = folder.resolve()
    _check_folder(config, folder)
    started = time.monotonic()
    with Home(folder).lock("simulate"):
        progress("simulate: the population", 0, config.days)
        world = World(config, _calibration(config, folder))
        write_json(
            {"world": config.fingerprint(), "settings": config.to_dict(), "calibration": asdict(world.calibration)},
            folder / "world.json",
        )
        write_parquet(users_table(world.population), folder / "users.parquet")
        write_parquet(items_table(world.population), folder / "items.parquet")
        _write_run_config(config, folder)
        made = written = 0
        begun = time.monotonic()
        for day in range(config.days):
            if (events := _day_file(config, folder, "events", day)).exists():
                continue
            written += _write_day(world, day, events, _day_file(config, folder, "truth", day))
            made += 1
            rate = written / (time.monotonic() - begun)
            progress(f"simulate: {written:,} impressions, {rate:,.0f} per second", day + 1, config.days)
        rows_per_s = written / (time.monotonic() - begun) if made else None
        summary = _summary(config, folder)
        write_json(summary, folder / "summary.json")
        progress("simulate", config.days, config.days)
    return Result(folder, summary, made, rows_per_s, time.monotonic() - started)


def _check_folder(config: WorldConfig, folder: Path) -> None:
    record = folder / "world.json"
    if record.exists():
        if read_json(record)["world"] != config.fingerprint():
            raise ConfigError(f"{folder} holds another world. Give another --out, or remove the folder.")
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} holds files that are no world. Give a new or empty folder as --out.")


def _calibration(config: WorldConfig, folder: Path) -> Calibration | None:
    """Return what an earlier run of the same world found."""
    from jobs.world.outcomes import Intercepts
    from jobs.world.world import Calibration

    if not (folder / "world.json").exists():
        return None
    found = read_json(folder / "world.json")["calibration"]
    intercepts = found["intercepts"]
    return Calibration(
        Intercepts(**{**intercepts, "click": tuple(intercepts["click"])}), found["impressions_per_session"]
    )


def _day_file(config: WorldConfig, folder: Path, kind: str, day: int) -> Path:
    return folder / kind / f"{config.start + timedelta(days=day):%Y-%m-%d}.parquet"


def _write_day(world: World, day: int, events: Path, truth: Path) -> int:
    """Write one day block by block, the events last: where they lie, the day is whole. Return its impressions."""
    import pyarrow.parquet as pq

    from jobs.world.tables import EVENT_TYPES, EVENTS_SCHEMA, TRUTH_SCHEMA, events_table, impression_ids, truth_table

    counts = dict.fromkeys(EVENT_TYPES, 0)
    impressions = 0
    with (
        replacing(events) as staged_events,
        replacing(truth) as staged_truth,
        pq.ParquetWriter(staged_events, EVENTS_SCHEMA, compression="zstd") as event_writer,
        pq.ParquetWriter(staged_truth, TRUTH_SCHEMA, compression="zstd") as truth_writer,
    ):
        for block in world.day(day):
            ids = impression_ids(day, impressions, len(block.slots.item))
            rows = events_table(world.population, block, ids)
            event_writer.write_table(rows)
            truth_writer.write_table(truth_table(world.config, block, ids))
            impressions += len(ids)
            for entry in rows["event_type"].value_counts().to_pylist():
                counts[entry["values"]] += entry["counts"]
        event_writer.add_key_value_metadata({COUNTS: ",".join(str(count) for count in counts.values())})
    return impressions


def _summary(config: WorldConfig, folder: Path) -> dict[str, Any]:
    """Add up the counts that the day files carry."""
    import pyarrow.parquet as pq

    from jobs.world.tables import EVENT_TYPES

    totals = [0] * len(EVENT_TYPES)
    size = 0
    for day in range(config.days):
        path = _day_file(config, folder, "events", day)
        metadata = pq.read_metadata(path).metadata
        totals = [a + int(b) for a, b in zip(totals, metadata[COUNTS.encode()].decode().split(","), strict=True)]
        size += path.stat().st_size
    counts = dict(zip(EVENT_TYPES, totals, strict=True))
    return {
        "world": config.fingerprint(),
        "counts": counts,
        "ctr": counts["click"] / max(counts["impression"], 1),
        "conversions_per_click": counts["conversion"] / max(counts["click"], 1),
        "users": config.users,
        "items": config.items,
        "days": config.days,
        "event_bytes": size,
    }


def _write_run_config(config: WorldConfig, folder: Path) -> None:
    """Write the settings with which `headwater run` knows where the truth is, and where to cut a log of this length."""

    def cut(share: float) -> datetime:
        return config.start + timedelta(days=max(1, round(share * config.days)))

    if config.days < SHORTEST_RUN_DAYS:
        return
    splits = Splits(upstream_end=cut(0.65), train_end=cut(0.82), valid_end=cut(0.87), end=config.end)
    # In a world one asks whether several upstreams together beat each of them: all stand in its lift table.
    versions = tuple(upstream.version for upstream in UPSTREAMS)
    consumers = tuple(
        consumer
        if consumer.task == "retrieval"
        else consumer.model_copy(update={"each_alone": True, "versions": versions})
        for consumer in Config().consumers
    )
    # Items come and go within weeks, so vectors are refreshed daily; training reads them at fewer moments.
    grid_days = min(7, config.days // 12)
    run_config = Config(
        truth=folder / "truth",
        splits=splits,
        refresh_days=1,
        training_grid_days=grid_days,
        # A taste and an item's first days are over before a smoothed vector has them (docs/adr/0098).
        smoothing=None,
        min_item_events=1,
        upstreams=UPSTREAMS,
        consumers=consumers,
    )
    with replacing(folder / "config.yaml") as staged:
        # Only what is chosen for worlds: all else follows the defaults of the day on which it is run.
        staged.write_text(yaml.safe_dump(run_config.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
