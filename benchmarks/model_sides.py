"""The sides of one network: a ladder from the plain float32 reference to everything of ours.

reference -> bf16 -> torch.compile -> one op of ours more per rung -> ours -> replayed as a graph of the card.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import setr_fast
from benchmarks import harness
from benchmarks.contest import Side
from benchmarks.machine import DEVICE
from benchmarks.op_contest import COMPILE, why_not_compiled
from setr_fast.ops import OPS, _adopted
from setr_fast.ops._op import REFERENCE
from setr_fast.train.step import has_fast_bf16

OURS = "ours"
HALF = "bfloat16"
KERNELS = f"all kernels {HALF}"
"""Ours, and kernels that wait for results of a card come first."""
FAST_HALF = has_fast_bf16(torch.device(DEVICE))
FACTOR_WHOLE = 2.0
"""Times the plain network's own error in the same dtype that another side's may be."""


class _Names(TorchDispatchMode):
    """Collects which ops of ours are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "setr_fast" and name in OPS and name not in self.found:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def ops_of(run: Callable[[], Any]) -> list[str]:
    """Return the ops of ours that ``run`` calls, in order."""
    with _Names() as names:
        run()
    return names.found


def ladder(
    run: Callable[..., Any],
    ops: list[str],
    *,
    full: bool,
    graph: Callable[[], Callable[..., Any]] | None,
) -> tuple[dict[str, Side], dict[str, str]]:
    """Return the sides of ``run`` and why others cannot run.

    ``ops`` are those that it calls. ``graph`` returns ``run``, ours, captured as a graph. Rungs are computed in
    bfloat16 where the machine multiplies that in hardware, else in float32; ``full`` has both ends in both and
    torch.compile of the reference.
    """
    half_name, ours_half = f"{REFERENCE} {HALF}", f"{OURS} {HALF}"
    base, dtype = (half_name, torch.bfloat16) if FAST_HALF else (REFERENCE, torch.float32)
    sides = {REFERENCE: Side(partial(_run, run, REFERENCE, torch.float32), torch.float32, REFERENCE, 1.0)}
    not_run = {}
    if full or FAST_HALF:
        sides[half_name] = Side(partial(_run, run, REFERENCE, torch.bfloat16), torch.bfloat16, half_name, 1.0)
    if full and not harness.QUICK:
        sides[COMPILE] = Side(partial(_run, _compiled(run), "", dtype), dtype, base, FACTOR_WHOLE, ours=False)
    else:
        not_run[COMPILE] = why_not_compiled()
    for count in range(1, len(ops)):
        plainly = ",".join(f"{name}={REFERENCE}" for name in ops[count:])
        sides[f"+ {ops[count - 1]}"] = Side(partial(_run, run, plainly, dtype), dtype, base, FACTOR_WHOLE)
    sides[OURS] = Side(partial(_run, run, "", torch.float32), torch.float32, REFERENCE, FACTOR_WHOLE)
    if full or FAST_HALF:
        sides[ours_half] = Side(partial(_run, run, "", torch.bfloat16), torch.bfloat16, half_name, FACTOR_WHOLE)
    else:
        not_run |= dict.fromkeys((half_name, ours_half), "slower than float32 here; in the full selection (-m full)")
    _add_graph("graph", graph, sides, not_run)
    return sides, not_run


def with_kernels(
    run: Callable[..., Any], *, graph: Callable[[], Callable[..., Any]] | None
) -> tuple[dict[str, Side], dict[str, str]]:
    """Return the sides that show what kernels bring that no card has run yet, and why others cannot run.

    They stand apart from the ladder: one of them may take the card with it. ``graph`` as of ``ladder``.
    """
    half = f"{REFERENCE} {HALF}"
    sides = {
        half: Side(partial(_run, run, REFERENCE, torch.bfloat16), torch.bfloat16, half, 1.0),
        f"{OURS} {HALF}": Side(partial(_run, run, "", torch.bfloat16), torch.bfloat16, half, FACTOR_WHOLE),
        KERNELS: Side(partial(_with_kernels, _run, run, "", torch.bfloat16), torch.bfloat16, half, FACTOR_WHOLE),
    }
    not_run: dict[str, str] = {}
    _add_graph(f"{KERNELS} graph", None if graph is None else partial(_with_kernels, graph), sides, not_run)
    return sides, not_run


def _add_graph(
    name: str, graph: Callable[[], Callable[..., Any]] | None, sides: dict[str, Side], not_run: dict[str, str]
) -> None:
    """Add what ``graph`` captures as a side, or why there is none: a failed capture costs no other side its row."""
    if graph is None:
        not_run[name] = "the step of an optimiser is not captured"
    elif DEVICE != "cuda":
        not_run[name] = "needs a CUDA device"
    else:
        try:
            sides[name] = Side(graph(), torch.bfloat16, f"{REFERENCE} {HALF}", FACTOR_WHOLE, ours=False)
        except RuntimeError as error:
            not_run[name] = (str(error).strip() or type(error).__name__).splitlines()[0]


def _with_kernels(run: Callable[..., Any], *args: Any) -> Any:
    with _adopted.untried_first():
        return run(*args)


def chosen_side() -> str:
    """Return the side that the product takes by itself on this machine."""
    return f"{OURS} {HALF}" if FAST_HALF else OURS


def _run(run: Callable[..., Any], forced: str, dtype: torch.dtype, *args: Any) -> Any:
    half = dtype is torch.bfloat16
    with setr_fast.backend(forced), torch.autocast(DEVICE, dtype) if half else nullcontext():
        return run(*args)


def _compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.compile of the reference: our ops are taken apart, so that Inductor sees and fuses what they do."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    table = select_decomp_table() | {getattr(torch.ops.setr_fast, op.name).default: op.reference for op in OPS.values()}
    torch._dynamo.reset()
    return torch.compile(run, dynamic=False, backend=partial(compile_fx, decompositions=table))


def captured(run: Callable[..., Any], arguments: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
    """Return ``run`` in bfloat16 as a graph of the card, whose inputs are copied in and outputs copied out."""
    static = tuple(t.clone() for t in arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _run(run, "", torch.bfloat16, *static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = _run(run, "", torch.bfloat16, *static)

    def replay(*args: torch.Tensor) -> Any:
        for target, source in zip(static, args, strict=True):
            target.copy_(source)
        graph.replay()
        return tuple(t.clone() for t in result)

    return replay
