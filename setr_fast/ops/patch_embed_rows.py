"""The patches of a picture of bytes as the rows of a matrix: what a patch embedding multiplies.

Every row is one patch, in reading order. With ``planar`` its values run (channel, y, x), as the weight of a convolution
does, otherwise (y, x, channel), as the picture itself does, so that a line of a patch is one run of bytes. Nothing is
accumulated: every backend gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

CHANNELS = 3
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


def patch_embed_rows(
    image: Tensor,
    patch: int,
    grid: tuple[int, int],
    shift: Sequence[float],
    scale: Sequence[float],
    fill: Sequence[float],
    planar: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return (byte - shift) / scale of every pixel of every patch, worked out in float32, and ``fill`` off the picture.

    Shapes: image uint8 [B, H, W, 3]; shift, scale and fill a number per channel; -> [B * h * w, patch * patch * 3].
    Raises: ShapeError for a picture of another kind, or a patch or grid below 1.
    """
    _check(image, patch, *grid, shift, scale, fill)
    return _op(image, patch, *grid, list(shift), list(scale), list(fill), planar, dtype)


def _check(image: Tensor, patch: int, h: int, w: int, *per_channel: Sequence[float]) -> None:
    if image.dtype is not torch.uint8 or image.ndim != 4 or image.shape[-1] != CHANNELS:
        got = f"{str(image.dtype)[6:]} {list(image.shape)}"
        raise ShapeError(f"patch_embed_rows: image must be uint8 [B, H, W, {CHANNELS}], got {got}")
    if min(patch, h, w) < 1:
        raise ShapeError(f"patch_embed_rows: patch and grid must be at least 1, got {patch} and {(h, w)}")
    if any(len(values) != CHANNELS for values in per_channel):
        got = str([len(values) for values in per_channel])
        raise ShapeError(f"patch_embed_rows: shift, scale and fill must hold {CHANNELS} numbers each, got {got}")


def _reference(
    image: Tensor,
    patch: int,
    h: int,
    w: int,
    shift: list[float],
    scale: list[float],
    fill: list[float],
    planar: bool,
    dtype: torch.dtype,
) -> Tensor:
    _check(image, patch, h, w, shift, scale, fill)
    high, wide = h * patch, w * patch
    part = image[:, :high, :wide]
    of_channel = partial(torch.tensor, dtype=torch.float32, device=image.device)
    values = of_channel(fill).expand(len(image), high, wide, CHANNELS).clone()
    values[:, : part.shape[1], : part.shape[2]] = (part.to(torch.float32) - of_channel(shift)) / of_channel(scale)
    values = values.view(len(image), h, patch, w, patch, CHANNELS)
    values = values.permute(0, 1, 3, 5, 2, 4) if planar else values.permute(0, 1, 3, 2, 4, 5)
    return values.reshape(len(image) * h * w, patch * patch * CHANNELS).to(dtype)


def _fake(image: Tensor, patch: int, h: int, w: int, *rest: Any) -> Tensor:
    return image.new_empty((len(image) * h * w, patch * patch * CHANNELS), dtype=rest[-1])


def _refuses(*args: Any) -> list[str]:
    image, dtype = args[0], args[-1]
    served = DTYPES.get(image.device.type, ())
    return [] if dtype in served else [f"gives {', '.join(str(d)[6:] for d in served)}, not {str(dtype)[6:]}"]


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int], patch: int, planar: bool, dtype: torch.dtype, cut: bool, draw: Draw) -> Any:
        B, H, W = shape
        image = draw.integers(0, 256, (B, H, W, CHANNELS), torch.uint8)
        h, w = (H // patch, W // patch) if cut else (-(-H // patch), -(-W // patch))
        if planar:
            return image, patch, h, w, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [0.0] * 3, planar, dtype
        return image, patch, h, w, [128.0] * 3, [1.0] * 3, [-4.325, -11.72, -24.47], planar, dtype

    for name, shape, patch, cut, bench in (
        ("vit_l_512px", (1, 512, 512), 16, False, True),
        ("cityscapes_1024x2048", (1, 1024, 2048), 16, False, True),
        ("vit_l_768px", (1, 768, 768), 16, False, FULL),
        ("padded", (2, 19, 45), 8, False, False),
        ("cut", (3, 19, 45), 8, True, False),
        ("one_patch", (1, 5, 3), 7, False, False),
        ("small_patch", (2, 9, 8), 2, False, False),
    ):
        for planar in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                order = "planar" if planar else "interleaved"
                yield Case(
                    f"{name}_{order}_{str(dtype)[6:]}",
                    partial(make, shape, patch, planar, dtype, cut),
                    bench=bench if planar is (dtype is torch.float32) else False,
                )


def _cost(image: Tensor, patch: int, h: int, w: int, *rest: Any) -> Cost:
    values = len(image) * h * w * patch * patch * CHANNELS
    return Cost(bytes=image.nbytes + values * rest[-1].itemsize, flops=2 * values)


_op = declare_op(
    "patch_embed_rows(Tensor image, int patch, SymInt h, SymInt w, float[] shift, float[] scale, float[] fill, "
    "bool planar, ScalarType dtype) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(native("cuda", accepts=_refuses), native("cpu", accepts=_refuses)),
)
