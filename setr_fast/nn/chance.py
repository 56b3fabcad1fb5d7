"""Dropout and stochastic depth whose draws belong to the sample, not to the process that happens to hold it.

While ``places`` is set, what a sample draws follows from three things: a key that the default CPU generator gives per
call (all processes seed it alike, and activation checkpointing restores it), the sample's place in the global batch,
and the position of the value. So one, two or four processes zero the same values, and so does any number of parts
that a batch is worked through in. Outside ``places``, PyTorch's own dropout is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# Multipliers of splitmix64 (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195) as signed 64-bit numbers, and two
# odd numbers that keep place and position apart.
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_PLACE, _POSITION = 0x9E3779B97F4A7C15 - 2**64, 0xD6E8FEB86659FD93 - 2**64
_PART = 2**18  # values that are drawn at once: 2 MiB a temporary

_places: Tensor | None = None


@contextmanager
def places(rows_B: Tensor) -> Iterator[None]:
    """Say where the samples of the next forward and backward passes stand in the global batch.

    Shapes: rows [B], int64, on the samples' device.
    """
    global _places
    before, _places = _places, rows_B
    try:
        yield
    finally:
        _places = before


def are_set() -> bool:
    """Return whether draws belong to the samples at the moment."""
    return _places is not None


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero values with probability ``rate`` and divide the others by 1 - rate.

    Shapes: [B, ...], the samples first.
    """
    if rate == 0.0 or not training:
        return x
    if _places is None:
        return F.dropout(x, rate, training)
    kept = keep(x.shape, rate, x.device)
    return x * kept.to(x.dtype) / max(1.0 - rate, torch.finfo(torch.float32).tiny)


def keep(shape: torch.Size | tuple[int, ...], rate: float, device: torch.device) -> Tensor:
    """Return which values are kept: false with probability ``rate``. Shapes: [B, ...]."""
    if _places is None:
        return torch.empty(shape, device=device).bernoulli_(1.0 - rate).bool()
    key = torch.randint(0, 2**62, (), dtype=torch.int64)  # stays here: it travels as an argument, without a wait
    count = 1
    for size in shape[1:]:
        count *= size
    return _kept(key, _places, count, round(rate * 2**24)).view(shape)


def kept_values(key: Tensor, places_B: Tensor, count: int, least: int) -> Tensor:
    """Return which of ``count`` values of each sample are kept. Shapes: key [], places [B] -> bool [B, count].

    Many values are worked through in parts: each takes sixteen bytes meanwhile, for the one that is returned.
    """
    step_n = torch.arange(count, dtype=torch.int64, device=places_B.device).mul_(_POSITION)
    starts_B = key + places_B * _PLACE
    rows = max(1, _PART // max(1, count))
    kept_Bn = torch.empty(len(places_B), count, dtype=torch.bool, device=places_B.device)
    for first in range(0, len(places_B), rows):
        x_bn = starts_B[first : first + rows, None] ^ step_n
        x_bn.bitwise_xor_(_shifted(x_bn, 30)).mul_(_MIX_1)
        x_bn.bitwise_xor_(_shifted(x_bn, 27)).mul_(_MIX_2)
        x_bn.bitwise_xor_(_shifted(x_bn, 31))
        kept_Bn[first : first + rows] = _shifted(x_bn, 40) >= least  # the top 24 bits
    return kept_Bn


# One operator to torch.compile: with the C++ that Inductor (torch 2.13) makes of these comparisons of 64-bit numbers,
# training with dropout on a CPU ended in a segmentation fault.
_kept = torch.library.custom_op("setr_fast::chance_kept", kept_values, mutates_args=())


@_kept.register_fake
def _kept_fake(key: Tensor, places_B: Tensor, count: int, least: int) -> Tensor:
    return places_B.new_empty((places_B.shape[0], count), dtype=torch.bool)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without copying the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
