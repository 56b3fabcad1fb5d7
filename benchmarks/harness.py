"""Timing of two or more ways to do one thing: interleaved in one process, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from benchmarks.disturbance import Disturbance, between, read_clock
from setr_fast.measure import LEAST, clocked, in_turns

T = TypeVar("T")
ATTEMPTS = 3
"""Times that a disturbed measurement is made before the least disturbed one is kept, and marked."""
REPEATING = 90.0
"""Seconds of a run that may go into measuring again; what is disturbed after that is marked at once."""
QUICK = False
"""Whether each side is timed once, on values that no call before had: all runs and is right, and no figure counts."""

disturbances: list[Disturbance | None] = []
"""Of the measurements kept since the last row; ``record`` writes the worst into the row."""


def interleaved(
    sides: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Time every side once per round, in an order that turns from round to round.

    A measurement during which other processes were busy is made again, up to three times in all.

    Returns: seconds per side and round. At least three rounds, at most ``rounds``, stopping after ``seconds``; with
    --quick one, and no call before it.
    """
    for run in () if QUICK else sides.values():
        run()
    samples = {name: lambda _, run=run: clocked(run) for name, run in sides.items()}  # type: ignore[misc]
    return undisturbed(lambda: in_turns(samples, rounds=rounds, seconds=granted(seconds), least=least(LEAST)))


def granted(seconds: float) -> float:
    """Return how long a measurement may take that asks for this: beyond its least rounds, nothing with --quick."""
    return 0.0 if QUICK else seconds


def least(rounds: int) -> int:
    """Return the least rounds of a measurement that asks for so many: one with --quick."""
    return 1 if QUICK else rounds


def undisturbed(measure: Callable[[], T]) -> T:
    """Return what ``measure`` gives; while other processes are busy, again, and the least disturbed of three."""
    global REPEATING
    kept: tuple[Disturbance | None, T] | None = None
    for attempt in range(ATTEMPTS):
        if attempt and REPEATING <= 0:
            break
        before, started = read_clock(), time.perf_counter()
        result = measure()
        found = between(before, read_clock())
        REPEATING -= (time.perf_counter() - started) if attempt else 0.0
        if kept is None or (found is not None and kept[0] is not None and found.share < kept[0].share):
            kept = found, result
        if found is None or not found.heavy:
            break
    assert kept is not None
    disturbances.append(kept[0])
    return kept[1]


def worst_disturbance() -> dict[str, Any]:
    """Return, and forget, what the measurements since the last call suffered from others: fields of a row."""
    known = [found for found in disturbances if found is not None]
    disturbances.clear()
    if not known:
        return {"others": None, "steal": None, "disturbed": False}
    return {
        "others": round(max(found.others for found in known), 4),
        "steal": round(max(found.steal for found in known), 4),
        "disturbed": any(found.heavy for found in known),
    }
