"""From a picture to patch tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast.shapes import Grid


class PatchEmbed(nn.Conv2d):
    """A convolution whose stride is its kernel: each patch becomes one token."""

    def __init__(self, in_chans: int, width: int, patch_size: int, bias: bool = True) -> None:
        super().__init__(in_chans, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return tokens in row-major order of the patches.

        Shapes: image [B, C, H, W], sides multiples of the patch -> [B, N, D].
        """
        return super().forward(image_BCHW).flatten(2).transpose(1, 2)


def fit_to_grid(image_BCHW: Tensor, grid: Grid) -> Tensor:
    """Pad with zeros, or cut, at the bottom and the right so that the patches of ``grid`` span the picture.

    Units: normalised values, so that zero is the mean colour.
    """
    (height, width), (to_height, to_width) = grid.image, grid.pixels
    if to_height > height or to_width > width:
        image_BCHW = F.pad(image_BCHW, (0, max(to_width - width, 0), 0, max(to_height - height, 0)))
    return image_BCHW[..., :to_height, :to_width]


def tokens_to_map(tokens_BND: Tensor, grid: Grid) -> Tensor:
    """Lay tokens out as a picture of patches. Shapes: [B, N, D] -> [B, D, h, w]."""
    return tokens_BND.transpose(1, 2).unflatten(2, (grid.h, grid.w))
