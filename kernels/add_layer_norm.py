"""Sum of a residual stream and a branch with its layer norm, forward and backward. Unmeasured: never run on a GPU.

A program takes a row: it is read once, its statistics are taken in registers, sum and norm are written. Bound by
memory. The backward's gradients of weight and bias are partial sums of ROWS rows each, added up by a second, short
reduction: no atomics, so two runs give the same bits.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS = 256
"""Programs of the backward, each with a partial sum: about two per multiprocessor of an H100."""


@triton.jit
def _add_layer_norm_forward(
    x,  # [rows, D]
    branch,  # [rows, D]
    weight,  # [D]
    bias,  # [D]
    total,  # [rows, D]
    normed,  # [rows, D]
    means,  # [rows]
    rstds,  # [rows]
    eps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    inside = lanes < D
    at = row * D + lanes
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / D
    centred = tl.where(inside, values - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    gain = tl.load(weight + lanes, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + at, values, mask=inside)
    tl.store(normed + at, centred * rstd * gain + shift, mask=inside)
    tl.store(means + row, mean)
    tl.store(rstds + row, rstd)


@triton.jit(do_not_specialize=["rows", "each"])  # any number of rows is one kernel
def _add_layer_norm_backward(
    d_total,  # [rows, D]
    d_normed,  # [rows, D]
    total,  # [rows, D]
    weight,  # [D]
    means,  # [rows]
    rstds,  # [rows]
    d_sum,  # [rows, D]
    d_weights,  # [programs, D] float32
    d_biases,  # [programs, D] float32
    rows,
    each,  # rows of a program
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    inside = lanes < D
    gain = tl.load(weight + lanes, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros([WIDTH], tl.float32)
    of_bias = tl.zeros([WIDTH], tl.float32)
    for row in range(program * each, tl.minimum(program * each + each, rows)):
        at = row * D + lanes
        rstd = tl.load(rstds + row)
        y = (tl.load(total + at, mask=inside, other=0.0).to(tl.float32) - tl.load(means + row)) * rstd
        y = tl.where(inside, y, 0.0)
        d = tl.load(d_normed + at, mask=inside, other=0.0).to(tl.float32)
        g = d * gain
        inner = g - tl.sum(g, 0) / D - y * (tl.sum(g * y, 0) / D)
        straight = tl.load(d_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_sum + at, straight + rstd * inner, mask=inside)
        of_weight += d * y
        of_bias += d
    tl.store(d_weights + program * D + lanes, of_weight, mask=inside)
    tl.store(d_biases + program * D + lanes, of_bias, mask=inside)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum, its norm, and mean and inverse spread of each row."""
    x, branch = x.contiguous(), branch.contiguous()
    D = x.shape[-1]
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype), device=x.device)
    normed = torch.empty_like(branch)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if mean.numel():
        with torch.cuda.device_of(x):
            _add_layer_norm_forward[(mean.numel(),)](
                *(x, branch, weight.contiguous(), bias.contiguous(), total, normed, mean, rstd, eps),
                **launch_of(D),
            )
    return total, normed, mean, rstd


def add_layer_norm_backward(
    d_total: Tensor, d_normed: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum, which is that of both addends, of the weight and of the bias."""
    D, rows = total.shape[-1], mean.numel()
    d_sum = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    each = max(-(-rows // PARTIALS), 1)
    programs = -(-rows // each)
    partial = torch.empty((2, programs, D), dtype=torch.float32, device=total.device)
    if rows:
        given = (tensor.contiguous() for tensor in (d_total, d_normed, total, weight, mean, rstd))
        with torch.cuda.device_of(total):
            _add_layer_norm_backward[(programs,)](*given, d_sum, partial[0], partial[1], rows, each, **launch_of(D))
    d_weight, d_bias = partial.sum(1).to(weight.dtype)
    return d_sum, d_weight.clone(), d_bias.clone()


def launch_of(width: int) -> dict[str, int | bool]:
    """Return the compile-time arguments: a row in registers, 16 bytes per thread and load where it is long enough."""
    whole = triton.next_power_of_2(width)
    warps = min(max(whole // 256, 1), 16)
    return {"D": width, "WIDTH": whole, "num_warps": warps, "enable_fp_fusion": True}
