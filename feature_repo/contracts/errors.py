"""Every error the platform raises on purpose.

::

    HeadwaterError
    ├── ConfigError             a setting is missing, unknown or contradicts another
    ├── InputDataError          input data was refused; carries one Problem per reason
    ├── LakeError               a file of the lake is missing, half there or not what the ledger says
    ├── LedgerError             the ledger cannot be read or written
    ├── NotFoundError           the named space, version, snapshot, consumer ... does not exist
    ├── NotReadyError           an earlier stage has to run first
    ├── BusyError               another process holds the home folder
    ├── OnlineStoreError        the online store cannot be reached, refuses, or holds what it should not
    ├── SnapshotRefusedError    the gate refused a snapshot; carries the Verdict
    ├── SpaceMismatchError      vectors of two spaces would meet
    └── MissingExtraError       an optional package is not installed

Each message says what was wrong, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_repo.contracts.types import Problem, Verdict


class HeadwaterError(Exception):
    """Base of all errors that are meant for a person; the command line prints its message alone."""

    exit_code = 1


class ConfigError(HeadwaterError):
    """A setting is missing, unknown or contradicts another."""

    exit_code = 2


class InputDataError(HeadwaterError):
    """Input data was refused as a whole; nothing on disk was changed.

    Parameters
    ----------
    problems
        One entry per reason, each with file, column, row count and remedy.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [problem.line() for problem in self.problems]
        super().__init__("Input refused, nothing was changed:\n" + "\n".join(lines))


class LakeError(HeadwaterError):
    """A file of the lake is missing, half there or not what the ledger says."""


class LedgerError(HeadwaterError):
    """The ledger cannot be read or written."""


class NotFoundError(HeadwaterError):
    """The named thing does not exist."""


class NotReadyError(HeadwaterError):
    """An earlier stage has to run first; the message names its command."""


class BusyError(HeadwaterError):
    """Another process holds the home folder."""

    exit_code = 75  # EX_TEMPFAIL: trying again later is right


class OnlineStoreError(HeadwaterError):
    """The online store cannot be reached, refuses, or holds what it should not."""


class SnapshotRefusedError(HeadwaterError):
    """The gate refused a snapshot; it lies in quarantine with its verdict."""

    exit_code = 3

    def __init__(self, message: str, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(message)


class SpaceMismatchError(HeadwaterError):
    """Vectors of two spaces would meet; comparing them is meaningless."""


class MissingExtraError(HeadwaterError):
    """An optional package is not installed; the message names the extra."""
