"""The contract of spaces: vectors of two of them never meet. Every check is made here, and none can be turned off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from feature_repo.contracts.errors import SpaceMismatchError


def require_same(expected: str, found: str, *, what: str, remedy: str) -> None:
    """Raise SpaceMismatchError unless two things that will meet are of one space.

    Parameters
    ----------
    what
        What meets what, e.g. ``the index of r1 and user vectors of v3``.
    remedy
        What to do about it.
    """
    if expected != found:
        raise SpaceMismatchError(f"Two spaces would meet: {what} ({expected} and {found}). {remedy}")


def check_read(views: Iterable[tuple[str, str, str]]) -> None:
    """Refuse a read that brings user and item vectors of different spaces together.

    Parameters
    ----------
    views
        Entity, space and name of every embedding view that is read together.

    Raises
    ------
    SpaceMismatchError
        If users and items are read, and a space of one has no counterpart of the other.
    """
    found: dict[str, dict[str, str]] = {}
    for entity, space_id, name in views:
        found.setdefault(entity, {})[space_id] = name
    for entity, spaces in found.items():
        for other, theirs in found.items():
            alone = sorted(spaces.keys() - theirs.keys())
            if other != entity and alone:
                raise SpaceMismatchError(
                    f"{spaces[alone[0]]} ({entity} vectors of space {alone[0]}) is read together with "
                    f"{', '.join(sorted(theirs.values()))} ({other} vectors of {', '.join(sorted(theirs))}): their "
                    f"products mean nothing. Read the {other} view of the same version beside it, or leave it out."
                )


def check_pins(pinned: Mapping[str, str], served: Mapping[str, str], *, who: str) -> None:
    """Refuse to feed a consumer vectors of a space that it was not trained with.

    Parameters
    ----------
    pinned
        Version or view to the space that the consumer was trained with.
    served
        The same names to the space that they stand for now.

    Raises
    ------
    SpaceMismatchError
        If a name is missing or stands for another space.
    """
    for name, space_id in pinned.items():
        if served.get(name) != space_id:
            raise SpaceMismatchError(
                f"{who} was trained with space {space_id} as '{name}', but is given {served.get(name)}: "
                "feed the version it is pinned to, or train it again."
            )
