"""Scores and comparisons as aligned text, in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from setr_fast.metrics.compare import ERROR, Comparison, Row
from setr_fast.metrics.scores import Scores


def score_table(scores: Scores, names: Sequence[str]) -> str:
    """Return IoU, Dice and accuracy per class, with the means below."""
    width = max(len("all (mean)"), *(len(name) for name in names))
    labels = scores.counts[:, 1]
    share = labels / max(scores.pixels, 1)
    lines = [f"{'class':{width}s}  {'IoU %':>7s}  {'Dice %':>7s}  {'acc %':>7s}  {'pixels %':>8s}"]
    rows = zip(names, scores.iou, scores.dice, scores.accuracy, share, strict=True)
    rows_and_means = [*rows, ("all (mean)", scores.miou, scores.mdice, scores.macc, 1.0)]
    for name, *values, part in rows_and_means:
        cells = "  ".join(_cell(value, 7) for value in values)
        lines.append(f"{name:{width}s}  {cells}  {100 * part:8.2f}")
    lines.append(f"mIoU {100 * scores.miou:.2f}  aAcc {100 * scores.aacc:.2f}  mAcc {100 * scores.macc:.2f}")
    return "\n".join(lines)


def compare_table(comparison: Comparison) -> str:
    """Return both results per class and in the mean, and the verdict. MAE is no percentage."""
    rows = [*comparison.classes, *comparison.means]
    width = max(len("IoU %"), *(len(row.name) for row in rows))
    levels = {row.interval.level for row in rows if row.interval is not None}
    head = f"{'IoU %':{width}s}  {'first':>7s}  {'second':>7s}  {'diff':>7s}"
    lines = [f"mismatch: the second {text}" for text in comparison.mismatches]
    lines.append(head + "".join(f"  {100 * level:.0f}% interval of diff" for level in levels))
    lines += [_line(row, width) for row in comparison.classes]
    lines.append("-" * len(head))
    lines += [_line(row, width) for row in comparison.means]
    if any(row.clear for row in rows):
        lines.append("* leaves out 0; among 20 rows without any difference, one does so by chance")
    lines += [f"set otherwise: {name}: {first} -> {second}" for name, first, second in comparison.settings]
    lines.append(comparison.verdict)
    return "\n".join(lines)


def _line(row: Row, width: int) -> str:
    factor, digits = (1.0, 4) if row.name == ERROR else (100.0, 2)
    cells = [_cell(value, 7, factor, digits) for value in (row.first, row.second)]
    cells.append(_cell(row.difference, 7, factor, digits, "+"))
    text = f"{row.name:{width}s}  " + "  ".join(cells)
    if row.interval is None:
        return text
    low, high = (_cell(value, 7, factor, digits, "+") for value in (row.interval.low, row.interval.high))
    return f"{text}  {low} to {high.strip()}{' *' if row.clear else ''}"


def _cell(value: float | None, width: int, factor: float = 100.0, digits: int = 2, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return f"{'-':>{width}s}"
    return f"{factor * value:{sign}{width}.{digits}f}"
