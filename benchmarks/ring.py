"""Arguments for timed calls: a few sets of random values, in more copies than the last-level cache holds.

Each call takes the next copy, so that it finds its arguments in memory and not in a cache, and consecutive calls of one
side get different values: an answer kept from an earlier call is then a wrong answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import DEVICE, last_level_cache_bytes
from setr_fast.ops._op import Draw

VALUES = 3
"""Sets of values; the rounds of a measurement take them in turn."""
BEYOND = 1.25
"""Times the last-level cache that all copies fill."""
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class CardDraw(Draw):
    """Values drawn on the card itself: hundreds of millions take seconds on a processor."""

    def __call__(self, *shape: int) -> Tensor:
        """Return standard normal values of the case's dtype."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)


def draw(dtype: torch.dtype, seed: int) -> Draw:
    """Return a source of random arguments on the device that is measured."""
    kind = CardDraw if DEVICE == "cuda" else Draw
    return kind(torch.device(DEVICE), dtype, torch.Generator().manual_seed(seed))


class Ring:
    """All copies of all values; ``make(index)`` draws one set."""

    def __init__(self, make: Callable[[int], Arguments], values: int = VALUES) -> None:
        self.values = [make(index) for index in range(values)]
        size = sum(t.nbytes for arguments in self.values for t in arguments if isinstance(t, Tensor))
        self.copies = max(1, math.ceil(BEYOND * last_level_cache_bytes() / max(size, 1)))
        self._slots: list[Iterator[Arguments]] = [
            itertools.cycle([copied(arguments) for _ in range(self.copies)]) for arguments in self.values
        ]

    def next(self, index: int) -> Arguments:
        """Return the copy of these values that was used longest ago."""
        return next(self._slots[index])


def copied(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """Copies of all tensors; those of floating point in another dtype, where one is given."""

    def copy(value: Tensor) -> Tensor:
        return value.to(dtype, copy=True) if dtype is not None and value.is_floating_point() else value.clone()

    return tuple(copy(a) if isinstance(a, Tensor) else a for a in arguments)
