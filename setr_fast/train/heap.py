"""How far a process grows whose tensors come and go: glibc's allocator, played through.

What a process holds is more than its tensors: a freed block in the middle of the heap stays until something fits into
it. How much that is depends on the order of sizes, so the order that the operators of a step produce is played through
twice, by glibc's rules: blocks from a threshold on (it grows to 32 MiB) are mapped by themselves and given back at
once; others take the smallest free block that they fit into, neighbours merge, and only the end of the heap shrinks,
once twice the threshold is free there.

Source: glibc ``malloc/malloc.c`` (2.36): large bins are best fit, DEFAULT_MMAP_THRESHOLD_MAX, dynamic threshold.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

HEADER, ALIGNED = 16, 64
FIRST_THRESHOLD, LAST_THRESHOLD = 128 * 2**10, 32 * 2**20

Event = tuple[int, int]
"""Number of a block, and its size when it comes or 0 when it goes."""


class Heap:
    """Blocks by number; ``peak`` is the largest extent so far."""

    def __init__(self) -> None:
        self.peak = 0
        self._threshold = FIRST_THRESHOLD
        self._free: list[tuple[int, int]] = []
        self._blocks: dict[int, tuple[int, int]] = {}
        self._top = self._end = self._mapped = 0

    def take(self, number: int, size: int) -> None:
        """Give a block of ``size`` bytes a place."""
        size = -(-(size + HEADER) // ALIGNED) * ALIGNED
        if size >= self._threshold:
            self._mapped += size
            self._blocks[number] = (-1, size)
        else:
            self._blocks[number] = (self._place(size), size)
        self._end = max(self._end, self._top)
        self.peak = max(self.peak, self._end + self._mapped)

    def give(self, number: int) -> None:
        """Free a block."""
        start, size = self._blocks.pop(number)
        if start < 0:
            self._mapped -= size
            self._threshold = min(max(self._threshold, size + 1), LAST_THRESHOLD)
            return
        place = bisect.bisect(self._free, (start, size))
        if place < len(self._free) and self._free[place][0] == start + size:
            size += self._free.pop(place)[1]
        if place and sum(self._free[place - 1]) == start:
            start, before = self._free.pop(place - 1)
            size += before
        if start + size == self._top:
            self._top = start
            if self._end - start >= 2 * self._threshold:
                self._end = start
        else:
            bisect.insort(self._free, (start, size))

    def _place(self, size: int) -> int:
        fitting = [(room, place) for place, (_, room) in enumerate(self._free) if room >= size]
        if not fitting:
            self._top += size
            return self._top - size
        room, place = min(fitting)
        start, _ = self._free.pop(place)
        if room > size:
            bisect.insort(self._free, (start + size, room - size))
        return start


def extent(step: Sequence[Event], before: Iterable[int], after_first: Iterable[int]) -> int:
    """Return the bytes that two equal steps need: the sizes ``before`` are there first, others come after one step.

    Blocks that a step leaves (gradients) go when the next begins.
    """
    heap, largest = Heap(), max((number for number, _ in step), default=0)
    kept = 0
    for size in before:
        kept += 1
        heap.take(-kept, size)
    left: set[int] = set()
    for turn in range(2):
        for number in left:
            heap.give(number)
        left = set()
        for number, size in step:
            own = turn * (largest + 1) + number
            if size:
                heap.take(own, size)
                left.add(own)
            else:
                heap.give(own)
                left.remove(own)
        if turn == 0:
            for size in after_first:
                kept += 1
                heap.take(-kept, size)
    return heap.peak
