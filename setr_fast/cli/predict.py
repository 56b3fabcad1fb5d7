"""``setr-fast predict``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from setr_fast.cli._parse import given, parse, run_of
from setr_fast.data.options import DataConfig
from setr_fast.engine.options import InferenceConfig
from setr_fast.errors import EXIT_OK, ConfigError


@dataclass(frozen=True)
class PredictArguments:
    """Write a class-index PNG and an overlay for each picture, at the picture's own size."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, videos, and folders of them, with all folders below."""
    checkpoint: Path
    """Folder of a saved model, or a run folder (its best model)."""
    out: Path
    """Folder for the results."""
    inference: Annotated[InferenceConfig, tyro.conf.arg(name="")] = field(default_factory=InferenceConfig)
    device: str | None = None
    """cpu, cuda or cuda:N; none: the first GPU, else the CPU."""
    overlay: Literal["png", "jpg", "none"] = "jpg"
    """Format of the pictures with their classes laid over; png: without loss, takes ten times as long to write; none:
    class maps only."""
    extra: Path | None = None
    """Folder with each picture's further channels under its stem, for models of more than three."""
    max_pixels: int = DataConfig.max_pixels
    """Largest picture that is decoded, in pixels."""


def run(argv: list[str]) -> int:
    run = run_of(given(argv, "checkpoint"))
    default = PredictArguments(tyro.MISSING, tyro.MISSING, tyro.MISSING, run.inference)
    a = parse(PredictArguments, argv, "predict", default=default)
    if not a.inputs:
        raise ConfigError("predict: needs at least one picture, folder or video; see --help")
    from setr_fast.engine.predict_command import predict_command

    predict_command(
        a.checkpoint,
        list(a.inputs),
        a.out,
        a.inference,
        device=a.device,
        overlays=a.overlay,
        extra=a.extra,
        extra_range=run.data.extra_range,
        max_pixels=a.max_pixels,
    )
    return EXIT_OK
