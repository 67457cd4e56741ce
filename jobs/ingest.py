"""``headwater ingest``: check events, users and items as a whole, then put them into the lake, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from feature_repo.contracts.errors import InputDataError
from feature_repo.contracts.types import Entity, Problem
from feature_repo.lake import Home, write_json
from jobs.ingest_dataset import Dataset

if TYPE_CHECKING:
    import polars as pl

    from feature_repo.contracts.types import Verdict
    from jobs.ingest_store import Tables
    from validation.bad_rows import BadRows

Progress = Callable[[str], None]
Kind = Literal["events", "users", "items"]


class IngestConfig(BaseModel):
    """What to ingest, and where to.

    `events`, `users` and `items` take a path, a folder, a glob or a list of them; Parquet or CSV by suffix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    name: str = Field(min_length=1, description="what people call the dataset")
    events: tuple[str, ...] = Field(min_length=1)
    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    now: AwareDatetime = Field(description="times later than a day after it are refused")
    max_bad_rows: int = Field(0, ge=0, description="how many bad rows to quarantine instead of refusing all")
    replace: bool = Field(False, description="drop another dataset that lies in this home folder")
    click_window: timedelta = Field(
        timedelta(days=7), gt=timedelta(0), description="a click without impression_id looks back this far"
    )
    conversion_window: timedelta = Field(
        timedelta(days=30), gt=timedelta(0), description="a conversion without impression_id looks back this far"
    )

    @field_validator("events", "users", "items", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, str | Path):
            return (str(value),)
        return tuple(str(part) for part in value)


@dataclass(frozen=True)
class IngestResult:
    """The dataset as recorded in the lake; `unchanged` if exactly it lay there already."""

    dataset: Dataset
    unchanged: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical content."""
        return self.dataset.fingerprint

    def to_dict(self) -> dict[str, Any]:
        """Return the dataset's record as plain values for JSON."""
        return self.dataset.to_dict()


@dataclass
class _Findings:
    """What is wrong so far: `problems` refuse the input, `bad` rows may be tolerated."""

    tolerated: int
    files: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    events_read: int = 0
    problems: list[Problem] = field(default_factory=list)
    bad: list[BadRows] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_file(self, name: str, kind: Kind) -> int:
        """Return the number that an input file is known by from here on."""
        self.files.append(name)
        self.kinds.append(kind)
        return len(self.files) - 1

    def refuse_if_too_bad(self) -> None:
        from validation.bad_rows import merged, to_problems

        rows = self.bad_rows()
        if not self.problems and rows <= self.tolerated:
            return
        problems = [*merged(self.problems), *to_problems(self.bad, self.files)]
        if self.tolerated and rows > self.tolerated:
            remedy = "Correct the rows above, or raise --max-bad-rows if losing them is fine."
            problems.append(Problem("all files", None, f"more than --max-bad-rows {self.tolerated:,}", rows, remedy))
        raise InputDataError(problems)

    def bad_rows(self, kind: Kind | None = None) -> int:
        """Return the number of distinct bad rows of one kind or of all; one row may be bad for several reasons."""
        import polars as pl

        files = [index for index, found in enumerate(self.kinds) if kind in (None, found)]
        rows = [found.rows.select("__file", "__row") for found in self.bad]
        return pl.concat(rows).filter(pl.col("__file").is_in(files)).n_unique() if rows else 0

    def counts(self) -> dict[str, int]:
        """Return rows by reason."""
        counts: dict[str, int] = {}
        for found in self.bad:
            reason = found.reason if found.column is None else f"{found.column} {found.reason}"
            counts[reason] = counts.get(reason, 0) + len(found.rows)
        return dict(sorted(counts.items()))


def run(config: IngestConfig, *, progress: Progress = lambda _: None) -> IngestResult:
    """Check the input and store it in the lake of `config.home`; the same input again changes nothing.

    Raises
    ------
    InputDataError
        If the input is bad; nothing on disk was changed.
    ConfigError
        If another dataset lies in the home folder and `config.replace` is not set.
    BusyError
        If another process ingests into the same home folder.
    LakeError
        If the disk refuses.
    """
    from jobs.ingest_dataset import fingerprint
    from jobs.ingest_store import bad_row_table, clear_staging, publish, stored

    findings = _Findings(config.max_bad_rows)
    events, users, items = _checked(config, findings, progress)
    tables, record = _canonical(config, events, users, items, findings)
    dataset = Dataset(**record, fingerprint=fingerprint(tables.named()), files={})
    short = dataset.fingerprint[:12]
    home = Home(config.home)
    with home.lock("ingest"):
        clear_staging(home)
        present = stored(home, dataset.fingerprint, may_replace=config.replace)
        if present is not None:
            progress(f"ingest: {present.name} ({short}) is in the lake already")
            return IngestResult(present, unchanged=True)
        verdict = _verdict(config, tables.events, users, items, findings)
        for check in verdict.checks:
            if not check.passed:
                progress(f"ingest: warning, {check.name} is {check.observed}, usually {check.bound}: {check.detail}")
        quarantine = bad_row_table(findings.bad, findings.files, findings.kinds) if findings.bad else None
        dataset = publish(home, tables, dataset, quarantine)
        write_json(verdict.to_dict(), home.reports / "ingest_verdict.json")
    progress(f"ingest: {dataset.rows:,} events of {dataset.name} ({short}) are in the lake")
    return IngestResult(dataset, unchanged=False)


def _verdict(
    config: IngestConfig,
    events: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    findings: _Findings,
) -> Verdict:
    """Let the gate judge the log as a whole, as it is going to be stored.

    Raises
    ------
    InputDataError
        If it refuses.
    """
    from validation.gate import default_gate
    from validation.specs import EventsSpec

    tables: dict[Entity, pl.DataFrame | None] = {"user": users, "item": items}
    spec = EventsSpec(
        name=config.name,
        rows_in=findings.events_read,
        rows_refused=findings.bad_rows("events"),
        tolerated=config.max_bad_rows,
        now=config.now,
        known_ids={entity: table[f"{entity}_id"] for entity, table in tables.items() if table is not None},
    )
    with TemporaryDirectory() as scratch:
        verdict = default_gate().check_events(events, spec, workdir=Path(scratch))
    if not verdict.accepted:
        failed = "; ".join(f"{check.name} {check.observed} ({check.bound})" for check in verdict.failures())
        remedy = "Report it if the input is as it should be: the rows were good one by one."
        raise InputDataError(
            [Problem("all files", None, f"the gate refused it: {failed or verdict.error}", len(events), remedy)]
        )
    return verdict


def _checked(
    config: IngestConfig, findings: _Findings, progress: Progress
) -> tuple[pl.DataFrame, pl.DataFrame | None, pl.DataFrame | None]:
    """Return the good rows of events, users and items, or raise."""
    from jobs.ingest_ties import tie
    from validation.bad_rows import PLACE
    from validation.event_links import check_links
    from validation.events import check_id_types

    events, users, items = (_read(config, kind, findings) for kind in ("events", "users", "items"))
    if events is not None:
        findings.problems += check_id_types(events, users, items)
    # Links are checked on good rows only: the click of an impression without a time is not wrong itself.
    findings.refuse_if_too_bad()
    assert events is not None, "events without a frame are a problem"
    progress(f"ingest: checking {len(events):,} events")
    windows = {"click_window": config.click_window, "conversion_window": config.conversion_window}
    events, bad = check_links(tie(events, **windows), **windows)
    findings.bad += bad
    if events.is_empty():
        remedy = "Correct the rows; --max-bad-rows does not help here."
        findings.problems.append(Problem("all files", None, "no good event is left", findings.bad_rows(), remedy))
    findings.refuse_if_too_bad()
    users = users.drop(PLACE) if users is not None else None
    items = items.drop(PLACE) if items is not None else None
    return events.drop(PLACE), users, items


def _read(config: IngestConfig, kind: Kind, findings: _Findings) -> pl.DataFrame | None:
    """Read and check all files of one kind; return their good rows, None where there is nothing usable."""
    import polars as pl

    from jobs.ingest_read import read_files
    from validation.bad_rows import PLACE
    from validation.events import check_events, check_repeats, check_same_types, check_table

    raw, problems = read_files(getattr(config, kind), kind)
    findings.problems += problems
    entity: Entity = "user" if kind == "users" else "item"
    frames = []
    while raw:  # each raw frame is let go of before the next one is checked
        file = raw.pop(0)
        index = findings.add_file(file.name, kind)
        if kind == "events":
            findings.events_read += len(file.frame)
            parsed = check_events(file.frame, file.name, index, config.now)
        else:
            parsed = check_table(file.frame, file.name, index, entity, config.now)
        findings.problems += parsed.problems
        findings.bad += parsed.bad
        findings.notes += parsed.notes
        if parsed.frame is not None:
            frames.append(parsed.frame)
    clashes = check_same_types(frames, findings.files)
    findings.problems += clashes
    if not frames or clashes:
        return None
    frame = pl.concat(frames, how="diagonal_relaxed")
    repeats = check_repeats(frame, entity) if kind != "events" else []
    findings.bad += repeats
    for found in repeats:
        frame = frame.join(found.rows, on=PLACE, how="anti", maintain_order="left")
    return frame


def _canonical(
    config: IngestConfig,
    events: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    findings: _Findings,
) -> tuple[Tables, dict[str, Any]]:
    """Return the tables in canonical order, and all of the record but fingerprint and files."""
    from jobs.ingest_dataset import canonical_table, describe, in_canonical_order, split_text
    from jobs.ingest_store import Tables
    from validation.event_links import opportunity_type
    from validation.events import CORE, doubtful_ids, doubtful_types

    notes = findings.notes
    for what, table in (("events", events), ("users", users), ("items", items)):
        notes += doubtful_ids(table, what) if table is not None else []
    notes += doubtful_types(events)
    events, distinct = split_text(events, CORE, "events", notes)
    events = in_canonical_order(events, CORE)
    opportunity = opportunity_type(events)
    if opportunity != "impression":
        missing = "impressions" if opportunity else "impressions and no clicks"
        skipped = "CTR task is" if opportunity else "CTR and CVR tasks are"
        notes.append(f"events: there are no {missing}, so the {skipped} skipped.")
    chances = events if opportunity is None else events.filter(event_type=opportunity)
    users, user_table = canonical_table(users, events, "user", notes)
    items, item_table = canonical_table(items, events, "item", notes)
    types = events["event_type"].value_counts().sort("event_type")
    start, end = (events["event_timestamp"][row].astimezone(UTC) for row in (0, -1))
    record = {
        "name": config.name,
        "id_type": "string" if str(events.schema["user_id"]) == "String" else "int64",
        "rows": len(events),
        "counts": dict(types.iter_rows()),
        "start": start,
        "end": end,
        "users": events["user_id"].n_unique(),
        "items": events["item_id"].n_unique(),
        "opportunity": opportunity,
        "context": describe(chances, distinct, integers_are_codes=True),
        "user_table": user_table,
        "item_table": item_table,
        "quarantined": findings.counts(),
        "notes": tuple(notes),
    }
    return Tables(events, users, items), record
