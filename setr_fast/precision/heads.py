"""Attention between two products of bytes: queries, keys and values leave the first, and enter the second, as bytes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.ops.attention_bytes import ZERO, serves
from setr_fast.precision.linears import Int8Linear

_HALF = 127  # steps from zero to the end of a channel's range


class ByteAttention(nn.Module):
    """The product in front of attention, and attention, with one step per channel of queries, keys and values.

    Steps cost nothing: they are part of the product's scale per output. A channel of the queries and the same of the
    keys are only ever multiplied, so the two share their outliers; their steps are the same for a whole head.
    """

    def __init__(self, qkv: Int8Linear, num_heads: int, reach: Tensor, behind: Int8Linear) -> None:
        """``reach`` [3 * M * E]: largest magnitude of each output of ``qkv``; ``behind``: what takes the bytes."""
        super().__init__()
        q_ME, k_ME, v_ME = reach.clamp_min(1e-6).view(3, num_heads, -1).unbind(0)
        both_ME = (q_ME * k_ME).sqrt()
        of_head_M1 = both_ME.amax(-1, keepdim=True)
        step = torch.stack((q_ME / both_ME * of_head_M1, k_ME / both_ME * of_head_M1, v_ME)) / _HALF
        self.num_heads, self.inputs, self.outputs = num_heads, qkv.inputs, behind.inputs
        self.weight, self.zeros = qkv.weight, qkv.zeros
        self.scale = qkv.scale / step.flatten()
        self.bias = qkv.bias / step.flatten()
        self.score_factor = (of_head_M1[:, 0] / _HALF).square() * (q_ME.shape[1] ** -0.5 * math.log2(math.e))
        v_ME = v_ME if behind.smooth is None else v_ME / behind.smooth.view_as(v_ME)
        self.value_factor = v_ME / _HALF / behind.inputs.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' values as bytes. Shapes: uint8 [B, N, D] -> uint8 [B, N, M * E]."""
        known = x, self.inputs.scale, self.inputs.zero, self.weight, self.scale, self.zeros, self.bias
        qkv = torch.ops.onednn.qlinear_pointwise(*known, 1.0, ZERO, torch.uint8, "none", [], "")
        qkv_BN3ME = qkv.unflatten(-1, (3, self.num_heads, -1))
        out = self.outputs
        return ops.attention_bytes(qkv_BN3ME, self.score_factor, self.value_factor, out.zero, out.levels)


def heads_of_bytes(qkv: nn.Module, num_heads: int, answer: Tensor, behind: nn.Module) -> ByteAttention | None:
    """Return attention between two products of bytes, by the largest answers of the first; None without a kernel.

    Shapes: answer [..., 3 * M * E].
    """
    if not isinstance(qkv, Int8Linear) or not isinstance(behind, Int8Linear):
        return None
    if not serves(answer.shape[-1] // (3 * num_heads)):
        return None
    return ByteAttention(qkv, num_heads, answer.flatten(0, -2).abs().amax(0), behind)
