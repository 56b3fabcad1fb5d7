"""The transformer block for inference: the same function as ``nn.Block`` in eval mode, from exchangeable products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.nn.block import Block
from setr_fast.precision.linears import Int8Linear, PlainLinear

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a block, in the order in which they run."""


class Norm(nn.Module):
    """Scale and shift of a layer norm; ``smooth`` divides what comes out, channel by channel."""

    def __init__(self, norm: nn.LayerNorm, smooth: Tensor | None = None) -> None:
        super().__init__()
        self.weight = norm.weight if smooth is None else norm.weight.detach() / smooth
        self.bias = norm.bias if smooth is None else norm.bias.detach() / smooth
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class InferenceBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); sums run in the norm and in the last product.

    ``products`` [qkv, proj, fc1, fc2] compute in what dtype they like; the residual stream keeps its own.
    """

    def __init__(self, num_heads: int, norms: tuple[Norm, Norm], products: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = norms
        self.qkv, self.proj, self.fc1, self.fc2 = products
        if isinstance(self.fc1, Int8Linear) and isinstance(self.fc2, Int8Linear):
            self.fc1.outputs = self.fc2.inputs  # GELU's result is rounded where it is made

    @classmethod
    def plain(cls, block: Block) -> InferenceBlock:
        """Return a block of the layers as they are."""
        norms = Norm(block.norm1), Norm(block.norm2)
        return cls(block.attn.num_heads, norms, tuple(PlainLinear(layer_of(block, name)) for name in LAYERS))

    def forward(self, x_BND: Tensor) -> Tensor:
        heads_BNMD = ops.attention(self.qkv(self.norm1(x_BND)), self.num_heads)
        norm = self.norm2
        x_BND, h_BND = ops.add_layer_norm(x_BND, self.proj(heads_BNMD), norm.weight, norm.bias, norm.eps)
        return self.fc2(self.fc1(h_BND, gelu=True), onto=x_BND)


def layer_of(block: Block, name: str) -> nn.Linear:
    """Return one of LAYERS."""
    layer = block.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def norm_of(block: Block, name: str) -> nn.LayerNorm | None:
    """Return the norm in front of one of LAYERS, or None."""
    return {"attn.qkv": block.norm1, "mlp.fc1": block.norm2}.get(name)


def steps(block: Block, x_BND: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Return what the block gives, and the input and output of each of its linear layers (fc1's after GELU)."""
    norm1 = block.norm1(x_BND)
    qkv = block.attn.qkv(norm1)
    heads = ops.attention(qkv, block.attn.num_heads)
    proj = block.attn.proj(heads)
    x_BND = x_BND + proj
    norm2 = block.norm2(x_BND)
    hidden = torch.ops.aten.gelu_.default(block.mlp.fc1(norm2))
    branch = block.mlp.fc2(hidden)
    answers = (norm1, qkv), (heads, proj), (norm2, hidden), (hidden, branch)
    return x_BND + branch, dict(zip(LAYERS, answers, strict=True))
