"""How several ways to do one thing are timed and held against the truth: in turns, in one process.

``setr-fast bench`` and the suite under ``benchmarks/`` are both made of these.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

LEAST = 3
"""Rounds that are run however long they take."""
FLOOR_ULP = 4
"""Units in the last place of the largest value that any error may have: a reference may be exact by chance."""
CHUNK = 2**22


def synchronize() -> None:
    """Wait for the card, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clocked(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes by the clock on the wall, the card's work included."""
    synchronize()
    before = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - before


def in_turns(
    samples: Mapping[str, Callable[[int], float]],
    *,
    rounds: int,
    seconds: float,
    least: int = LEAST,
    shortest: float = 0.0,
) -> dict[str, list[float]]:
    """Take one sample of every side per round, in an order that turns from round to round.

    A sample is told the round's number and returns seconds. At least ``least`` rounds; then stopping after ``seconds``,
    or after ``rounds`` that took ``shortest`` seconds, all that samples do beside their timing included.
    """
    times: dict[str, list[float]] = {name: [] for name in samples}
    started = time.perf_counter()
    for turn in itertools.count():
        for name in turned(list(samples), turn):
            times[name].append(samples[name](turn))
        elapsed = time.perf_counter() - started
        if turn + 1 >= least and (elapsed > seconds or (turn + 1 >= rounds and elapsed >= shortest)):
            break
    return times


def turned(names: list[str], turn: int) -> list[str]:
    """Return the order of one round: each side comes first, second, ... equally often."""
    return names[turn % len(names) :] + names[: turn % len(names)] if names else []


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": cuts[0], "p80": cuts[3]}


def ratio(baseline: list[float], ours: list[float]) -> dict[str, float]:
    """Return how many times faster ``ours`` is, round by round: a disturbed round disturbs both of its sides."""
    return quantiles([b / o for b, o in zip(baseline, ours, strict=True)])


def outputs_of(value: Any) -> list[Tensor]:
    """Return the tensors that a call gave."""
    return [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, Tensor)]


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
        worst = larger(worst, found)
    return worst


def larger(a: float, b: float) -> float:
    """Return the larger of two errors; NaN is larger than everything."""
    return b if a == a and not b <= a else a


def floor_of(exact: Tensor, eps: float) -> float:
    """Return the error that rounding the result alone may make, to a dtype of this ``eps``."""
    finite = exact.masked_fill(~exact.isfinite(), 0.0)
    return FLOOR_ULP * eps * float(finite.abs().max()) if exact.numel() else 0.0
