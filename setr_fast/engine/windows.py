"""Sliding windows: where they start, and the mean of their logits, finished row by row.

The mean over a whole picture (K x H x W float32: 29 GB for 150 classes and 48 megapixels) never exists. Windows are
visited row by row; rows that no later window touches are divided by their count, handed on and forgotten, so what is
held is one band: K x window height x columns. ``columns`` narrows it further, for pictures wider than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Literal

import torch
from torch import Tensor

from setr_fast.errors import ConfigError

WindowRule = Literal["mmseg", "segmenter", "paddleseg"]

FINISHED_ROWS = 64
"""Rows handed on at a time: small beside a band, large beside the cost of a call."""


def window_starts(length: int, window: int, stride: int, rule: WindowRule = "mmseg") -> list[int]:
    """Return where the windows along one axis start, in pixels. An axis shorter than the window has one, at 0.

    mmseg: every ``stride`` pixels, the last one moved back to end at the picture's end (official SETR,
    mmsegmentation `encoder_decoder.py`). segmenter: every ``stride`` pixels while more than a window is left, and one
    at the end (official Segmenter `segm/model/utils.py`). paddleseg: ``ceil((length - window) / stride) + 1`` windows,
    the last moved back.

    Raises: ConfigError if the stride is not positive, or larger than the window: pixels in between had no class.
    """
    if not 1 <= stride <= window:
        raise ConfigError(
            f"slide: stride must be 1 to the window's size of {window}, got {stride}; "
            "pixels between windows would have no class"
        )
    room = length - window
    if rule == "segmenter":
        return [*range(0, room, stride), max(room, 0)]
    if rule == "paddleseg":
        count = 1 if room <= 0 else -(-room // stride) + 1
    elif rule == "mmseg":
        count = max(room + stride - 1, 0) // stride + 1
    else:
        raise ConfigError(f"slide: rule must be mmseg, segmenter or paddleseg, got {rule!r}; mmseg is the usual one")
    return [max(min(index * stride + window, length) - window, 0) for index in range(count)]


def averaged_rows(
    run: Callable[[Tensor], Tensor],
    read: Callable[[int, int, int, int], Tensor],
    size: tuple[int, int],
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    rule: WindowRule = "mmseg",
    batch: int = 1,
    columns: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Yield the mean logits of all windows of a picture of ``size``, top to bottom, in blocks of finished rows.

    Only windows that touch ``columns`` (begin, end; none: all) are evaluated, and only these columns are yielded.
    ``run`` takes a batch of windows and returns their logits at the windows' size; ``read(top, left, height, width)``
    cuts a window out of the picture. A picture smaller than the window is one window of its own size.

    Shapes: read -> [C, h, w]; run [b, C, h, w] -> [b, K, h, w]; yields [K, rows, end - begin] float32.
    """
    (height, width), (begin, end) = size, columns or (0, size[1])
    window_h, window_w = min(window[0], height), min(window[1], width)
    tops = window_starts(height, window[0], stride[0], rule)
    lefts = window_starts(width, window[1], stride[1], rule)
    count_y, count_x = _counts(tops, window_h, height), _counts(lefts, window_w, width)[begin:end]
    touching = [left for left in lefts if left < end and left + window_w > begin]

    def finished(rows: int) -> Iterator[Tensor]:
        """The first ``rows`` of the band, divided by how many windows saw each pixel."""
        for first in range(0, rows, FINISHED_ROWS):
            last = min(first + FINISHED_ROWS, rows)
            if len(tops) == len(lefts) == 1:
                yield band[:, first:last]  # the window's own logits, not a copy
            else:
                seen = count_y[band_top + first : band_top + last, None] * count_x
                yield band[:, first:last] / seen.to(band.device)

    band, band_top = torch.empty(0), 0
    for places in _batched(product(tops, touching), batch):
        logits = run(torch.stack([read(top, left, window_h, window_w) for top, left in places])).float()
        for (top, left), tile in zip(places, logits, strict=True):
            if len(tops) == len(lefts) == 1:
                band = tile[:, :, begin:end]
                break
            if band.numel() == 0:
                band = tile.new_zeros(tile.shape[0], window_h, end - begin)
            if top > band_top:
                yield from finished(top - band_top)
                _move_up(band, top - band_top)
                band_top = top
            first, last = max(left, begin), min(left + window_w, end)
            band[:, :, first - begin : last - begin] += tile[:, :, first - left : last - left]
    yield from finished(height - band_top)


def _move_up(band: Tensor, rows: int) -> None:
    """Drop the first rows of the band and make as many zero rows at its end."""
    rows = min(rows, band.shape[1])
    kept = band.shape[1] - rows
    if kept:
        # Source and target overlap when windows overlap by more than half.
        band[:, :kept] = band[:, rows:].clone() if kept > rows else band[:, rows:]
    band[:, kept:] = 0


def _counts(starts: list[int], window: int, length: int) -> Tensor:
    """How many windows cover each pixel of one axis; over the plane, counts multiply."""
    steps = torch.zeros(length + 1)
    for start in starts:
        steps[start] += 1
        steps[start + window] -= 1
    return steps.cumsum(0)[:length]


def _batched(places: Iterator[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    while chunk := list(islice(places, size)):
        yield chunk
