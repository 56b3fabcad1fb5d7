"""Sum of a residual stream and a branch with its layer norm. Unmeasured: never run on a GPU.

A program takes a row: it is read once, its statistics are taken in registers, sum and norm are written. Bound by
memory.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_layer_norm(
    x,  # [rows, D]
    branch,  # [rows, D]
    weight,  # [D]
    bias,  # [D]
    total,  # [rows, D]
    normed,  # [rows, D]
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


def add_layer_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum and its norm."""
    x, branch = x.contiguous(), branch.contiguous()
    D = x.shape[-1]
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype), device=x.device)
    normed = torch.empty_like(branch)
    if rows := x.shape[:-1].numel() if D else 0:
        with torch.cuda.device_of(x):
            _add_layer_norm[(rows,)](
                *(x, branch, weight.contiguous(), bias.contiguous(), total, normed, eps),
                **launch_of(D),
            )
    return total, normed


def launch_of(width: int) -> dict[str, int | bool]:
    """Return the compile-time arguments: a row in registers, 16 bytes per thread and load where it is long enough."""
    whole = triton.next_power_of_2(width)
    warps = min(max(whole // 256, 1), 16)
    return {"D": width, "WIDTH": whole, "num_warps": warps, "enable_fp_fusion": True}
