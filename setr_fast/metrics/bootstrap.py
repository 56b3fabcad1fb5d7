"""How far a score would move with other pictures of the same kind: the bootstrap over pictures.

The N pictures are drawn N times with replacement, the counts of those drawn are summed and scored like the set itself;
``resamples`` times over. The interval is between the quantiles (1 - level) / 2 and (1 + level) / 2 of these scores
(percentile bootstrap; Efron 1979). Pictures are what is drawn, because pixels of one picture are alike. It says
nothing about another training run, and too little where pictures are frames of one video.

Counts are whole numbers, exact in float64 up to 2**53: a seed gives the same interval on any machine with any number
of threads and in any order of the pictures' evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from setr_fast.metrics.options import LEVEL, RESAMPLES, AbsentRule
from setr_fast.metrics.pictures import PictureCounts
from setr_fast.metrics.scores import Floats, iou_of, mean_of, ratio

METHOD = "percentile bootstrap over pictures"
_CELLS = 2**20
"""Draws (resamples x pictures) and counts (pictures x classes) held at a time."""


@dataclass(frozen=True)
class Interval:
    """Where a score lies in ``level`` of the resamples."""

    low: float
    high: float
    standard_error: float
    level: float
    resamples: int
    seed: int
    method: str = METHOD

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def miou_interval(
    counts: PictureCounts, absent: AbsentRule, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """Return the interval of the mean IoU; nothing for fewer than two pictures or where nothing has a score.

    With absent classes left out, a class that no drawn picture has is left out of that resample's mean.
    """
    if len(counts) < 2 or resamples == 0:
        return None
    values = [mean_of(iou_of(weighted(counts, weights), absent)) for weights in draws(len(counts), resamples, seed)]
    return interval(np.concatenate(values), resamples=resamples, seed=seed, level=level)


def interval(values: Floats, *, resamples: int, seed: int, level: float = LEVEL) -> Interval | None:
    """Return the interval of resampled scores, those without a score left out; nothing if none is left."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(values.std()), level, resamples, seed)


def draws(pictures: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield how often each picture is drawn, some resamples at a time. Shapes: [some, N]."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // pictures)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        drawn = rng.integers(pictures, size=(rows, pictures))
        drawn += np.arange(rows)[:, None] * pictures
        yield np.bincount(drawn.reshape(-1), minlength=rows * pictures).reshape(rows, pictures).astype(np.float64)


def weighted(counts: PictureCounts, weights: npt.NDArray[np.float64]) -> Floats:
    """Return the counts of resamples. Shapes: weights [R, N] -> [R, K, 3]."""
    total = np.zeros((len(weights), counts.num_classes * 3))
    step = max(1, _CELLS // (3 * counts.num_classes))
    for begin in range(0, len(counts), step):
        end = min(begin + step, len(counts))
        total += weights[:, begin:end] @ counts.dense(begin, end).reshape(end - begin, -1).astype(np.float64)
    return total.reshape(len(weights), counts.num_classes, 3)


def differences(
    first: PictureCounts,
    second: PictureCounts,
    scores: Callable[[Floats], Floats],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Return how far the second's scores are above the first's in each resample, which draws both alike.

    Both must hold the same pictures in the same order.

    Shapes: scores [R, K, 3] -> [R, S]; returns [resamples, S].
    """
    assert len(first) == len(second)
    return np.concatenate(
        [
            scores(weighted(second, weights)) - scores(weighted(first, weights))
            for weights in draws(len(first), resamples, seed)
        ]
    )


def mean_differences(first: Floats, second: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the same for means of one number per picture, NaN left out. Shapes: [N] -> [resamples]."""
    gap = second - first
    there = ~np.isnan(gap)
    gap = np.where(there, gap, 0.0)
    parts = [ratio(weights @ gap, weights @ there.astype(np.float64)) for weights in draws(len(gap), resamples, seed)]
    return np.concatenate(parts)
