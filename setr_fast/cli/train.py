"""``setr-fast train``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from setr_fast.cli._parse import given, parse
from setr_fast.config import Config, read_config, recipe_path
from setr_fast.train.options import ParallelConfig


@dataclass(frozen=True)
class TrainArguments(Config):
    """Train a model; with no argument, a small SETR-PUP on built-in scenes."""

    recipe: str | None = None
    """Named configuration laid over the defaults."""
    config: Path | None = None
    """TOML file laid over the recipe; flags go over both."""
    parallel: Annotated[ParallelConfig, tyro.conf.arg(name="fsdp")] = field(default_factory=ParallelConfig)


def run(argv: list[str]) -> int:
    arguments = parse(TrainArguments, argv, "train", default=train_defaults(argv))
    values = {item.name: getattr(arguments, item.name) for item in dataclasses.fields(Config)}
    from setr_fast.train.launch import run as launch

    return launch(Config(**values), argv)


def train_defaults(argv: list[str]) -> TrainArguments:
    """Lay recipe and file (or, on --resume, the run's own configuration) over the defaults."""
    base = Config()
    run_dir, config = given(argv, "run-dir"), given(argv, "config")
    if (recipe := given(argv, "recipe")) is not None:
        base = read_config(recipe_path(recipe), base)
    if config:
        base = read_config(Path(config), base)
    elif "--resume" in argv and run_dir and (Path(run_dir) / "config.toml").is_file():
        base = read_config(Path(run_dir) / "config.toml", base)
    return TrainArguments(**{item.name: getattr(base, item.name) for item in dataclasses.fields(Config)})
