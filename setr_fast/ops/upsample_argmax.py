"""The class of each pixel of logits that are upsampled, without the upsampled logits.

A pixel of 512 x 512 with 150 classes is decided in registers from four small vectors; what exists is the small logits
and one byte per pixel. Positions and weights are those of ``torch.nn.functional.interpolate(mode="bilinear")``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

MAX_CLASSES = 32768
EXACT_PX = 512
"""Side of a picture from which on the cases have logits whose bilinear sums are exact in float32."""
REFERENCE_BYTES = 256 << 20
"""Upsampled logits that the reference holds at a time."""


def upsample_argmax(
    logits: Tensor, size: Sequence[int], align_corners: bool = False, crop: Sequence[int] | None = None
) -> Tensor:
    """Return the class with the largest logit of each pixel, bilinearly upsampled to ``size``.

    ``crop`` keeps that many rows and columns from the top left. Of equal logits the first class wins, and a NaN is the
    largest, as in torch; taps of weight 0 are not read, so that an infinite logit beside a pixel is not a NaN in it.
    16-bit logits are interpolated in float32.

    Shapes: logits [B, K, h, w], any strides -> [B, H, W], uint8, above 256 classes int16.
    Raises: ShapeError for another shape or dtype, or a crop larger than the size.
    """
    crop = tuple(size) if crop is None else tuple(crop)
    _check(logits, size, crop)
    return _op(logits, list(size), list(crop), align_corners)


def class_dtype(num_classes: int) -> torch.dtype:
    """Return the smallest dtype that holds the classes, as the ops give them."""
    return torch.uint8 if num_classes <= 256 else torch.int16


def _check(logits: Tensor, size: Sequence[int], crop: Sequence[int]) -> None:
    if logits.dim() != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise ShapeError(
            f"upsample_argmax: logits must be floats [B, K, h, w], got {str(logits.dtype)[6:]} {list(logits.shape)}"
        )
    if logits.shape[1] > MAX_CLASSES:
        raise ShapeError(f"upsample_argmax: classes must be at most {MAX_CLASSES}, got {logits.shape[1]}")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"upsample_argmax: size must be a positive height and width, got {tuple(size)}")
    if len(crop) != 2 or min(crop) < 0 or crop[0] > size[0] or crop[1] > size[1]:
        raise ShapeError(f"upsample_argmax: crop must lie within the size {tuple(size)}, got {tuple(crop)}")


def _reference(logits: Tensor, size: Sequence[int], crop: Sequence[int], align_corners: bool) -> Tensor:
    _check(logits, size, crop)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    at_once = max(REFERENCE_BYTES // max(wide.shape[1] * size[0] * size[1] * wide.element_size(), 1), 1)
    parts = [
        interpolate(part, tuple(size), mode="bilinear", align_corners=align_corners)[..., : crop[0], : crop[1]].argmax(
            1
        )
        for part in wide.split(at_once)
        if len(part)
    ]
    classes = torch.cat(parts) if parts else wide.new_empty((0, *crop))
    return classes.to(class_dtype(logits.shape[1]))


def _fake(logits: Tensor, size: Sequence[int], crop: Sequence[int], align_corners: bool) -> Tensor:
    return logits.new_empty((logits.shape[0], *crop), dtype=class_dtype(logits.shape[1]))


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], size: tuple[int, int], crop: tuple[int, int], align: bool, draw: Draw) -> Any:
        logits = draw(*shape)
        if max(size) >= EXACT_PX:  # so many pixels hold one whose two best logits differ by rounding alone
            logits = (logits * 64).round() / 64  # whole factors enlarge these without any rounding
        return logits, list(size), list(crop), align

    for name, shape, size, crop, align, bench in (
        ("ade20k_x4", (1, 150, 128, 128), (512, 512), (512, 512), False, True),
        ("ade20k_x16", (1, 150, 32, 32), (512, 512), (512, 512), False, True),
        ("ade20k_x2", (1, 150, 256, 256), (512, 512), (512, 512), False, True),
        ("cityscapes_x4", (1, 19, 192, 192), (768, 768), (768, 768), False, True),
        ("cityscapes_x2", (1, 19, 384, 384), (768, 768), (768, 768), False, FULL),
        ("cityscapes_x16", (1, 19, 48, 48), (768, 768), (768, 768), False, FULL),
        ("odd", (2, 5, 7, 9), (29, 31), (29, 31), False, False),
        ("corners_cropped", (1, 19, 6, 5), (48, 40), (41, 33), True, False),
        ("one_source", (1, 3, 1, 1), (4, 5), (4, 5), False, False),
        ("one_class", (1, 1, 3, 3), (6, 6), (6, 6), False, False),
        ("smaller", (1, 4, 33, 40), (9, 11), (9, 11), False, False),
        ("same_size", (1, 151, 8, 21), (8, 21), (8, 21), True, False),
        ("many_classes", (1, 300, 4, 4), (16, 18), (16, 18), False, False),
        ("empty", (0, 3, 4, 4), (8, 8), (8, 8), False, False),
    ):
        yield Case(name, partial(make, shape, size, crop, align), bench=bench)


def _cost(logits: Tensor, size: Sequence[int], crop: Sequence[int], align_corners: bool) -> Cost:
    pixels = logits.shape[0] * crop[0] * crop[1]
    return Cost(bytes=logits.nbytes + pixels + 1, flops=6 * pixels * logits.shape[1])


def _fits_a_grid(logits: Tensor, size: Sequence[int], crop: Sequence[int], align_corners: bool) -> list[str]:
    if max(logits.shape[0], crop[0]) <= 65535:
        return []
    return [f"takes batches and pictures of up to 65535 rows, got {logits.shape[0]} and {crop[0]}"]


_op = declare_op(
    "upsample_argmax(Tensor logits, SymInt[] size, SymInt[] crop, bool align_corners) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(
        native("cuda", dtypes=(torch.float32, torch.bfloat16), accepts=_fits_a_grid),
        native("cpu", dtypes=(torch.float32, torch.bfloat16)),
    ),
)
