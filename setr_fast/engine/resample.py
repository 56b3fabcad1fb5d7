"""Where along one axis the values of a merged picture come from, as tables.

The rule is that of ``torch.nn.functional.interpolate(mode="bilinear")`` (half-pixel centres or corners on corners,
edges repeated, no antialiasing), applied to a window's logits, then to the picture put together of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def taps(
    begin: int, end: int, out_size: int, in_size: int, align_corners: bool = False
) -> tuple[Indices, Indices, Floats]:
    """Return, for each output position in [begin, end), its two sources and the share of the second.

    Shapes: [end - begin] each.
    """
    # PyTorch works positions out in float32, with one rounding for the ratio and one for the fused product and
    # difference. Exact positions would be up to 1/2000 pixel away from them at 10 000 pixels.
    at = np.arange(begin, end, dtype=np.float64)
    if align_corners:
        ratio = np.float32(in_size - 1) / np.float32(out_size - 1) if out_size > 1 else np.float32(0)
        exact = at * np.float64(ratio)
    else:
        exact = (at + 0.5) * np.float64(np.float32(in_size) / np.float32(out_size)) - 0.5
    centre = np.maximum(exact.astype(np.float32), np.float32(0))
    first = np.minimum(np.floor(centre).astype(np.int64), in_size - 1)
    share = np.clip(centre - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, np.minimum(first + 1, in_size - 1), share


def sources(begin: int, end: int, out_size: int, in_size: int) -> tuple[int, int]:
    """Return the range of input positions that outputs [begin, end) are made of."""
    first, second, _ = taps(begin, end, out_size, in_size)
    return int(first[0]), int(second[-1]) + 1


@dataclass(frozen=True)
class AxisTable:
    """Which of a window's logits each output position reads along one axis.

    Shapes: start int32 [windows, length], weight float32 [windows, taps, length]; 0 where a window is not read.
    """

    start: npt.NDArray[np.int32]
    weight: Floats


@dataclass(frozen=True)
class Axis:
    """One axis of a view: the picture resized to ``view`` pixels, seen through windows, brought to ``out`` pixels.

    A window's ``low`` logits span ``padded`` pixels, of which the first ``window`` count.
    """

    starts: Sequence[int]
    window: int
    view: int
    out: int
    padded: int
    low: int
    align_corners: bool
    mirrored: bool = False

    def reach(self) -> list[tuple[int, int]]:
        """Return the range of output positions that each window takes part in."""
        first, second, _ = taps(0, self.out, self.out, self.view)
        ranges = []
        for start in self.starts:
            # Mirrored, positions run backwards: the range is found from the other side and turned around.
            left = self.view - start - self.window if self.mirrored else start
            begin, end = np.searchsorted(second, left), np.searchsorted(first, left + self.window)
            ranges.append((int(begin), int(end)))
        return ranges

    def table(self, begin: int, end: int, windows: Sequence[int]) -> AxisTable:
        """Return the table of some of the windows for output positions [begin, end): resized, mirrored back, averaged
        where windows overlap.
        """
        first, second, share = taps(begin, end, self.out, self.view)
        if self.mirrored:
            first, second = self.view - 1 - first, self.view - 1 - second
        seen = self._counts()
        low_first, low_second, low_share = taps(0, self.window, self.padded, self.low, self.align_corners)
        columns, weights = [], []
        for left in (self.starts[window] for window in windows):
            parts: list[tuple[Indices, npt.NDArray[np.float64]]] = []
            for position, part in ((first, 1.0 - share.astype(np.float64)), (second, share.astype(np.float64))):
                inside = (position >= left) & (position < left + self.window)
                local = np.clip(position - left, 0, self.window - 1)
                weight = np.where(inside, part / seen[position], 0.0)
                parts.append((low_first[local], weight * (1.0 - low_share[local])))
                parts.append((low_second[local], weight * low_share[local]))
            columns.append(np.stack([column for column, _ in parts]))
            weights.append(np.stack([weight for _, weight in parts]))
        return _packed(np.stack(columns), np.stack(weights), self.low)

    def _counts(self) -> npt.NDArray[np.float64]:
        """How many windows cover each pixel of the axis; over the plane, counts multiply."""
        steps = np.zeros(self.view + 1)
        for start in self.starts:
            steps[start] += 1
            steps[start + self.window] -= 1
        return np.cumsum(steps)[: self.view]


def _packed(columns: Indices, weights: npt.NDArray[np.float64], low: int) -> AxisTable:
    """Sum weights of one column, and lay each position's columns side by side. Shapes: [windows, 4, length]."""
    read = weights != 0
    start = np.where(read, columns, low).min(1)
    start = np.where(read.any(1), start, 0)
    offset = np.where(read, columns - start[:, None], 0)
    table = np.zeros((len(columns), int(offset.max(initial=0)) + 1, columns.shape[2]))
    window, position = np.arange(len(columns))[:, None, None], np.arange(columns.shape[2])
    np.add.at(table, (np.broadcast_to(window, offset.shape), offset, np.broadcast_to(position, offset.shape)), weights)
    return AxisTable(start.astype(np.int32), table.astype(np.float32))
