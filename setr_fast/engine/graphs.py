"""The work of a window size, recorded once on the GPU and replayed: one launch instead of some hundred.

Unmeasured: never run on a GPU. Recordings hold their memory, so few are kept, those used last; a size is recorded when
it comes for the second time, so that pictures of ever new sizes cost nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_GRAPHS = 8
MOST_SIGHTS = 1024
"""Sizes seen once that are remembered."""
WARM_UP = 2
"""Calls before a recording: libraries allocate and choose in the first ones."""

Run = Callable[[Tensor], Tensor]


class Graphs:
    """A function of one tensor that replays what it recorded for that shape and dtype."""

    def __init__(self, run: Run, most: int = MOST_GRAPHS, record: Callable[[Run, Tensor], Run] | None = None) -> None:
        self._run, self._most, self._record = run, most, record or recorded
        self._kept: OrderedDict[Any, Run] = OrderedDict()
        self._seen: OrderedDict[Any, None] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns for x; the result belongs to the caller."""
        key = (tuple(x.shape), x.dtype, x.device)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key](x)
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > MOST_SIGHTS:
                self._seen.popitem(last=False)
            return self._run(x)
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)  # before the next one: both would need their memory at once
        replay = self._kept[key] = self._record(self._run, x)
        return replay(x)


def recorded(run: Run, x: Tensor) -> Run:
    """Record ``run`` on a copy of x and return the function that copies its argument in, replays, and copies out.

    The recording stream is our own: torch's is made once, on the card that was current then, and records nothing of
    another one. Other threads may go on using the card meanwhile.
    """
    with torch.cuda.device(x.device):
        given, stream = x.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run(given)

    def replay(x: Tensor) -> Tensor:
        given.copy_(x)
        graph.replay()
        return result.clone()

    return replay
