"""How Flax stores the kernels of linear layers, so that a file's arrays are read to where PyTorch wants them.

A kernel is [in..., out...]: what goes in comes first. Read turned, it lies in memory as PyTorch's weight [out, in], and
queries, keys and values one after the other, as one weight of all three. The arrays keep the file's shape: this is
about speed, and files of any other origin are read right too.
Source: flax.linen.Dense and flax.linen.MultiHeadDotProductAttention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setr_fast.checkpoints.reading import Reading, new_bytes

_PARTS = ("query/kernel", "key/kernel", "value/kernel")


class Place(NamedTuple):
    """Where an array lies in the file: row-major, in this machine's byte order."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Kernels:
    """Reads the arrays of a file, kernels into the memory of weights."""

    def __init__(self, reading: Reading, places: Mapping[str, Place]) -> None:
        self._reading, self._places = reading, places
        self._joint: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        """Return an array of the file; it holds its values after ``Reading.run``."""
        start, shape, dtype = self._places[name]
        inputs = 2 if name.endswith("/out/kernel") and len(shape) == 3 else 1
        size = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        if len(shape) not in (2, 3) or not self._reading.takes(size, dtype):
            return torch.from_numpy(self._reading.array(start, shape, dtype))
        part = self._part(name, size)
        weight = torch.from_numpy(self._reading.turned(start, size, dtype)) if part is None else part
        if part is not None:
            self._reading.turned(start, size, dtype, part.numpy())
        return weight.T.unflatten(0, shape[:2]) if inputs == 2 else weight.T.unflatten(1, shape[1:])

    def _part(self, name: str, size: tuple[int, int]) -> Tensor | None:
        """Return a third of the memory that queries, keys and values share, where this is one of them."""
        index = next((i for i, part in enumerate(_PARTS) if name.endswith("/" + part)), None)
        if index is None:
            return None
        prefix = name.removesuffix(_PARTS[index])
        alike = [self._places.get(prefix + part) for part in _PARTS]
        mine = self._places[name]
        if any(other is None or (other.shape, other.dtype) != (mine.shape, mine.dtype) for other in alike):
            return None
        if prefix not in self._joint:
            content = new_bytes(3 * math.prod(size) * mine.dtype.itemsize)
            self._joint[prefix] = torch.from_numpy(content.view(mine.dtype)).view(3, size[1], size[0])
        return self._joint[prefix][index]


def joined(weights: list[Tensor]) -> Tensor | None:
    """Return matrices as one, one below the other, if they lie so in memory that is all theirs; else None."""
    first, count = weights[0], sum(len(weight) for weight in weights)
    at = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != at or not weight.is_contiguous() or weight.dtype != first.dtype:
            return None
        at += weight.nbytes
    width = first.shape[1]
    if any(weight.shape[1:] != first.shape[1:] for weight in weights):
        return None
    storage = first.untyped_storage()
    whole = storage.data_ptr() == first.data_ptr() and storage.nbytes() == at - first.data_ptr()
    return first.as_strided((count, width), (width, 1)) if whole else None
