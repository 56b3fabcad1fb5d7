"""upsample_conv without ReLU, with the batch statistics of its result, for the batch norm of a training step.

A kernel that counts what it writes saves the pass over the largest tensor of the decoder that a batch norm begins with.
The spread is the sum of squared deviations from the mean: spreads of parts can be merged exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import _upsample_conv_library as library
from setr_fast.ops._op import FULL, Bench, Case, Cost, Draw, declare_op, native, python
from setr_fast.ops.upsample_conv import _laid, check, in_autocast


def upsample_conv_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return upsample_conv of the arguments, and mean and spread of each of its channels over pictures and pixels.

    Gradients flow through the map alone: what reads the statistics accounts for them in its own backward, as a batch
    norm does. Statistics are bit-reproducible.

    Shapes: as upsample_conv -> [B, O, H, W] in channels-last memory; mean and spread [O], float32 at least.
    Raises: ShapeError as upsample_conv, and for an empty batch.
    """
    x, weight, bias = in_autocast(x, weight, bias)
    check("upsample_conv_statistics", x, weight, bias, size)
    if not len(x):
        raise ShapeError("upsample_conv_statistics: x must hold at least one picture, got none")
    out: tuple[Tensor, Tensor, Tensor] = _op(x, weight, bias, size[0], size[1], align_corners)
    return out


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = library.reference(x, weight, bias, height, width, align_corners, False)
    exact = y.detach().to(torch.promote_types(y.dtype, torch.float32))
    mean = exact.mean((0, 2, 3))
    return y, mean, (exact - mean[:, None, None]).square().sum((0, 2, 3))


def by_upsample_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Serve the op on a CPU: the compiled map, whose statistics PyTorch takes."""
    y = torch.ops.setr_fast.upsample_conv.default(x, weight, bias, height, width, align_corners, False).detach()
    spread, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
    return y, mean, spread * (y.numel() // y.shape[1])


def _refuses_other_dtypes(x: Tensor, *_: Any) -> list[str]:
    served = (torch.float32, torch.bfloat16)
    return [] if x.dtype in served else [f"takes float32 and bfloat16, got {str(x.dtype)[6:]}"]


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = library.channels_last(x, (x.shape[0], weight.shape[0], height, width))
    mean = x.new_empty((weight.shape[0],), dtype=torch.promote_types(x.dtype, torch.float32))
    return y, mean, torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, ctx.align_corners = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.setr_fast.upsample_conv_backward.default(grad, x, weight, ctx.align_corners)
    return dx, dweight, dbias if ctx.has_bias else None, None, None, None


# name, (B, C, h, w), (O, k), (H, W), align_corners, timed
_CASES: tuple[tuple[str, tuple[int, int, int, int], tuple[int, int], tuple[int, int], bool, Bench], ...] = (
    ("twice", (2, 3, 4, 5), (4, 3), (8, 10), False, False),
    ("any_factor_corners", (3, 8, 3, 6), (33, 3), (11, 9), True, False),
    ("one_pixel", (2, 9, 1, 1), (2, 3), (4, 4), False, False),
    ("one_by_one", (2, 6, 4, 3), (16, 1), (8, 9), False, False),
    ("many_channels", (1, 2, 3, 2), (1040, 3), (6, 4), False, False),
    ("pup_64_to_128", (1, 256, 64, 64), (256, 3), (128, 128), False, True),
    ("pup_96_to_192", (1, 256, 96, 96), (256, 3), (192, 192), False, FULL),
)


def _cases() -> Iterator[Case]:
    def make(index: int, draw: Draw) -> tuple[Any, ...]:
        _, (B, C, h, w), (outputs, k), size, align_corners, _ = _CASES[index]
        bias = None if index % 3 == 2 else draw(outputs)
        return _laid(draw(B, h, w, C)), draw(outputs, C, k, k), bias, *size, align_corners

    for index, case in enumerate(_CASES):
        yield Case(case[0], partial(make, index), bench=case[-1])


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, *_: Any) -> Cost:
    least = len(x) * min(x.shape[2] * x.shape[3], height * width)
    values = len(x) * weight.shape[0] * height * width
    flops = 2 * least * weight.numel() + 5 * values
    return Cost(bytes=x.nbytes + weight.nbytes + values * x.element_size(), flops=flops)


_op = declare_op(
    "upsample_conv_statistics(Tensor x, Tensor weight, Tensor? bias, SymInt height, SymInt width, bool align_corners)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        native(
            "cuda",
            dtypes=(torch.float32, torch.bfloat16, torch.float16),
            error_factor=4.0,
            why="mean and spread are of this backend's own map, whose rounding they inherit",
        ),
        python(
            "setr_fast.ops.upsample_conv_statistics:by_upsample_conv",
            device="cpu",
            name="by_upsample_conv",
            accepts=_refuses_other_dtypes,
            error_factor=4.0,
            why="mean and spread are of this backend's own map, whose rounding they inherit",
        ),
    ),
)
