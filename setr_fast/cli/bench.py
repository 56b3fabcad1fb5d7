"""``setr-fast bench``."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_OK, ConfigError


@dataclass(frozen=True)
class BenchArguments:
    """Time every backend of each op on one realistic case and say which this machine should use. Exit code 4 if a
    backend's result is wrong."""

    ops: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ops to time; none named: all."""
    seconds: float = 0.5
    """Time for one op and dtype; three rounds are run at least."""


def run(argv: list[str]) -> int:
    a = parse(BenchArguments, argv, "bench")
    from setr_fast.ops import OPS
    from setr_fast.verdict import bench, head

    if unknown := [name for name in a.ops if name not in OPS]:
        raise ConfigError(f"bench: there is no op {', '.join(unknown)}, only {', '.join(sorted(OPS))}")
    print(head(), flush=True)
    wrong = False
    for verdict in bench(a.ops, a.seconds):
        print(verdict.line(), flush=True)
        wrong |= bool(verdict.wrong)
    return EXIT_ENVIRONMENT if wrong else EXIT_OK
