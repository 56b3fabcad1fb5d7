"""Patches of pictures of bytes times a matrix plus an addend, in one kernel: a patch embedding without rows in memory.

The values of a patch run (y, x, channel), as in the picture. A byte less a whole number is exact in 16 bits, so only
the factor is rounded, to float16: three more bits than bfloat16 has. ``forward`` is patch_embed by this op.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import _native
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native, python
from setr_fast.ops.patch_embed_products import WEIGHT_SCALE, _centres, of_channel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEP = 16  # bytes of a copy: patches and lines of the picture are multiples of it


def patch_embed_product(
    image: Tensor,
    factor: Tensor,
    addend: Tensor,
    patch: int,
    grid: tuple[int, int],
    shift: Sequence[float],
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return scale * (patches of (byte - shift)) factor^T + addend, rounded once from float32.

    Shapes: image uint8 [B, H, W, 3], H >= h * patch, W >= w * patch; factor float16 [D, patch * patch * 3]; addend
    float32 [h * w, D]; shift a whole number of 0 to 255 per channel -> [B, h * w, D] of ``dtype``.
    Raises: ShapeError for anything else.
    """
    _check(image, factor, addend, patch, *grid, shift, scale, dtype)
    return _op(image, factor, addend, patch, *grid, list(shift), scale, dtype)


def _check(
    image: Tensor,
    factor: Tensor,
    addend: Tensor,
    patch: int,
    h: int,
    w: int,
    shift: Sequence[float],
    scale: float,
    dtype: torch.dtype,
) -> None:
    where = "patch_embed_product:"
    if image.dtype is not torch.uint8 or image.ndim != 4 or image.shape[-1] != 3:
        raise ShapeError(f"{where} image must be uint8 [B, H, W, 3], got {str(image.dtype)[6:]} {list(image.shape)}")
    if min(patch, h, w) < 1 or h * patch > image.shape[1] or w * patch > image.shape[2]:
        raise ShapeError(f"{where} {(h, w)} patches of {patch} must lie inside the picture, got {list(image.shape)}")
    if factor.ndim != 2 or factor.shape[0] < 1 or factor.shape[1] != 3 * patch**2 or not factor.is_floating_point():
        raise ShapeError(f"{where} factor must be floats [D, {3 * patch**2}], got {list(factor.shape)}")
    if list(addend.shape) != [h * w, len(factor)] or not addend.is_floating_point():
        raise ShapeError(f"{where} addend must be floats {[h * w, len(factor)]}, got {list(addend.shape)}")
    if len(shift) != 3 or any(s != int(s) or not 0 <= s <= 255 for s in shift):
        raise ShapeError(f"{where} shift must be three whole numbers of 0 to 255, got {list(shift)}")
    if not dtype.is_floating_point:
        raise ShapeError(f"{where} dtype must be floating, got {str(dtype)[6:]}")


def _reference(
    image: Tensor,
    factor: Tensor,
    addend: Tensor,
    patch: int,
    h: int,
    w: int,
    shift: list[float],
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    _check(image, factor, addend, patch, h, w, shift, scale, dtype)
    exact = torch.promote_types(addend.dtype, torch.float32)
    values = image[:, : h * patch, : w * patch].to(exact)
    values = torch.stack([values[..., c] - shift[c] for c in range(3)], dim=-1)
    rows = values.view(len(image), h, patch, w, patch, 3).transpose(2, 3).reshape(len(image), h * w, -1)
    kept = torch.float64 if exact is torch.float64 else dtype
    return (rows @ factor.to(exact).t() * scale + addend.to(exact)).to(kept)


def _fake(image: Tensor, factor: Tensor, addend: Tensor, *rest: Any) -> Tensor:
    return addend.new_empty((len(image), *addend.shape), dtype=rest[-1])


def _fits_the_kernel(image: Tensor, factor: Tensor, addend: Tensor, patch: int, *rest: Any) -> list[str]:
    reasons = []
    if patch % STEP:
        reasons.append(f"takes patches of a multiple of {STEP}, got {patch}")
    if image.shape[2] * 3 % STEP:
        reasons.append(f"takes pictures whose width is a multiple of {STEP}, got {image.shape[2]}")
    if len(factor) % 8:
        reasons.append(f"takes widths of a multiple of 8, got {len(factor)}")
    if factor.dtype is not torch.float16 or addend.dtype is not torch.float32 or rest[-1] not in DTYPES:
        reasons.append("takes a factor of float16, an addend of float32 and gives float32, bfloat16 or float16")
    return reasons


def forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: list[float],
    std: list[float],
    h: int,
    w: int,
) -> Tensor:
    """Return the tokens of ``patch_embed``: normalisation moved into the factor, positions and bias into the addend."""
    centres, patch = _centres(mean), weight.shape[-1]
    folded = weight.detach().float() / of_channel(std, weight)
    moved = of_channel([c - m for c, m in zip(centres, mean, strict=True)], weight)
    rest = (folded * moved).sum((1, 2, 3))
    factor = (folded * WEIGHT_SCALE).permute(0, 2, 3, 1).flatten(1).to(torch.float16).contiguous()
    addend = positions.float() + (rest if bias is None else rest + bias.float())
    dtype = torch.promote_types(weight.dtype, positions.dtype)
    return _op.run("native", image, factor, addend, patch, h, w, centres, 1 / WEIGHT_SCALE, dtype)


def by_rows(
    image: Tensor,
    factor: Tensor,
    addend: Tensor,
    patch: int,
    h: int,
    w: int,
    shift: list[float],
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Serve the op on a CPU: the compiled gather makes rows of float32, the library multiplies."""
    wide, add = factor.float().t(), addend.float()
    tokens = addend.new_empty((len(image), h * w, len(factor)), dtype=torch.float32)
    for picture, out in zip(image, tokens, strict=True):
        rows = torch.ops.setr_fast_native.patch_embed_rows.default(
            picture[None], patch, h, w, shift, [1.0] * 3, [0.0] * 3, False, torch.float32
        )
        torch.addmm(add, rows, wide, alpha=scale, out=out)
    return tokens.to(dtype)


def _fits_the_rows(image: Tensor, factor: Tensor, addend: Tensor, *rest: Any) -> list[str]:
    reasons = [missing] if (missing := _native.missing("cpu")) else []
    if addend.dtype is torch.float64 or factor.dtype is torch.float64:
        reasons.append("takes a factor and an addend of at most 32 bits, got float64")
    return reasons


def forward_refuses(image: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor, *rest: Any) -> list[str]:
    """Return why ``forward`` does not take the arguments of ``patch_embed``, or nothing."""
    patch, (h, w) = weight.shape[-1], rest[2:4]
    reasons = []
    if image.dtype is not torch.uint8:
        return [f"takes pictures of bytes, got {str(image.dtype)[6:]}"]
    if weight.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(f"takes a weight of bfloat16 or float16, got {str(weight.dtype)[6:]}")
    if h * patch > image.shape[1] or w * patch > image.shape[2]:
        reasons.append(f"takes patches that lie inside the picture, got {(h, w)} of {patch} in {list(image.shape)}")
    if patch % STEP or image.shape[2] * 3 % STEP or len(weight) % 8:
        reasons.append(f"takes patches and pictures of a multiple of {STEP} and widths of a multiple of 8")
    return reasons


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int], patch: int, width: int, dtype: torch.dtype, draw: Draw) -> tuple[Any, ...]:
        B, H, W = shape
        h, w = H // patch, W // patch
        image = draw.integers(0, 256, (B, H, W, 3), torch.uint8)
        factor = (draw(width, 3 * patch**2) * (3 * patch * patch) ** -0.5).to(torch.float16)
        return image, factor, draw(h * w, width).float(), patch, h, w, [124.0, 116.0, 104.0], 1 / 64, dtype

    for name, shape, patch, width, dtype, bench in (
        ("vit_l_512px_bfloat16", (1, 512, 512), 16, 1024, torch.bfloat16, True),
        ("vit_l_768px_bfloat16", (1, 768, 768), 16, 1024, torch.bfloat16, FULL),
        ("vit_t_64px_float32", (2, 64, 64), 16, 192, torch.float32, False),
        ("odd_batch_float16", (3, 50, 80), 16, 24, torch.float16, False),
        ("patch_32_bfloat16", (2, 64, 96), 32, 136, torch.bfloat16, False),
        ("one_patch_float32", (1, 16, 16), 16, 8, torch.float32, False),
    ):
        yield Case(name, partial(make, shape, patch, width, dtype), bench=bench)


def _cost(image: Tensor, factor: Tensor, addend: Tensor, *rest: Any) -> Cost:
    tokens = len(image) * addend.numel()
    flops = 2 * tokens * factor.shape[1]
    return Cost(bytes=image.nbytes + factor.nbytes + addend.nbytes + tokens * rest[-1].itemsize, flops=flops)


_op = declare_op(
    "patch_embed_product(Tensor image, Tensor factor, Tensor addend, int patch, SymInt h, SymInt w, float[] shift, "
    "float scale, ScalarType dtype) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(
        native("cuda", accepts=_fits_the_kernel),
        python("setr_fast.ops.patch_embed_product:by_rows", device="cpu", name="by_rows", accepts=_fits_the_rows),
    ),
    rounds=True,
)
