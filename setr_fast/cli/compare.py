"""``setr-fast compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_OK
from setr_fast.metrics.options import RESAMPLES


@dataclass(frozen=True)
class CompareArguments:
    """How the second of two results of `eval` differs from the first, and whether that is more than the choice of
    pictures explains. Exit code 0 whatever the difference; 2: other data, classes or rules; 3: no result file."""

    first: tyro.conf.Positional[Path]
    """Result that `eval --out` wrote."""
    second: tyro.conf.Positional[Path]
    """Result that is compared with it."""
    force: bool = False
    """Compare in spite of other data, classes or rules; then without paired intervals."""
    out: Path | None = None
    """File for the comparison as JSON."""
    bootstrap: int = RESAMPLES
    """Resamples of the pictures behind the intervals of the differences; 0: none."""


def run(argv: list[str]) -> int:
    a = parse(CompareArguments, argv, "compare")
    from setr_fast.metrics.commands import compare_command

    compare_command(a.first, a.second, force=a.force, out=a.out, resamples=a.bootstrap)
    return EXIT_OK
