"""From a picture to patch tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from setr_fast import ops
from setr_fast.shapes import Grid


class PatchEmbed(nn.Conv2d):
    """A convolution whose stride is its kernel: each patch becomes one token."""

    def __init__(self, in_chans: int, width: int, patch_size: int, bias: bool = True) -> None:
        super().__init__(in_chans, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(  # type: ignore[override]  # a convolution by its parameters only
        self, image: Tensor, positions_ND: Tensor, grid: Grid, mean: Sequence[float], std: Sequence[float]
    ) -> Tensor:
        """Return tokens with their positions added, in row-major order of the patches.

        A picture smaller than the grid is continued in the mean colour, below and to the right; one larger is cut.

        Shapes: image uint8 [B, H, W, 3], or normalised [B, C, H, W]; positions [N, D] -> [B, N, D].
        """
        return ops.patch_embed(image, self.weight, self.bias, positions_ND, mean, std, (grid.h, grid.w))


def tokens_to_map(tokens_BND: Tensor, grid: Grid) -> Tensor:
    """Lay tokens out as a picture of patches, channels last in memory. Shapes: [B, N, D] -> [B, D, h, w]."""
    # Transposed first, a single picture's stride would fit no layout that PyTorch's resizing knows: ten times slower.
    return tokens_BND.unflatten(1, (grid.h, grid.w)).permute(0, 3, 1, 2)
