"""Arguments of a verb: a dataclass read by tyro. What tyro must not import stays out of ``--help``'s way."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tyro

from setr_fast.config import Config, read_config
from setr_fast.errors import ConfigError

T = TypeVar("T")
LISTS = ("--scales", "--inference.scales", "--metrics")  # the only options that also take 0.5,1.0


def parse(kind: type[T], argv: Sequence[str], verb: str, default: T | None = None) -> T:
    """Read the arguments of a verb into its dataclass; an option that is not there prints usage and exits with 2.

    Raises: ConfigError, in its own words, where a dataclass refuses a value.
    """
    expanded: list[str] = []
    for argument in argv:
        if expanded and expanded[-1] in LISTS and "," in argument:
            expanded += argument.split(",")
        else:
            expanded.append(argument)
    told = io.StringIO()
    try:
        with _light_type_check(), _flowing_texts(), redirect_stderr(told):
            if default is None:
                return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}", registry=_paths())
            return tyro.cli(kind, args=expanded, prog=f"setr-fast {verb}", default=default, registry=_paths())
    except SystemExit as stop:
        if (ours := _refusal(stop)) is not None:
            raise ours from None
        sys.stderr.write(told.getvalue())
        raise


def _paths() -> tyro.constructors.ConstructorRegistry:
    """Have tyro refuse empty paths: Python would take them for the current folder, and a shell makes them of a
    variable that is not set."""
    registry = tyro.constructors.ConstructorRegistry()

    def read(texts: list[str]) -> Path:
        if not texts[0]:
            raise ValueError("must be a path, got an empty one")
        return Path(texts[0])

    @registry.primitive_rule
    def path_rule(
        asked: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if asked.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    return registry


def _refusal(stop: SystemExit) -> ConfigError | None:
    """Return the error of ours that tyro took for one of its own: a ConfigError is a ValueError."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, ConfigError):
            return error
        error = error.__cause__ or error.__context__
    return None


def given(argv: list[str], name: str) -> str | None:
    """Return an option's value before the arguments are parsed: it decides what their defaults are."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest="value")
    try:
        with redirect_stderr(io.StringIO()):  # the value is missing: the real parser says so better
            return finder.parse_known_args(argv)[0].value
    except SystemExit:
        return None


def run_of(checkpoint: str | None) -> Config:
    """Return the configuration of the run that a checkpoint belongs to, so that it is used as it was validated."""
    place = Path(checkpoint or "")
    for folder in (place, *list(place.absolute().parents)[:2]):  # the run folder, best/, checkpoints/step_*/
        if checkpoint and (folder / "config.toml").is_file():
            return read_config(folder / "config.toml", Config())
    return Config()


@contextmanager
def _flowing_texts() -> Iterator[None]:
    """Have tyro see an option's text on one line: it would keep some of the line breaks that the source has."""
    try:
        docstring_parser: Any = import_module("docstring_parser")
    except ImportError:  # a tyro that reads texts in another way
        yield
        return
    read = docstring_parser.parse_from_object

    def flowing(of: Any, *style: Any) -> Any:
        found = read(of, *style)
        for item in found.params:
            item.description = " ".join((item.description or "").split()) or None
        return found

    docstring_parser.parse_from_object = flowing
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read


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
