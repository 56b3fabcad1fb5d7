"""``setr-fast bench``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import tyro

from setr_fast.cli._parse import parse
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_OK, BackendError, ConfigError


@dataclass(frozen=True)
class BenchArguments:
    """Time every backend of each op on one realistic case and say which this machine should use. Exit code 4 if a
    backend's result is wrong."""

    ops: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ops to time; none named: all."""
    seconds: float = 0.5
    """Time for one op and dtype; three rounds are run at least."""
    adopt: bool = False
    """Hold every backend against the reference in all cases of its op, odd shapes included, and have those that are
    right and faster in every timed case used on this machine from now on. Kept in a file of the user's cache folder
    (SETR_FAST_ADOPTED names another, or says `off`) until the card, PyTorch, Triton or the kernels change."""


def run(argv: list[str]) -> int:
    a = parse(BenchArguments, argv, "bench")
    from setr_fast.ops import OPS
    from setr_fast.verdict import bench, head

    if unknown := [name for name in a.ops if name not in OPS]:
        raise ConfigError(f"op: must be one of {', '.join(sorted(OPS))}, got {', '.join(unknown)}")
    if not 0 <= a.seconds <= 3600:
        raise ConfigError(f"seconds: must lie in 0..3600, got {a.seconds}")
    print(head(), flush=True)
    if a.adopt:
        return _adopt(a.ops or tuple(sorted(OPS)), a.seconds)
    wrong = False
    for verdict in bench(a.ops, a.seconds):
        print(verdict.line(), flush=True)
        wrong |= bool(verdict.wrong)
    return EXIT_ENVIRONMENT if wrong else EXIT_OK


def _adopt(names: tuple[str, ...], seconds: float) -> int:
    """Keep the findings of each op as soon as it is done: a kernel may take the process with it."""
    import torch

    from setr_fast.adopt import Finding, findings, keep

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = False
    path = keep([], device)
    for position, name in enumerate(names):
        found: list[Finding] = []
        try:
            for finding in findings(device, [name], seconds):
                print(finding.line(), flush=True)
                found.append(finding)
                wrong |= bool(finding.wrong)
        except BackendError as error:  # the card needs a new process
            print(error, file=sys.stderr, flush=True)
            keep([Finding(name, "float32")], device)
            if rest := names[position + 1 :]:
                os.execv(
                    sys.executable, [sys.executable, "-m", "setr_fast.bench", *rest, "--adopt", f"--seconds={seconds}"]
                )
            return EXIT_ENVIRONMENT
        keep(found, device)
    print(f"kept in {path}; `setr-fast doctor` shows what is used")
    return EXIT_ENVIRONMENT if wrong else EXIT_OK
