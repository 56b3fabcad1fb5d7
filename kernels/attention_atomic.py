"""The backward of attention in one pass over the scores, with atomic additions to dQ: not bit-reproducible.

The split backward of attention.py makes seven products where five are needed, because dQ is summed over keys and dK and
dV over queries. Here one program per block of keys and head makes all five and adds its share of dQ to a float32
scratch with atomics; the order of these additions, and so the last bits of dQ, differ from run to run. dK and dV are
reproducible. A last small kernel scales and rounds dQ into the packed gradient.
Design: docs/design/0004-attention.md. UNMEASURED: no GPU has run these kernels yet; taken by name only.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import (
    DELTA_ROWS,
    LOG2E,
    _attention_backward_delta,
    _load,
    _store,
    constants,
    launch_of,
    options,
)


@triton.jit
def _attention_backward_atomic(
    grad,  # [B, N, H * E]
    qkv,  # [B, N, 3, H, E]
    lse,  # float32 [B, H, N], base two
    delta,  # float32 [B, H, N]
    dqkv,  # [B, N, 3, H, E]; K and V of it are written
    dq,  # float32 [B, N, H, E], zero; without the factor of the scores
    N,
    scale,  # of the scores, times log2(e)
    plain_scale,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK_N: tl.constexpr,
):
    ROW: tl.constexpr = 3 * H * E
    blocks = tl.cdiv(N, BLOCK_N)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    picture, h = (head // H).to(tl.int64), head % H
    offset = picture * N * ROW + h * E
    q_base, grad_base = qkv + offset, grad + picture * N * (H * E) + h * E
    dq_base = dq + picture * N * (H * E) + h * E
    lse_base, delta_base = lse + (picture * H + h) * N, delta + (picture * H + h) * N
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, WIDTH)
    k = _load(q_base + H * E, keys, N, E, WIDTH, ROW, MASK_N)
    v = _load(q_base + 2 * H * E, keys, N, E, WIDTH, ROW, MASK_N)
    dk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for start in tl.range(0, N, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q = _load(q_base, queries, N, E, WIDTH, ROW, MASK_N)
        g = _load(grad_base, queries, N, E, WIDTH, H * E, MASK_N)
        if MASK_N:  # exp2(score - inf) is the zero that a query beyond N adds
            exponent = tl.load(lse_base + queries, mask=queries < N, other=float("inf"))
            d = tl.load(delta_base + queries, mask=queries < N, other=0.0)
        else:
            exponent = tl.load(lse_base + queries)
            d = tl.load(delta_base + queries)
        power = tl.dot(k, tl.trans(q), input_precision="ieee") * scale - exponent[None, :]
        if MASK_N:  # a key beyond N has score zero; unless bounded, exp2(0 - lse) may be infinite, and inf * 0 is NaN
            power = tl.minimum(power, 0.0)
        p = tl.math.exp2(power)
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision="ieee")
        ds = (p * (tl.dot(v, tl.trans(g), input_precision="ieee") - d[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision="ieee")
        share = tl.dot(tl.trans(ds), k, input_precision="ieee")
        inside = (queries[:, None] < N) & (columns[None, :] < E)
        tl.atomic_add(dq_base + queries[:, None] * (H * E) + columns[None, :], share, mask=inside, sem="relaxed")
    _store(dqkv + offset + H * E, dk * plain_scale, keys, N, E, WIDTH, ROW, MASK_N)
    _store(dqkv + offset + 2 * H * E, dv, keys, N, E, WIDTH, ROW, MASK_N)


@triton.jit(do_not_specialize=["rows_in_all"])
def _attention_backward_round(
    dq,  # float32 [B, N, H, E]
    dqkv,  # [B, N, 3, H, E]; Q of it is written
    rows_in_all,  # B * N * H
    plain_scale,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    value = _load(dq, rows, rows_in_all, E, WIDTH, E, True) * plain_scale
    packed = rows // H * 3 * H + rows % H  # row of [B, N, 3, H]
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < rows_in_all) & (columns[None, :] < E)
    tl.store(dqkv + packed[:, None] * E + columns[None, :], value.to(dqkv.dtype.element_ty), mask=inside)


def attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float, card: str | None = None
) -> Tensor:
    """Return the gradient of qkv, packed like it; every argument is contiguous. Runs differ in the last bits of dQ."""
    B, N, _, H, E = qkv.shape
    delta = torch.empty(lse.shape, dtype=torch.float32, device=qkv.device)
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    dq = torch.zeros((B, N, H, E), dtype=torch.float32, device=qkv.device)
    rows, launch = B * N * H, launch_of("atomic", qkv, card)
    small = {"H": H, "E": E, "WIDTH": triton.next_power_of_2(E), "ROWS": DELTA_ROWS, "num_warps": 4}
    with torch.cuda.device_of(qkv):
        _attention_backward_delta[(triton.cdiv(rows, DELTA_ROWS),)](grad, out, delta, rows, N, **small)
        _attention_backward_atomic[(triton.cdiv(N, launch.block_n) * B * H,)](
            grad, qkv, lse, delta, dqkv, dq, N, scale * LOG2E, scale, **constants(launch, N, H, E), **options(launch)
        )
        _attention_backward_round[(triton.cdiv(rows, DELTA_ROWS),)](dq, dqkv, rows, scale, **small)
    return dqkv
