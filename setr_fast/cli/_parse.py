"""Arguments of a verb: a dataclass read by tyro. What tyro must not import stays out of ``--help``'s way."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tyro

from setr_fast.config import Config, read_config

T = TypeVar("T")
LISTS = ("--scales", "--inference.scales", "--metrics")  # the only options that also take 0.5,1.0


def parse(kind: type[T], argv: Sequence[str], verb: str, default: T | None = None) -> T:
    """Read the arguments of a verb into its dataclass; a mistake prints usage and exits with 2."""
    expanded: list[str] = []
    for argument in argv:
        if expanded and expanded[-1] in LISTS and "," in argument:
            expanded += argument.split(",")
        else:
            expanded.append(argument)
    with _light_type_check():
        if default is None:
            return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}")
        return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}", default=default)


def given(argv: list[str], name: str) -> str | None:
    """Return an option's value before the arguments are parsed: it decides what their defaults are."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest="value")
    try:
        return finder.parse_known_args(argv)[0].value
    except SystemExit:  # the value is missing: the real parser says so better
        return None


def run_of(checkpoint: str | None) -> Config:
    """Return the configuration of the run that a checkpoint belongs to, so that it is used as it was validated."""
    place = Path(checkpoint or "")
    for folder in (place, *list(place.absolute().parents)[:2]):  # the run folder, best/, checkpoints/step_*/
        if checkpoint and (folder / "config.toml").is_file():
            return read_config(folder / "config.toml", Config())
    return Config()


@contextmanager
def _light_type_check() -> Iterator[None]:
    """Stand in for typeguard while tyro compares defaults with their types.

    typeguard imports unittest.mock, and with it asyncio and ssl: a third of the time that ``--help`` takes. The
    defaults compared are those of our own dataclasses, so a check of the few kinds of type they use is enough.
    """
    if "typeguard" in sys.modules:
        yield
        return
    light = ModuleType("typeguard")
    light.check_type = _check_type  # type: ignore[attr-defined]
    light.TypeCheckError = TypeError  # type: ignore[attr-defined]
    sys.modules["typeguard"] = light
    try:
        yield
    finally:
        if sys.modules.get("typeguard") is light:
            del sys.modules["typeguard"]


def _check_type(value: Any, kind: Any) -> Any:
    if not _fits(value, kind):
        raise TypeError(f"{value!r} is no {kind}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, (float, int))
    return not isinstance(kind, type) or isinstance(value, kind)
