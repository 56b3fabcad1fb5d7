"""Upsampling, convolution, ReLU and a 1x1 classifier in one op for inference: nothing but the logits is written.

The widest map of a decoder is the one in front of its classifier. A kernel that classifies a few rows as soon as they
are there never stores it. Training needs that map for the gradient and takes ``upsample_conv`` twice instead.
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
from setr_fast.ops.upsample_conv import COMPILED, check, in_autocast


def upsample_conv_classify(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    class_bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    align_corners: bool = False,
) -> Tensor:
    """Return conv2d(relu(conv2d(interpolate(x, size), weight, bias, padding=k // 2)), classes, class_bias).

    No gradient: the map in front of the classifier is gone.
    Shapes: as ``upsample_conv``, classes [K, O, 1, 1], class_bias [K] -> [B, K, H, W] in channels-last memory.
    Raises: ShapeError for other shapes or dtypes.
    """
    x, weight, bias, classes, class_bias = in_autocast(x, weight, bias, classes, class_bias)
    check("upsample_conv_classify", x, weight, bias, size)
    if tuple(classes.shape[1:]) != (weight.shape[0], 1, 1) or classes.dtype != x.dtype:
        want = f"[K, {weight.shape[0]}, 1, 1] of {str(x.dtype)[6:]}"
        got = f"{list(classes.shape)} of {str(classes.dtype)[6:]}"
        raise ShapeError(f"upsample_conv_classify: classes must be {want}, got {got}")
    if class_bias is not None and (tuple(class_bias.shape) != classes.shape[:1] or class_bias.dtype != x.dtype):
        got = f"{list(class_bias.shape)} of {str(class_bias.dtype)[6:]}"
        raise ShapeError(f"upsample_conv_classify: class_bias must be [{len(classes)}], got {got}")
    op = torch.ops.setr_fast.upsample_conv_classify.default
    out: Tensor = op(x, weight, bias, classes, class_bias, size[0], size[1], align_corners)
    return out


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    class_bias: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
) -> Tensor:
    wide = library.reference(x, weight, bias, height, width, align_corners, True)
    return library.reference(wide, classes, class_bias, height, width, align_corners, False)


def in_two(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    class_bias: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
) -> Tensor:
    """Call ``upsample_conv`` and classify its result."""
    wide = torch.ops.setr_fast.upsample_conv.default(x, weight, bias, height, width, align_corners, True)
    return library.forward(wide, classes, class_bias, height, width, align_corners, False)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    class_bias: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
) -> Tensor:
    return library.channels_last(x, (x.shape[0], classes.shape[0], height, width))


# name, (B, C, h, w), O, K, (H, W), align_corners, timed
_CASES: tuple[tuple[str, tuple[int, int, int, int], int, int, tuple[int, int], bool, Bench], ...] = (
    ("twice", (2, 3, 4, 5), 4, 3, (8, 10), False, False),
    ("any_factor_corners", (1, 18, 5, 3), 35, 2, (13, 8), True, False),
    ("many_strips", (2, 4, 33, 40), 17, 5, (130, 200), False, False),
    ("same_size", (1, 6, 5, 4), 7, 11, (5, 4), False, False),
    ("pup_64_to_128", (1, 256, 64, 64), 256, 150, (128, 128), False, True),
    ("pup_128_to_256", (1, 256, 128, 128), 256, 150, (256, 256), False, FULL),
    ("pup_192_to_384", (1, 256, 192, 192), 256, 19, (384, 384), False, FULL),
)


def _cases() -> Iterator[Case]:
    def make(index: int, draw: Draw) -> tuple[Any, ...]:
        _, (B, C, h, w), outputs, K, size, align_corners, _ = _CASES[index]
        x, weight = draw(B, h, w, C).permute(0, 3, 1, 2), draw(outputs, C, 3, 3)
        return x, weight, draw(outputs), draw(K, outputs, 1, 1), draw(K) if index % 2 else None, *size, align_corners

    for index, case in enumerate(_CASES):
        yield Case(case[0], partial(make, index), bench=case[-1])


def _cost(x: Tensor, weight: Tensor, _b: Tensor | None, classes: Tensor, _c: Tensor | None, *size: int) -> Cost:
    large = len(x) * size[0] * size[1]
    least = min(len(x) * x.shape[2] * x.shape[3], large)
    moved = x.nbytes + weight.nbytes + large * len(classes) * x.element_size()
    return Cost(bytes=moved, flops=2 * least * weight.numel() + 2 * large * classes.numel())


_op = declare_op(
    "upsample_conv_classify(Tensor x, Tensor weight, Tensor? bias, Tensor classes, Tensor? class_bias,"
    " SymInt height, SymInt width, bool align_corners) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(
        native("cpu", dtypes=COMPILED),
        python("setr_fast.ops.upsample_conv_classify:in_two", name="library"),
    ),
    rounds=True,
)
