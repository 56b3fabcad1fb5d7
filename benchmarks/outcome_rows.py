"""What becomes of an outcome: a row per side, figures in pytest-benchmark's table, a failure where we are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.ceilings import shares
from benchmarks.contest import Contest, Outcome
from benchmarks.ring import Arguments
from benchmarks.rows import Parity, Row
from setr_fast.measure import quantiles, ratio


def rows_of(contest: Contest, outcome: Outcome, baseline: str, **common: Any) -> list[Row]:
    """Return a row per side that ran. ``common``: as ``rows_of_times`` takes it."""
    return rows_of_times(
        outcome.seconds,
        outcome.parity,
        baseline,
        dtypes={name: str(contest.sides[name].dtype)[6:] for name in outcome.seconds},
        peaks=outcome.peak_extra_bytes,
        not_run=outcome.not_run,
        **common,
    )


def rows_of_times(
    times: dict[str, list[float]],
    parity: dict[str, Parity],
    baseline: str,
    *,
    dtypes: dict[str, str],
    chosen: str | None = None,
    pictures: int | None = None,
    peaks: dict[str, int | None] | None = None,
    agreement: dict[str, float] | None = None,
    **common: Any,
) -> list[Row]:
    """Return a row per side. ``common``: the fields that all share; ``chosen``: the side taken by itself here."""
    rows = []
    for name, seconds in times.items():
        median = quantiles(seconds)["median"]
        fields: dict[str, Any] = dict(common)
        if common.get("flops") is not None:
            fields |= shares(median, common["bytes"], common["flops"], dtypes[name])
        rows.append(
            Row(
                dtype=dtypes[name],
                side=name,
                baseline=baseline,
                seconds=quantiles(seconds),
                baseline_seconds=quantiles(times[baseline]),
                ratio=ratio(times[baseline], seconds),
                ratios={other: ratio(times[other], seconds) for other in times if other != name},
                rounds=len(seconds),
                parity=parity[name],
                chosen=name == chosen,
                images_per_second=None if pictures is None else pictures / median,
                peak_extra_bytes=(peaks or {}).get(name),
                agreement=(agreement or {}).get(name),
                **fields,
            )
        )
    return rows


def finish(
    rows: list[Row], outcome: Outcome, benchmark: Any, run: Callable[..., Any], arguments: Arguments = ()
) -> None:
    """Fail if a side of ours was wrong; else show the chosen side, by its ratio, in pytest-benchmark's table."""
    assert not outcome.failures, "; ".join(outcome.failures)
    for row in rows:
        if row.chosen:
            benchmark.extra_info.update(side=row.side, baseline=row.baseline, ratio=row.ratio["median"])
    benchmark.pedantic(run, args=arguments, rounds=1 if harness.QUICK else 3)
