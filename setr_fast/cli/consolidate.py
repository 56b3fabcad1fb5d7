"""``setr-fast consolidate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_OK


@dataclass(frozen=True)
class ConsolidateArguments:
    """Turn a sharded checkpoint of a run into one model folder."""

    checkpoint: tyro.conf.Positional[Path]
    """Run folder (its newest checkpoint), or one of its checkpoints/step_*."""
    out: Path
    """Folder for config.json and model.safetensors."""
    weights: Literal["best", "average", "raw"] = "best"
    """best: averaged weights where the run has them, else raw ones."""


def run(argv: list[str]) -> int:
    a = parse(ConsolidateArguments, argv, "consolidate")
    from setr_fast.train.consolidate import consolidate

    print(f"{consolidate(a.checkpoint, a.out, a.weights)} -> {a.out}")
    return EXIT_OK
