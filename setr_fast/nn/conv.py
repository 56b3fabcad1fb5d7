"""The convolution block of the SETR heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvStage(nn.Module):
    """Convolution, batch norm, ReLU, bilinear upsampling by a whole factor."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        bias: bool,
        eps: float,
        scale: int = 1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)
        self.scale = scale
        self.align_corners = align_corners

    def forward(self, x_BChw: Tensor) -> Tensor:
        return upsample(F.relu(self.bn(self.conv(x_BChw))), self.scale, self.align_corners)


def upsample(x_BChw: Tensor, scale: int, align_corners: bool) -> Tensor:
    """Enlarge by a whole factor, bilinear."""
    if scale == 1:
        return x_BChw
    height, width = x_BChw.shape[-2:]
    return resize(x_BChw, (height * scale, width * scale), align_corners)


def resize(x_BChw: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bring to a size, bilinear; nothing is done where the size is right already."""
    if tuple(x_BChw.shape[-2:]) == size:
        return x_BChw
    return F.interpolate(x_BChw, size=size, mode="bilinear", align_corners=align_corners)
