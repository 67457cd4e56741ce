"""The platform's nouns as frozen dataclasses (see the glossary in README.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

Entity = Literal["user", "item"]
Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Problem:
    """One reason why input was refused: where, how many rows (0: unknown), and what to do about it."""

    file: str
    column: str | None
    reason: str
    rows: int
    remedy: str

    def line(self) -> str:
        """Return the problem as one line for a person."""
        where = self.file if self.column is None else f"{self.file}, column '{self.column}'"
        rows = f" ({self.rows:,} rows)" if self.rows else ""
        return f"  - {where}: {self.reason}{rows}. {self.remedy}"


@dataclass(frozen=True)
class Check:
    """One check of the gate with the value it saw and the bound it had to keep."""

    name: str
    severity: Severity
    passed: bool
    observed: float | int | str | None
    bound: str
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, how long it took, and the page that tells a person.

    Accepted only if every critical check ran and is exactly True. The page (HTML) comes from the gate and is filed by
    whoever publishes; it is no part of the record.
    """

    accepted: bool
    checks: tuple[Check, ...]
    error: str | None = None
    seconds: float | None = None
    page: str | None = field(default=None, compare=False, repr=False)

    def failures(self) -> tuple[Check, ...]:
        """Return the critical checks that did not pass."""
        return tuple(check for check in self.checks if check.severity == "critical" and check.passed is not True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the page."""
        return {name: value for name, value in asdict(self).items() if name != "page"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` wrote."""
        checks = tuple(Check(**check) for check in values["checks"])
        return cls(values["accepted"], checks, values["error"], values.get("seconds"))


@dataclass(frozen=True)
class Space:
    """The vector space that one trained upstream model spans.

    Attributes
    ----------
    space_id
        Hash of model weights, configuration and training-data fingerprint (16 hex digits).
    train_end
        No event at or after this moment, and no label that arrived at or after it, was trained on.
    """

    space_id: str
    dim: int
    train_end: datetime
    data_fingerprint: str
    artifact: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """The number people use for a space; one Feast feature view per entity and version."""

    version: str
    space_id: str
    description: str
    owner: str
    smoothing: float | None


@dataclass(frozen=True)
class View:
    """What a Feast feature view of ours reads: the columns of its snapshots and how long they hold.

    `fields` maps each feature column to its Arrow type as text; `id_type` is int64 or string;
    `ttl_days` 0 means for ever; `version` is None for plain views.
    """

    name: str
    entity: Entity
    version: str | None
    id_type: str
    fields: dict[str, str]
    ttl_days: int


@dataclass(frozen=True)
class Snapshot:
    """The immutable result of one refresh of one view: rows computed from what was known at `as_of`.

    `version` is None for plain feature views (counts). `available_at` is the first moment a consumer
    could have read the rows.
    """

    snapshot_id: str
    view: str
    entity: Entity
    version: str | None
    space_id: str | None
    as_of: datetime
    available_at: datetime
    rows: int
    path: str
    sha256: str
    accepted: bool
    verdict: Verdict


@dataclass(frozen=True)
class Decision:
    """What a person decided about a refused snapshot, and why.

    `sha256` is that of the file it was about: a later refresh of the same moment is another file.
    """

    snapshot_id: str
    sha256: str
    action: Literal["accept", "discard"]
    by: str
    why: str
    at: datetime


@dataclass(frozen=True)
class Release:
    """What serving uses, moved as one: consumers' artifacts, embedding versions, item index and online tables.

    Attributes
    ----------
    versions
        Every embedding version that its consumers and its index read, with the space it stands for.
    consumers
        By name: ``task``, ``versions``, ``artifact`` (folder below the home folder), ``digest`` (of its files).
    index
        The item index: ``artifact``, ``digest``, ``version``, ``space_id``, ``snapshot_id``, and what
        ``popularity`` and ``own_choices`` add where they do; None without one.
    snapshots
        By embedding view, and that of own choices where the index adds them, the snapshot that was the latest when the
        release was made. The views' names are those of
        the online tables that serving reads.
    """

    name: str
    created: datetime
    description: str
    versions: dict[str, str]
    consumers: dict[str, dict[str, Any]]
    index: dict[str, Any] | None
    snapshots: dict[str, str]


@dataclass(frozen=True)
class Move:
    """One step of the history of what serving used; `verified` maps views to the snapshots seen online."""

    seq: int
    action: Literal["promote", "rollback", "drop"]
    release: str
    at: datetime
    by: str
    verified: dict[str, str]
