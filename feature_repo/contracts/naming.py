"""Names of views, services and snapshots: one place, so that code, ledger and lake agree."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from feature_repo.contracts.errors import ConfigError
from feature_repo.contracts.types import Entity

ENTITIES: tuple[Entity, ...] = ("user", "item")
_VERSION = re.compile(r"v[1-9][0-9]*")


def check_version(version: str) -> str:
    """Return `version` if it has the form ``v1``, ``v2`` ...; raise ConfigError otherwise."""
    if not _VERSION.fullmatch(version):
        raise ConfigError(f"'{version}' is no version name: use v followed by a number, such as v1.")
    return version


def join_key(entity: Entity) -> str:
    """Return the id column of an entity, e.g. ``user_id``."""
    return f"{entity}_id"


def embedding_view(entity: Entity, version: str) -> str:
    """Return the Feast view of one entity and version, e.g. ``user_embedding_v1``."""
    return f"{entity}_embedding_{check_version(version)}"


def stats_view(entity: Entity) -> str:
    """Return the view of plain counts, e.g. ``user_stats``."""
    return f"{entity}_stats"


def attributes_view(entity: Entity) -> str:
    """Return the view of attributes, e.g. ``item_attributes``."""
    return f"{entity}_attributes"


def choices_view() -> str:
    """Return the view of what users chose themselves, which retrieval reads and no ranker does."""
    return "user_choices"


def moment_stem(moment: datetime) -> str:
    """Return a sortable file stem for a UTC moment, e.g. ``20170807T000000Z``.

    Raises
    ------
    ConfigError
        If `moment` is naive or has fractions of a second, which would not sort.
    """
    if moment.tzinfo is None:
        raise ConfigError(f"{moment} has no time zone: pass a UTC time such as 2017-08-07T00:00:00Z.")
    if moment.microsecond:
        raise ConfigError(f"{moment} has fractions of a second: snapshots are taken at whole seconds.")
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def snapshot_name(view: str, as_of: datetime) -> str:
    """Return the id of a view's snapshot as of a moment."""
    return f"{view}-{moment_stem(as_of)}"
