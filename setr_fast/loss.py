"""Cross entropy between low-resolution logits and full-size labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.errors import ShapeError


def segmentation_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    averaging: str = "valid",
) -> Tensor:
    """Resize logits to ``size``, crop them to the labels' size, and average the cross entropy.

    ``valid`` divides by the number of pixels that are not ignored, ``all`` by the number of pixels. Labels that
    are all ignored give 0 and zero gradients.

    Shapes: logits [B, K, h, w], labels [B, H, W] with H, W at most ``size`` -> scalar, 32 bits or more.
    Units: labels 0..K-1 or ``ignore_index``, any integer type.
    Raises: ShapeError.
    """
    _check(logits_BKhw, labels_BHW, size)
    logits = logits_BKhw.to(torch.promote_types(logits_BKhw.dtype, torch.float32))
    total = _summed_cross_entropy(logits, labels_BHW.long(), size, align_corners, ignore_index)
    if averaging == "all":
        return total / labels_BHW.numel()
    return total / (labels_BHW != ignore_index).sum().clamp_min(1)


def _summed_cross_entropy(
    logits_BKhw: Tensor, labels_BHW: Tensor, size: tuple[int, int], align_corners: bool, ignore_index: int
) -> Tensor:
    """Return the sum over all pixels that are not ignored."""
    height, width = labels_BHW.shape[-2:]
    if tuple(logits_BKhw.shape[-2:]) != size:
        logits_BKhw = F.interpolate(logits_BKhw, size=size, mode="bilinear", align_corners=align_corners)
    logits_BKHW = logits_BKhw[..., :height, :width]
    return F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")


def _check(logits: Tensor, labels: Tensor, size: tuple[int, int]) -> None:
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        got = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ShapeError(f"segmentation_loss: logits and labels must be [B, K, h, w] and [B, H, W], got {got}")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ShapeError(f"segmentation_loss: labels must be integers, got {labels.dtype}")
    if labels.shape[-2] > size[0] or labels.shape[-1] > size[1]:
        raise ShapeError(f"segmentation_loss: labels must be at most {size} pixels, got {tuple(labels.shape[-2:])}")
