"""What this machine reaches now, by what it has: rows are read as shares of these, measured in the same run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import disturbances, interleaved
from benchmarks.machine import DEVICE

DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def ceilings() -> dict[str, float]:
    """Return GB/s of a copy beyond the caches (read and written), TFLOP/s of a matrix product in each dtype.

    ``others`` is the share of the machine that others had meanwhile.
    """
    count, side = (2**28, 8192) if DEVICE == "cuda" else (2**27, 2048)
    source, target = torch.ones(count, device=DEVICE), torch.empty(count, device=DEVICE)
    sides: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    for dtype in DTYPES:
        matrix = torch.randn(side, side, device=DEVICE).to(dtype)
        sides[str(dtype)[6:]] = lambda matrix=matrix: matrix @ matrix  # type: ignore[misc]
    best = {name: min(values) for name, values in interleaved(sides, rounds=9, seconds=3.0).items()}
    found = disturbances.pop()  # no row's
    return {
        "others": 0.0 if found is None else round(found.share, 4),
        "copy_gigabytes_per_second": 2 * source.nbytes / best.pop("copy") / 1e9,
        **{f"{name}_teraflops": 2 * side**3 / value / 1e12 for name, value in best.items()},
    }


def shares(seconds: float, size: int, flops: int, dtype: str) -> dict[str, float | None]:
    """Return GB/s and TFLOP/s of a cost met in ``seconds``, and which shares of the ceilings these are."""
    gigabytes, teraflops = size / seconds / 1e9, flops / seconds / 1e12
    most = ceilings().get(f"{dtype}_teraflops")
    return {
        "gigabytes_per_second": gigabytes,
        "teraflops": teraflops,
        "bandwidth_share": gigabytes / ceilings()["copy_gigabytes_per_second"],
        "teraflops_share": None if most is None else teraflops / most,
    }
