"""Attention forward in Triton with tensor descriptors: blocks of Q, K and V come by the copy engine (TMA) of Hopper.

The same sums as attention.py's forward, in the same order. Its loads cost each thread addresses and an instruction for
every 16 bytes; here one thread asks for a block. With WARP_SPECIALIZE a warp of its own does that, and two groups of
warps take half of the queries each, so that the exponentials of one overlap the products of the other; Triton 3.6 does
so for four warps and an output that is stored through pointers. Only whole blocks: rows past the end of a picture would
be those of the next one. Candidates for benchmarks/launches.py, taken by nothing else.
Design: docs/design/0004-attention.md. UNMEASURED: no GPU has run this kernel yet.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention import LOG2E, Launch, _store, options


@triton.jit(do_not_specialize=["N"])
def _attention_forward_descriptors(
    queries,  # descriptor of [B * N, 3 * H * E], blocks [BLOCK_M, E]
    keys,  # descriptor of the same, blocks [BLOCK_N, E]
    out,  # [B, N, H * E]
    lse,  # float32 [B, H, N], base two
    N,  # a multiple of BLOCK_M and BLOCK_N
    scale,  # of the scores, times log2(e)
    H: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    blocks = N // BLOCK_M
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    picture, h = head // H, head % H
    first = picture * N
    q = queries.load([first + block * BLOCK_M, h * E])
    acc = tl.zeros([BLOCK_M, E], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in tl.range(0, N, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        k = keys.load([first + start, (H + h) * E])
        v = keys.load([first + start, (2 * H + h) * E])
        scores = tl.dot(q, tl.trans(k))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.math.exp2(scores * scale - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = new_top
    acc = acc * (1.0 / total)[:, None]
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    _store(out + first.to(tl.int64) * (H * E) + h * E, acc, rows, N, E, E, H * E, False)
    tl.store(lse + (first.to(tl.int64) * H + h * N) + rows, top + tl.math.log2(total))


def attention(qkv: Tensor, scale: float, launch: Launch, *, warp_specialize: bool = False) -> tuple[Tensor, Tensor]:
    """Return out [B, N, H * E] and lse [B, H, N] of a contiguous qkv [B, N, 3, H, E] of 16 bits.

    N is a multiple of both blocks, B * N is below 2^31, E a power of two.
    """
    B, N, _, H, E = qkv.shape
    assert N % launch.block_m == N % launch.block_n == 0, "only whole blocks"
    out = torch.empty((B, N, H * E), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((B, H, N), dtype=torch.float32, device=qkv.device)
    rows = qkv.view(B * N, 3 * H * E)
    queries, keys = (TensorDescriptor.from_tensor(rows, [b, E]) for b in (launch.block_m, launch.block_n))
    with torch.cuda.device_of(qkv):
        _attention_forward_descriptors[(N // launch.block_m * B * H,)](
            queries, keys, out, lse, N, scale * LOG2E, H=H, E=E, BLOCK_M=launch.block_m, BLOCK_N=launch.block_n,
            WARP_SPECIALIZE=warp_specialize, **options(launch),
        )  # fmt: skip
    return out, lse
