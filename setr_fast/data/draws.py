"""Random numbers that are the same on every machine and under every NumPy: Philox, addressed by a counter.

NumPy promises that the raw words of a bit generator never change, and promises nothing about the
methods built on them. What must stay put (which scene is scene 7, the order of an epoch) is made of raw words here.
Nothing is carried from one draw site to the next: (key, address) alone decides, so any sample can be
drawn first, on any process.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64 - 1


def word(text: str) -> int:
    """Return 64 bits that stand for ``text`` (the same in every process, unlike ``hash``)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def philox(seed: int, purpose: str, *address: int) -> np.random.Philox:
    """Return the bit generator of one place in the random sequence that belongs to ``seed`` and ``purpose``.

    The address (up to three non-negative numbers) fills the upper words of the counter. The lowest word counts
    the draws, so two addresses can only meet after 2^64 of them.
    """
    assert len(address) <= 3
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(address)] = np.array([part & _WORD for part in address], np.uint64)
    return np.random.Philox(key=np.array([seed & _WORD, word(purpose)], np.uint64), counter=counter)


class Draws:
    """Plain draws from raw words: one word each, in the order they are asked for."""

    def __init__(self, bits: np.random.Philox) -> None:
        self._bits = bits
        self._words: list[int] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()  # one call per 64 words: each costs 1 us
        return low + (high - low) * ((self._words.pop() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """Return a whole number in [low, high], both ends included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def pick(self, weights: Sequence[float]) -> int:
        """Return an index, drawn in proportion to ``weights``."""
        left = self.uniform() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    def octets(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of independent numbers 0..255."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count // 8)).astype("<u8", copy=False)
        return words.view(np.uint8)[:count].reshape(shape)
