"""Whether what was timed is right: every output of every timed call, on memory that was poisoned before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Parity

FLOOR_ULP = 4
"""Units in the last place of the largest value that any error may have: a reference may be exact by chance."""
CHUNK = 2**22


def outputs_of(value: Any) -> list[Tensor]:
    """Return the tensors that a call gave."""
    return [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, Tensor)]


def poison(like: Sequence[Tensor], copies: int = 1) -> None:
    """Fill memory of these sizes with NaN (whole numbers: their largest), and free it for the next call to be given."""
    held = [torch.empty_like(t) for t in like for _ in range(copies)]
    for tensor in held:
        tensor.fill_(torch.nan if tensor.is_floating_point() else _largest(tensor.dtype))


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Let PyTorch fill with NaN all memory that it hands out; for calls that are checked and not timed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@dataclass
class Ledger:
    """The errors of one side, by set of values: the largest over its calls, output by output."""

    eps: float
    """Of the dtype that this side computes in."""
    errors: dict[int, list[float]] = field(default_factory=dict)
    checked: int = 0
    wrong: str = ""
    """The first thing that is wrong beyond rounding: a shape, a dtype, memory given out twice."""

    def add(self, index: int, got: list[Tensor], exact: list[Tensor]) -> None:
        """Compare the outputs of one call with the truth for its values."""
        self.checked += 1
        if why := _shape_fault(got, exact):
            self.wrong = self.wrong or why
            return
        found = [error_of(g, e) for g, e in zip(got, exact, strict=True)]
        known = self.errors.setdefault(index, found)
        self.errors[index] = [_worse(a, b) for a, b in zip(known, found, strict=True)]

    def parity(self, own: Ledger, exact: list[list[Tensor]], factor: float | None) -> Parity:
        """Return the verdict: errors within ``factor`` times those of ``own``, or none at all where that is None."""
        worst = Parity(not self.wrong, 0.0, 0.0, self.checked, self.wrong)
        for index, errors in sorted(self.errors.items()):
            for position, error in enumerate(errors):
                allowed = 0.0
                if index not in own.errors:
                    return Parity(False, error, 0.0, self.checked, "there is no reference to hold it against")
                if factor is not None and exact[index][position].is_floating_point():
                    allowed = factor * own.errors[index][position] + own.floor(exact[index][position])
                if not error <= allowed:
                    why = f"output {position} is off by {error:.3g}, may be by {allowed:.3g}"
                    return Parity(False, error, allowed, self.checked, worst.why or why)
                if error * worst.allowed >= worst.error * allowed:
                    worst = Parity(worst.passed, error, allowed, self.checked, worst.why)
        return worst

    def floor(self, exact: Tensor) -> float:
        """Return the error that rounding the result alone may make."""
        finite = exact.masked_fill(~exact.isfinite(), 0.0)
        return FLOOR_ULP * self.eps * float(finite.abs().max()) if exact.numel() else 0.0


def error_of(got: Tensor, exact: Tensor) -> float:
    """Return the largest difference; NaN where one of them is NaN alone, 0 where they are equal."""
    worst = 0.0
    got, exact = got.detach().reshape(-1), exact.detach().reshape(-1)
    for start in range(0, got.numel(), CHUNK):
        a, b = got[start : start + CHUNK], exact[start : start + CHUNK]
        if a.dtype == b.dtype and torch.equal(a, b):
            continue
        low, high = (b.double() - a).aminmax()
        found = max(abs(float(low)), abs(float(high)))
        if not math.isfinite(found):  # inf equals inf, and NaN equals NaN
            same = (a == b) | (a.isnan() & b.isnan())
            found = float((b.double() - a).masked_fill_(same, 0.0).abs().max())
        worst = _worse(worst, found)
    return worst


def _worse(a: float, b: float) -> float:
    """Return the larger; NaN is larger than everything."""
    return b if a == a and not b <= a else a


def _shape_fault(got: list[Tensor], exact: list[Tensor]) -> str:
    if len(got) != len(exact):
        return f"gave {len(got)} tensors, not {len(exact)}"
    for position, (g, e) in enumerate(zip(got, exact, strict=True)):
        if g.shape != e.shape or g.is_floating_point() != e.is_floating_point():
            return f"output {position} is {list(g.shape)} {g.dtype}, not {list(e.shape)} {e.dtype}"
    return ""


def _largest(dtype: torch.dtype) -> int | bool:
    return True if dtype is torch.bool else torch.iinfo(dtype).max
