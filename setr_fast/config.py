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
from setr_fast.train.options import LossConfig, OptimConfig, ParallelConfig, TrainConfig

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
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
    """Return ``base`` with the values of a TOML file laid over it; a recipe's published result is not among them."""
    values = _table(path)
    values.pop("published", None)
    return _overlay(base, values, str(path))


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not a readable TOML file: {error}") from None


def recipe_path(name: str) -> Path:
    """Return the file of a recipe by name; ConfigError with the nearest name if there is none."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        near = nearest(name, recipe_names(), 3)
        raise ConfigError(f"recipe: must be one of those that `setr-fast recipes` lists, got {name}{near}")
    return path


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


@dataclass(frozen=True)
class Published:
    """What the authors of a recipe report, in percent; none where they report nothing."""

    miou: float | None = None
    """One scale, not mirrored."""
    miou_multi_scale: float | None = None
    """Several scales and mirrored pictures."""
    dice: float | None = None
    """Mean Dice coefficient, where that is what they report."""
    mae: float | None = None
    """Mean absolute error, likewise; a share, not in percent."""
    scales: tuple[float, ...] | None = None
    """Those scales."""
    source: str = ""
    """Where the figures stand."""


def published(name: str) -> Published:
    """Return the published result of a recipe; empty for recipes of our own."""
    values = _table(recipe_path(name)).get("published", {})
    return _overlay(Published(), values, f"{name}: published")


def recipe_lines() -> list[str]:
    """Return every recipe with its model, data, schedule and published mIoU, aligned, for ``setr-fast recipes``."""
    rows: list[tuple[str, ...]] = [
        ("recipe", "model", "data", "crop", "steps x batch", "mIoU", "multi-scale", "source")
    ]
    for name in recipe_names():
        config, result = read_config(recipe_path(name), Config()), published(name)
        scores = ["-" if score is None else f"{score:.2f}" for score in (result.miou, result.miou_multi_scale)]
        if result.dice is not None or result.mae is not None:
            scores[0] = f"Dice {result.dice:.2f}" if result.dice is not None else f"MAE {result.mae:.3f}"
        crop = "x".join(map(str, config.augment.crop))
        schedule = f"{config.train.steps} x {config.train.batch_size}"
        data = config.data.dataset or "your own"
        rows.append((name, config.model.name, data, crop, schedule, *scores, result.source or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}s}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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
