"""Losses on the probabilities of one class after the other: Dice and Lovasz-softmax.

Both are sums over classes of a function of that class's probability map. With q_k its derivative by p_k, the gradient
with respect to the logits of class k is p_k (q_k - sum_j p_j q_j): a map per class, made and brought down to the low
resolution before the next one, and one map for the sum. So the memory is a few maps of one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.ops.upsample_cross_entropy import (
    LossAndAccuracy,
    accumulator,
    accuracy_of,
    check_loss,
    legal_labels,
)

Rule = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor] | None]
"""(p, where the class is, where pixels count, class) -> loss and its derivative by p; None for a class left out."""
CLASSES_AT_ONCE = 4


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
    num_classes = logits_BKhw.shape[1]

    def rule(p: Tensor, here: Tensor, valid: Tensor, index: int) -> tuple[Tensor, Tensor]:
        share = 1.0 / num_classes if class_weights is None else class_weights[index].to(p) / num_classes
        numerator = 2.0 * p[here].sum() + smooth
        denominator = (p**exponent).sum() + here.sum() + smooth + 1e-5
        slope = (exponent * p ** (exponent - 1)) * (numerator / denominator**2) - 2.0 / denominator * here
        return share * (1.0 - numerator / denominator), share * slope

    return _classwise("dice_loss", rule, logits_BKhw, labels_BHW, size, align_corners, ignore_index)


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
    present = torch.unique(labels_BHW[labels_BHW != ignore_index]).tolist()

    def rule(p: Tensor, here: Tensor, valid: Tensor, index: int) -> tuple[Tensor, Tensor] | None:
        if index not in present:
            return None
        share = 1.0 / len(present) if class_weights is None else class_weights[index].to(p) / len(present)
        at = here[valid]
        errors, order = torch.where(at, 1.0 - p[valid], p[valid]).sort(descending=True, stable=True)
        steps = _jaccard_steps(at[order]).to(p.dtype)
        slope = torch.empty_like(steps).scatter_(0, order, steps)
        slopes = torch.zeros_like(p).masked_scatter(valid, torch.where(at, -slope, slope))
        return share * (errors * steps).sum(), share * slopes

    return _classwise("lovasz_loss", rule, logits_BKhw, labels_BHW, size, align_corners, ignore_index)


def _jaccard_steps(truth: Tensor) -> Tensor:
    """Return by how much the Jaccard loss grows with each further error, of sorted pixels; float64, as they cancel."""
    count = truth.sum().double()
    hits = truth.cumsum(0, dtype=torch.float64)
    rest = (~truth).cumsum(0, dtype=torch.float64)
    loss = 1.0 - (count - hits) / (count + rest)
    return torch.cat((loss[:1], loss.diff()))


class _Place(NamedTuple):
    """How low-resolution logits lie in the picture: bilinear interpolation as one matrix per axis.

    A product with a matrix takes a few percent of the time of PyTorch's interpolation of one channel and its gradient.
    """

    rows: Tensor  # [H, h]
    columns: Tensor  # [W, w]
    same: bool  # the logits are at full size: pixels are cut, not mixed

    def up(self, low: Tensor) -> Tensor:
        """Return [B, n, H, W] of some classes' logits [B, n, h, w]."""
        if self.same:
            return low[..., : len(self.rows), : len(self.columns)]
        return self.rows @ (low @ self.columns.t())

    def down(self, gradient: Tensor) -> Tensor:
        """Return the gradient [B, h, w] of low-resolution logits from that of full-size ones [B, H, W]."""
        if self.same:
            (height, h), (width, w) = self.rows.shape, self.columns.shape
            return F.pad(gradient, (0, w - width, 0, h - height))
        return self.rows.t() @ (gradient @ self.columns)


def _place(logits: Tensor, size: tuple[int, int], cut: tuple[int, int], align_corners: bool) -> _Place:
    dtype, low = accumulator(logits), tuple(logits.shape[-2:])

    def axis(count: int, full: int, kept: int) -> Tensor:
        if low == size:
            return logits.new_empty((kept, count), dtype=dtype)  # its shape is all that is used
        ones = torch.eye(count, dtype=dtype, device=logits.device)[None, :, :, None]
        mixed = F.interpolate(ones, size=(full, 1), mode="bilinear", align_corners=align_corners)
        return mixed[0, :, :kept, 0].t().contiguous()

    return _Place(axis(low[0], size[0], cut[0]), axis(low[1], size[1], cut[1]), low == size)


def _classwise(
    where: str,
    rule: Rule,
    logits: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int,
) -> LossAndAccuracy:
    check_loss(where, logits, labels, size)
    truth = legal_labels(labels, logits.shape[1], ignore_index)
    place = _place(logits, (size[0], size[1]), (labels.shape[-2], labels.shape[-1]), align_corners)
    with torch.autocast(logits.device.type, enabled=False):  # which would take the products of `up` in 16 bits
        loss, pixels = _Classwise.apply(logits, truth, truth != ignore_index, place, rule)
    return LossAndAccuracy(loss, accuracy_of(pixels))


class _Classwise(torch.autograd.Function):
    """The sum of a rule over classes; the gradient is worked out in the forward pass, where it is needed."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, truth: Tensor, valid: Tensor, place: _Place, rule: Rule
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulator(logits)
        log_sum, best = _log_sum_and_best(logits, dtype, place)
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        mixed = torch.zeros_like(log_sum)  # sum of p_k q_k
        needed = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(logits, dtype=dtype) if needed else None

        def probability(index: int) -> Tensor:
            return (place.up(logits[:, index : index + 1].to(dtype))[:, 0] - log_sum).exp_() * valid

        for index in range(logits.shape[1]):
            p = probability(index)
            result = rule(p, (truth == index) & valid, valid, index)
            if result is None:
                continue
            loss += result[0]
            if gradient is not None:
                of_class = result[1].mul_(p)
                mixed += of_class
                gradient[:, index] = place.down(of_class)
        if gradient is not None:
            for index in range(logits.shape[1]):
                gradient[:, index] -= place.down(probability(index).mul_(mixed))
            ctx.save_for_backward(gradient.to(logits.dtype))
        pixels = torch.stack((((best == truth) & valid).sum(), valid.sum()))
        ctx.mark_non_differentiable(pixels)
        return loss, pixels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _pixels: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None, None, None


def _log_sum_and_best(logits: Tensor, dtype: torch.dtype, place: _Place) -> tuple[Tensor, Tensor]:
    """Return log(sum(exp)) over classes and the first largest class of each full-size pixel, [B, H, W]."""
    top = logits.new_full((len(logits), len(place.rows), len(place.columns)), -torch.inf, dtype=dtype)
    total, best = torch.zeros_like(top), torch.zeros_like(top, dtype=torch.int64)
    for index in range(0, logits.shape[1], CLASSES_AT_ONCE):
        scores = place.up(logits[:, index : index + CLASSES_AT_ONCE].to(dtype))
        largest, at = scores.max(1)
        best = torch.where(largest > top, at + index, best)
        higher = torch.maximum(top, largest)
        total = total * (top - higher).exp() + (scores - higher[:, None]).exp_().sum(1)
        top = higher
    return top + total.log(), best
