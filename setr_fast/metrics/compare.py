"""Two results side by side: are they of the same pictures and rules, how far apart, and is that more than chance?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from setr_fast.errors import ConfigError
from setr_fast.metrics.bootstrap import Interval, differences, interval, mean_differences
from setr_fast.metrics.options import RESAMPLES, AbsentRule
from setr_fast.metrics.pictures import PictureCounts
from setr_fast.metrics.result import Result, read_result, unpacked
from setr_fast.metrics.scores import Floats, accuracy_of, dice_of, iou_of, mean_of, ratio

AREA_MEANS = ("mIoU", "aAcc", "mAcc", "mDice")
BOUNDARY, ERROR = "boundary mIoU", "MAE"
PAIRED, SEPARATE, NONE = "paired bootstrap over pictures", "separate bootstrap intervals", "none"


@dataclass(frozen=True)
class Row:
    """One score of both results; None where a result has none."""

    name: str
    first: float | None
    second: float | None
    interval: Interval | None = None
    """Of the difference, from resamples that draw the same pictures for both."""

    @property
    def difference(self) -> float | None:
        """How far the second is above the first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def clear(self) -> bool | None:
        """Whether the interval leaves out 0; None without an interval."""
        return None if self.interval is None else self.interval.low > 0 or self.interval.high < 0


@dataclass(frozen=True)
class Comparison:
    """All rows, and what to make of the difference in mIoU."""

    means: list[Row]
    classes: list[Row]
    settings: list[tuple[str, Any, Any]]
    """What was set otherwise: name, first, second."""
    mismatches: list[str]
    """Why the two are not strictly comparable; empty unless forced."""
    method: str
    exceeds: bool | None
    """Whether the difference in mIoU is more than other pictures could make; None where nothing says so."""
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""

        def entry(row: Row) -> dict[str, Any]:
            return {
                "first": row.first,
                "second": row.second,
                "difference": row.difference,
                "interval": None if row.interval is None else row.interval.as_dict(),
                "exceeds": row.clear,
            }

        return {
            "means": {row.name: entry(row) for row in self.means},
            "IoU": {row.name: entry(row) for row in self.classes},
            "settings": {name: [first, second] for name, first, second in self.settings},
            "mismatches": self.mismatches,
            "method": self.method,
            "exceeds": self.exceeds,
            "verdict": self.verdict,
        }


def compare_files(first: Path, second: Path, *, force: bool = False, resamples: int = RESAMPLES) -> Comparison:
    """Compare two result files; with ``force`` also where they are of other data, classes or rules.

    Raises: DataError for a file that is no result; ConfigError for two that must not be compared.
    """
    a, b = read_result(first), read_result(second)
    mismatches = mismatched(a, b)
    if mismatches and not force:
        raise ConfigError(f"{second}: result {mismatches[0]}; --force compares all the same")
    found = {} if mismatches or not resamples else paired_intervals(a, b, resamples, str(first), str(second))
    means = [Row(name, x, y, found.get(name)) for name, x, y in _means(a, b) if x is not None or y is not None]
    classes = [
        Row(name, value, b["IoU"][name], found.get(f"IoU/{name}"))
        for name, value in a["IoU"].items()
        if name in b["IoU"]
    ]
    method, exceeds, verdict = judge(Row("mIoU", a["mIoU"], b["mIoU"], found.get("mIoU")), a, b)
    return Comparison(means, classes, _settings(a, b), mismatches, method, exceeds, verdict)


def mismatched(a: Result, b: Result) -> list[str]:
    """Return what makes two results incomparable, in words that go after the second one's name."""
    found = []
    here, there = list(a["IoU"]), list(b["IoU"])
    if here != there:
        odd = next((f"{x!r} against {y!r}" for x, y in zip(here, there, strict=False) if x != y), None)
        found.append(f"must have the first's classes, got {odd or f'{len(here)} against {len(there)} of them'}")
    one, other = a["sha256"]["data"], b["sha256"]["data"]
    if one != other:
        found.append(f"must be of the first's data, got sha256 {one[:12]} against {other[:12]}")
    elif not found and a.get("pixels_per_class") != b.get("pixels_per_class"):
        # The same files, but ids read otherwise (offset, ignored ids).
        found.append("must have the first's label pixels in every class, got others from the same files")
    for what, *where in (
        ("rule for absent classes", "absent_classes"),
        ("boundary ratio", "boundary", "ratio"),
        ("class of the MAE", "mae", "class"),
    ):
        x, y = _deep(a, where), _deep(b, where)
        if None not in (x, y) and x != y:
            found.append(f"must have the first's {what}, got {x} against {y}")
    return found


def paired_intervals(a: Result, b: Result, resamples: int, first: str, second: str) -> dict[str, Interval]:
    """Return intervals of differences, by the names of the rows, as far as both results hold single pictures' counts.

    Nothing unless they are of two pictures or more with the same names and the same label pixels.

    Raises: DataError naming ``first`` or ``second`` if its counts are not as `eval` writes them.
    """
    names = _deep(a, ["pictures", "names"])
    if not isinstance(names, list) or len(names) < 2 or names != _deep(b, ["pictures", "names"]):
        return {}
    absent = cast(AbsentRule, a.get("absent_classes", "left_out"))

    def sides(kind: str) -> tuple[PictureCounts, PictureCounts] | None:
        blocks = a["pictures"].get(kind), b["pictures"].get(kind)
        if None in blocks:
            return None
        one = unpacked(blocks[0], len(names), len(a["IoU"]), first)
        other = unpacked(blocks[1], len(names), len(b["IoU"]), second)
        return (
            (one, other)
            if all(np.array_equal(x, y) for x, y in zip(_labels(one), _labels(other), strict=True))
            else None
        )

    def of_areas(counts: Floats) -> Floats:
        iou, dice, accuracy = iou_of(counts, absent), dice_of(counts, absent), accuracy_of(counts)
        right = ratio(counts[..., 0].sum(-1), counts[..., 1].sum(-1))
        means = np.stack([mean_of(iou), right, mean_of(accuracy), mean_of(dice)], axis=-1)
        return np.concatenate([means, iou], axis=-1)

    def of_bands(counts: Floats) -> Floats:
        return mean_of(iou_of(counts, absent))[..., None]

    rows: dict[str, npt.NDArray[np.float64]] = {}
    if (areas := sides("areas")) is not None:
        keys = [*AREA_MEANS, *(f"IoU/{name}" for name in a["IoU"])]
        rows |= zip(keys, differences(*areas, of_areas, resamples=resamples).T, strict=True)
    if (bands := sides("bands")) is not None:
        rows[BOUNDARY] = differences(*bands, of_bands, resamples=resamples)[:, 0]
    errors = _errors(a, len(names)), _errors(b, len(names))
    if errors[0] is not None and errors[1] is not None:
        rows[ERROR] = mean_differences(errors[0], errors[1], resamples=resamples)
    found = {name: interval(values, resamples=resamples, seed=0) for name, values in rows.items()}
    return {name: known for name, known in found.items() if known is not None}


def judge(miou: Row, a: Result, b: Result) -> tuple[str, bool | None, str]:
    """Return method, whether the difference in mIoU exceeds the intervals, and both in words."""
    if miou.difference is None:
        return NONE, None, "mIoU: must be in both results to be compared"
    points = 100 * miou.difference
    side = "equal to" if points == 0 else f"{abs(points):.2f} points {'below' if points < 0 else 'above'}"
    told = f"mIoU: the second is {side} the first"
    if miou.interval is not None:
        pair = miou.interval
        between = f"{100 * pair.low:+.2f} to {100 * pair.high:+.2f}"
        end = "more than the choice of pictures explains" if miou.clear else "holds 0, so no difference is shown"
        return PAIRED, miou.clear, f"{told}; {100 * pair.level:.0f}% interval {between} ({PAIRED}): {end}"
    spans = [_span(result) for result in (a, b)]
    if None in spans:
        return NONE, None, f"{told}; no intervals to judge it by"
    (low, high), (other_low, other_high) = cast(list[tuple[float, float]], spans)
    apart = high < other_low or other_high < low
    between = f"{100 * low:.2f} to {100 * high:.2f} and {100 * other_low:.2f} to {100 * other_high:.2f}"
    end = "apart, more than the choice of pictures explains" if apart else "overlapping, so no difference is shown"
    return SEPARATE, apart, f"{told}; intervals {between} ({SEPARATE}): {end}"


def _means(a: Result, b: Result) -> list[tuple[str, float | None, float | None]]:
    places = [(name, [name]) for name in AREA_MEANS] + [(BOUNDARY, ["boundary", "mIoU"]), (ERROR, ["mae", "MAE"])]
    return [(name, _score(a, place), _score(b, place)) for name, place in places]


def _settings(a: Result, b: Result) -> list[tuple[str, Any, Any]]:
    plain = [(name, a.get(name), b.get(name)) for name in ("checkpoint", "device", "threads")]
    weights = [("sha256.weights", a["sha256"].get("weights"), b["sha256"].get("weights"))]
    versions = _leaves(a.get("versions"), b.get("versions"), "versions")
    return (
        [found for found in plain + weights if found[1] != found[2]]
        + versions
        + _leaves(a.get("settings"), b.get("settings"), "")
    )


def _leaves(a: Any, b: Any, name: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [leaf for key in keys for leaf in _leaves(a.get(key), b.get(key), f"{name}.{key}" if name else str(key))]
    return [] if a == b else [(name or "settings", a, b)]


def _labels(counts: PictureCounts) -> npt.NDArray[np.int64]:
    """Picture, class and number of the label pixels, wherever there are any. Shapes: [3, n]."""
    owner = np.repeat(np.arange(len(counts)), counts.lengths)
    return np.stack([owner, counts.classes, counts.counts[:, 1]])[:, counts.counts[:, 1] > 0]


def _errors(result: Result, pictures: int) -> npt.NDArray[np.float64] | None:
    values = _deep(result, ["pictures", "mae"])
    if not isinstance(values, list) or len(values) != pictures:
        return None
    return np.array([math.nan if type(value) is not float else value for value in values])


def _score(result: Result, place: list[str]) -> float | None:
    found = _deep(result, place)
    return float(found) if type(found) in (int, float) else None


def _span(result: Result) -> tuple[float, float] | None:
    low, high = _deep(result, ["mIoU_interval", "low"]), _deep(result, ["mIoU_interval", "high"])
    return (low, high) if isinstance(low, float) and isinstance(high, float) else None


def _deep(result: Any, place: list[str]) -> Any:
    for key in place:
        result = result.get(key) if isinstance(result, dict) else None
    return result
