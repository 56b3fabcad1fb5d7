"""Sums over pixels of class probabilities, from low-resolution logits, in Triton; and their gradient.

Programs walk along the cells of a row of low-resolution pixels as in upsample_cross_entropy.py. Forward: each adds up
its pixels' probabilities, a class to a lane, and writes two vectors; they are summed in float64. Backward: with q_k the
derivative by p_k, which the sums' gradients and the label give, the slope of the score of class k is p_k (q_k - sum_j
p_j q_j); it goes to the corners of the cell by turns, without atomics, so two runs give the same bits.
Bound by arithmetic and the exponential unit. Design: docs/design/0007-upsample-cross-entropy.md.
UNMEASURED: no GPU has run this kernel yet.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .upsample_cross_entropy import _add_row, axis_tables, launch_of, stretch_of

FORWARD_REGISTERS = 144
"""Said aloud: left to itself the assembler (12.8, sm_90) aims for 128 and spills 24 bytes; so it takes 128 and none."""


@triton.jit(
    do_not_specialize=[
        "h", "w", "H", "W", "ignore_index", "row_parity", "stretch_parity", "rows_by_turns", "stretches_by_turns",
        "stretches",
    ]
)  # fmt: skip
def _class_cells(
    logits,  # [B, h, w, K]
    labels,  # [B, H, W]
    first_y,  # int32 [h + 1]: first pixel row whose low row is this one or later
    first_x,  # int32 [w + 1]
    weight_y,  # float32 [H]: share of the second low row
    weight_x,  # float32 [W]
    slopes,  # float32 [2, K]: derivatives by the sums where the class is, and everywhere (times the exponent)
    sums,  # float32 [B, h, stretches, 2, K]
    hits,  # int32 [B, h, stretches]: pixels that are right
    gradient,  # float32 [B, h, w, K], zeros
    h,
    w,
    H,
    W,
    K,
    ignore_index,
    row_parity,
    stretch_parity,
    rows_by_turns,
    stretches_by_turns,
    stretches,
    STRETCH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SQUARED: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    TURNS: tl.constexpr = 2 if GRADIENT else 1
    program = tl.program_id(0)
    stretch = (program % stretches_by_turns) * TURNS + stretch_parity
    row = (program // stretches_by_turns) % rows_by_turns * TURNS + row_parity
    picture = (program // stretches_by_turns // rows_by_turns).to(tl.int64)
    lanes = tl.arange(0, BLOCK_K)
    inside = lanes < K
    is_last_row = row == h - 1
    row_low = picture * h + row
    row_high = tl.where(is_last_row, row_low, row_low + 1)
    y_begin, y_end = tl.load(first_y + row), tl.minimum(tl.load(first_y + row + 1), H)
    begin, end = stretch * STRETCH, tl.minimum(stretch * STRETCH + STRETCH, w)
    right_count = tl.zeros((), tl.int32)
    of_here = tl.zeros([BLOCK_K], tl.float32)
    of_all = tl.zeros([BLOCK_K], tl.float32)
    if GRADIENT:
        of_here = tl.load(slopes + lanes, mask=inside, other=0.0)
        of_all = tl.load(slopes + K + lanes, mask=inside, other=0.0)
    here = tl.zeros([BLOCK_K], tl.float32)
    everywhere = tl.zeros([BLOCK_K], tl.float32)
    b = tl.load(logits + (row_low * w + begin) * K + lanes, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(logits + (row_high * w + begin) * K + lanes, mask=inside, other=0.0).to(tl.float32)
    left_low = tl.zeros([BLOCK_K], tl.float32)
    left_high = tl.zeros([BLOCK_K], tl.float32)
    for column in range(begin, end):
        a, c = b, d
        following = tl.minimum(column + 1, w - 1)
        b = tl.load(logits + (row_low * w + following) * K + lanes, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(logits + (row_high * w + following) * K + lanes, mask=inside, other=0.0).to(tl.float32)
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
                label = tl.load(labels + (picture * H + y) * W + x).to(tl.int64)
                if label != ignore_index:
                    of_high = tl.load(weight_y + y)
                    known = tl.where(inside, top + of_high * step, float("-inf"))
                    largest = tl.max(known, 0)
                    power = tl.math.exp2((known - largest) * 1.4426950408889634)
                    p = power * (1.0 / tl.sum(power, 0))
                    is_label = lanes == label.to(tl.int32)
                    if GRADIENT:
                        of_p = tl.where(is_label, of_here, 0.0)
                        if SQUARED:
                            of_p += of_all * p
                        else:
                            of_p += of_all
                        slope = p * (of_p - tl.sum(p * of_p, 0))
                        to_low += (1.0 - of_high) * slope
                        to_high += of_high * slope
                    else:
                        here += tl.where(is_label, p, 0.0)
                        if SQUARED:
                            everywhere += p * p
                        else:
                            everywhere += p
                        first = tl.min(tl.where(known == largest, lanes, BLOCK_K), 0)
                        right_count += (first == label).to(tl.int32)
            if GRADIENT:
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
    place = row_low * stretches + stretch
    if GRADIENT:
        if end < w:
            _add_row(gradient, row_low, row_high, end, w, K, left_low, left_high, is_last_row, lanes)
    else:
        tl.store(sums + place * 2 * K + lanes, here, mask=inside)
        tl.store(sums + place * 2 * K + K + lanes, everywhere, mask=inside)
        tl.store(hits + place, right_count)


def upsample_class_sums(
    logits: Tensor,
    labels: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    exponent: int,
) -> tuple[Tensor, Tensor]:
    """Return both sums of each class, [2, K], and the counts of right and counted pixels; exponent is 1 or 2."""
    B, K, h, w = logits.shape
    stretches = triton.cdiv(w, stretch_of(w))
    sums = torch.zeros((B, h, stretches, 2, K), dtype=torch.float32, device=logits.device)
    hits = torch.zeros((B, h, stretches), dtype=torch.int32, device=logits.device)
    one = torch.ones(1, dtype=torch.float32, device=logits.device)
    _run(logits, labels, (height, width), align_corners, ignore_index, exponent, (one, sums, hits, one), False)
    counted = (labels != ignore_index).sum()
    return sums.sum((0, 1, 2), dtype=torch.float64).float(), torch.stack((hits.sum(), counted))


def upsample_class_sums_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    ignore_index: int,
    exponent: int,
) -> Tensor:
    """Return the gradient of the logits, in their layout and type, from that of both sums, [2, K]."""
    B, K, h, w = logits.shape
    slopes = torch.stack((grad[0], grad[1] * exponent)).float()
    gradient = torch.zeros((B, h, w, K), dtype=torch.float32, device=logits.device)
    one = torch.ones(1, dtype=torch.int32, device=logits.device)
    outputs = slopes, gradient, one, gradient  # neither sums nor hits are written
    _run(logits, labels, (height, width), align_corners, ignore_index, exponent, outputs, True)
    return torch.empty_like(logits).copy_(gradient.permute(0, 3, 1, 2))


def _run(
    logits: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int,
    exponent: int,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    with_gradient: bool,
) -> None:
    """Launch all rows and stretches at once or, for the gradient, by turns: even and odd ones."""
    B, K, h, w = logits.shape
    packed, labels, stretch = logits.permute(0, 2, 3, 1).contiguous(), labels.contiguous(), stretch_of(w)
    stretches = triton.cdiv(w, stretch)
    first_y, weight_y = axis_tables(h, size[0], align_corners, logits.device)
    first_x, weight_x = axis_tables(w, size[1], align_corners, logits.device)
    step = 2 if with_gradient else 1
    for row in range(step):
        for first in range(step):
            rows, turns = triton.cdiv(h - row, step), triton.cdiv(stretches - first, step)
            if B * rows * turns == 0 or labels.numel() == 0:
                continue
            with torch.cuda.device_of(logits):
                _class_cells[(B * rows * turns,)](
                    packed, labels, first_y, first_x, weight_y, weight_x, *outputs,
                    h, w, labels.shape[1], labels.shape[2], K, ignore_index, row, first, rows, turns, stretches,
                    STRETCH=stretch, SQUARED=exponent == 2, GRADIENT=with_gradient, **options_of(K, with_gradient),
                )  # fmt: skip


def options_of(num_classes: int, with_gradient: bool) -> dict[str, Any]:
    """Return block size and the compiler's options."""
    return launch_of(num_classes) | ({} if with_gradient else {"maxnreg": FORWARD_REGISTERS})
