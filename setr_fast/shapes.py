"""Shape letters and the arithmetic between pixels and patches.

Legend, used in names (``q_BMNE``) and docstrings all over the package:

====  =======================  ====  =======================
B     batch                    C     channels
H W   pixels                   h w   patches
N     tokens                   D     token width
M     attention heads          E     width per head
K     classes                  P     patch size
L     layers (blocks)
====  =======================  ====  =======================
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A picture of ``image`` pixels seen as ``h x w`` patches of ``patch`` pixels.

    The only place where patch counts are worked out: everything else is handed a Grid.
    """

    image: tuple[int, int]
    patch: int
    h: int
    w: int

    @classmethod
    def covering(cls, image: tuple[int, int], patch: int) -> Grid:
        """Return the smallest grid that covers every pixel (the picture is padded to it)."""
        height, width = image
        return cls((height, width), patch, -(-height // patch), -(-width // patch))

    @classmethod
    def inside(cls, image: tuple[int, int], patch: int) -> Grid:
        """Return the largest grid inside the picture (the last rows and columns are ignored)."""
        height, width = image
        return cls((height, width), patch, height // patch, width // patch)

    @property
    def tokens(self) -> int:
        """Number of patch tokens, class tokens not counted."""
        return self.h * self.w

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width that the patches span, in pixels."""
        return self.h * self.patch, self.w * self.patch
