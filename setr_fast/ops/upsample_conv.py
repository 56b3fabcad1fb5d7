"""Bilinear upsampling and the convolution behind it, in one op that never builds the upsampled tensor.

A convolution's taps act pixel by pixel and bilinear interpolation acts channel by channel, so they commute: a kernel
may multiply the small map by all taps first and interpolate the nine products, at a fourth of the products for a factor
of two. Exact for any size, with both align_corners and at every border: zero padding is a tap without weight there.
Numbers and rejected forms: docs/design/0005-upsample-conv.md.
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

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPILED = (torch.float32, torch.bfloat16)


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    align_corners: bool = False,
    relu: bool = False,
) -> Tensor:
    """Return relu(conv2d(interpolate(x, size), weight, bias, padding=k // 2)), bilinear, ReLU only where asked for.

    Shapes: x [B, C, h, w], weight [O, C, k, k] with k 1 or 3, bias [O] -> [B, O, H, W] in channels-last memory, dtype
    of x; under autocast the op runs in autocast's dtype and returns that. ``size`` may equal x's: a plain convolution.
    The gradient is a gather without atomics: two runs give the same bits where the library's products do.
    Raises: ShapeError for other shapes or dtypes.
    """
    x, weight, bias = in_autocast(x, weight, bias)
    check("upsample_conv", x, weight, bias, size)
    out: Tensor = torch.ops.setr_fast.upsample_conv.default(x, weight, bias, size[0], size[1], align_corners, relu)
    return out


def in_autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors in autocast's dtype where autocast is on; float64 stays what it is."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype is torch.float64:
        return x, *others
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), *(None if other is None else other.to(dtype) for other in others)


def check(where: str, x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> None:
    """Raise ShapeError unless these can be upsampled and convolved."""
    if x.dtype not in DTYPES:
        raise ShapeError(f"{where}: x must be {', '.join(str(d)[6:] for d in DTYPES)}, got {str(x.dtype)[6:]}")
    if x.ndim != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ShapeError(f"{where}: x must be [B, C, h, w] with at least one pixel, got {list(x.shape)}")
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or tuple(weight.shape[2:]) not in ((1, 1), (3, 3)):
        want = f"[O, {x.shape[1]}, 1, 1] or [O, {x.shape[1]}, 3, 3]"
        raise ShapeError(f"{where}: weight must be {want}, got {list(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(f"{where}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    for what, other in (("weight", weight), ("bias", bias)):
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            want, got = f"{str(x.dtype)[6:]} on {x.device}", f"{str(other.dtype)[6:]} on {other.device}"
            raise ShapeError(f"{where}: {what} must be {want} as x is, got {got}")
    if size[0] < 1 or size[1] < 1:
        raise ShapeError(f"{where}: size must be at least (1, 1), got {tuple(size)}")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool, relu: bool
) -> Tensor:
    return library.channels_last(x, (x.shape[0], weight.shape[0], height, width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, _, ctx.align_corners, relu = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    x, weight, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward.default(grad, output, 0)
    dx, dweight, dbias = torch.ops.setr_fast.upsample_conv_backward.default(grad, x, weight, ctx.align_corners)
    return dx, dweight, dbias if ctx.has_bias else None, None, None, None, None


def _backward_fake(grad: Tensor, x: Tensor, weight: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = weight.new_empty(weight.shape)
    return library.channels_last(x, tuple(x.shape)), contiguous, weight.new_empty((weight.shape[0],))


def _library_refuses(*args: Any) -> list[str]:
    slow = args[0].dtype is torch.float16 and args[0].device.type == "cpu"
    return ["float16 on a CPU has no convolution worth choosing, the reference's serves"] if slow else []


def _saves_nothing(kernel: int, small: tuple[int, int], large: tuple[int, int]) -> bool:
    """Return whether PyTorch's own ops do as little: no enlarging, or a 1x1 kernel, which goes before it."""
    return kernel == 1 or large[0] * large[1] <= small[0] * small[1]


def _prefer(x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, *_: Any) -> tuple[str, ...]:
    plain = _saves_nothing(weight.shape[-1], (x.shape[2], x.shape[3]), (height, width))
    return ("library",) if plain else ()


def _backward_prefer(grad: Tensor, x: Tensor, weight: Tensor, _align_corners: bool) -> tuple[str, ...]:
    plain = _saves_nothing(weight.shape[-1], (x.shape[2], x.shape[3]), (grad.shape[2], grad.shape[3]))
    return ("library",) if plain else ()


# name, (B, C, h, w), (O, k), (H, W), align_corners, relu, timed
_CASES: tuple[tuple[str, tuple[int, int, int, int], tuple[int, int], tuple[int, int], bool, bool, Bench], ...] = (
    ("twice", (2, 3, 4, 5), (4, 3), (8, 10), False, True, False),
    ("twice_corners", (1, 5, 3, 7), (3, 3), (6, 14), True, False, False),
    ("any_factor", (1, 17, 5, 3), (19, 3), (13, 8), False, False, False),
    ("any_factor_corners", (2, 8, 3, 6), (33, 3), (11, 9), True, True, False),
    ("one_row", (1, 4, 1, 6), (5, 3), (3, 12), False, True, False),
    ("one_column", (1, 4, 6, 1), (5, 3), (6, 7), True, False, False),
    ("one_pixel", (1, 9, 1, 1), (2, 3), (4, 4), False, False, False),
    ("to_one_row_corners", (1, 4, 2, 5), (3, 3), (1, 40), True, False, False),
    ("taller_but_narrower", (1, 6, 4, 8), (7, 3), (19, 5), False, True, False),
    ("same_size", (2, 6, 5, 4), (7, 3), (5, 4), False, True, False),
    ("smaller", (1, 6, 9, 8), (7, 3), (4, 5), False, False, False),
    ("one_by_one", (2, 6, 4, 3), (5, 1), (8, 9), False, False, False),
    ("one_by_one_relu", (1, 6, 4, 3), (5, 1), (8, 9), True, True, False),
    ("pup_64_to_128", (1, 256, 64, 64), (256, 3), (128, 128), False, True, True),
    ("mla_classifier", (1, 512, 32, 32), (150, 3), (128, 128), True, False, True),
    ("pup_first_512px", (1, 1024, 32, 32), (256, 3), (32, 32), False, True, FULL),
    ("pup_first_768px", (1, 1024, 48, 48), (256, 3), (48, 48), False, True, FULL),
    ("pup_48_to_96", (1, 256, 48, 48), (256, 3), (96, 96), False, True, FULL),
    ("pup_96_to_192", (1, 256, 96, 96), (256, 3), (192, 192), False, True, FULL),
    ("mla_classifier_768px", (1, 512, 48, 48), (19, 3), (192, 192), True, False, FULL),
)


def _cases() -> Iterator[Case]:
    def make(index: int, draw: Draw) -> tuple[Any, ...]:
        _, (B, C, h, w), (outputs, k), size, align_corners, relu, _ = _CASES[index]
        weight, bias = draw(outputs, C, k, k), draw(outputs)
        return _laid(draw(B, h, w, C)), weight, None if index % 3 == 2 else bias, *size, align_corners, relu

    for index, case in enumerate(_CASES):
        yield Case(case[0], partial(make, index), bench=case[-1])


def _backward_cases() -> Iterator[Case]:
    def make(index: int, draw: Draw) -> tuple[Any, ...]:
        _, (B, C, h, w), (outputs, k), (H, W), align_corners, _, _ = _CASES[index]
        return _laid(draw(B, H, W, outputs)), _laid(draw(B, h, w, C)), draw(outputs, C, k, k), align_corners

    for index, case in enumerate(_CASES):
        yield Case(case[0], partial(make, index), bench=case[-1])


def _laid(values_BHWC: Tensor) -> Tensor:
    """Return [B, C, H, W] in channels-last memory."""
    return values_BHWC.permute(0, 3, 1, 2)


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, *_: Any) -> Cost:
    least = len(x) * min(x.shape[2] * x.shape[3], height * width)
    out = len(x) * weight.shape[0] * height * width * x.element_size()
    return Cost(bytes=x.nbytes + weight.nbytes + out, flops=2 * least * weight.numel())


def _backward_cost(grad: Tensor, x: Tensor, weight: Tensor, _align_corners: bool) -> Cost:
    least = len(x) * min(x.shape[2] * x.shape[3], grad.shape[2] * grad.shape[3])
    return Cost(bytes=grad.nbytes + 2 * x.nbytes + 2 * weight.nbytes, flops=4 * least * weight.numel())


_op = declare_op(
    "upsample_conv(Tensor x, Tensor weight, Tensor? bias, SymInt height, SymInt width, bool align_corners, bool relu)"
    " -> Tensor",
    reference=library.reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        native("cuda", dtypes=(*COMPILED, torch.float16)),
        native("cpu", dtypes=COMPILED),
        python("setr_fast.ops._upsample_conv_library:forward", name="library", accepts=_library_refuses),
    ),
    prefer=_prefer,
)
_backward_op = declare_op(
    "upsample_conv_backward(Tensor grad, Tensor x, Tensor weight, bool align_corners) -> (Tensor, Tensor, Tensor)",
    reference=library.reference_backward,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=(
        native("cuda", dtypes=(*COMPILED, torch.float16)),
        native("cpu", dtypes=COMPILED),
        python("setr_fast.ops._upsample_conv_library:backward", name="library", accepts=_library_refuses),
    ),
    rounds=True,
    prefer=_backward_prefer,
)
