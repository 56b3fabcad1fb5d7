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


def _copies(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """Copies of all tensors; those of floating point in another dtype, where one is given."""

    def copy(value: Tensor) -> Tensor:
        return value.to(dtype, copy=True) if dtype is not None and value.is_floating_point() else value.clone()

    return tuple(copy(a) if isinstance(a, Tensor) else a for a in args)


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
    truth = op.reference(*_copies(args, torch.float64)) if op.rounds else reference
    for got, want, exact in zip(_list(ours), _list(reference), _list(truth), strict=True):
        if op.rounds:
            _as_close(got, want, exact, backend.error_factor)
        else:
            torch.testing.assert_close(got, want)
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


def _as_close(got: Tensor, want: Tensor, exact: Tensor, factor: float) -> None:
    """Hold the largest error against float64 to a multiple of the reference's own in the same dtype."""
    exact = exact.double()
    own, error = ((value.double() - exact).abs().max() for value in (want, got))
    assert error <= factor * own + 4 * torch.finfo(got.dtype).eps * exact.abs().max(), (float(error), float(own))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
