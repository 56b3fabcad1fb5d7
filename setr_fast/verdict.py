"""What ``bench`` says: which backend of each op this machine should use, timed here and now on a few realistic cases.

The whole suite with its baselines, memory and ceilings is ``pytest benchmarks/ --benchmark-only``; this is its short
cousin that needs nothing but the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import BackendError
from setr_fast.measure import LEAST, clocked, error_of, floor_of, in_turns, outputs_of, ratio, synchronize
from setr_fast.ops import OPS
from setr_fast.ops._op import FULL, REFERENCE, Case, Draw, Op, ShapesOnly

WORK = {"cpu": 3e9, "cuda": 1e13}
"""Bytes plus floating-point operations of the largest case that is timed."""
WORTH = 1.05
"""How many times faster another backend must be before it is recommended."""
TIES = 1e-3
"""Share of counted pixels that rounding may decide otherwise."""
ROUNDS = 50
"""Most that are timed of one case."""


@dataclass(frozen=True)
class Verdict:
    """One op on one case. ``speeds``: times faster than the reference, by backend; ``wrong``: backends whose output
    is not the reference's within their allowance, with the error."""

    op: str
    case: str
    dtype: str
    used: str
    speeds: dict[str, float]
    wrong: dict[str, str]

    @property
    def best(self) -> str:
        """The backend to use: the one used already, unless another is clearly faster."""
        fastest = max(self.speeds, key=lambda name: self.speeds[name])
        return fastest if self.speeds[fastest] > WORTH * self.speeds.get(self.used, 0.0) else self.used

    def line(self) -> str:
        """Return the verdict as a line of the table."""
        speeds = sorted(self.speeds.items(), key=lambda item: -item[1])
        text = "  ".join(f"{name}{'*' if name == self.used else ''} {speed:.2f}x" for name, speed in speeds)
        text += "".join(f"  {name} WRONG ({why})" for name, why in self.wrong.items())
        advice = "as it is" if self.best == self.used else f"faster here: SETR_FAST_BACKEND={self.op}={self.best}"
        return f"{self.op:34s} {self.case + ', ' + self.dtype:42s} {text:50s} {advice}"


def bench(ops: tuple[str, ...] = (), seconds: float = 0.5) -> Iterator[Verdict]:
    """Yield a verdict per op (all, or those named) and dtype; ``seconds`` bounds the timing of one case."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ops or sorted(OPS):
        op = OPS[name]
        dtypes = (torch.float32, torch.bfloat16) if op.rounds else (torch.float32,)
        for dtype in dtypes if device == "cuda" else dtypes[:1]:
            if (found := _case(op, device, dtype)) is not None:
                case, args = found
                yield _judge(op, case, args, dtype, seconds)


def head() -> str:
    """Return what the table must be read with."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    lines = [f"{gpu or 'CPU'}, torch {torch.__version__}, {torch.get_num_threads()} threads; * is used by itself"]
    if load > 0.5:
        lines.append(f"load {load:.1f}: other programs are running, the verdicts may be wrong")
    return "\n".join(lines)


def _case(op: Op, device: str, dtype: torch.dtype) -> tuple[Case, tuple[Any, ...]] | None:
    """Return the op's largest realistic case within ``WORK``."""
    best: tuple[float, Case] | None = None
    for case in op.cases():
        if not case.bench or case.bench == FULL:
            continue
        cost = op.cost(*case.make(ShapesOnly.on("meta", dtype)))
        work = float(cost.bytes + cost.flops)
        if work <= WORK[device] and (best is None or work > best[0]):
            best = work, case
    return None if best is None else (best[1], best[1].make(Draw.on(device, dtype)))


def _judge(op: Op, case: Case, args: tuple[Any, ...], dtype: torch.dtype, seconds: float) -> Verdict:
    used = op.choose(*args)
    wrong = faults(op, args)
    right = [b.name for b in op.backends if b.name not in wrong and not op.refusals(b, *args)]
    times = timed(op, args, [*right, REFERENCE], seconds)
    speeds = {name: ratio(times[REFERENCE], each)["median"] for name, each in times.items()}
    return Verdict(op.name, case.name, str(dtype)[6:], used, speeds, wrong)


def faults(op: Op, args: tuple[Any, ...]) -> dict[str, str]:
    """Return in words what is wrong with the output of each backend that takes these arguments and is not right.

    Raises: BackendError where one left the card unusable for this process.
    """
    want = outputs_of(op.reference(*args))
    truth = outputs_of(op.reference(*_doubled(args))) if op.rounds else want
    found: dict[str, str] = {}
    for side in op.backends:
        if side.name in found or op.refusals(side, *args):
            continue
        try:
            got = outputs_of(op.run(side.name, *args))
            synchronize()
        except Exception as error:  # whatever it is, the others are judged all the same
            found[side.name] = f"raised {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            _check_card(op, side.name, found[side.name])
            continue
        if why := _fault(got, want, truth, side.error_factor if op.rounds else 0.0):
            found[side.name] = why
    return found


def timed(
    op: Op, args: tuple[Any, ...], names: list[str], seconds: float, least: int = LEAST
) -> dict[str, list[float]]:
    """Return the seconds of each backend, taken in turns."""
    samples = {name: partial(_sample, op, name, args) for name in names}
    return in_turns(samples, rounds=ROUNDS, seconds=seconds, least=least)


def _check_card(op: Op, name: str, why: str) -> None:
    try:
        synchronize()
    except RuntimeError as error:
        raise BackendError(f"{op.name}: backend {name} left the card unusable for this process: {why}") from error


def _sample(op: Op, name: str, args: tuple[Any, ...], _turn: int) -> float:
    return clocked(lambda: op.run(name, *args))


def _fault(got: list[Tensor], want: list[Tensor], truth: list[Tensor], factor: float) -> str:
    """Return how a backend's output is wrong, or nothing."""
    for ours, reference, exact in zip(got, want, truth, strict=True):
        if not factor:
            if not torch.equal(ours, reference):
                return "differs from the reference"
            continue
        if not ours.is_floating_point():  # counts of pixels, among which rounding may decide a tie otherwise
            if (ours - exact).abs().max() > 1 + TIES * exact.abs().max():
                return "counts differ from the reference's"
            continue
        own, error = error_of(reference, exact), error_of(ours, exact)
        if not error <= factor * own + floor_of(exact, torch.finfo(ours.dtype).eps):
            return f"error {error:.2g}, the reference's {own:.2g}"
    return ""


def _doubled(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
