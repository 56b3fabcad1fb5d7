"""Numbers to bytes by one scale and zero point: the activations of a product of bytes.

Rounding is to nearest even, on the number times the inverse scale in float32; every backend gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

F32 = (torch.float32,)


def to_bytes(x: Tensor, scale: float, zero: int, levels: int = 255) -> Tensor:
    """Return round(x / scale) + zero, kept within 0..levels; a NaN becomes 0.

    Shapes: x any, floating -> the same, uint8, contiguous.
    Raises: ShapeError for another dtype, a scale that is not positive, or numbers that are no byte.
    """
    if not x.is_floating_point():
        raise ShapeError(f"to_bytes: x must be floating, got {str(x.dtype)[6:]}")
    if not 0 < scale < float("inf") or not 0 <= zero <= levels <= 255:
        got = f"{scale}, {zero} and {levels}"
        raise ShapeError(f"to_bytes: scale must be positive and finite, zero 0..levels, levels at most 255, got {got}")
    return _op(x.to(torch.float32), scale, zero, levels)


def _reference(x: Tensor, scale: float, zero: int, levels: int) -> Tensor:
    inverse = torch.tensor(1.0 / scale, dtype=torch.float32, device=x.device)
    whole = (x.to(torch.float32) * inverse).round() + zero
    return whole.nan_to_num(nan=0.0).clamp(0, levels).to(torch.uint8).contiguous()


def _fake(x: Tensor, scale: float, zero: int, levels: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], scale: float, zero: int, levels: int, draw: Draw) -> tuple[Any, ...]:
        return draw(*shape), scale, zero, levels

    yield Case("tokens_1024", partial(make, (1, 1024, 1024), 0.03, 128, 255), bench=True)
    yield Case("tokens_2304", partial(make, (1, 2304, 1024), 0.03, 128, 255), bench=FULL)
    yield Case("saturated", partial(make, (3, 7, 5), 0.004, 17, 255))
    yield Case("seven_bits", partial(make, (19,), 0.02, 60, 127))
    yield Case("empty", partial(make, (0, 4), 0.02, 60, 127))


def _cost(x: Tensor, *_: Any) -> Cost:
    return Cost(bytes=x.nbytes + x.numel(), flops=2 * x.numel())


_op = declare_op(
    "to_bytes(Tensor x, float scale, int zero, int levels) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(native("cpu", dtypes=F32),),
)
