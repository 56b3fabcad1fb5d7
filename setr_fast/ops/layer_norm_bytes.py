"""Layer norm of tokens straight to bytes: the input of a product of bytes behind a norm.

Every backend gives the same bits: sums run over 32 lanes, value after value, then over the lanes, and every step is
rounded to float32.

Source: Ba, Kiros, Hinton 2016, arXiv 1607.06450.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

_LANES = 32


def layer_norm_bytes(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: float, zero: int, levels: int = 255
) -> Tensor:
    """Return round(layer_norm(x) / scale) + zero, kept within 0..levels; a NaN becomes 0.

    Shapes: x float32 [..., D], weight and bias float32 [D] -> uint8 [..., D], contiguous.
    Raises: ShapeError for other shapes and dtypes, a scale that is not positive, or numbers that are no byte.
    """
    for what, values, shape in (("x", x, [*x.shape]), ("weight", weight, [x.shape[-1]]), ("bias", bias, [x.shape[-1]])):
        if values.dtype is not torch.float32 or list(values.shape) != shape:
            got = f"{str(values.dtype)[6:]} {list(values.shape)}"
            raise ShapeError(f"layer_norm_bytes: {what} must be float32 {shape}, got {got}")
    if not 0 < scale < float("inf") or not 0 <= zero <= levels <= 255:
        got = f"{scale}, {zero} and {levels}"
        raise ShapeError(
            f"layer_norm_bytes: scale must be positive and finite, zero 0..levels, levels at most 255, got {got}"
        )
    return _op(x, weight, bias, eps, scale, zero, levels)


def _reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: float, zero: int, levels: int) -> Tensor:
    x, weight, bias = x.float(), weight.float(), bias.float()
    width = torch.tensor(float(x.shape[-1]), device=x.device)
    centred = x - (_summed(x) / width)[..., None]
    one = torch.ones((), device=x.device)
    rstd = one / (_summed(centred * centred) / width + torch.tensor(eps, dtype=torch.float32, device=x.device)).sqrt()
    normed = centred * rstd[..., None] * weight + bias
    inverse = torch.tensor(1.0 / scale, dtype=torch.float32, device=x.device)
    whole = (normed * inverse).round() + zero
    return whole.nan_to_num(nan=0.0).clamp(0, levels).to(torch.uint8).contiguous()


def _summed(values: Tensor) -> Tensor:
    """Sum the last dimension in the order that is agreed on."""
    lanes = F.pad(values, (0, -values.shape[-1] % _LANES)).unflatten(-1, (-1, _LANES))
    total = torch.zeros_like(lanes[..., 0, :])
    for row in lanes.unbind(-2):
        total += row
    one = torch.zeros_like(total[..., 0])
    for lane in total.unbind(-1):
        one += lane
    return one


def _fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], levels: int, draw: Draw) -> tuple[Any, ...]:
        x, weight, bias = draw(*shape).float() + 0.5, draw(shape[-1]).float(), draw(shape[-1]).float()
        return x, weight, bias, 1e-6, 0.03, levels // 2, levels

    yield Case("odd", partial(make, (2, 7, 100), 255))
    yield Case("one_value", partial(make, (3, 1), 255))
    yield Case("seven_bits", partial(make, (5, 192), 127))
    yield Case("empty", partial(make, (0, 64), 255))
    yield Case("vit_l_512px", partial(make, (1, 1024, 1024), 255), bench=True)
    yield Case("vit_l_768px", partial(make, (1, 2304, 1024), 255), bench=FULL)


def _cost(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Cost:
    return Cost(bytes=x.nbytes + x.numel() + weight.nbytes + bias.nbytes, flops=9 * x.numel())


_op = declare_op(
    "layer_norm_bytes(Tensor x, Tensor weight, Tensor bias, float eps, float scale, int zero, int levels) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(native("cpu", dtypes=(torch.float32,)),),
)
