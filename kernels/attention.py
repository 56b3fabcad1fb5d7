"""Softmax attention in Triton: forward and a split, deterministic backward, straight from packed QKV.

Computes out = softmax(scale * q k^T) v per picture b and head h. ``qkv`` [B, N, 3, H, E] is read as the projection's
matrix product leaves it, ``out`` [B, N, H * E] is written as the next one wants it, and the gradient lands in one
packed buffer like ``qkv``; nothing is permuted or copied.

Work: one program per block of queries (forward, dQ) or of keys (dK and dV) and head, blocks of one head adjacent so
that its K and V stay in L2. Bound by the matrix units and, at head width 64, equally by the exponential unit.
Design and what compilation shows: docs/design/0004-attention.md. UNMEASURED: no GPU has run these kernels yet.

The exponentials are of base two: exp(scale * s) = exp2(scale * log2(e) * s), and the saved log-sum-exp ``lse``
[B, H, N] is of base two as well. Sums and products accumulate in float32.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = math.log2(math.e)
MAX_WIDTH = 128


class Launch(NamedTuple):
    """How a kernel is launched: rows and columns of a block of scores, warps, stages of the load pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (kernel, largest head width, "half" | "single", card class) -> launch. "sm_80" serves every card but Hopper and
# datacentre Blackwell and stays below 99 KiB of shared memory, which the smallest of them has.
# Chosen without a GPU by what compiles without spilling and leaves three or four warpgroups to a multiprocessor, since
# only another warpgroup's softmax overlaps the matrix products of one; not by speed.
# Kept out: 128x128 and 256x128 forward blocks of 16 bits (ptxas serialises their wgmma).
LAUNCHES: dict[tuple[str, int, str, str], Launch] = {
    ("forward", 64, "half", "sm_80"): Launch(64, 64, 4, 3),
    ("forward", 128, "half", "sm_80"): Launch(64, 64, 4, 2),
    ("dkdv", 64, "half", "sm_80"): Launch(32, 64, 4, 2),
    ("dkdv", 128, "half", "sm_80"): Launch(64, 64, 8, 2),
    ("dq", 64, "half", "sm_80"): Launch(64, 64, 4, 2),
    ("dq", 128, "half", "sm_80"): Launch(64, 64, 8, 2),
    ("forward", 64, "half", "sm_90"): Launch(128, 64, 8, 3),
    ("forward", 128, "half", "sm_90"): Launch(128, 64, 8, 2),
    ("dkdv", 64, "half", "sm_90"): Launch(64, 64, 4, 2),
    ("dkdv", 128, "half", "sm_90"): Launch(64, 64, 8, 2),
    ("dq", 64, "half", "sm_90"): Launch(128, 64, 8, 3),
    ("dq", 128, "half", "sm_90"): Launch(64, 64, 4, 2),
    ("forward", 64, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("forward", 128, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("dkdv", 64, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("dkdv", 128, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("dq", 64, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("dq", 128, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("forward", 64, "single", "sm_90"): Launch(32, 32, 8, 1),
    ("forward", 128, "single", "sm_90"): Launch(32, 16, 8, 1),
    ("dkdv", 64, "single", "sm_90"): Launch(32, 32, 8, 1),
    ("dkdv", 128, "single", "sm_90"): Launch(16, 32, 8, 1),
    ("dq", 64, "single", "sm_90"): Launch(32, 32, 8, 1),
    ("dq", 128, "single", "sm_90"): Launch(32, 32, 8, 1),
    ("atomic", 64, "half", "sm_80"): Launch(32, 64, 8, 2),
    ("atomic", 128, "half", "sm_80"): Launch(32, 64, 8, 1),
    ("atomic", 64, "half", "sm_90"): Launch(64, 128, 8, 2),
    ("atomic", 128, "half", "sm_90"): Launch(64, 64, 8, 2),
    ("atomic", 64, "single", "sm_80"): Launch(32, 32, 8, 1),
    ("atomic", 128, "single", "sm_80"): Launch(16, 32, 8, 1),
    ("atomic", 64, "single", "sm_90"): Launch(32, 32, 8, 1),
    ("atomic", 128, "single", "sm_90"): Launch(16, 32, 8, 1),
}
DELTA_ROWS = 64


@triton.jit
def _load(base, rows, N, E: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, MASKED: tl.constexpr):
    """Return [rows, WIDTH] of a tensor whose rows are STRIDE apart, zero beyond row N and column E."""
    columns = tl.arange(0, WIDTH)
    at = base + rows[:, None] * STRIDE + columns[None, :]
    # A zero, not what lies there: 0 * NaN would reach the sums through masked probabilities.
    if MASKED and WIDTH != E:
        tile = tl.load(at, mask=(rows[:, None] < N) & (columns[None, :] < E), other=0.0)
    elif MASKED:
        tile = tl.load(at, mask=rows[:, None] < N, other=0.0)
    elif WIDTH != E:
        tile = tl.load(at, mask=columns[None, :] < E, other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def _store(base, tile, rows, N, E: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, MASKED: tl.constexpr):
    """Write [rows, WIDTH] in the type of ``base``, nothing beyond row N and column E."""
    columns = tl.arange(0, WIDTH)
    at = base + rows[:, None] * STRIDE + columns[None, :]
    value = tile.to(base.dtype.element_ty)
    if MASKED and WIDTH != E:
        tl.store(at, value, mask=(rows[:, None] < N) & (columns[None, :] < E))
    elif MASKED:
        tl.store(at, value, mask=rows[:, None] < N)
    elif WIDTH != E:
        tl.store(at, value, mask=columns[None, :] < E)
    else:
        tl.store(at, value)


@triton.jit
def _attention_forward(
    qkv,  # [B, N, 3, H, E]
    out,  # [B, N, H * E]
    lse,  # float32 [B, H, N], base two
    N,
    scale,  # of the scores, times log2(e)
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,  # E, or the next power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK_N: tl.constexpr,  # N is no multiple of both blocks
):
    ROW: tl.constexpr = 3 * H * E
    blocks = tl.cdiv(N, BLOCK_M)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    picture, h = (head // H).to(tl.int64), head % H  # 64 bits: B * N * 3 * H * E may pass 2^31
    q_base = qkv + picture * N * ROW + h * E
    k_base, v_base = q_base + H * E, q_base + 2 * H * E
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load(q_base, queries, N, E, WIDTH, ROW, MASK_N)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load(k_base, keys, N, E, WIDTH, ROW, MASK_N)
        v = _load(v_base, keys, N, E, WIDTH, ROW, MASK_N)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASK_N:  # noqa: SIM102 - the outer one is decided when compiling
            if start + BLOCK_N > N:  # one branch for the block: a select per score would cost every iteration
                scores = tl.where(keys[None, :] < N, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.math.exp2(scores * scale - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    acc = acc * (1.0 / total)[:, None]  # one division per row, not per value
    _store(out + picture * N * (H * E) + h * E, acc, queries, N, E, WIDTH, H * E, MASK_N)
    at = lse + (picture * H + h) * N + queries
    if MASK_N:
        tl.store(at, top + tl.math.log2(total), mask=queries < N)
    else:
        tl.store(at, top + tl.math.log2(total))


@triton.jit(do_not_specialize=["rows_in_all", "N"])
def _attention_backward_delta(
    grad,  # [B, N, H * E]
    out,  # [B, N, H * E]
    delta,  # float32 [B, H, N]: sum over E of grad * out
    rows_in_all,  # B * N * H
    N,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = first + tl.arange(0, ROWS)
    g = _load(grad, rows, rows_in_all, E, WIDTH, E, True).to(tl.float32)
    o = _load(out, rows, rows_in_all, E, WIDTH, E, True).to(tl.float32)
    token, h = rows // H, rows % H
    tl.store(delta + (token // N * H + h) * N + token % N, tl.sum(g * o, 1), mask=rows < rows_in_all)


@triton.jit
def _attention_backward_dkdv(
    grad,  # [B, N, H * E]
    qkv,  # [B, N, 3, H, E]
    lse,  # float32 [B, H, N], base two
    delta,  # float32 [B, H, N]
    dqkv,  # [B, N, 3, H, E]; K and V of it are written
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
    lse_base, delta_base = lse + (picture * H + h) * N, delta + (picture * H + h) * N
    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = _load(q_base + H * E, keys, N, E, WIDTH, ROW, MASK_N)
    v = _load(q_base + 2 * H * E, keys, N, E, WIDTH, ROW, MASK_N)
    dk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    # Scores stand transposed, [keys, queries]: the probabilities are then left operands, which stay in registers.
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
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        p = tl.math.exp2(scores * scale - exponent[None, :])
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(g), input_precision="ieee")
        ds = p * (dp - d[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    _store(dqkv + offset + H * E, dk * plain_scale, keys, N, E, WIDTH, ROW, MASK_N)
    _store(dqkv + offset + 2 * H * E, dv, keys, N, E, WIDTH, ROW, MASK_N)


@triton.jit
def _attention_backward_dq(
    grad,  # [B, N, H * E]
    qkv,  # [B, N, 3, H, E]
    lse,  # float32 [B, H, N], base two
    delta,  # float32 [B, H, N]
    dqkv,  # [B, N, 3, H, E]; Q of it is written
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
    blocks = tl.cdiv(N, BLOCK_M)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    picture, h = (head // H).to(tl.int64), head % H
    offset = picture * N * ROW + h * E
    q_base = qkv + offset
    k_base, v_base = q_base + H * E, q_base + 2 * H * E
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load(q_base, queries, N, E, WIDTH, ROW, MASK_N)
    g = _load(grad + picture * N * (H * E) + h * E, queries, N, E, WIDTH, H * E, MASK_N)
    at = (picture * H + h) * N + queries
    if MASK_N:
        exponent = tl.load(lse + at, mask=queries < N, other=float("inf"))
        d = tl.load(delta + at, mask=queries < N, other=0.0)
    else:
        exponent = tl.load(lse + at)
        d = tl.load(delta + at)
    dq = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load(k_base, keys, N, E, WIDTH, ROW, MASK_N)
        v = _load(v_base, keys, N, E, WIDTH, ROW, MASK_N)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        power = scores * scale - exponent[:, None]
        if MASK_N:  # a key beyond N has score zero; unless bounded, exp2(0 - lse) may be infinite, and 0 * inf is NaN
            power = tl.minimum(power, 0.0)
        p = tl.math.exp2(power)
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        ds = p * (dp - d[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dqkv + offset, dq * plain_scale, queries, N, E, WIDTH, ROW, MASK_N)


def attention(qkv: Tensor, scale: float, card: str | None = None) -> tuple[Tensor, Tensor]:
    """Return out [B, N, H * E] and lse [B, H, N] of a contiguous qkv [B, N, 3, H, E]; ``card`` forces a card class."""
    B, N, _, H, E = qkv.shape
    out = torch.empty((B, N, H * E), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((B, H, N), dtype=torch.float32, device=qkv.device)
    launch = launch_of("forward", qkv, card)
    with torch.cuda.device_of(qkv):
        _attention_forward[(triton.cdiv(N, launch.block_m) * B * H,)](
            qkv, out, lse, N, scale * LOG2E, **constants(launch, N, H, E), **options(launch)
        )
    return out, lse


def attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float, card: str | None = None
) -> Tensor:
    """Return the gradient of qkv, packed like it; every argument is contiguous. Two runs give the same bits."""
    B, N, _, H, E = qkv.shape
    delta = torch.empty(lse.shape, dtype=torch.float32, device=qkv.device)
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    rows = B * N * H
    with torch.cuda.device_of(qkv):
        _attention_backward_delta[(triton.cdiv(rows, DELTA_ROWS),)](
            grad, out, delta, rows, N, H=H, E=E, WIDTH=triton.next_power_of_2(E), ROWS=DELTA_ROWS, num_warps=4
        )
        for name, kernel in (("dkdv", _attention_backward_dkdv), ("dq", _attention_backward_dq)):
            launch = launch_of(name, qkv, card)
            block = launch.block_n if name == "dkdv" else launch.block_m
            kernel[(triton.cdiv(N, block) * B * H,)](
                grad, qkv, lse, delta, dqkv, N, scale * LOG2E, scale, **constants(launch, N, H, E), **options(launch)
            )
    return dqkv


def launch_of(kernel: str, qkv: Tensor, card: str | None = None) -> Launch:
    """Return the entry of the launch table for a packed qkv."""
    card = card or (card_class(qkv.device.index) if qkv.is_cuda else "sm_80")
    kind = "single" if qkv.dtype is torch.float32 else "half"
    return LAUNCHES[kernel, 64 if qkv.shape[-1] <= 64 else MAX_WIDTH, kind, card]


def constants(launch: Launch, N: int, H: int, E: int) -> dict[str, Any]:
    """Return the compile-time arguments of a kernel."""
    masked = N % launch.block_m != 0 or N % launch.block_n != 0
    blocks = {"BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "MASK_N": masked}
    return {"H": H, "E": E, "WIDTH": triton.next_power_of_2(E), **blocks}


def options(launch: Launch) -> dict[str, Any]:
    """Return the compiler's options; products and sums are fused whatever this Triton's default is."""
    return {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}


@functools.cache
def card_class(index: int | None) -> str:
    """Return which entries of the launch table a CUDA device uses."""
    major, _ = torch.cuda.get_device_capability(index)
    return "sm_90" if major in (9, 10) else "sm_80"
