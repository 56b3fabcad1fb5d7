"""Whether what was timed is right: every output of every timed call, on memory that was poisoned before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.rows import Parity
from setr_fast.measure import error_of, floor_of, larger

TIES = 1e-5
"""Share of the pixels in a count of right ones that rounding may decide otherwise, beyond one: where the two largest
logits lie within a unit in the last place of each other, as they do for about one pixel in a million."""


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
        self.errors[index] = [larger(a, b) for a, b in zip(known, found, strict=True)]

    def parity(self, own: Ledger, exact: list[list[Tensor]], factor: float | None) -> Parity:
        """Return the verdict: errors within ``factor`` times those of ``own``, or none at all where that is None."""
        worst = Parity(not self.wrong, 0.0, 0.0, self.checked, self.wrong)
        for index, errors in sorted(self.errors.items()):
            for position, error in enumerate(errors):
                allowed = 0.0
                if index not in own.errors:
                    return Parity(False, error, 0.0, self.checked, "there is no reference to hold it against")
                if factor is not None and not exact[index][position].is_floating_point():
                    allowed = _ties(exact[index][position])
                elif factor is not None:
                    allowed = factor * own.errors[index][position] + floor_of(exact[index][position], own.eps)
                if not error <= allowed:
                    why = f"output {position} is off by {error:.3g}, may be by {allowed:.3g}"
                    return Parity(False, error, allowed, self.checked, worst.why or why)
                if error * worst.allowed >= worst.error * allowed:
                    worst = Parity(worst.passed, error, allowed, self.checked, worst.why)
        return worst


def _ties(exact: Tensor) -> float:
    """Return by how much a pair of counts may differ, of right pixels and of all; nothing else that is whole may."""
    return 1 + TIES * float(exact.max()) if exact.dtype is torch.int64 and exact.shape == (2,) else 0.0


def _shape_fault(got: list[Tensor], exact: list[Tensor]) -> str:
    if len(got) != len(exact):
        return f"gave {len(got)} tensors, not {len(exact)}"
    for position, (g, e) in enumerate(zip(got, exact, strict=True)):
        if g.shape != e.shape or g.is_floating_point() != e.is_floating_point():
            return f"output {position} is {list(g.shape)} {g.dtype}, not {list(e.shape)} {e.dtype}"
    return ""


def _largest(dtype: torch.dtype) -> int | bool:
    return True if dtype is torch.bool else torch.iinfo(dtype).max
