"""The sides of one op: the reference, torch.compile of it, and every backend that is declared, served or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.contest import Contest, Side
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.ring import Arguments, copied, draw
from setr_fast.ops._op import REFERENCE, Case, Op

COMPILE = "compile"
FULL_ONLY = "compiled in the full selection only (-m full)"
NOT_QUICKLY = "never compiled with --quick: it takes longer than all else, and a fault of it would fail nothing"
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # workers that wait would count as a disturbance


def sides_of(
    op: Op, arguments: Arguments, dtype: torch.dtype, *, compiled: bool
) -> tuple[dict[str, Side], dict[str, str]]:
    """Return what can run these arguments, and why the others cannot."""
    if not op.rounds:
        dtype = next(t.dtype for t in arguments if isinstance(t, Tensor))
    sides = {REFERENCE: Side(op.reference, dtype, REFERENCE, 1.0 if op.rounds else None)}
    not_run: dict[str, str] = {}
    if compiled and not harness.QUICK:
        factor = 2.0 if op.rounds else None
        sides[COMPILE] = Side(compiled_reference(op.reference), dtype, REFERENCE, factor, ours=False)
    else:
        not_run[COMPILE] = why_not_compiled()
    for backend in op.backends:
        reasons = op.refusals(backend, *arguments)
        if reasons:
            not_run.setdefault(backend.name, "; ".join(reasons))
            continue
        not_run.pop(backend.name, None)
        factor = backend.error_factor if op.rounds else None
        sides[backend.name] = Side(op._implementation(backend), dtype, REFERENCE, factor)
    return sides, {name: why for name, why in not_run.items() if name not in sides}


def why_not_compiled() -> str:
    """Return why there is no side of torch.compile where one could be."""
    return NOT_QUICKLY if harness.QUICK else FULL_ONLY


def compiled_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.compile of a function, for one set of shapes; nothing compiled before is kept.

    Without the reset the limit on recompilations would make a later case run eagerly, unnoticed.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def compare_op(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    *,
    compiled: bool,
) -> None:
    """Time all sides of an op, record their rows, and fail if a backend of ours is wrong on what was timed."""

    def make(index: int) -> Arguments:
        return case.make(draw(dtype, seed + index))

    def truth(arguments: Arguments) -> Any:
        return op.reference(*(copied(arguments, torch.float64) if op.rounds else arguments))

    first = make(0)
    sides, not_run = sides_of(op, first, dtype, compiled=compiled)
    contest = Contest(sides, make, truth, not_run)
    outcome = contest.run()
    cost, chosen = op.cost(*first), op.choose(*first)
    rows = rows_of(
        contest,
        outcome,
        REFERENCE,
        kind="op",
        name=op.name.removesuffix("_backward"),
        case=case.name,
        direction="backward" if op.name.endswith("_backward") else "forward",
        bytes=cost.bytes,
        flops=cost.flops,
        chosen=chosen,
    )
    record(rows)
    finish(rows, outcome, benchmark, sides[chosen].run, first)
