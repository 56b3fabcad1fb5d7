"""One class map out of several views of a picture (scales, mirrored), in bounded memory.

Held at any time: the class map (one byte per pixel), and logits within ``budget``. Per view that is one band,
K x window height x columns, with a copy of the part that moves up. Where the bands of all views do not fit, the
picture is done in vertical strips, never narrower than a window; windows on a strip's edge are then evaluated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from setr_fast.engine.resample import RowFeed, sources
from setr_fast.engine.windows import WindowRule, averaged_rows

OUTPUT_ROWS = 64
"""Rows of the class map made at a time."""
BAND_COPIES = 2
"""A band, and while it moves up a copy of what is kept, next to finished rows: below twice the band together."""


@dataclass(frozen=True)
class View:
    """A picture at one size, mirrored or not, and the windows it is seen through."""

    read: Callable[[int, int, int, int], Tensor]
    """``read(top, left, height, width)``: normalised pixels [C, height, width], mirrored already."""
    size: tuple[int, int]
    mirrored: bool
    window: tuple[int, int]
    stride: tuple[int, int]

    def rows(
        self,
        run: Callable[[Tensor], Tensor],
        out_size: tuple[int, int],
        columns: tuple[int, int],
        rule: WindowRule,
        batch: int,
    ) -> RowFeed:
        """Start the view's logits at ``out_size``, columns [begin, end) of it; nothing is computed yet."""
        begin, end = sources(*columns, out_size[1], self.size[1])
        if self.mirrored:
            begin, end = self.size[1] - end, self.size[1] - begin
        blocks = averaged_rows(
            run,
            self.read,
            self.size,
            window=self.window,
            stride=self.stride,
            rule=rule,
            batch=batch,
            columns=(begin, end),
        )
        return RowFeed(blocks, self.size, out_size, columns, self.mirrored)


def class_map(
    run: Callable[[Tensor], Tensor],
    views: Sequence[View],
    out_size: tuple[int, int],
    num_classes: int,
    *,
    probabilities: bool = True,
    rule: WindowRule = "mmseg",
    batch: int = 1,
    budget: int = 2**30,
) -> npt.NDArray[Any]:
    """Return the class of each pixel: the first of the largest mean scores over the views.

    One view: its logits decide. Several: their softmax probabilities are averaged (or, with ``probabilities`` off,
    their logits), each at ``out_size``.

    Shapes: run [b, C, h, w] -> [b, K, h, w]; returns [H, W], uint8 (uint16 above 256 classes).
    Units: budget in bytes.
    """
    height = out_size[0]
    classes = np.empty(out_size, np.uint8 if num_classes <= 256 else np.uint16)
    several = len(views) > 1

    def scores(feed: RowFeed, begin: int, end: int) -> Tensor:
        rows = feed.rows(begin, end)
        return rows.softmax(0) if several and probabilities else rows

    bands = [(begin, min(begin + OUTPUT_ROWS, height)) for begin in range(0, height, OUTPUT_ROWS)]
    for columns in strips(views, out_size, num_classes, budget):
        feeds = (view.rows(run, out_size, columns, rule, batch) for view in views)
        where = slice(*columns)
        if several and num_classes * height * (columns[1] - columns[0]) * 4 <= budget // 2:
            for (begin, end), total in zip(bands, _one_after_another(feeds, bands, scores), strict=True):
                classes[begin:end, where] = _first_largest(total).cpu().numpy()
            continue
        together = list(feeds)
        for begin, end in bands:
            total = scores(together[0], begin, end)
            for feed in together[1:]:
                total = total + scores(feed, begin, end)
            classes[begin:end, where] = _first_largest(total).cpu().numpy()
    return classes


def strips(
    views: Sequence[View], out_size: tuple[int, int], num_classes: int, budget: int
) -> Iterator[tuple[int, int]]:
    """Yield the column ranges that the picture is done in: as few equal ones as the budget allows."""
    width = out_size[1]
    per_column = 0.0
    narrowest = 1
    for view in views:
        ratio = view.size[1] / width
        per_column += num_classes * min(view.window[0], view.size[0]) * ratio * 4 * BAND_COPIES
        narrowest = max(narrowest, int(np.ceil(min(view.window[1], view.size[1]) / ratio)))
    strip = min(max(int(budget / per_column), narrowest), width)
    count = -(-width // strip)
    for index in range(count):
        yield width * index // count, width * (index + 1) // count


def _first_largest(scores: Tensor) -> Tensor:
    """Index of the largest of K scores, the first of equal ones. Shapes: [K, rows, columns] -> [rows, columns]."""
    if scores.device.type != "cpu" or len(scores) > 256:
        return scores.argmax(0)
    # argmax over the slowest dimension is 12 times slower on a CPU than a pass per class: 194 against 16 ms for
    # 19 x 64 x 8000, one core of a server CPU, torch 2.13.
    best, index = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.uint8)
    for number, score in enumerate(scores[1:], start=1):
        # Numbers grow, so the maximum of those that improved on all before is the last that did.
        torch.maximum(index, (score > best).to(torch.uint8) * number, out=index)
        torch.maximum(best, score, out=best)
    return index


def _one_after_another(
    feeds: Iterator[RowFeed], bands: Sequence[tuple[int, int]], scores: Callable[[RowFeed, int, int], Tensor]
) -> list[Tensor]:
    """Sum the views' scores over all rows, holding the logits of one view at a time."""
    total: list[Tensor] = []
    for feed in feeds:
        for index, (begin, end) in enumerate(bands):
            part = scores(feed, begin, end)
            if index == len(total):
                total.append(part.clone())  # not a view of the window's logits, which go with the feed
            else:
                total[index] += part
    return total
