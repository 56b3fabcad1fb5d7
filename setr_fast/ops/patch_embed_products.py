"""Patch embedding of bytes as matrix products.

Where the CPU has AVX-512 VNNI, one compiled kernel multiplies the bytes as they lie by weights that are whole numbers
of 24 bits, or of 16 bits for a weight of bfloat16. Elsewhere a compiled gather makes rows of patches, and the library
multiplies; two ways to put a byte into that matrix, docs/design/0006-patch-embed.md:

- normalised: (byte - mean) / std in float32, in the order of the weight, which is then used as it lies;
- centred: byte - round(mean), which 16-bit numbers hold exactly. The rest of the normalisation moves into the weight
  and the addend: W' = W / std, b' = b + sum W' (round(mean) - mean). Only W' is rounded.

Rows are made a strip at a time, on a CPU small enough to be multiplied out of its cache.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from setr_fast.errors import BackendError
from setr_fast.ops import _native
from setr_fast.ops._op import UNTRIED, Backend
from setr_fast.ops.attention import _has_amx

_PRODUCT = "setr_fast.ops.patch_embed_product"
STRIP_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
WEIGHT_SCALE = 64.0
"""W' is held times this: about W then, so that float16 keeps its precision; a power of two, undone exactly."""
MOST_PATCH = 128
"""Pixels on the side of a patch that whole numbers serve: sums of 3 * 128^2 products of 8 bits stay below 2^31."""
SPLIT = frozenset((torch.float32, torch.bfloat16))
"""Dtypes that whole numbers serve."""
FEW_PATCHES = 128
"""Up to here the library's product in float32 takes less time than making whole numbers of the weight."""


class Strip(NamedTuple):
    """Lines of patches ``first`` to ``last`` of the pictures ``begin`` to ``end``."""

    begin: int
    end: int
    first: int
    last: int


def forward_normalised(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: list[float],
    std: list[float],
    h: int,
    w: int,
) -> Tensor:
    """Multiply in float32, whatever the dtype of the weight; results are rounded once."""
    tokens = _empty_tokens(image, weight, positions)
    factor = weight.detach().flatten(1).float().t()
    addend = positions.float() if bias is None else positions.float() + bias.float()
    for strip in _strips(image, weight, h, w, 4):
        rows = _normalised_rows(image, strip, weight.shape[-1], w, mean, std)
        of_strip = slice(strip.first * w, strip.last * w)
        add, out = addend[of_strip], tokens[strip.begin : strip.end, of_strip]
        fits = tokens.dtype is torch.float32
        if fits and strip.end - strip.begin == 1:
            torch.addmm(add, rows, factor, out=out[0])
        else:  # several pictures are several times the positions, which addmm would not repeat
            products = torch.mm(rows, factor, out=out.view(len(rows), -1) if fits else rows.new_empty(0))
            torch.add(products.view(out.shape), add, out=out)
    return tokens


def backward_normalised(
    grad: Tensor, image: Tensor, weight: Tensor, mean: list[float], std: list[float], h: int, w: int
) -> Tensor:
    """Add up the products of gradients and rows in float32."""
    total = torch.zeros_like(weight.flatten(1), dtype=torch.float32)
    for strip in _strips(image, weight, h, w, 4):
        rows = _normalised_rows(image, strip, weight.shape[-1], w, mean, std)
        of_strip = grad[strip.begin : strip.end, strip.first * w : strip.last * w].reshape(len(rows), -1).float()
        torch.addmm(total, of_strip.t(), rows, out=total)
    return total.view(weight.shape).to(weight.dtype)


def forward_centred(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: list[float],
    std: list[float],
    h: int,
    w: int,
) -> Tensor:
    """Multiply in the dtype of the weight, by bytes that are exact in it."""
    tokens = _empty_tokens(image, weight, positions)
    folded = weight.detach().float() / of_channel(std, weight)
    moved = of_channel([c - m for c, m in zip(_centres(mean), mean, strict=True)], weight)
    rest = (folded * moved).sum((1, 2, 3))
    factor = (folded * WEIGHT_SCALE).permute(0, 2, 3, 1).flatten(1).to(weight.dtype).t()
    addend = positions.float() + (rest if bias is None else rest + bias.float())
    addend, fits = addend.to(tokens.dtype), tokens.dtype is weight.dtype
    for strip in _strips(image, weight, h, w, weight.itemsize):
        rows = _centred_rows(image, strip, weight, w, mean)
        pictures, of_strip = strip.end - strip.begin, slice(strip.first * w, strip.last * w)
        add, out = addend[of_strip], tokens[strip.begin : strip.end, of_strip]
        if not fits:
            products = torch.addmm(add.new_zeros(1, dtype=rows.dtype), rows, factor, beta=0, alpha=1 / WEIGHT_SCALE)
            torch.add(products.view(out.shape), add, out=out)
        elif pictures == 1:
            torch.addmm(add, rows, factor, alpha=1 / WEIGHT_SCALE, out=out[0])
        else:
            shape = (pictures, *add.shape)
            many = rows.view(pictures, len(add), -1), factor.expand(pictures, -1, -1)
            torch.baddbmm(add.expand(shape), *many, alpha=1 / WEIGHT_SCALE, out=out)
    return tokens


def backward_centred(
    grad: Tensor, image: Tensor, weight: Tensor, mean: list[float], std: list[float], h: int, w: int
) -> Tensor:
    """Multiply gradients and centred bytes in the dtype of the weight, then undo the centring."""
    width, channels, patch, _ = weight.shape
    total = weight.new_zeros((width, channels * patch * patch), dtype=torch.float32)
    for strip in _strips(image, weight, h, w, weight.itemsize):
        rows = _centred_rows(image, strip, weight, w, mean)
        of_strip = grad[strip.begin : strip.end, strip.first * w : strip.last * w].reshape(-1, width).to(weight.dtype)
        total += of_strip.t() @ rows
    by_pixel = total.view(width, patch, patch, channels).permute(0, 3, 1, 2)
    summed = grad.sum((0, 1), dtype=torch.float32).view(-1, 1, 1, 1)
    moved = of_channel([m - c for c, m in zip(_centres(mean), mean, strict=True)], weight)
    return ((by_pixel - summed * moved) / of_channel(std, weight)).to(weight.dtype).contiguous()


def _empty_tokens(image: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, positions.dtype)
    return positions.new_empty((len(image), *positions.shape), dtype=dtype)


def _strips(image: Tensor, weight: Tensor, h: int, w: int, itemsize: int) -> Iterator[Strip]:
    """Cut the patches into strips of about STRIP_BYTES of rows: some whole pictures, or some lines of one."""
    line = w * weight[0].numel() * itemsize
    budget = STRIP_BYTES[image.device.type]
    pictures = max(budget // (line * h), 1)
    lines = h if line * h <= budget else max(budget // line, 1)
    for begin in range(0, len(image), pictures):
        for first in range(0, h, lines):
            yield Strip(begin, min(begin + pictures, len(image)), first, min(first + lines, h))


def _rows(image: Tensor, strip: Strip, patch: int, w: int, *how: Any) -> Tensor:
    part = image[strip.begin : strip.end, strip.first * patch : strip.last * patch]
    rows: Tensor = torch.ops.setr_fast_native.patch_embed_rows.default(part, patch, strip.last - strip.first, w, *how)
    return rows


def _normalised_rows(image: Tensor, strip: Strip, patch: int, w: int, mean: list[float], std: list[float]) -> Tensor:
    return _rows(image, strip, patch, w, mean, std, [0.0] * 3, True, torch.float32)


def _centred_rows(image: Tensor, strip: Strip, weight: Tensor, w: int, mean: list[float]) -> Tensor:
    centres = _centres(mean)
    mean_colour = [m - c for m, c in zip(mean, centres, strict=True)]
    return _rows(image, strip, weight.shape[-1], w, centres, [1.0] * 3, mean_colour, False, weight.dtype)


def _centres(mean: list[float]) -> list[float]:
    """Return the whole numbers next to the mean: bytes less these are exact in 16 bits, and little is left to move."""
    return [float(min(max(round(value), 0), 255)) for value in mean]


def of_channel(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return [3, 1, 1]; filled on the device, since a CUDA graph cannot capture a copy from the host."""
    return torch.stack([torch.full((1, 1), v, dtype=dtype, device=like.device) for v in values])


def _compiled(device: str, function: Callable[..., Tensor]) -> Callable[[str], Callable[..., Tensor]]:
    def find(op_name: str) -> Callable[..., Tensor]:
        missing = _native.missing(device)
        if missing:
            raise BackendError(missing)
        return function

    return find


def _vnni(op_name: str) -> Callable[..., Tensor]:
    if missing := _native.missing("cpu"):
        raise BackendError(missing)
    module = _native.load()
    if module is None or not module.vnni_works():
        raise BackendError("this processor has no AVX-512 VNNI")
    kernel: Callable[..., Tensor] = torch.ops.setr_fast_native.patch_embed.default
    return kernel


def _refuses_vnni(*args: Any) -> list[str]:
    reasons = _refusals(0, False)(*args)
    if args[1].shape[-1] > MOST_PATCH:
        reasons.append(f"takes patches of at most {MOST_PATCH} pixels, got {args[1].shape[-1]}")
    return reasons


def _refusals(first: int, half_only: bool) -> Callable[..., list[str]]:
    """Return what a backend says to a call whose picture is argument ``first`` and whose weight is the next one."""

    def accepts(*args: Any) -> list[str]:
        image, weight = args[first], args[first + 1]
        reasons = []
        if image.dtype is not torch.uint8:
            reasons.append(f"takes pictures of bytes, got {str(image.dtype)[6:]}")
        if half_only and weight.dtype is not torch.bfloat16:
            reasons.append(f"takes a weight of bfloat16, got {str(weight.dtype)[6:]}")
        return reasons

    return accepts


def backends(direction: str) -> tuple[Backend, ...]:
    """Return the backends of one direction, ``forward`` or ``backward``."""
    forward = direction == "forward"
    normalised, centred, first = (
        (forward_normalised, forward_centred, 0) if forward else (backward_normalised, backward_centred, 1)
    )
    dtypes = frozenset((torch.float32, torch.bfloat16, torch.float16))
    every, half = _refusals(first, False), _refusals(first, True)
    note = "the default where the CPU has a matrix unit for bfloat16 (amx_bf16)"
    fused = (_fused(),) if direction == "forward" else ()
    return (
        Backend("native", _compiled("cuda", centred), "cuda", dtypes, every, note=UNTRIED, untried=True),
        *fused,
        *([Backend("native_vnni", _vnni, "cpu", SPLIT, _refuses_vnni)] if forward else []),
        Backend("native", _compiled("cpu", normalised), "cpu", dtypes, every),
        Backend("native_half", _compiled("cpu", centred), "cpu", dtypes, half, note=note),
    )


def _fused() -> Backend:
    """Return one kernel for all of it, of an op of its own that is built on this file."""

    def find(op_name: str) -> Callable[..., Tensor]:
        forward: Callable[..., Tensor] = importlib.import_module(_PRODUCT).forward
        return _compiled("cuda", forward)(op_name)

    def accepts(*args: Any) -> list[str]:
        reasons: list[str] = importlib.import_module(_PRODUCT).forward_refuses(*args)
        return reasons

    return Backend("native_fused", find, "cuda", accepts=accepts, note=UNTRIED, untried=True)


def prefer(*args: Any) -> tuple[str, ...]:
    """Take 16-bit products where a matrix unit makes them, the library's for a few patches of float32."""
    image, weight = (a for a in args if isinstance(a, Tensor) and a.ndim == 4)
    if weight.is_cuda or weight.dtype is torch.float16:
        return ()
    if weight.dtype is torch.bfloat16:
        return ("native_half",) if _has_amx() else ()
    return ("native",) if len(image) * args[-2] * args[-1] <= FEW_PATCHES else ()
