"""Sides of one whole job, timed in turns; what every timed run gave is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from benchmarks.harness import interleaved
from benchmarks.outcome_rows import rows_of_times
from benchmarks.rows import Parity

T = TypeVar("T")


def compare_jobs(
    sides: dict[str, Callable[[], T]],
    judge: Callable[[list[T], T], Parity],
    baseline: str,
    chosen: str,
    benchmark: Any,
    record: Callable[[Any], None],
    *,
    seconds: float,
    dtype: str = "float32",
    **common: Any,
) -> None:
    """Time the sides, record their rows, and fail where the chosen one is wrong.

    ``judge`` holds what a side gave, run by run, against what the baseline gave first. ``common``: fields of all rows.
    """
    results: dict[str, list[T]] = {side: [] for side in sides}

    def noted(side: str) -> Callable[[], None]:
        return lambda: results[side].append(sides[side]())

    times = interleaved({side: noted(side) for side in sides}, rounds=5, seconds=seconds)
    verdict = {side: judge(found, results[baseline][0]) for side, found in results.items()}
    dtypes = dict.fromkeys(times, dtype)
    rows = rows_of_times(times, verdict, baseline, kind="job", direction="job", dtypes=dtypes, chosen=chosen, **common)
    record(rows)
    assert verdict[chosen].passed, verdict[chosen].why
    benchmark.extra_info.update(ratio=next(row.ratio["median"] for row in rows if row.chosen))
    benchmark.pedantic(sides[chosen], rounds=1)
