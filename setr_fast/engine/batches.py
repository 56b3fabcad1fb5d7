"""Windows of one or several pictures through the model together.

Windows of equal size wait for each other until a batch is full; what a picture still needs, or the memory budget does
not let grow, goes with fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from setr_fast.engine.views import Assembly, Request

Size = tuple[int, int]


@dataclass
class _Active:
    assembly: Assembly
    requests: Iterator[Request]
    upcoming: Request | None
    bytes: int
    held: int


def assemble(
    assemblies: Iterable[Assembly],
    run: Callable[[Tensor], Tensor],
    batch_of: Callable[[Size, int], int],
    held: Callable[[Assembly], int],
    bytes_of: Callable[[Assembly], int] = Assembly.values,
) -> Iterator[Assembly]:
    """Yield each assembly when it is done, in order.

    ``run`` takes windows, bytes [b, h, w, 3] or normalised [b, C, h, w], and returns their small logits [b, K, ...];
    ``batch_of`` takes a window's size and what all assemblies hold, by ``bytes_of``, and returns how many windows may
    go together; ``held`` is how much all assemblies may hold beside that one, unless one alone needs more.
    """
    coming = iter(assemblies)
    following = next(coming, None)
    active: list[_Active] = []
    waiting: dict[Size, list[tuple[Assembly, Request]]] = {}
    while active or following is not None:
        full = _collect(active, waiting, lambda size: batch_of(size, sum(one.bytes for one in active)))
        if full is None and following is not None and _fits(active, bytes_of(following), held(following)):
            requests = following.requests()
            active.append(_Active(following, requests, next(requests, None), bytes_of(following), held(following)))
            following = next(coming, None)
            continue
        if full is None and waiting:
            full = max(waiting, key=lambda size: len(waiting[size]))
        assert full is not None, "a picture waits for windows that do not come"
        group = waiting.pop(full)
        logits = run(torch.stack([assembly.pixels(request) for assembly, request in group]))
        for (assembly, request), of_window in zip(group, logits, strict=True):
            assembly.take(request, of_window)
        while active and active[0].assembly.done:
            yield active.pop(0).assembly


def _collect(
    active: list[_Active],
    waiting: dict[Size, list[tuple[Assembly, Request]]],
    batch_of: Callable[[Size], int],
) -> Size | None:
    """Let windows wait until those of one size fill a batch; return that size, or None when no more may come."""
    for one in active:
        while one.upcoming is not None and one.assembly.has_room(one.upcoming):
            request = one.upcoming
            one.upcoming = next(one.requests, None)
            group = waiting.setdefault(request.size, [])
            group.append((one.assembly, request))
            if len(group) >= batch_of(request.size):
                return request.size
    return None


def _fits(active: list[_Active], following: int, held: int) -> bool:
    together = sum(one.bytes for one in active) + following
    return not active or together <= min(held, *(one.held for one in active))
