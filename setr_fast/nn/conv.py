"""The convolution block of the SETR heads: bilinear upsampling, convolution, batch norm, ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.nn.batch_norm import SyncedBatchNorm
from setr_fast.nn.batch_norm_statistics import batch_norm
from setr_fast.ops.upsample_conv import in_autocast


class ConvStage(nn.Module):
    """Convolution, batch norm, ReLU, on a map that is brought to a size first.

    A head's stages are convolution, batch norm, ReLU, upsampling; the upsampling of one stage runs in the op of the
    next convolution, which never builds the enlarged map.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        bias: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps=eps)

    def forward(self, x_BChw: Tensor, size: tuple[int, int] | None = None, align_corners: bool = False) -> Tensor:
        """Return relu(bn(conv(interpolate(x, size)))); no size: x's own.

        With running statistics the batch norm is part of the convolution's weight and bias, worked out anew in every
        call: what is loaded, moved, trained or sharded in between counts at once. Where the map is smaller than the
        weight, the batch norm is cheaper on the map.
        """
        size = size or map_size(x_BChw)
        values = x_BChw.shape[0] * self.bn.num_features * size[0] * size[1]
        if self.bn.training and counts_statistics(x_BChw, self.conv, self.bn, size, align_corners):
            parts = self.conv.weight, self.conv.bias
            y_BCHW, mean_C, spread_C = ops.upsample_conv_statistics(
                x_BChw, *parts, size=size, align_corners=align_corners
            )
            return F.relu(batch_norm(y_BCHW, mean_C, spread_C, self.bn), inplace=True)
        if self.bn.training or values <= self.conv.weight.numel():
            y_BCHW = conv(x_BChw, self.conv, size, align_corners)
            return F.relu(self.bn(y_BCHW), inplace=True)
        weight, bias = self.folded()
        return ops.upsample_conv(x_BChw, weight, bias, size=size, align_corners=align_corners, relu=True)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that this is with running statistics."""
        return folded(self.conv, self.bn)

    @property
    def needs_map(self) -> bool:
        """Whether the result must be a map of its own: statistics are taken, or a 1x1 kernel leaves nothing to gain."""
        return self.bn.training or self.conv.kernel_size == (1, 1)


class FoldedStage(nn.Module):
    """A stage whose batch norm was worked into the convolution once and for all: for inference."""

    def __init__(self, stage: ConvStage) -> None:
        super().__init__()
        weight, bias = (value.detach() for value in stage.folded())
        self.weight, self.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
        self.needs_map = stage.conv.kernel_size == (1, 1)

    def forward(self, x_BChw: Tensor, size: tuple[int, int] | None = None, align_corners: bool = False) -> Tensor:
        """Return what the stage does in eval mode."""
        size = size or map_size(x_BChw)
        return ops.upsample_conv(x_BChw, self.weight, self.bias, size=size, align_corners=align_corners, relu=True)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias."""
        return self.weight, self.bias


def classified(
    x_BChw: Tensor,
    stage: ConvStage | FoldedStage,
    classifier: nn.Conv2d,
    size: tuple[int, int],
    align_corners: bool,
) -> Tensor:
    """Return the 1x1 classifier of a stage's result; without a gradient to keep that result for, it is never stored."""
    keeps = torch.is_grad_enabled() or stage.needs_map
    if keeps or size[0] * size[1] <= x_BChw.shape[-2] * x_BChw.shape[-1]:
        x_BChw = stage(x_BChw, size, align_corners)
        return conv(x_BChw, classifier, size)
    return ops.upsample_conv_classify(
        x_BChw,
        *stage.folded(),
        classifier.weight,
        classifier.bias,
        size=size,
        align_corners=align_corners,
    )


def counts_statistics(
    x_BChw: Tensor, layer: nn.Conv2d, norm: nn.Module, size: tuple[int, int], align_corners: bool
) -> bool:
    """Return whether a kernel gives a convolution's result with its batch statistics: no other way is worth taking.

    A norm with one value per channel is left to refuse it; what is compiled is left to the compiler.
    """
    if not x_BChw.is_cuda or torch.compiler.is_compiling():
        return False
    if type(norm) not in (nn.BatchNorm2d, SyncedBatchNorm) or not norm.affine or len(x_BChw) * size[0] * size[1] < 2:
        return False
    x_BChw, *others = in_autocast(x_BChw, layer.weight, layer.bias)
    return ops.OPS["upsample_conv_statistics"].choose(x_BChw, *others, *size, align_corners) != "reference"


def folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals ``layer`` followed by ``norm`` with running statistics.

    Worked out in float32 at least, returned in the layer's dtype; gradients flow to the parameters of both.
    """
    assert norm.running_mean is not None, "batch norms of this package keep statistics"
    assert norm.running_var is not None
    dtype = layer.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt() * norm.weight.to(wide)
    mean = norm.running_mean.to(wide) if layer.bias is None else norm.running_mean.to(wide) - layer.bias.to(wide)
    weight = layer.weight.to(wide) * scale[:, None, None, None]
    return weight.to(dtype), (norm.bias.to(wide) - mean * scale).to(dtype)


def conv(x_BChw: Tensor, layer: nn.Conv2d, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bring to a size and convolve, a 1x1 kernel before the resize."""
    return ops.upsample_conv(x_BChw, layer.weight, layer.bias, size=size, align_corners=align_corners)


def map_size(x_BChw: Tensor, scale: int = 1) -> tuple[int, int]:
    """Return ``scale`` times height and width."""
    return x_BChw.shape[-2] * scale, x_BChw.shape[-1] * scale


def resize(x_BChw: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bring to a size, bilinear; nothing is done where the size is right already."""
    if tuple(x_BChw.shape[-2:]) == size:
        return x_BChw
    return F.interpolate(x_BChw, size=size, mode="bilinear", align_corners=align_corners)
