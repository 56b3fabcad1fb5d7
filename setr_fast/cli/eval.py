"""``setr-fast eval``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from setr_fast.cli._parse import given, parse, run_of
from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data.layouts.known import known_set
from setr_fast.data.options import DataConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import EXIT_OK
from setr_fast.files import can_be_made, cannot_write
from setr_fast.metrics.options import MetricsConfig


@dataclass(frozen=True)
class EvalArguments:
    """Score a model on a folder of pictures and masks."""

    checkpoint: Path
    """Folder of a saved model, or a run folder (its best model)."""
    data: DataConfig = field(default_factory=DataConfig)
    inference: Annotated[InferenceConfig, tyro.conf.arg(name="")] = field(default_factory=InferenceConfig)
    scoring: Annotated[MetricsConfig, tyro.conf.arg(name="")] = field(default_factory=MetricsConfig)
    split: str = "val"
    """Split that is scored."""
    recipe: str | None = None
    """Recipe whose data set, sizes and windows are used instead of those that the model was trained with."""
    device: str | None = None
    """cpu, cuda or cuda:N; none: the first GPU, else the CPU."""
    out: Path | None = None
    """File for the result as JSON."""


def run(argv: list[str]) -> int:
    run = run_of(given(argv, "checkpoint"))
    if (recipe := given(argv, "recipe")) is not None:
        run = read_config(recipe_path(recipe), Config())
    default = EvalArguments(tyro.MISSING, run.data, run.inference, _metrics_of(run), split=run.data.val_split)
    a = parse(EvalArguments, argv, "eval", default=default)
    if a.out is not None and not can_be_made(a.out):
        raise cannot_write("out", a.out)
    from setr_fast.engine.commands import eval_command

    split = a.split if given(argv, "split") is not None else a.data.val_split  # a known set may call it otherwise
    eval_command(a.checkpoint, a.data, a.inference, a.scoring, split=split, out=a.out, device=a.device)
    return EXIT_OK


def _metrics_of(run: Config) -> MetricsConfig:
    """Return the scoring that a known data set's papers report."""
    return MetricsConfig(metrics=known_set(run.data.dataset).metrics) if run.data.dataset else MetricsConfig()  # type: ignore[arg-type]
