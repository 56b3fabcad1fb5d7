"""Strict reading of dataclass fields from loosely typed values (JSON, TOML, keyword arguments)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from setr_fast.errors import ConfigError


def nearest(name: str, names: Iterable[str], count: int = 1) -> str:
    """Return ``'; did you mean NAME'``, or nothing where no name is near."""
    found = difflib.get_close_matches(name, list(names), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}" if found else ""


def known_names(cls: type, values: Iterable[str], where: str) -> None:
    """Refuse names that are no field of ``cls``.

    Raises: ConfigError naming each unknown field and the nearest known one.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [name for name in values if name not in names]
    if unknown:
        told = ", ".join(f"{name}{nearest(name, names)}" for name in unknown)
        raise ConfigError(f"{where}: option must be a known one, got {told}")


def known_numbers(instance: Any, where: str) -> None:
    """Refuse NaN and infinities among a dataclass's numbers, alone or in tuples: they get past comparisons.

    Raises: ConfigError naming the field.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        several = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, float) and not math.isfinite(item) for item in several):
            raise ConfigError(f"{where}.{field.name}: must be finite, got {value}")


def coerce_fields(cls: type, instance: Any, where: str) -> dict[str, Any]:
    """Return every field's value as its annotation wants it: lists as tuples, whole numbers as floats.

    Raises: ConfigError naming the field, what it takes and what it got.
    """
    hints = typing.get_type_hints(cls)
    return {
        field.name: coerce(f"{where}.{field.name}", hints[field.name], getattr(instance, field.name))
        for field in dataclasses.fields(cls)
    }


def coerce(where: str, hint: Any, value: Any) -> Any:
    """Return one value as its annotation wants it.

    Raises: ConfigError naming the place, what it takes and what it got.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return coerce(where, next(arg for arg in args if arg is not type(None)), value)
    if origin is typing.Literal:
        if type(value) is bool or value not in args:
            raise ConfigError(f"{where}: must be {' or '.join(str(a) for a in args)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{where}: must be a list, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where}: must have {len(inner)} entries, got {len(value)}")
        return tuple(coerce(where, kind, item) for kind, item in zip(inner, value, strict=True))
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ConfigError(f"{where}: must be a finite number, got {value!r}")
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: must be {_NOUNS[hint]}, got {value!r}")
    return value


_NOUNS = {int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
