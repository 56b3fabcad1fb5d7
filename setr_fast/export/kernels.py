"""The kernels that a program calls: those of the runtime, or this package's.

``portable`` programs hold no op of this package: they run wherever PyTorch, or another runtime, does. The others call
``setr_fast::<op>``, which picks a backend in Python, or ``setr_fast_native::<op>``, the compiled kernels that C++
programs get from libsetr_fast_ops.so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.ops.upsample_argmax import class_dtype


class Kernels(NamedTuple):
    """Callables of the schemas of ``setr_fast::<name>``."""

    attention: Callable[..., Any]
    patch_embed: Callable[..., Any]
    upsample_conv: Callable[..., Any]
    upsample_conv_classify: Callable[..., Any]
    upsample_argmax: Callable[..., Any]


def attention(qkv: Tensor, scale: float) -> tuple[Tensor, None]:
    """Shapes: [B, N, 3, M, E] -> [B, N, M * E], and nothing for the log-sum-exp, which only a gradient reads."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2), None


def patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: list[float],
    std: list[float],
    h: int,
    w: int,
) -> Tensor:
    """Shapes: uint8 [B, H, W, 3] -> [B, h * w, D]."""
    patch = weight.shape[-1]
    planes = image.to(torch.float32).unbind(3)
    pixels = torch.stack([(plane - mean[index]) / std[index] for index, plane in enumerate(planes)], 1)
    pixels = F.pad(pixels, (0, w * patch - image.shape[2], 0, h * patch - image.shape[1]))  # a negative amount cuts
    return F.conv2d(pixels, weight, bias, stride=patch).flatten(2).transpose(1, 2) + positions


def upsample_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool, relu: bool
) -> Tensor:
    """As ``ops.upsample_conv``; a 1x1 kernel goes first."""
    if weight.shape[-1] == 1:
        y = _resized(F.conv2d(packed(x), weight, bias), height, width, align_corners)
    else:
        y = F.conv2d(_resized(x, height, width, align_corners), weight, bias, padding=1)
    return F.relu(y) if relu else y


def upsample_conv_classify(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    class_bias: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
) -> Tensor:
    """As ``ops.upsample_conv_classify``."""
    wide = upsample_conv(x, weight, bias, height, width, align_corners, True)
    return F.conv2d(wide, classes, class_bias)


def upsample_argmax(logits: Tensor, size: list[int], crop: list[int], align_corners: bool) -> Tensor:
    """As ``ops.upsample_argmax``; the upsampled logits exist."""
    large = _resized(logits, size[0], size[1], align_corners)
    return large[..., : crop[0], : crop[1]].argmax(1).to(class_dtype(logits.shape[1]))


def packed(x: Tensor) -> Tensor:
    """Return a contiguous copy. A view asks how its rows lie in memory, and the answer is a guard on the size."""
    return x.clone(memory_format=torch.contiguous_format)


def kernels(name: str, *, compiled: bool) -> Kernels:
    """Return ``portable`` or ``own`` kernels; ``compiled``: those of our own that C++ programs have, no Python."""
    portable = Kernels(attention, patch_embed, upsample_conv, upsample_conv_classify, upsample_argmax)
    if name == "portable":
        return portable
    if not compiled:
        return Kernels(*(getattr(torch.ops.setr_fast, op).default for op in Kernels._fields))
    native = torch.ops.setr_fast_native
    return portable._replace(
        upsample_conv=_enlarging_only(native.upsample_conv.default),
        upsample_conv_classify=native.upsample_conv_classify.default,
        upsample_argmax=native.upsample_argmax.default,
    )


def _enlarging_only(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Where nothing is saved (a 1x1 kernel goes before the enlarging), the runtime's convolution serves."""

    def call(x: Tensor, weight: Tensor, *rest: Any) -> Any:
        return upsample_conv(x, weight, *rest) if weight.shape[-1] == 1 else compiled(x, weight, *rest)

    return call


def _resized(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)
