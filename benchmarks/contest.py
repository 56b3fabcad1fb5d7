"""One comparison: all its sides timed in turn on rotating arguments, each timed output held against the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import disturbance, harness
from benchmarks.harness import granted, undisturbed
from benchmarks.machine import DEVICE
from benchmarks.memory import give_back, peak_extra_bytes
from benchmarks.parity import Ledger, poison, poisoned_allocations
from benchmarks.ring import VALUES, Arguments, Ring
from benchmarks.rows import Parity
from setr_fast.measure import in_turns, outputs_of, synchronize

SHORTEST = 1e-3
"""Seconds that a sample lasts at least: shorter calls are repeated, up to MOST_CALLS times, each on other memory."""
MOST_CALLS = 32
MANY = 20
"""Times SHORTEST above which a call needs no further one to warm up: its rounds are many calls' worth."""
FEWEST = 2
"""Sets of values with --quick: one for the call on poisoned memory, another for the one that is timed."""
FACTOR = 2.0
"""Times the reference's own error that a side's error may be."""


@dataclass(frozen=True)
class Side:
    """One way to do it. ``like`` names the side whose own error is the measure: the same dtype, plainly computed."""

    run: Callable[..., Any]
    dtype: torch.dtype
    like: str
    factor: float | None = FACTOR
    """None: it must agree with the truth bit for bit."""
    ours: bool = True
    """Whether a wrong result fails the benchmark; a foreign side's rows are only kept out of the tables."""
    truth: Callable[[Arguments], Any] | None = None
    """What is right for this side alone, where it computes another function than the others."""
    clock: Callable[[], float] | None = None
    """Seconds of the calls since it was last asked, of a side that reads its own clock: what surrounds the work, such
    as passing tensors to another process, is no part of it."""


@dataclass
class Outcome:
    """What came of a comparison."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of one call, per side and round."""
    parity: dict[str, Parity] = field(default_factory=dict)
    peak_extra_bytes: dict[str, int | None] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Contest:
    """Sides over common arguments. ``truth`` gives what is right for a set of values, in float64 where that rounds.

    ``compared`` picks what is held against the truth from what a call gives: by default all its tensors.
    """

    def __init__(
        self,
        sides: dict[str, Side],
        make: Callable[[int], Arguments],
        truth: Callable[[Arguments], Any],
        not_run: dict[str, str] | None = None,
        compared: Callable[[Any], list[Tensor]] = outputs_of,
    ) -> None:
        self.ring = Ring(make, FEWEST if harness.QUICK else VALUES)
        self.compared = compared
        common = [compared(truth(arguments)) for arguments in self.ring.values]
        self.sides = dict(sides)
        self.exact = {
            name: common if side.truth is None else [compared(side.truth(a)) for a in self.ring.values]
            for name, side in sides.items()
        }
        give_back()  # what the truth took: the heap would keep it for good
        self.outcome = Outcome(not_run=dict(not_run or {}))
        self.ledgers: dict[str, Ledger] = {}
        self._held: dict[str, list[Tensor]] = {}

    def run(self, *, rounds: int = 15, seconds: float = 2.0, memory: bool = True) -> Outcome:
        """Check on poisoned memory, measure memory, warm up, time, check what was timed, judge."""
        calls = {name: self._first(name, memory) for name in list(self.sides)}
        calls = {name: count for name, count in calls.items() if count}
        count = len(self.ring.values)
        # From the second set on: the first is what the call on poisoned memory had.
        samples = {n: lambda turn, n=n, c=c: self._sample(n, (turn + 1) % count, c) for n, c in calls.items()}  # type: ignore[misc]
        least, shortest = harness.least(count), 0.0 if harness.QUICK else disturbance.SHORTEST
        self.outcome.seconds = undisturbed(
            lambda: in_turns(samples, rounds=rounds, seconds=granted(seconds), least=least, shortest=shortest)
        )
        for name in calls:
            side = self.sides[name]
            verdict = self.ledgers[name].parity(self.ledgers[side.like], self.exact[name], side.factor)
            self.outcome.parity[name] = verdict
            if side.ours and not verdict.passed:
                self.outcome.failures.append(f"{name}: {verdict.why}")
        return self.outcome

    def _first(self, name: str, memory: bool) -> int:
        """Call a side on poisoned memory, measure its peak, then warm it up; return its calls per sample.

        Warming comes last: to measure a peak, the heap's free memory goes back to the system, and has to be got again.
        """
        side = self.sides[name]
        self.ledgers[name] = Ledger(torch.finfo(side.dtype).eps if side.dtype.is_floating_point else 0.0)
        try:
            with poisoned_allocations():
                self._check(name, 0, [side.run(*self.ring.next(0))])
            if harness.QUICK:
                return 1
            if memory:
                self.outcome.peak_extra_bytes[name] = self._peak(name)
            shortest = self._sample(name, 0, 1)
            for index in range(1, VALUES if shortest < MANY * SHORTEST else 1):
                shortest = min(shortest, self._sample(name, index, 1))
        except Exception as error:
            self.sides.pop(name)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.outcome.not_run[name] = reason
            if side.ours:
                self.outcome.failures.append(f"{name}: raised {reason}")
            return 0
        return min(MOST_CALLS, max(1, round(SHORTEST / shortest)))

    def _sample(self, name: str, index: int, count: int) -> float:
        """Time ``count`` calls of a side and check all their outputs; return seconds per call."""
        run = self.sides[name].run
        arguments = [self.ring.next(index) for _ in range(count)]
        poison(self._held.get(name, []), count)
        clock = self.sides[name].clock
        if clock is not None:
            clock()
        results, elapsed = _timed(lambda: [run(*each) for each in arguments])
        elapsed = elapsed if clock is None else clock()
        self._check(name, index, results)
        return elapsed / count

    def _check(self, name: str, index: int, results: list[Any]) -> None:
        """Enter outputs in the side's ledger; they and those of the call before must lie in different memory."""
        ledger = self.ledgers[name]
        for result in results:
            got = self.compared(result)
            before = {t.data_ptr() for t in self._held.get(name, []) if t.numel()}
            if any(t.data_ptr() in before for t in got if t.numel()):
                ledger.wrong = ledger.wrong or "gave out the memory of the call before again"
            ledger.add(index, got, self.exact[name][index])
            self._held[name] = got

    def _peak(self, name: str) -> int | None:
        arguments = self.ring.next(0)
        self._held.pop(name, None)
        return peak_extra_bytes(lambda: self.sides[name].run(*arguments))


def _timed(run: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    """Return what ``run`` gives and its seconds: by the card's events, or by the clock on the wall."""
    synchronize()
    if DEVICE == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        result = run()
        after.record()
        synchronize()
        return result, before.elapsed_time(after) / 1e3
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started
