"""Softmax attention of bytes, to bytes: scores in whole numbers, weights of 15 bits, sums in whole numbers.

What is computed is fixed to the bit, so that every backend gives the same bytes: two to the power of a score is a
polynomial of degree five whose steps are each rounded to float32, and products of weights and values are summed exactly
over 512 keys, those sums in float32 one after another.

Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

ZERO = 128
"""The byte that stands for zero in queries, keys and values."""
MOST = 32767
"""The weight of a row's largest score."""
_SUMMED = 512
_TERMS = (1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)


def attention_bytes(qkv: Tensor, score_factor: Tensor, value_factor: Tensor, zero: int, levels: int = 255) -> Tensor:
    """Return softmax(q k^T) v of every head as bytes, heads side by side.

    ``score_factor``: what the product of a step of q and a step of k is worth, in powers of two (E^-0.5 and log2(e) are
    in it); ``value_factor``: what a step of v is worth, in steps of the output, whose bytes are ``zero`` and upwards of
    zero, at most ``levels``.

    Shapes: qkv uint8 [B, N, 3, M, E], score_factor [M], value_factor [M, E] -> uint8 [B, N, M * E].
    Raises: ShapeError for other shapes and dtypes, or an output that is no byte.
    """
    if qkv.dtype is not torch.uint8 or qkv.ndim != 5 or qkv.shape[2] != 3 or 0 in qkv.shape:
        got = f"{str(qkv.dtype)[6:]} {list(qkv.shape)}"
        raise ShapeError(f"attention_bytes: qkv must be uint8 [B, N, 3, M, E] with a token at least, got {got}")
    heads, width = qkv.shape[3:]
    for what, factor, shape in (("score", score_factor, [heads]), ("value", value_factor, [heads, width])):
        if list(factor.shape) != shape or factor.dtype is not torch.float32:
            got = f"{str(factor.dtype)[6:]} {list(factor.shape)}"
            raise ShapeError(f"attention_bytes: {what}_factor must be float32 {shape}, got {got}")
    if not 0 <= zero <= levels <= 255:
        raise ShapeError(f"attention_bytes: zero must be 0..levels, levels at most 255, got {zero} and {levels}")
    return _op(qkv, score_factor, value_factor, zero, levels)


def serves(width: int) -> bool:
    """Return whether this machine has a kernel for heads of this width; the reference is exact, and slow."""
    args = (torch.empty(1, 1, 3, 1, width, dtype=torch.uint8), torch.empty(1), torch.empty(1, width), ZERO, 255)
    return _op.choose(*args) == "native"


def _reference(qkv: Tensor, score_factor: Tensor, value_factor: Tensor, zero: int, levels: int) -> Tensor:
    score_factor, value_factor = score_factor.float(), value_factor.float()
    steps = torch.empty(qkv.shape[0], qkv.shape[1], *qkv.shape[3:], device=qkv.device)
    for index, one in enumerate(qkv):  # picture by picture: the scores of a whole batch may not fit
        q, k, v = (one.double() - ZERO).permute(1, 2, 0, 3).unbind(0)  # whole numbers: float64 is exact
        scores = q @ k.transpose(-1, -2)
        below = (scores - scores.amax(-1, keepdim=True)).float()
        weights = (_power_of_two(below * score_factor[:, None, None]) * MOST).round().double()
        mixed = torch.zeros(q.shape, device=qkv.device)
        for begin in range(0, len(one), _SUMMED):
            some = slice(begin, begin + _SUMMED)
            mixed += (weights[..., some] @ v[:, some]).float()
        total = weights.sum(-1, keepdim=True).float()
        steps[index] = (mixed * value_factor[:, None] / total).transpose(0, 1)
    return (steps.clamp(-512, 512).round() + zero).clamp(0, levels).to(torch.uint8).flatten(2)


def _power_of_two(x: Tensor) -> Tensor:
    whole = x.round().clamp_min(-126)
    rest = (x - whole).clamp_min(-1)
    y = torch.full_like(x, _TERMS[0])
    for term in _TERMS[1:]:
        y = y.mul_(rest).add_(term)
    return y * ((whole.to(torch.int32) + 127) << 23).view(torch.float32)


def _fake(qkv: Tensor, score_factor: Tensor, value_factor: Tensor, zero: int, levels: int) -> Tensor:
    B, N, _, M, E = qkv.shape
    return qkv.new_empty((B, N, M * E))


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int, int], sharp: float, levels: int, draw: Draw) -> tuple[Any, ...]:
        B, N, M, E = shape
        qkv = (40 * draw(B, N, 3, M, E).float() + ZERO).clamp(0, 255).to(torch.uint8)
        factors = sharp * (1 + draw(M).float().abs()), 4 * (1 + draw(M, E).float().abs())
        return qkv, *factors, levels // 2 + 1, levels

    for name, shape, sharp, levels in (
        ("one_token", (2, 1, 2, 32), 1e-4, 255),
        ("seven_tokens", (2, 7, 3, 16), 3e-5, 255),
        ("odd_tokens", (1, 601, 1, 48), 3e-5, 127),
        ("sharp", (1, 67, 2, 80), 1.0, 255),
    ):
        yield Case(name, partial(make, shape, sharp, levels))
    yield Case("vit_l_512px_4_heads", partial(make, (1, 1024, 4, 64), 3e-5, 255), bench=True)
    yield Case("vit_l_768px_2_heads", partial(make, (1, 2304, 2, 64), 3e-5, 255), bench=FULL)


def _cost(qkv: Tensor, *_: Any) -> Cost:
    B, N, _parts, M, E = qkv.shape
    return Cost(bytes=qkv.numel() * 4 // 3, flops=4 * B * M * N * N * E)


def _narrow(qkv: Tensor, *_: Any) -> list[str]:
    reasons = []
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not found.get("avx512_vnni"):
        reasons.append("the processor must multiply bytes with AVX-512 (avx512_vnni)")
    if qkv.shape[-1] % 16:
        reasons.append(f"head width must be a multiple of 16, got {qkv.shape[-1]}")
    return reasons


_op = declare_op(
    "attention_bytes(Tensor qkv, Tensor score_factor, Tensor value_factor, int zero, int levels) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(native("cpu", accepts=_narrow),),
)
