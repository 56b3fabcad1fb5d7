"""From pictures to patch tokens: normalise, multiply every patch by the weight, add bias and position.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929, equation 1. Two kinds of picture are taken: bytes as they are
decoded, [B, H, W, 3], and numbers that are normalised already, [B, C, H, W]. Of bytes the fast backends never make a
normalised picture; numbers go through PyTorch's convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from setr_fast.errors import ShapeError
from setr_fast.ops import patch_embed_products as products
from setr_fast.ops._op import FULL, Bench, Case, Cost, Draw, declare_op


def patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    grid: tuple[int, int],
) -> Tensor:
    """Return one token per patch, in reading order.

    Where the patches reach beyond the picture (below, to the right) there is the mean colour; what the grid does not
    cover is cut. Under autocast weight and bias are taken in autocast's dtype, positions stay as they are.

    Shapes: image uint8 [B, H, W, 3], or floating [B, C, H, W], normalised; weight [D, C, P, P], bias [D], positions
    [h * w, D], grid (h, w) -> [B, h * w, D] in the wider dtype of weight and positions.
    Units: mean and std in units of a byte; floating pictures ignore them.
    Raises: ShapeError for anything else.
    """
    _check(image, weight, bias, positions, mean, std, grid)
    kind = image.device.type
    if weight.dtype is torch.float32 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return _op(image, weight, bias, positions, list(mean), list(std), *grid)


def channels_and_size(image: Tensor) -> tuple[int, tuple[int, int]]:
    """Return the channels, and height and width, of a batch of pictures of either kind.

    Raises: ShapeError if it is no batch of pictures.
    """
    if image.ndim != 4 or not (image.dtype is torch.uint8 or image.is_floating_point()):
        kinds = "uint8 [B, H, W, 3] or floating [B, C, H, W]"
        raise ShapeError(f"pictures must be {kinds}, got {str(image.dtype)[6:]} {tuple(image.shape)}")
    if image.dtype is torch.uint8:
        return image.shape[3], (image.shape[1], image.shape[2])
    return image.shape[1], (image.shape[2], image.shape[3])


def _check(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    grid: tuple[int, int],
) -> None:
    try:
        channels, _ = channels_and_size(image)
    except ShapeError as error:
        raise ShapeError(f"patch_embed: {error}") from None
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[1] != channels or 0 in weight.shape:
        raise ShapeError(
            f"patch_embed: weight must be [D, {channels}, P, P] for this picture, got {list(weight.shape)}"
        )
    if image.dtype is torch.uint8 and (channels != 3 or len(mean) != 3 or len(std) != 3):
        got = f"{channels} channels, {len(mean)} and {len(std)} numbers"
        raise ShapeError(f"patch_embed: pictures of bytes must have 3 channels, mean and std 3 numbers each, got {got}")
    if min(grid) < 1:
        raise ShapeError(f"patch_embed: grid must be at least one patch, got {grid}")
    width = weight.shape[0]
    if bias is not None and list(bias.shape) != [width]:
        raise ShapeError(f"patch_embed: bias must be [{width}], got {list(bias.shape)}")
    if list(positions.shape) != [grid[0] * grid[1], width]:
        want = [grid[0] * grid[1], width]
        raise ShapeError(f"patch_embed: positions must be {want} for this grid, got {list(positions.shape)}")


def _normalised(image: Tensor, mean: list[float], std: list[float], weight: Tensor, high: int, wide: int) -> Tensor:
    """Return the picture that the convolution sees, [B, C, high, wide], in the weight's dtype."""
    if image.dtype is torch.uint8:
        exact = torch.promote_types(weight.dtype, torch.float32)
        shift, scale = (products.of_channel(values, image, exact).view(3) for values in (mean, std))
        image = ((image.to(exact) - shift) / scale).permute(0, 3, 1, 2)
    height, width = image.shape[-2:]
    if high > height or wide > width:
        image = F.pad(image, (0, max(wide - width, 0), 0, max(high - height, 0)))
    return image[..., :high, :wide].to(weight.dtype)


def _reference(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    mean: list[float],
    std: list[float],
    h: int,
    w: int,
) -> Tensor:
    patch = weight.shape[-1]
    picture = _normalised(image, mean, std, weight, h * patch, w * patch)
    tokens = F.conv2d(picture, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    return (tokens + positions).contiguous()


def _fake(image: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor, *rest: Any) -> Tensor:
    dtype = torch.promote_types(weight.dtype, positions.dtype)
    return positions.new_empty((image.shape[0], *positions.shape), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, weight, bias, positions, *ctx.rest = inputs
    ctx.save_for_backward(image, weight)
    ctx.dtypes = (None if bias is None else bias.dtype, positions.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, weight = ctx.saved_tensors
    of_bias, of_positions = ctx.dtypes
    d_image = d_weight = d_bias = d_positions = None
    if ctx.needs_input_grad[0]:
        d_image = _image_gradient(grad, image, weight, *ctx.rest[2:])
    if ctx.needs_input_grad[1]:
        d_weight = torch.ops.setr_fast.patch_embed_backward.default(grad, image, weight, *ctx.rest)
    if of_bias is not None and ctx.needs_input_grad[2]:
        d_bias = grad.sum((0, 1), dtype=torch.promote_types(grad.dtype, torch.float32)).to(of_bias)
    if ctx.needs_input_grad[3]:
        d_positions = grad.sum(0).to(of_positions)
    return d_image, d_weight, d_bias, d_positions, None, None, None, None


def _image_gradient(grad: Tensor, image: Tensor, weight: Tensor, h: int, w: int) -> Tensor:
    """Return the gradient of a normalised picture: patches do not overlap, so each pixel is one product."""
    patch, (height, width) = weight.shape[-1], image.shape[-2:]
    pixels = (grad.to(weight.dtype) @ weight.flatten(1)).view(len(image), h, w, weight.shape[1], patch, patch)
    picture = pixels.permute(0, 3, 1, 4, 2, 5).reshape(len(image), -1, h * patch, w * patch)
    missing = (0, max(width - w * patch, 0), 0, max(height - h * patch, 0))
    return F.pad(picture[..., :height, :width], missing).to(image.dtype)


def _backward_reference(
    grad: Tensor, image: Tensor, weight: Tensor, mean: list[float], std: list[float], h: int, w: int
) -> Tensor:
    """The convolution's own gradient of its weight."""
    patch = weight.shape[-1]
    picture = _normalised(image, mean, std, weight, h * patch, w * patch)
    d_map = grad.to(weight.dtype).transpose(1, 2).unflatten(2, (h, w))
    return conv2d_weight(picture, list(weight.shape), d_map, stride=patch).contiguous()


def _backward_fake(grad: Tensor, image: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(weight.shape)


IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _shapes() -> Iterator[tuple[str, tuple[int, int, int], int, int, bool, Bench]]:
    """Yield name, (B, H, W), patch, width of a token, whether the last patches are cut, whether it is timed."""
    yield "padded", (2, 19, 45), 8, 24, False, False
    yield "cut", (3, 19, 45), 8, 17, True, False
    yield "one_patch", (1, 5, 3), 7, 5, False, False
    yield "vit_t_64px", (2, 64, 64), 16, 192, False, False
    yield "vit_l_512px", (1, 512, 512), 16, 1024, False, True
    yield "vit_t_256px_b8", (8, 256, 256), 16, 192, False, True
    yield "vit_l_768px", (1, 768, 768), 16, 1024, False, FULL
    if torch.cuda.is_available():
        yield "vit_l_512px_b16", (16, 512, 512), 16, 1024, False, True
        yield "vit_l_768px_b8", (8, 768, 768), 16, 1024, False, True


def _arguments(shape: tuple[int, int, int], patch: int, width: int, cut: bool, draw: Draw) -> tuple[Any, ...]:
    B, H, W = shape
    h, w = (H // patch, W // patch) if cut else (-(-H // patch), -(-W // patch))
    image = draw.integers(0, 256, (B, H, W, 3), torch.uint8)
    bias = None if cut else draw(width)
    weight = draw(width, 3, patch, patch) * (3 * patch * patch) ** -0.5
    return image, weight, bias, draw(h * w, width), *IMAGENET, h, w


def _cases() -> Iterator[Case]:
    for name, shape, patch, width, cut, bench in _shapes():
        yield Case(name, partial(_arguments, shape, patch, width, cut), bench=bench)

    def numbers(draw: Draw) -> tuple[Any, ...]:
        return draw(2, 5, 9, 13), draw(6, 5, 4, 4), draw(6), draw(12, 6), [], [], 3, 4

    yield Case("normalised_picture", numbers)


def _backward_cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int], patch: int, width: int, cut: bool, draw: Draw) -> tuple[Any, ...]:
        image, weight, _, positions, *rest = _arguments(shape, patch, width, cut, draw)
        return draw(len(image), *positions.shape), image, weight, *rest

    for name, shape, patch, width, cut, bench in _shapes():
        if name == "vit_l_512px" and not torch.cuda.is_available():
            bench = FULL  # PyTorch's own gradient takes most of a minute there in the dtypes of the parity test
        yield Case(name, partial(make, shape, patch, width, cut), bench=bench)


def _cost(image: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor, *rest: Any) -> Cost:
    tokens = len(image) * positions.numel() * torch.promote_types(weight.dtype, positions.dtype).itemsize
    flops = 2 * len(image) * len(positions) * weight.numel()
    return Cost(bytes=image.nbytes + weight.nbytes + positions.nbytes + tokens, flops=flops)


def _backward_cost(grad: Tensor, image: Tensor, weight: Tensor, *rest: Any) -> Cost:
    flops = 2 * grad.shape[0] * grad.shape[1] * weight.numel()
    return Cost(bytes=grad.nbytes + image.nbytes + weight.nbytes, flops=flops)


_op = declare_op(
    "patch_embed(Tensor image, Tensor weight, Tensor? bias, Tensor positions, float[] mean, float[] std, SymInt h, "
    "SymInt w) -> Tensor",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=products.backends("forward"),
    prefer=products.prefer,
)
_backward_op = declare_op(
    "patch_embed_backward(Tensor grad, Tensor image, Tensor weight, float[] mean, float[] std, SymInt h, SymInt w) "
    "-> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=products.backends("backward"),
    rounds=True,
    prefer=products.prefer,
)
