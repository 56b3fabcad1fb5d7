"""A comparison per op, realistic case and dtype: reference, torch.compile and every backend, from the declarations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.machine import DEVICE
from benchmarks.op_contest import compare_op
from benchmarks.selection import is_full, spread
from setr_fast.ops import OPS
from setr_fast.ops._op import FULL, Case, Op

# Of ops whose results are rounded: what is computed in, the one that matters most first.
ROUNDED = [torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.bfloat16]


def comparisons() -> Iterator[Any]:
    """Yield the parameters of each comparison; those outside the default selection are marked ``full``.

    In the default selection the reference is compiled for one case of each op that rounds: seconds each. Cases that
    are declared FULL take a processor long; a card has them like the others.
    """
    for op in OPS.values():
        if DEVICE == "cuda" and all(backend.device == "cpu" for backend in op.backends):
            continue  # pictures are augmented where they are read
        cases = [case for case in op.cases() if case.bench]
        common = [case.name for case in spread([c for c in cases if DEVICE == "cuda" or c.bench != FULL])]
        for case in cases:
            for dtype in ROUNDED if op.rounds else [torch.float32]:
                by_default = case.name in common and (not op.rounds or dtype is ROUNDED[0])
                marks = [] if by_default else [pytest.mark.full]
                compiled = op.rounds and case is cases[0]
                name = f"{op.name}-{case.name}-{str(dtype)[6:]}"
                yield pytest.param(op, case, dtype, compiled, marks=marks, id=name)


@pytest.mark.parametrize(("op", "case", "dtype", "compiled"), list(comparisons()))
def test_op(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    compiled: bool,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    pytestconfig: pytest.Config,
) -> None:
    compare_op(op, case, dtype, benchmark, record, seed, compiled=compiled or is_full(pytestconfig))
