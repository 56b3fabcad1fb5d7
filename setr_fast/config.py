"""The whole configuration: composed from each component's options, read from TOML, written back as TOML.

Precedence: default < recipe < file < flag. A key that does not exist is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import ConfigError
from setr_fast.fields import coerce, nearest
from setr_fast.models.options import ModelConfig
from setr_fast.train.options import OptimConfig, TrainConfig

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    run_dir: Path | None = None
    """Run folder; none: runs/<model>-<data>-<date>."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder, with the run's own configuration."""
    fsdp: bool = False
    """Shard weights, gradients and optimiser state over all processes (FSDP2)."""
    nproc: int | None = None
    """Processes to start; none: one per GPU, one on CPU. Under torchrun its ranks are used."""


def read_config(path: Path, base: Config) -> Config:
    """Return ``base`` with the values of a TOML file laid over it."""
    try:
        text = path.read_bytes().decode()
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not a readable TOML file: {error}") from None
    return _overlay(base, values, str(path))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe by name; ConfigError with the nearest name if there is none."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = recipe_names()
        raise ConfigError(f"recipe: must be one of {', '.join(known) or 'none here'}, got {name}{nearest(name, known)}")
    return path


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain TOML and JSON values; fields that are None are left out."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            out[item.name] = to_dict(value)
        else:
            out[item.name] = (
                str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            )
    return out


def to_toml(config: Config) -> str:
    """Return the configuration as TOML text that ``read_config`` takes."""
    import tomli_w  # not needed for --help

    return tomli_w.dumps(to_dict(config))


def _overlay(base: T, values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(name, hints)}")
        old = getattr(base, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key} must be a table, got {value!r}")
            changes[name] = _overlay(old, value, f"{where}: [{key}]")
        else:
            changes[name] = coerce(f"{where}: {key}", hints[name], value)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]
