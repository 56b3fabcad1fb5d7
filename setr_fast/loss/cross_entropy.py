"""Cross entropy between low-resolution logits and full-size labels."""

from __future__ import annotations

from torch import Tensor

from setr_fast.ops.upsample_cross_entropy import upsample_cross_entropy


def segmentation_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    averaging: str = "valid",
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Resize logits to ``size``, crop them to the labels' size, and average the cross entropy.

    ``valid`` divides by the number of pixels that are not ignored, ``all`` by the number of pixels; with class weights
    see ``setr_fast.ops.upsample_cross_entropy``. Labels that are all ignored give 0 and zero gradients.

    Shapes: logits [B, K, h, w], labels [B, H, W] with H, W at most ``size`` -> scalar, 32 bits or more.
    Units: labels 0..K-1 or ``ignore_index``, any integer type.
    Raises: ShapeError.
    """
    return upsample_cross_entropy(
        logits_BKhw, labels_BHW, size, align_corners, ignore_index, averaging, class_weights, label_smoothing
    ).loss
