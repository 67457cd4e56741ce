"""Configs as nested frozen dataclasses that survive JSON: what a model was built from is stored beside it."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from feature_repo.contracts.errors import ConfigError

C = TypeVar("C")


def added(default: Any) -> Any:
    """Return the field of a setting that came later, with the default under which everything is as it was before.

    :func:`to_dict` leaves it out while it has that default: models that do not use it keep their space_id, and
    configs from before it load.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON values (tuples become lists); see :func:`added`."""
    fields = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
    return {f.name: _plain(value) for f, value in fields if not (f.metadata.get("added") and value == f.default)}


def from_dict(cls: type[C], values: Any, where: str = "") -> C:
    """Build a (nested) config dataclass from what :func:`to_dict` wrote.

    Parameters
    ----------
    cls
        The config dataclass.
    values
        Plain JSON values; fields with a default may be absent.
    where
        Dotted path of `values` in the whole config, for messages.

    Raises
    ------
    ConfigError
        If a field is unknown, missing or of the wrong type; the message names its path.
    """
    where = where or cls.__qualname__
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object of settings, not {type(values).__name__}.")
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if unknown := sorted(set(values) - {f.name for f in fields}):
        known = ", ".join(f.name for f in fields)
        raise ConfigError(f"{where} has unknown settings {unknown}; it knows: {known}.")
    ready = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    absent = [
        f.name
        for f in fields
        if f.name not in ready and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise ConfigError(f"{where} lacks the settings {absent}; add them.")
    return cast(C, cls(**ready))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(cast(type, hint), value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; choose one of {list(args)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}.")
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where} must have {len(inner)} entries, not {len(value)}.")
        return tuple(_typed(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be a {hint.__name__}, not {value!r}.")
    return value
