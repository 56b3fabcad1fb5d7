"""Bilinear resizing of logits that arrive row by row.

The same rule as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` (half-pixel centres, edges
repeated, no antialiasing), for pictures whose logits are never in memory as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


def taps(begin: int, end: int, out_size: int, in_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each output position in [begin, end), its two sources and the share of the second.

    Shapes: [end - begin] each; int64, int64, float32.
    """
    # PyTorch works positions out in float32, with one rounding for the ratio and one for the fused product and
    # difference. Exact positions would be up to 1/2000 pixel away from them at 10 000 pixels.
    ratio = torch.tensor(in_size, dtype=torch.float32) / torch.tensor(out_size, dtype=torch.float32)
    exact = (torch.arange(begin, end, dtype=torch.float64) + 0.5) * ratio.double() - 0.5
    centre = exact.float().clamp(min=0)
    first = centre.floor().long().clamp(max=in_size - 1)
    return first, (first + 1).clamp(max=in_size - 1), (centre - first).clamp(0, 1)


def sources(begin: int, end: int, out_size: int, in_size: int) -> tuple[int, int]:
    """Return the range of input positions that outputs [begin, end) are made of."""
    if out_size == in_size:
        return begin, end
    first, second, _ = taps(begin, end, out_size, in_size)
    return int(first[0]), int(second[-1]) + 1


class RowFeed:
    """Logits of one view of a picture, at the picture's size, asked for from top to bottom.

    ``blocks`` yields them at the view's size, restricted to the columns ``sources(*columns, ...)``, mirrored if
    ``mirrored``. At equal sizes rows pass through unchanged. Holds only the input rows that are still needed.
    """

    def __init__(
        self,
        blocks: Iterator[Tensor],
        size: tuple[int, int],
        out_size: tuple[int, int],
        columns: tuple[int, int],
        mirrored: bool,
    ) -> None:
        self._blocks = blocks
        self._size, self._out_size, self._columns, self._mirrored = size, out_size, columns, mirrored
        self._held: deque[Tensor] = deque()
        self._top = self._bottom = 0  # input rows in _held

    def rows(self, begin: int, end: int) -> Tensor:
        """Return output rows [begin, end) of the columns. ``begin`` must not go back below an earlier call's.

        Shapes: -> [K, end - begin, columns].
        """
        first, last = sources(begin, end, self._out_size[0], self._size[0])
        while self._bottom < last:
            block = next(self._blocks)
            self._held.append(block.flip(-1) if self._mirrored else block)
            self._bottom += block.shape[1]
        while self._top + self._held[0].shape[1] <= first:
            self._top += self._held.popleft().shape[1]
        needed, top = [], self._top
        for block in self._held:
            if top < last:
                needed.append(block[:, max(first - top, 0) : last - top])
            top += block.shape[1]
        held = needed[0] if len(needed) == 1 else torch.cat(needed, dim=1)
        if self._out_size[0] != self._size[0]:
            held = _blend(held, 1, taps(begin, end, self._out_size[0], self._size[0]), first)
        if self._out_size[1] != self._size[1]:
            wanted = taps(*self._columns, self._out_size[1], self._size[1])
            held = _blend(held, 2, wanted, int(wanted[0][0]))
        return held


def _blend(values: Tensor, dim: int, wanted: tuple[Tensor, Tensor, Tensor], origin: int) -> Tensor:
    first, second, share = (part.to(values.device) for part in wanted)
    share = share[:, None] if dim == 1 else share
    low = values.index_select(dim, first - origin)
    return low.lerp_(values.index_select(dim, second - origin), share)
