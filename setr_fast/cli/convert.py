"""``setr-fast convert``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from setr_fast.checkpoints.options import ConvertConfig
from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_OK


@dataclass(frozen=True)
class ConvertArguments:
    """Read a checkpoint of any known code base and write it as another's, with a certificate of every key."""

    source: tyro.conf.Positional[Path]
    """Weights file, or a folder with one."""
    result: tyro.conf.Positional[Path]
    """Folder to write (native), or file (any other)."""
    config: Annotated[ConvertConfig, tyro.conf.arg(name="")] = field(default_factory=ConvertConfig)


def run(argv: list[str]) -> int:
    a = parse(ConvertArguments, argv, "convert")
    from setr_fast.checkpoints.convert import convert_command

    convert_command(a.source, a.result, a.config)
    return EXIT_OK
