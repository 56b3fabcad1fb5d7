"""Losses of class probabilities, one class after the other, by PyTorch's own ops: any device, any floating dtype.

With q_k a loss's derivative by p_k, the gradient with respect to the logits of class k is p_k (q_k - sum_j p_j q_j): a
map per class, made and brought down to the low resolution before the next one, and one map for the sum. So the memory
is a few maps of one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from setr_fast.ops._labels import class_counts, legal_labels
from setr_fast.ops.upsample_cross_entropy import accumulator, kept_dtype

Slope = Callable[[Tensor, Tensor, int], Tensor | None]
"""(p, where the class is, class) -> the derivative of the loss by p; None for a class left out."""
CLASSES_AT_ONCE = 4


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


class ClassMaps:
    """The probabilities of a batch, a class at a time."""

    def __init__(
        self, logits: Tensor, labels: Tensor, size: tuple[int, int], align_corners: bool, ignore_index: int
    ) -> None:
        """Make the map of log(sum(exp)). Raises: ShapeError for a label that is no class."""
        self.logits, self.dtype = logits, accumulator(logits)
        self.truth = legal_labels(labels, logits.shape[1], ignore_index)
        self.valid = self.truth != ignore_index
        with torch.autocast(logits.device.type, enabled=False):  # which would take the products of `up` in 16 bits
            self._place = _place(logits, size, (labels.shape[-2], labels.shape[-1]), align_corners)
            self._log_sum, self._best = _log_sum_and_best(logits, self.dtype, self._place)

    def probability(self, index: int) -> Tensor:
        """Return the map [B, H, W] of one class, 0 where the label is ignored."""
        with torch.autocast(self.logits.device.type, enabled=False):
            scores = self._place.up(self.logits[:, index : index + 1].to(self.dtype))[:, 0]
        return (scores - self._log_sum).exp_() * self.valid

    def pixels(self) -> Tensor:
        """Return how many pixels are right, and how many count."""
        return torch.stack((((self._best == self.truth) & self.valid).sum(), self.valid.sum()))

    def gradient(self, slope: Slope) -> Tensor:
        """Return the gradient of the logits, as wide as sums are."""
        mixed = torch.zeros_like(self._log_sum)  # sum of p_k q_k
        gradient = torch.zeros_like(self.logits, dtype=self.dtype)
        with torch.autocast(self.logits.device.type, enabled=False):
            for index in range(self.logits.shape[1]):
                p = self.probability(index)
                of_p = slope(p, (self.truth == index) & self.valid, index)
                if of_p is not None:
                    of_class = of_p.mul_(p)
                    mixed += of_class
                    gradient[:, index] = self._place.down(of_class)
            for index in range(self.logits.shape[1]):
                gradient[:, index] -= self._place.down(self.probability(index).mul_(mixed))
        return gradient


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


def lovasz(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Serve ``upsample_lovasz``."""
    maps = ClassMaps(logits, labels, (height, width), align_corners, ignore_index)
    counts = class_counts(labels, logits.shape[1], ignore_index)
    shares = (counts > 0) / (counts > 0).sum().clamp_min(1).to(maps.dtype)
    shares = shares if class_weights is None else shares * class_weights.to(maps.dtype)
    # The one wait for the device: classes that are not there need no sorting. A captured graph sorts all of them.
    capturing = logits.is_cuda and torch.cuda.is_current_stream_capturing()
    present = [True] * logits.shape[1] if capturing else (counts > 0).tolist()
    loss = torch.zeros((), dtype=maps.dtype, device=logits.device)

    def slope(p: Tensor, here: Tensor, index: int) -> Tensor | None:
        nonlocal loss
        if not present[index]:
            return None
        errors = torch.where(here, 1.0 - p, p).masked_fill_(~maps.valid, -1.0)  # ignored pixels come last: no step
        errors, order = errors.flatten().sort(descending=True, stable=True)
        steps = jaccard_steps(here.flatten()[order]).to(p.dtype)
        loss = loss + shares[index] * (errors * steps).sum()
        of_pixels = torch.empty_like(steps).scatter_(0, order, steps).view_as(p)
        return shares[index] * torch.where(here, -of_pixels, of_pixels)

    if not with_gradient:
        for index in range(logits.shape[1]):
            if present[index]:
                slope(maps.probability(index), (maps.truth == index) & maps.valid, index)
        return loss, maps.pixels(), logits.new_empty(0)
    gradient = maps.gradient(slope)
    return loss, maps.pixels(), torch.empty_like(logits, dtype=kept_dtype(logits)).copy_(gradient)


def jaccard_steps(truth: Tensor) -> Tensor:
    """Return by how much the Jaccard loss grows with each further error, of sorted pixels; float64, as they cancel."""
    count = truth.sum().double()
    hits = truth.cumsum(0, dtype=torch.float64)
    rest = (~truth).cumsum(0, dtype=torch.float64)
    loss = 1.0 - (count - hits) / (count + rest)
    return torch.cat((loss[:1], loss.diff()))
