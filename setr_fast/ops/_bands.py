"""Losses between low-resolution logits and full-size labels by PyTorch's own ops, a band of rows at a time.

For devices and dtypes without a kernel: no full-size logits, whatever the size, and nothing waits for the device. A
band's logits are mixed from the low rows and columns beside each pixel; its gradient goes back through one matrix per
axis, so that sums have one order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from setr_fast.ops._labels import legal_labels
from setr_fast.ops.upsample_cross_entropy import accumulator, kept_dtype

BAND_BYTES = {"cpu": 8 * 2**20}
"""Of a band's logits: on a processor what its caches hold, so that its passes do not all go through memory."""
BAND_BYTES_ELSEWHERE = 64 * 2**20
"""As much as keeps a card busy. Three or four tensors of this size live at a time."""


class _Axis(NamedTuple):
    """Along one axis, the two low pixels that each output pixel mixes, and the share of the second."""

    first: Tensor  # int64 [n]
    second: Tensor  # int64 [n]
    share: Tensor  # [n]
    per_pixel: float  # low pixels to an output pixel
    low: int

    def matrix(self, begin: int, end: int, low_begin: int, low_end: int) -> Tensor:
        """Return the shares of low pixels [low_begin, low_end) in outputs [begin, end), a row for each output."""
        lows = torch.arange(low_begin, low_end, device=self.first.device)
        share = self.share[begin:end, None]
        of_first = (self.first[begin:end, None] == lows) * (1 - share)
        return of_first + (self.second[begin:end, None] == lows) * share

    def read_by(self, begin: int, end: int) -> tuple[int, int]:
        """Return low pixels that hold all that outputs [begin, end) read; known without asking the device."""
        return max(int(begin * self.per_pixel) - 2, 0), min(int(end * self.per_pixel) + 3, self.low)


def _axis(low: int, size: int, kept: int, align_corners: bool, like: Tensor, dtype: torch.dtype) -> _Axis:
    """Return the table of the first ``kept`` outputs, by the rule of torch.nn.functional.interpolate for this dtype."""

    def number(value: int) -> Tensor:  # a quotient of two tensors: by a number a card would multiply by its inverse
        return torch.full((), value, dtype=dtype, device=like.device)

    at = torch.arange(kept, dtype=dtype, device=like.device)
    if align_corners:
        position = at * (number(low - 1) / number(size - 1)) if size > 1 else torch.zeros_like(at)
        per_pixel = (low - 1) / (size - 1) if size > 1 else 0.0
    else:
        position = ((at + 0.5) * (number(low) / number(size)) - 0.5).clamp_min_(0.0)
        per_pixel = low / size
    first = position.long().clamp_max_(low - 1)
    share = (position - first).clamp_max_(1.0)
    return _Axis(first, (first + 1).clamp_max_(low - 1), share, per_pixel, low)


class Bands:
    """Low-resolution logits and full-size labels, seen in bands of full-size rows."""

    def __init__(
        self, logits: Tensor, labels: Tensor, size: tuple[int, int], align_corners: bool, ignore_index: int
    ) -> None:
        """Make the tables. Raises: ShapeError for a label that is no class."""
        self.logits, self.dtype = logits, accumulator(logits)
        truth = legal_labels(labels, logits.shape[1], ignore_index)
        self.valid = truth != ignore_index
        self.truth = truth.masked_fill_(~self.valid, 0)
        (B, H, W), (K, h, w) = labels.shape, logits.shape[1:]
        self._rows = _axis(h, size[0], H, align_corners, logits, self.dtype)
        self._columns = _axis(w, size[1], W, align_corners, logits, self.dtype)
        self._across = self._columns.matrix(0, W, 0, w)
        most = BAND_BYTES.get(logits.device.type, BAND_BYTES_ELSEWHERE)
        self._each = max(most // max(B * K * W * self.dtype.itemsize, 1), 1)

    def __iter__(self) -> Iterator[slice]:
        for begin in range(0, self.truth.shape[1], self._each):
            yield slice(begin, min(begin + self._each, self.truth.shape[1]))

    def scores(self, rows: slice) -> Tensor:
        """Return the full-size logits [B, K, n, W] of some rows."""
        above, below = (self.logits.index_select(2, of[rows]).to(self.dtype) for of in self._rows[:2])
        mixed = torch.lerp(above, below, self._rows.share[rows, None])
        left, right = (mixed.index_select(3, of) for of in self._columns[:2])
        return torch.lerp(left, right, self._columns.share)

    def add(self, gradient: Tensor, rows: slice, of_scores: Tensor) -> None:
        """Add what the gradient of some rows' logits gives that of the low-resolution ones [B, K, h, w]."""
        begin, end = self._rows.read_by(rows.start, rows.stop)
        down = self._rows.matrix(rows.start, rows.stop, begin, end)
        with torch.autocast(gradient.device.type, enabled=False):
            gradient[:, :, begin:end] += down.t() @ (of_scores @ self._across)


class _Found(NamedTuple):
    total: Tensor  # float64: the sum of all losses
    hits: Tensor
    gradient: Tensor | None


def _sweep(
    bands: Bands,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    shares: Tensor | None = None,
    losses: Tensor | None = None,
) -> _Found:
    """Go through all bands; ``shares`` (of each pixel, or one for all) asks for the gradient, ``losses`` is filled."""
    logits, K = bands.logits, bands.logits.shape[1]
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    hits = torch.zeros((), dtype=torch.int64, device=logits.device)
    gradient = None if shares is None else torch.zeros_like(logits, dtype=bands.dtype)
    of_classes = torch.ones(K, dtype=bands.dtype, device=logits.device)
    if class_weights is not None:
        of_classes = class_weights.to(bands.dtype)
    for rows in bands:
        scores, truth, valid = bands.scores(rows), bands.truth[:, rows], bands.valid[:, rows]
        largest, best = scores.max(1, keepdim=True)
        hits += ((best[:, 0] == truth) & valid).sum()
        scores -= largest
        at_label = scores.gather(1, truth[:, None])[:, 0]
        away = (scores * of_classes[:, None, None]).sum(1) if smoothing else None
        powers = scores.exp_()
        sums = powers.sum(1)
        weight = (1.0 - smoothing) * of_classes[truth] * valid
        loss = weight * (sums.log() - at_label)
        if away is not None:
            loss += smoothing / K * (of_classes.sum() * sums.log() - away) * valid
        total += loss.sum(dtype=torch.float64)
        if losses is not None:
            losses[:, rows] = loss
        if gradient is not None and shares is not None:
            share = shares[:, rows] if shares.ndim else shares
            every = smoothing / K * share * valid
            slopes = powers.mul_(((share * weight + every * of_classes.sum()) / sums)[:, None])
            slopes.scatter_(1, truth[:, None], slopes.gather(1, truth[:, None]) - (share * weight)[:, None])
            if smoothing:
                slopes -= every[:, None] * of_classes[:, None, None]
            bands.add(gradient, rows, slopes)
    return _Found(total, hits, gradient)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    averaging: str,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Serve ``upsample_cross_entropy``."""
    bands = Bands(logits, labels, (height, width), align_corners, ignore_index)
    counted = bands.valid.sum()
    divisor = counted.double()
    if averaging == "all":
        divisor = torch.full_like(divisor, labels.numel())
    elif averaging == "valid" and class_weights is not None:
        divisor = (class_weights[bands.truth] * bands.valid).sum(dtype=torch.float64)
    share = torch.where(divisor > 0, 1.0 / divisor, 0.0)
    shares = share.to(bands.dtype) if with_gradient else None
    found = _sweep(bands, class_weights=class_weights, smoothing=label_smoothing, shares=shares)
    gradient = logits.new_empty(0)
    if found.gradient is not None:
        gradient = torch.empty_like(logits, dtype=kept_dtype(logits)).copy_(found.gradient)
    return (found.total * share).to(bands.dtype), torch.stack((found.hits, counted)), gradient


def loss_map(
    logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Serve ``upsample_cross_entropy_map``."""
    bands = Bands(logits, labels, (height, width), align_corners, ignore_index)
    losses = torch.empty(labels.shape, dtype=bands.dtype, device=logits.device)
    found = _sweep(bands, losses=losses)
    return losses, torch.stack((found.hits, bands.valid.sum()))


def loss_map_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> Tensor:
    """Serve ``upsample_cross_entropy_map_backward``."""
    bands = Bands(logits, labels, (height, width), align_corners, ignore_index)
    gradient = _sweep(bands, shares=grad.to(bands.dtype)).gradient
    assert gradient is not None
    return torch.empty_like(logits).copy_(gradient)


def _probabilities(bands: Bands, rows: slice) -> tuple[Tensor, Tensor]:
    """Return the softmax [B, K, n, W] of some rows, 0 where the label is ignored, and how many pixels are right."""
    scores, truth, valid = bands.scores(rows), bands.truth[:, rows], bands.valid[:, rows]
    largest, best = scores.max(1, keepdim=True)
    powers = scores.sub_(largest).exp_()
    return powers.mul_((valid / powers.sum(1))[:, None]), ((best[:, 0] == truth) & valid).sum()


def _where_labelled(bands: Bands, rows: slice) -> Tensor:
    """Return which class [B, K, n, W] is each pixel's label."""
    classes = torch.arange(bands.logits.shape[1], device=bands.logits.device)
    return bands.truth[:, None, rows] == classes[:, None, None]


def class_sums(
    logits: Tensor,
    labels: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    exponent: int,
) -> tuple[Tensor, Tensor]:
    """Serve ``upsample_class_sums``."""
    bands = Bands(logits, labels, (height, width), align_corners, ignore_index)
    sums = torch.zeros(2, logits.shape[1], dtype=torch.float64, device=logits.device)
    hits = torch.zeros((), dtype=torch.int64, device=logits.device)
    for rows in bands:
        p, right = _probabilities(bands, rows)
        hits += right
        sums[0] += torch.where(_where_labelled(bands, rows), p, 0.0).sum((0, 2, 3))
        sums[1] += p.pow_(exponent).sum((0, 2, 3))
    return sums.to(bands.dtype), torch.stack((hits, bands.valid.sum()))


def class_sums_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    exponent: int,
) -> Tensor:
    """Serve ``upsample_class_sums_backward``; with q the derivative by p, that by the logits is p (q - sum of p q)."""
    bands = Bands(logits, labels, (height, width), align_corners, ignore_index)
    gradient = torch.zeros_like(logits, dtype=bands.dtype)
    here, everywhere = grad.to(bands.dtype)[:, None, :, None, None]
    for rows in bands:
        p, _ = _probabilities(bands, rows)
        slopes = p.pow(exponent).mul_(exponent * everywhere)  # p q
        slopes += torch.where(_where_labelled(bands, rows), here, 0.0).mul_(p)
        bands.add(gradient, rows, slopes.sub_(p.mul_(slopes.sum(1, keepdim=True))))
    return torch.empty_like(logits).copy_(gradient)
