"""Losses on the probabilities of one class after the other: Dice and Lovasz-softmax."""

from __future__ import annotations

from torch import Tensor

from setr_fast.ops._labels import class_counts
from setr_fast.ops.upsample_class_sums import upsample_class_sums
from setr_fast.ops.upsample_cross_entropy import LossAndAccuracy
from setr_fast.ops.upsample_lovasz import upsample_lovasz


def dice_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    exponent: int = 1,
    smooth: float = 1.0,
) -> LossAndAccuracy:
    """Average over classes 1 - (2 sum(p y) + smooth) / (sum(p^exponent) + sum(y) + smooth + 1e-5).

    Sums are over the pixels of the whole batch that are not ignored; exponent 1 as in PaddleSeg, 2 as in V-Net and
    mmsegmentation. Class weights multiply the classes' terms; the average is over all K classes even so.

    Shapes, Units, Raises: as segmentation_loss.
    Source: Milletari et al. 2016, arXiv 1606.04797, section 3; PaddleSeg, DiceLoss.
    """
    sums = upsample_class_sums(logits_BKhw, labels_BHW, size, align_corners, ignore_index, exponent)
    counts = class_counts(labels_BHW, logits_BKhw.shape[1], ignore_index)
    terms = 1.0 - (2.0 * sums.here + smooth) / (sums.everywhere + counts + smooth + 1e-5)
    weighted = terms if class_weights is None else terms * class_weights.to(terms)
    return LossAndAccuracy(weighted.mean(), sums.accuracy)


def lovasz_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> LossAndAccuracy:
    """Average the Lovasz extension of the Jaccard loss over the classes that are present in the batch's labels.

    Class weights multiply the classes' terms; the average is over the present classes even so.

    Shapes, Units, Raises: as segmentation_loss.
    Source: Berman et al. 2018, arXiv 1705.08790, equations 9 and 11, algorithm 1.
    """
    return upsample_lovasz(logits_BKhw, labels_BHW, size, align_corners, ignore_index, class_weights)
