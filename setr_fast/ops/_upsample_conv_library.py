"""Upsampling and convolution by PyTorch's own ops: the plain order, which is the truth, and the cheapest one.

A 1x1 convolution in front of the upsampling is the same function (the weights of an interpolation sum to one) on fewer
pixels. For 3x3 kernels that enlarge, PyTorch's ops have nothing better than the plain order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool, relu: bool
) -> Tensor:
    """Interpolate, convolve, ReLU."""
    y = F.conv2d(_resize(x, (height, width), align_corners), weight, bias, padding=weight.shape[-1] // 2)
    return _channels_last_copy(y.relu() if relu else y)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, align_corners: bool, relu: bool
) -> Tensor:
    """Interpolate and convolve in the order that costs less, ReLU."""
    if not _conv_first(x, weight, height, width):
        same = (x.shape[2], x.shape[3]) == (height, width)
        if same and weight.shape[-1] > 1 and x.device.type == "cpu" and x.dtype == torch.float32:
            x = x.contiguous()  # of channels-last maps torch's CPU convolution is four times less exact
        return reference(x, weight, bias, height, width, align_corners, relu)
    y = _resize(F.conv2d(x, weight, bias), (height, width), align_corners)
    return _channels_last_copy(y.relu() if relu else y)


def reference_backward(grad: Tensor, x: Tensor, weight: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Autograd of the reference: gradients of x, weight and bias."""

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference(x, weight, bias, grad.shape[2], grad.shape[3], align_corners, False)

    with torch.enable_grad():
        pull = torch.func.vjp(plain, x.detach(), weight.detach(), weight.new_zeros(len(weight)))[1]
        dx, dweight, dbias = pull(grad)
    return _channels_last_copy(dx), dweight.contiguous(), dbias


def backward(grad: Tensor, x: Tensor, weight: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of ``forward``."""
    large, small = (grad.shape[2], grad.shape[3]), (x.shape[2], x.shape[3])
    if _conv_first(x, weight, *large):
        grad = _resize_backward(grad, small, align_corners)
        dx, dweight, dbias = _conv_backward(grad, x, weight)
    else:
        dx, dweight, dbias = _conv_backward(grad, _resize(x, large, align_corners), weight)
        dx = _resize_backward(dx, small, align_corners)
    return _channels_last_copy(dx), dweight.contiguous(), dbias


def channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an empty tensor of this shape in channels-last memory."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _conv_first(x: Tensor, weight: Tensor, height: int, width: int) -> bool:
    return weight.shape[-1] == 1 and height * width > x.shape[2] * x.shape[3]


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if (x.shape[2], x.shape[3]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def _resize_backward(grad: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    large = [grad.shape[2], grad.shape[3]]
    if tuple(large) == size:
        return grad
    whole = [*grad.shape[:2], *size]
    return torch.ops.aten.upsample_bilinear2d_backward.default(grad, large, whole, align_corners)


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pad, one = [weight.shape[-1] // 2] * 2, [1, 1]
    wanted = [True, True, True]
    return torch.ops.aten.convolution_backward.default(
        grad, x, weight, [len(weight)], one, pad, one, False, [0, 0], 1, wanted
    )


def _channels_last_copy(y: Tensor) -> Tensor:
    """Return ``y`` with the strides that ``channels_last`` gives; ``contiguous`` keeps others for a single pixel."""
    _, C, H, W = y.shape
    return y if y.stride() == (H * W * C, 1, W * C, C) else channels_last(y, tuple(y.shape)).copy_(y)
