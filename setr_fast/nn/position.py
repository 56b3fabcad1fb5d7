"""Learned position tables and their resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(table_1TD: Tensor, old: tuple[int, int], new: tuple[int, int], leading: int, mode: str) -> Tensor:
    """Fit a position table to another grid; rows in front of the patches are copied.

    Half-pixel sampling, not antialiased, as every published SETR and Segmenter does it; bicubic means Keys'
    kernel with a = -0.75. The old grid is an argument: it cannot be told from the number of rows.

    Shapes: table [1, leading + old_h * old_w, D] -> [1, leading + new_h * new_w, D].
    """
    if old == new:
        return table_1TD
    front, grid = table_1TD[:, :leading], table_1TD[:, leading:]
    picture = grid.unflatten(1, old).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=new, mode=mode, align_corners=False)
    return torch.cat((front, picture.flatten(2).transpose(1, 2)), dim=1)
