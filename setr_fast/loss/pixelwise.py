"""Losses that are functions of each pixel's cross entropy: hard-example mining and focal loss.

They work on one number per pixel, -log p of the label's class. What they do not need is one number per pixel and class.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from setr_fast.ops.upsample_cross_entropy import LossAndAccuracy
from setr_fast.ops.upsample_cross_entropy_map import upsample_cross_entropy_map


def ohem_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    averaging: str = "valid",
    class_weights: Tensor | None = None,
    threshold: float | None = 0.7,
    min_kept: int = 100000,
    rule: str = "mmseg",
) -> LossAndAccuracy:
    """Average the cross entropy of hard pixels: those whose label's class is given a probability below a threshold.

    ``mmseg``: the threshold is raised so that ``min_kept`` pixels per picture of the batch are kept; with no threshold
    these are kept and no others. Easy pixels count as zeros in the average (``averaging`` says of which pixels).
    ``paddleseg``: ``min_kept`` is of the whole batch, one fewer is kept, and the average is over the kept pixels.
    Where fewer pixels than that are not ignored, mmseg keeps all but the easiest one and paddleseg all.

    Shapes, Units, Raises: as segmentation_loss.
    Source: mmsegmentation, OHEMPixelSampler; PaddleSeg, OhemCrossEntropyLoss.
    """
    losses, accuracy = upsample_cross_entropy_map(logits_BKhw, labels_BHW, size, align_corners, ignore_index)
    valid = labels_BHW != ignore_index
    with torch.no_grad():
        pick = _kept_by_paddleseg if rule == "paddleseg" else _kept_by_mmseg
        kept = pick(losses, valid, threshold, min_kept) & valid
    weights = pixel_weights(labels_BHW, valid, class_weights, losses.dtype)
    total = (losses * weights * kept).sum()
    if rule == "paddleseg":
        return LossAndAccuracy(total / (weights * kept).sum().clamp_min(torch.finfo(total.dtype).tiny), accuracy)
    return LossAndAccuracy(total / _divisor(valid, weights, averaging), accuracy)


def focal_loss(
    logits_BKhw: Tensor,
    labels_BHW: Tensor,
    *,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    averaging: str = "valid",
    class_weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 1.0,
) -> LossAndAccuracy:
    """Average -alpha (1 - p)^gamma log p, p the softmax probability of the label's class.

    Shapes, Units, Raises: as segmentation_loss.
    Source: Lin et al. 2017, arXiv 1708.02002, equation 4, with softmax as in PaddleSeg's MultiClassFocalLoss.
    """
    losses, accuracy = upsample_cross_entropy_map(logits_BKhw, labels_BHW, size, align_corners, ignore_index)
    valid = labels_BHW != ignore_index
    weights = pixel_weights(labels_BHW, valid, class_weights, losses.dtype)
    # The floor keeps the slope of a power below one finite where p is 1.
    doubt = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    total = (alpha * doubt**gamma * losses * weights).sum()
    return LossAndAccuracy(total / _divisor(valid, weights, averaging), accuracy)


def pixel_weights(labels: Tensor, valid: Tensor, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each pixel's class weight, 0 where the label is ignored."""
    if class_weights is None:
        return valid.to(dtype)
    classes = labels.long().where(valid, 0).clamp(0, len(class_weights) - 1)  # an index beyond them ends a card's work
    return class_weights.to(labels.device, dtype)[classes] * valid


def _divisor(valid: Tensor, weights: Tensor, averaging: str) -> Tensor | int:
    """Return what ``upsample_cross_entropy`` divides by; 1 in place of 0."""
    if averaging == "all":
        return max(valid.numel(), 1)
    count = valid.sum() if averaging == "count" else weights.sum(dtype=torch.float64)
    return count.where(count > 0, 1).to(weights.dtype)


def _kept_by_mmseg(losses: Tensor, valid: Tensor, threshold: float | None, min_kept: int) -> Tensor:
    """Return which pixels are hard; ignored ones may be among them."""
    wanted = min_kept * len(losses)
    if threshold is None:  # ignored pixels come last
        kept = torch.zeros_like(losses, dtype=torch.bool)
        largest = losses.where(valid, -1.0).flatten().topk(min(wanted, losses.numel())).indices
        return kept.view(-1).index_fill_(0, largest, True).view_as(losses)
    nth = _nth_least(torch.exp(-losses), valid, (valid.sum() - 1).clamp(0, wanted))
    return torch.exp(-losses) < nth.clamp_min(threshold)


def _kept_by_paddleseg(losses: Tensor, valid: Tensor, threshold: float | None, min_kept: int) -> Tensor:
    """Return which pixels are hard; ignored ones may be among them."""
    place = torch.full_like(valid.sum(), min(max(min_kept - 1, 0), max(valid.numel() - 1, 0)))
    nth = _nth_least(torch.exp(-losses), valid, place)
    hard = torch.exp(-losses) < (nth if threshold is None else nth.clamp_min(threshold))
    return hard | (valid.sum() <= min_kept)


def _nth_least(probability: Tensor, valid: Tensor, place: Tensor) -> Tensor:
    """Return the probability that ``place`` others of those that count lie below; all is 2 where none count."""
    last = probability.where(valid, 2.0).flatten()
    if not last.numel():
        return last.new_full((), 2.0)
    if last.device.type != "cpu":  # a place that only the card knows
        return last.sort().values.gather(0, place.view(1))[0]
    # On a CPU kthvalue takes fifty times as long.
    at = int(place)
    return torch.from_numpy(np.partition(last.numpy(), at)[at : at + 1])[0]
