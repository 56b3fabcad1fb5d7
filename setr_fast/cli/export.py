"""``setr-fast export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_OK
from setr_fast.export.options import ExportConfig


@dataclass(frozen=True)
class ExportArguments:
    """Write a model as one program, pictures of bytes in and class maps out, of any height, width and batch; beside it
    a receipt that says how many pixels agree with the model in Python."""

    checkpoint: Path
    """Folder of a saved model, a run folder (its best model), or a weights file of another code base."""
    out: Path
    """File to write (.pt2 or .onnx), or for cpp the folder."""
    config: Annotated[ExportConfig, tyro.conf.arg(name="")] = field(default_factory=ExportConfig)


def run(argv: list[str]) -> int:
    a = parse(ExportArguments, argv, "export")
    from setr_fast.export.commands import export_command

    export_command(a.checkpoint, a.out, a.config)
    return EXIT_OK
