"""Cross entropy between low-resolution logits and full-size labels in Triton: loss and gradient in one pass.

All pixels between four neighbouring low-resolution pixels (a cell) mix the same four vectors of logits. A program
walks along some cells of one row: it loads their corners, works through the pixels column by column, and hands the
gradient of a cell's right corners on to the next cell as that of its left ones. Classes lie across one warp's lanes.

Two programs of one launch never touch the same low-resolution pixel: rows of cells are taken by turns, even and odd,
and so are the stretches of cells in a row. Four launches follow one another and add to one float32 buffer without
atomics, so two runs give the same bits. Full-size memory is only what the caller asks for: one map of losses.
Bound by arithmetic and the exponential unit. Design: docs/design/0007-upsample-cross-entropy.md.
UNMEASURED: no GPU has run this kernel yet.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CLASSES_PER_WARP = 256  # eight to a lane, so that a cell's vectors stay in registers


@triton.jit
def _distances(low_pixel, lanes, K):
    """Return how far the classes of a low pixel lie below its largest, in base two, and far for those beyond K.

    They are not negative, and so are mixtures of them: no sum of powers overflows, and as whole numbers their bits are
    in the same order, of which the least is found by one instruction of a warp.
    """
    scores = tl.load(low_pixel + lanes, mask=lanes < K, other=float("-inf")).to(tl.float32)
    away = (tl.max(scores, 0) - scores) * 1.4426950408889634
    return tl.where(lanes < K, away, 1e30)  # no infinity, of which mixing would make a NaN


@triton.jit
def _nearest(away, lanes, label):
    """Return the least distance of a pixel, the label's (a huge one if it is no class), and whether the label's is it.

    Of equal distances the first class's counts: those from the label on are made one bit larger.
    """
    bits = away.to(tl.int32, bitcast=True) + (lanes >= label).to(tl.int32)
    least = tl.min(bits, 0)
    of_label = tl.min(tl.where(lanes == label, bits, 0x7F7FFFFF), 0)
    return least.to(tl.float32, bitcast=True), (of_label - 1).to(tl.float32, bitcast=True), least == of_label


@triton.jit
def _add_row(gradient, row_low, row_high, column, columns, K, to_low, to_high, is_last_row, lanes):
    """Add the gradients of two low pixels, one above the other; at the bottom border they are the same one."""
    inside = lanes < K
    at = gradient + (row_low * columns + column) * K + lanes
    both = tl.where(is_last_row, to_low + to_high, to_low)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + both, mask=inside)
    if not is_last_row:
        below = gradient + (row_high * columns + column) * K + lanes
        tl.store(below, tl.load(below, mask=inside, other=0.0) + to_high, mask=inside)


# A size of one or one that 16 divides would be compiled for on its own, and so would each parity: none of it pays.
@triton.jit(
    do_not_specialize=[
        "h", "w", "H", "W", "ignore_index", "row_parity", "stretch_parity", "rows_by_turns", "stretches_by_turns",
        "stretches",
    ]
)  # fmt: skip
def _cells(
    logits,  # [B, h, w, K]
    labels,  # [B, H, W]
    class_weights,  # float32 [K]
    first_y,  # int32 [h + 1]: first pixel row whose low row is this one or later
    first_x,  # int32 [w + 1]
    weight_y,  # float32 [H]: share of the second low row
    weight_x,  # float32 [W]
    pixel_gradients,  # float32 [B, H, W]
    scales,  # float32 [1]: what every gradient is multiplied by
    losses,  # float32 [B, H, W], zeros
    sums,  # float64 [B, h, stretches]: loss
    hits,  # int32 [B, h, stretches]: pixels that are right
    gradient,  # float32 [B, h, w, K], zeros
    h,
    w,
    H,
    W,
    K,
    ignore_index,
    smoothing,
    row_parity,
    stretch_parity,
    rows_by_turns,
    stretches_by_turns,
    stretches,
    STRETCH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CLASS_WEIGHTS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    PIXEL_GRADIENTS: tl.constexpr,
    LOSSES: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    program = tl.program_id(0)
    stretch = (program % stretches_by_turns) * 2 + stretch_parity
    row = (program // stretches_by_turns) % rows_by_turns * 2 + row_parity
    picture = (program // stretches_by_turns // rows_by_turns).to(tl.int64)
    lanes = tl.arange(0, BLOCK_K)
    inside = lanes < K
    is_last_row = row == h - 1
    row_low = picture * h + row
    row_high = tl.where(is_last_row, row_low, row_low + 1)
    y_begin, y_end = tl.load(first_y + row), tl.minimum(tl.load(first_y + row + 1), H)
    begin, end = stretch * STRETCH, tl.minimum(stretch * STRETCH + STRETCH, w)
    total = tl.zeros((), tl.float64)
    right_count = tl.zeros((), tl.int32)
    scale = tl.load(scales)
    class_weight = tl.zeros([BLOCK_K], tl.float32) + 1.0
    if CLASS_WEIGHTS:
        class_weight = tl.load(class_weights + lanes, mask=inside, other=0.0)
    class_weight = tl.where(inside, class_weight, 0.0)
    weight_sum = tl.sum(class_weight, 0)
    b = _distances(logits + (row_low * w + begin) * K, lanes, K)
    d = _distances(logits + (row_high * w + begin) * K, lanes, K)
    left_low = tl.zeros([BLOCK_K], tl.float32)
    left_high = tl.zeros([BLOCK_K], tl.float32)
    for column in range(begin, end):
        a, c = b, d
        following = tl.minimum(column + 1, w - 1)
        b = _distances(logits + (row_low * w + following) * K, lanes, K)
        d = _distances(logits + (row_high * w + following) * K, lanes, K)
        right_low = tl.zeros([BLOCK_K], tl.float32)
        right_high = tl.zeros([BLOCK_K], tl.float32)
        x_begin, x_end = tl.load(first_x + column), tl.minimum(tl.load(first_x + column + 1), W)
        for x in range(x_begin, x_end):
            of_right = tl.load(weight_x + x)
            top = a + of_right * (b - a)
            step = c + of_right * (d - c) - top
            to_low = tl.zeros([BLOCK_K], tl.float32)
            to_high = tl.zeros([BLOCK_K], tl.float32)
            for y in range(y_begin, y_end):
                pixel = (picture * H + y) * W + x
                label = tl.load(labels + pixel).to(tl.int64)
                if label != ignore_index:
                    of_high = tl.load(weight_y + y)
                    away = top + of_high * step
                    nearest, of_label, is_right = _nearest(away, lanes, label.to(tl.int32))
                    power = tl.math.exp2(nearest - away)
                    sum_of_powers = tl.sum(power, 0)
                    log_sum = tl.math.log2(sum_of_powers)
                    is_label = lanes == label.to(tl.int32)
                    below = (log_sum + (of_label - nearest)) * 0.6931471805599453
                    # A label that is no class, which whoever calls may let through, counts for nothing.
                    is_class = (label >= 0) & (label < K)
                    weight = is_class.to(tl.float32)
                    if CLASS_WEIGHTS:
                        weight = tl.load(class_weights + label, mask=is_class, other=0.0)
                    loss = (1.0 - smoothing) * weight * below
                    if SMOOTHING:
                        of_all = weight_sum * log_sum + tl.sum(class_weight * (away - nearest), 0)
                        loss += smoothing / K * of_all * 0.6931471805599453
                    total += loss.to(tl.float64)
                    right_count += is_right.to(tl.int32)
                    if LOSSES:
                        tl.store(losses + pixel, loss)
                    if GRADIENT:
                        share = scale
                        if PIXEL_GRADIENTS:
                            share = scale * tl.load(pixel_gradients + pixel)
                        of_powers = share * ((1.0 - smoothing) * weight + smoothing / K * weight_sum) / sum_of_powers
                        slope = power * of_powers - tl.where(is_label, share * (1.0 - smoothing) * weight, 0.0)
                        if SMOOTHING:
                            slope -= share * smoothing / K * class_weight
                        to_low += (1.0 - of_high) * slope
                        to_high += of_high * slope
            left_low += (1.0 - of_right) * to_low
            left_high += (1.0 - of_right) * to_high
            right_low += of_right * to_low
            right_high += of_right * to_high
        if GRADIENT:
            if column == w - 1:  # past the border both columns are the last one
                left_low += right_low
                left_high += right_high
            _add_row(gradient, row_low, row_high, column, w, K, left_low, left_high, is_last_row, lanes)
        left_low, left_high = right_low, right_high
    if GRADIENT:  # noqa: SIM102 - the outer one is decided when compiling
        if end < w:
            _add_row(gradient, row_low, row_high, end, w, K, left_low, left_high, is_last_row, lanes)
    place = row_low * stretches + stretch
    tl.store(sums + place, total)
    tl.store(hits + place, right_count)


def upsample_cross_entropy(
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
    """Return loss, the counts of right and counted pixels, and the gradient in the layout of the logits.

    Nothing waits for the device. Whoever calls has looked for labels that are no class.
    """
    counts = labels != ignore_index
    counted = counts.sum()
    divisor = counted.double()
    if averaging == "all":
        divisor = torch.full_like(divisor, labels.numel())
    elif averaging == "valid" and class_weights is not None:
        divisor = (class_weights[labels.long().where(counts, 0).clamp(0, len(class_weights) - 1)] * counts).sum(
            dtype=torch.float64
        )
    share = torch.where(divisor > 0, 1.0 / divisor, 0.0)
    total, hits, gradient = _run(
        logits, labels, (height, width), align_corners, ignore_index,
        class_weights=class_weights, smoothing=label_smoothing, scale=share.float().view(1),
        with_gradient=with_gradient,
    )  # fmt: skip
    return (total * share).float(), torch.stack((hits, counted)), gradient


def upsample_cross_entropy_map(
    logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pixel [B, H, W] and the counts of right and counted pixels."""
    counts = labels != ignore_index
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    _, hits, _ = _run(logits, labels, (height, width), align_corners, ignore_index, losses=losses)
    return losses, torch.stack((hits, counts.sum()))


def upsample_cross_entropy_map_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, height: int, width: int, align_corners: bool, ignore_index: int
) -> Tensor:
    """Return the gradient of the logits, in their layout and type."""
    _, _, gradient = _run(
        logits, labels, (height, width), align_corners, ignore_index,
        pixel_gradients=grad.contiguous(), with_gradient=True,
    )  # fmt: skip
    return gradient.to(logits.dtype)


def _run(
    logits: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    scale: Tensor | None = None,
    pixel_gradients: Tensor | None = None,
    losses: Tensor | None = None,
    with_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the four turns; return the sum of losses (float64), the right pixels and the gradient."""
    B, K, h, w = logits.shape
    device = logits.device
    packed = logits.permute(0, 2, 3, 1).contiguous()
    labels = labels.contiguous()
    stretch = stretch_of(w)
    stretches = triton.cdiv(w, stretch)
    first_y, weight_y = axis_tables(h, size[0], align_corners, device)
    first_x, weight_x = axis_tables(w, size[1], align_corners, device)
    sums = torch.zeros((B, h, stretches), dtype=torch.float64, device=device)
    hits = torch.zeros((B, h, stretches), dtype=torch.int32, device=device)
    gradient = torch.zeros((B, h, w, K) if with_gradient else (1,), dtype=torch.float32, device=device)
    one = torch.ones(1, dtype=torch.float32, device=device)
    weights = one if class_weights is None else class_weights.float().contiguous()
    for row_parity in range(2):
        for stretch_parity in range(2):
            rows, turns = (h + 1 - row_parity) // 2, (stretches + 1 - stretch_parity) // 2
            if B * rows * turns == 0 or labels.numel() == 0:
                continue
            with torch.cuda.device_of(logits):
                _cells[(B * rows * turns,)](
                    packed, labels, weights, first_y, first_x, weight_y, weight_x,
                    one if pixel_gradients is None else pixel_gradients, one if scale is None else scale,
                    one if losses is None else losses, sums, hits, gradient,
                    h, w, labels.shape[1], labels.shape[2], K, ignore_index, smoothing,
                    row_parity, stretch_parity, rows, turns, stretches, STRETCH=stretch,
                    CLASS_WEIGHTS=class_weights is not None, SMOOTHING=smoothing > 0.0,
                    PIXEL_GRADIENTS=pixel_gradients is not None, LOSSES=losses is not None, GRADIENT=with_gradient,
                    **launch_of(K),
                )  # fmt: skip
    result = logits.new_empty(0)
    if with_gradient:
        kept = torch.float32 if logits.dtype is torch.float16 else logits.dtype
        result = torch.empty_like(logits, dtype=kept).copy_(gradient.permute(0, 3, 1, 2))
    return sums.sum(), hits.sum(), result


def stretch_of(low_width: int) -> int:
    """Return the cells of a stretch: short ones where there are few, for there to be programs enough."""
    return 4 if low_width <= 64 else 16


def launch_of(num_classes: int) -> dict[str, Any]:
    """Return block size and warps."""
    block = max(triton.next_power_of_2(num_classes), 32)
    return {"BLOCK_K": block, "num_warps": max(block // CLASSES_PER_WARP, 1), "enable_fp_fusion": True}


@functools.lru_cache(maxsize=64)
def axis_tables(low: int, size: int, align_corners: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, along one axis, each low pixel's first output pixel (and the end), and each output pixel's weight.

    The rule of torch.nn.functional.interpolate for float32, as in csrc/bilinear.h.
    """
    at = torch.arange(size, dtype=torch.float32)
    if align_corners:
        ratio = torch.tensor(float(low - 1)) / torch.tensor(float(size - 1)) if size > 1 else torch.tensor(0.0)
        position = ratio * at
    else:
        position = (torch.tensor(float(low)) / torch.tensor(float(size)) * (at + 0.5) - 0.5).clamp_min(0.0)
    source = position.to(torch.int64).clamp_max(low - 1)
    first = torch.searchsorted(source, torch.arange(low + 1))
    return first.to(device, torch.int32), (position - source).clamp_max(1.0).to(device)
