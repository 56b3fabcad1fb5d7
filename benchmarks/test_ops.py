"""A row per op, realistic case and backend, against the reference, in one run. Parity is asserted on what is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import interleaved, quantiles, ratio
from setr_fast.ops import OPS
from setr_fast.ops._op import REFERENCE, Backend, Case, Draw, Op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDED = [torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.bfloat16]  # of ops whose results are rounded
ROWS = [
    pytest.param(op, case, backend, dtype, id=f"{op.name}-{case.name}-{backend.name}-{str(dtype)[6:]}")
    for op in OPS.values()
    for case in op.cases()
    if case.bench
    for backend in op.backends
    if backend.device in (None, DEVICE)
    for dtype in (ROUNDED if op.rounds else [torch.float32])
]


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


@pytest.mark.parametrize(("op", "case", "backend", "dtype"), ROWS)
def test_op(
    op: Op,
    case: Case,
    backend: Backend,
    dtype: torch.dtype,
    benchmark: Any,
    record: Callable[[dict[str, Any]], None],
) -> None:
    args = case.make(Draw.on(DEVICE, dtype))
    if reasons := op.refusals(backend, *args):
        pytest.skip("; ".join(reasons))
    fresh = _copies(args)
    ours, reference = op.run(backend.name, *fresh), op.reference(*args)
    for got, want in zip(_list(ours), _list(reference), strict=True):
        _same(got, want, dtype) if op.rounds else torch.testing.assert_close(got, want)
    times = interleaved({backend.name: lambda: op.run(backend.name, *args), REFERENCE: lambda: op.reference(*args)})
    benchmark.pedantic(op.run, args=(backend.name, *args), rounds=5, warmup_rounds=1)
    cost = op.cost(*args)
    speed = ratio(times[REFERENCE], times[backend.name])
    row = {
        "kind": "op",
        "op": op.name,
        "case": f"{case.name}, {str(dtype)[6:]}" if op.rounds else case.name,
        "backend": backend.name,
        "baseline": REFERENCE,
        "seconds": quantiles(times[backend.name]),
        "baseline_seconds": quantiles(times[REFERENCE]),
        "ratio": speed,
        "gigabytes_per_second": cost.bytes / quantiles(times[backend.name])["median"] / 1e9,
        "teraflops": cost.flops / quantiles(times[backend.name])["median"] / 1e12,
    }
    benchmark.extra_info.update(ratio=speed["median"])
    record(row)


def _same(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Compare by the largest value: near zero, sums over many tokens differ by more than their own size."""
    assert (got.double() - want.double()).abs().max() <= 16 * torch.finfo(dtype).eps * want.double().abs().max()


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
