"""What becomes of an outcome: a row per side, figures in pytest-benchmark's table, a failure where we are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.ceilings import shares
from benchmarks.contest import Contest, Outcome
from benchmarks.harness import quantiles, ratio
from benchmarks.ring import Arguments
from benchmarks.rows import Row


def rows_of(contest: Contest, outcome: Outcome, baseline: str, **common: Any) -> list[Row]:
    """Return a row per side that ran. ``common``: the fields that all sides share; chosen names the side taken here."""
    times, chosen = outcome.seconds, common.pop("chosen", None)
    agreement: dict[str, float] = common.pop("agreement", {})
    pictures: int | None = common.pop("pictures", None)
    rows = []
    for name, seconds in times.items():
        dtype = str(contest.sides[name].dtype)[6:]
        median = quantiles(seconds)["median"]
        fields: dict[str, Any] = dict(common)
        if common.get("flops") is not None:
            fields |= shares(median, common["bytes"], common["flops"], dtype)
        if pictures is not None:
            fields["images_per_second"] = pictures / median
        rows.append(
            Row(
                dtype=dtype,
                side=name,
                baseline=baseline,
                seconds=quantiles(seconds),
                baseline_seconds=quantiles(times[baseline]),
                ratio=ratio(times[baseline], seconds),
                ratios={other: ratio(times[other], seconds) for other in times if other != name},
                rounds=len(seconds),
                parity=outcome.parity[name],
                chosen=name == chosen,
                peak_extra_bytes=outcome.peak_extra_bytes.get(name),
                agreement=agreement.get(name),
                not_run=outcome.not_run,
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
    benchmark.pedantic(run, args=arguments, rounds=3, warmup_rounds=1)
