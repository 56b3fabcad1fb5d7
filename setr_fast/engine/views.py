"""One picture put together of the small logits of its windows, at several scales and mirrored, in bounded memory.

An ``Assembly`` says which windows it needs, takes their logits in any order and turns rows into classes as soon as
every window that they read is there. Held are the small logits of the window rows that are still needed (150 classes of
a 512-pixel window: 0.6 to 39 MB, where its logits at full size are 157 MB), and the class map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr_fast.engine.resample import Axis, AxisTable
from setr_fast.engine.windows import WindowRule, window_starts
from setr_fast.ops.confusion_matrix import confusion_matrix
from setr_fast.ops.upsample_accumulate import upsample_accumulate, upsample_accumulate_argmax
from setr_fast.ops.upsample_argmax import class_dtype, upsample_argmax

ROWS = 128
"""Rows of the class map made at a time."""


@dataclass(frozen=True)
class View:
    """A picture at one size, mirrored or not, and the windows it is seen through."""

    read: Callable[[int, int, int, int], Tensor]
    """``read(top, left, height, width)``: bytes [height, width, 3] or normalised pixels [C, height, width], mirrored
    already."""
    size: tuple[int, int]
    mirrored: bool
    window: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The small logits of a window: their size, and the size in pixels that they span."""

    low: tuple[int, int]
    padded: tuple[int, int]
    align_corners: bool


@dataclass(frozen=True)
class Request:
    """A window that an assembly needs: of which view, where in its grid, and where in the picture."""

    view: int
    down: int
    across: int
    top: int
    left: int
    size: tuple[int, int]


class _Grid:
    """The windows of one view that touch the columns asked for, and what is held of their logits."""

    def __init__(
        self, view: View, rule: WindowRule, geometry: Geometry, out_size: tuple[int, int], columns: tuple[int, int]
    ) -> None:
        self.view, self.geometry = view, geometry
        self.window = (min(view.window[0], view.size[0]), min(view.window[1], view.size[1]))
        self.tops, lefts = (window_starts(view.size[i], view.window[i], view.stride[i], rule) for i in (0, 1))

        def axis(i: int, starts: Sequence[int]) -> Axis:
            mirrored = view.mirrored and i == 1
            sizes = self.window[i], view.size[i], out_size[i], geometry.padded[i], geometry.low[i]
            return Axis(starts, *sizes, geometry.align_corners, mirrored)

        self._rows, across = axis(0, self.tops), axis(1, lefts)
        self.reach = self._rows.reach()
        touching = [i for i, (begin, end) in enumerate(across.reach()) if begin < columns[1] and end > columns[0]]
        self.lefts = [lefts[i] for i in touching]
        self.columns: AxisTable = across.table(*columns, touching)
        chunks = range(0, max(out_size[0], 1), ROWS)
        together = max(len(self.needed(begin, begin + ROWS)) for begin in chunks)
        self.slots = min(together + 1, len(self.tops))  # one more: the next row of windows may come early
        self.missing = [len(self.lefts)] * len(self.tops)

    def needed(self, begin: int, end: int) -> list[int]:
        """Rows of windows that output rows [begin, end) read."""
        return [i for i, (first, last) in enumerate(self.reach) if first < end and last > begin]

    def row_table(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Sources and weights of output rows [begin, end), by slot. Shapes: [end - begin, t] each."""
        needed, low = self.needed(begin, end), self.geometry.low[0]
        table = self._rows.table(begin, end, needed)
        taps = np.arange(table.weight.shape[1])[:, None]
        sources = [
            np.minimum(start + taps, low - 1) + index % self.slots * low
            for index, start in zip(needed, table.start, strict=True)
        ]
        weights = list(table.weight)
        tables = np.concatenate(sources).T.astype(np.int32), np.concatenate(weights).T
        return torch.from_numpy(np.ascontiguousarray(tables[0])), torch.from_numpy(np.ascontiguousarray(tables[1]))

    def values(self, num_classes: int) -> int:
        """Numbers held: the logits of all windows of all slots."""
        return self.slots * len(self.lefts) * num_classes * self.geometry.low[0] * self.geometry.low[1]


class Assembly:
    """Classes (or scores) of columns [begin, end) of one picture, from the logits of its windows."""

    def __init__(
        self,
        views: Sequence[View],
        out_size: tuple[int, int],
        num_classes: int,
        geometry: Callable[[tuple[int, int]], Geometry],
        *,
        rule: WindowRule = "mmseg",
        probabilities: bool = True,
        columns: tuple[int, int] | None = None,
        labels: Tensor | None = None,
        ignore_index: int = 255,
        take_rows: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Prepare; nothing is computed. ``take_rows(first, scores [K, rows, columns])`` asks for scores instead."""
        self.num_classes, self.probabilities = num_classes, probabilities
        self.ignore_index, self._labels, self._take_rows = ignore_index, labels, take_rows
        self.columns, self.size = columns or (0, out_size[1]), out_size
        self.height, width = out_size[0], self.columns[1] - self.columns[0]
        self._grids = []
        for view in views:
            window = (min(view.window[0], view.size[0]), min(view.window[1], view.size[1]))
            self._grids.append(_Grid(view, rule, geometry(window), out_size, self.columns))
        self.classes = torch.empty(0 if take_rows else self.height, width, dtype=class_dtype(num_classes))
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64) if labels is not None else None
        self._store: Tensor | None = None
        self._found = self.classes
        self._tables: list[Tensor] = []
        self._rows: list[tuple[Tensor, ...]] = []
        self._row_taps: list[list[int]] = []
        self._done = 0

    @property
    def done(self) -> bool:
        """Whether every row is made."""
        return self._done >= self.height

    def values(self) -> int:
        """Logits that are held at most, in numbers."""
        return sum(grid.values(self.num_classes) for grid in self._grids)

    def table_values(self) -> int:
        """Windows times columns of the tables, over all views."""
        return sum(len(grid.lefts) * (self.columns[1] - self.columns[0]) for grid in self._grids)

    def windows(self) -> list[tuple[int, int]]:
        """Return the size of each view's windows, the largest first."""
        return sorted({grid.window for grid in self._grids}, key=lambda size: -size[0] * size[1])

    def requests(self) -> Iterator[Request]:
        """Yield every window once, those that reach highest in the picture first."""
        # By the first output row that reads them: then no window waits for room that a later one would make.
        order = sorted(
            (grid.reach[down][0], index, down)
            for index, grid in enumerate(self._grids)
            for down in range(len(grid.tops))
        )
        for _, index, down in order:
            grid = self._grids[index]
            for across, left in enumerate(grid.lefts):
                yield Request(index, down, across, grid.tops[down], left, grid.window)

    def has_room(self, request: Request) -> bool:
        """Return whether the window's logits may come: those they take the place of are no longer needed."""
        grid = self._grids[request.view]
        before = request.down - grid.slots
        return before < 0 or grid.reach[before][1] <= self._done

    def pixels(self, request: Request) -> Tensor:
        """Return the window's pixels. Shapes: bytes [h, w, 3], or normalised [C, h, w]."""
        return self._grids[request.view].view.read(request.top, request.left, *request.size)

    def take(self, request: Request, logits: Tensor) -> None:
        """Take a window's logits, and make the rows that waited for them last. Shapes: logits [K, h, w]."""
        if self.is_plain:
            self._decide(logits)
            return
        grid = self._grids[request.view]
        self._slot(request, logits).copy_(logits.transpose(0, 1))
        grid.missing[request.down] -= 1
        while not self.done and self._complete(self._done, min(self._done + ROWS, self.height)):
            self._make(self._done, min(self._done + ROWS, self.height))
        if self.done:
            self._store = None

    @property
    def is_plain(self) -> bool:
        """Whether this is one pass at the picture's own size: nothing is merged, so nothing need be kept."""
        grid = self._grids[0]
        alone = len(self._grids) == 1 and len(grid.tops) == len(grid.lefts) == 1 and self._take_rows is None
        whole = grid.window == grid.view.size == (self.height, self.classes.shape[1])
        return alone and whole and not grid.view.mirrored and self.columns[0] == 0

    def _decide(self, logits: Tensor) -> None:
        grid = self._grids[0]
        found = upsample_argmax(logits[None], grid.geometry.padded, grid.geometry.align_corners, grid.window)[0]
        self.classes.copy_(found)
        if self._labels is not None and self.counts is not None:
            self.counts += confusion_matrix(self.classes, self._labels, self.num_classes, self.ignore_index)
        self._done = self.height

    def _slot(self, request: Request, logits: Tensor) -> Tensor:
        if self._store is None:
            # bfloat16 stays, which halves what is held.
            dtype = logits.dtype if logits.dtype in (torch.bfloat16, torch.float64) else torch.float32
            self._store = torch.empty(self.values(), dtype=dtype, device=logits.device)
            self._prepare(logits.device)
        begin = sum(grid.values(self.num_classes) for grid in self._grids[: request.view])
        grid = self._grids[request.view]
        place = request.down % grid.slots * len(grid.lefts) + request.across
        count = logits.numel()
        shape = logits.shape[1], logits.shape[0], logits.shape[2]
        return self._store[begin + place * count : begin + (place + 1) * count].view(shape)

    def _prepare(self, device: torch.device) -> None:
        """Make all tables and, for a card, bring them there in one copy a table; make room for what is found there."""
        starts = [torch.from_numpy(grid.columns.start).flatten() for grid in self._grids]
        weights = [torch.from_numpy(grid.columns.weight).flatten() for grid in self._grids]
        self._tables = [sent(torch.cat(starts), device), sent(torch.cat(weights), device)]
        rows, shares = [], []
        for begin in range(0, self.height, ROWS):
            tables = [grid.row_table(begin, min(begin + ROWS, self.height)) for grid in self._grids]
            rows.append(torch.cat([source.flatten() for source, _ in tables]))
            shares.append(torch.cat([weight.flatten() for _, weight in tables]))
            self._row_taps.append([source.shape[1] for source, _ in tables])
        lengths = [len(part) for part in rows]
        self._rows = [sent(torch.cat(whole), device).split(lengths) for whole in (rows, shares)]
        if _apart(device) and self._take_rows is None:
            self._found = torch.empty(self.classes.shape, dtype=self.classes.dtype, device=device)

    def _complete(self, begin: int, end: int) -> bool:
        return all(grid.missing[down] == 0 for grid in self._grids for down in grid.needed(begin, end))

    def _make(self, begin: int, end: int) -> None:
        assert self._store is not None
        facts, part = [], begin // ROWS
        for grid, row_taps in zip(self._grids, self._row_taps[part], strict=True):
            facts += [grid.slots, len(grid.lefts), *grid.geometry.low, grid.columns.weight.shape[1], row_taps]
        tables: dict[str, Any] = {
            "columns": self._tables[0],
            "column_weights": self._tables[1],
            "rows": self._rows[0][part],
            "row_weights": self._rows[1][part],
        }
        size = [end - begin, self.columns[1] - self.columns[0]]
        shape: dict[str, Any] = {"views": facts, "num_classes": self.num_classes, "size": size}
        if self._take_rows is not None:
            several = self.probabilities and len(self._grids) > 1
            self._take_rows(begin, upsample_accumulate(self._store, **tables, **shape, probabilities=several))
        else:
            here = None if self._labels is None or _apart(self._store.device) else self._labels[begin:end]
            shape |= {"probabilities": self.probabilities, "ignore_index": self.ignore_index, "labels": here}
            found, counts = upsample_accumulate_argmax(self._store, **tables, **shape)
            self._found[begin:end].copy_(found)
            if self.counts is not None and here is not None:
                self.counts += counts
        self._done = end
        if self.done and self._found is not self.classes:
            self._fetch()

    def _fetch(self) -> None:
        """Bring the classes from the card, the one wait for it, and count them here."""
        self.classes.copy_(self._found)
        self._found = self.classes
        if self._labels is not None and self.counts is not None:
            self.counts += confusion_matrix(self.classes, self._labels, self.num_classes, self.ignore_index)


def _apart(device: torch.device) -> bool:
    """Return whether logits lie in a memory of their own, from which classes come in one copy a picture."""
    return device.type != "cpu"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. Where that is a card, nothing waits for the copy: its pinned source is not given out
    again before the card has read it, so that the next one is prepared meanwhile."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
