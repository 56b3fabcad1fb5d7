"""Timing of two or more ways to do one thing: interleaved in one process, so that noise hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from benchmarks.disturbance import Disturbance, between, read_clock
from benchmarks.machine import RESULTS, ROOT, git, machine

__all__ = ["RESULTS", "ROOT", "git", "interleaved", "machine", "quantiles", "ratio", "undisturbed", "worst_disturbance"]

T = TypeVar("T")
ATTEMPTS = 3
"""Times that a disturbed measurement is made before the least disturbed one is kept, and marked."""

disturbances: list[Disturbance | None] = []
"""Of the measurements kept since the last row; ``record`` writes the worst into the row."""


def interleaved(
    sides: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Time every side once per round, in an order that turns from round to round.

    A measurement during which other processes were busy is made again, up to three times in all.

    Returns: seconds per side and round. At least three rounds, at most ``rounds``, stopping after ``seconds``.
    """
    for run in sides.values():
        run()
    return undisturbed(lambda: _rounds(sides, rounds, seconds))


def undisturbed(measure: Callable[[], T]) -> T:
    """Return what ``measure`` gives; while other processes are busy, again, and the least disturbed of three."""
    kept: tuple[Disturbance | None, T] | None = None
    for _ in range(ATTEMPTS):
        before = read_clock()
        result = measure()
        found = between(before, read_clock())
        if kept is None or (found is not None and kept[0] is not None and found.share < kept[0].share):
            kept = found, result
        if found is None or not found.heavy:
            break
    assert kept is not None
    disturbances.append(kept[0])
    return kept[1]


def turned(names: list[str], turn: int) -> list[str]:
    """Return the order of one round: each side comes first, second, ... equally often."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def _rounds(sides: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    for turn in range(rounds):
        for name in turned(list(sides), turn):
            synchronize()
            before = time.perf_counter()
            sides[name]()
            synchronize()
            times[name].append(time.perf_counter() - before)
        if turn >= 2 and time.perf_counter() - started > seconds:
            break
    return times


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


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": cuts[0], "p80": cuts[3]}


def ratio(baseline: list[float], ours: list[float]) -> dict[str, float]:
    """Return how many times faster ``ours`` is, round by round: a disturbed round disturbs both of its sides."""
    return quantiles([b / o for b, o in zip(baseline, ours, strict=True)])


def synchronize() -> None:
    """Wait for the card, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
