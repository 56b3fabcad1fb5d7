"""The transformer block for inference: the same function as ``nn.Block`` in eval mode, from exchangeable products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.nn.block import Block
from setr_fast.precision.heads import ByteAttention
from setr_fast.precision.linears import ByteRange, Int8Linear, PlainLinear

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a block, in the order in which they run."""


class Norm(nn.Module):
    """Scale and shift of a layer norm; ``smooth`` divides what comes out, channel by channel.

    ``outputs``, where set: what follows takes bytes of this range.
    """

    outputs: ByteRange | None = None

    def __init__(self, norm: nn.LayerNorm, smooth: Tensor | None = None) -> None:
        super().__init__()
        self.weight = norm.weight if smooth is None else norm.weight.detach() / smooth
        self.bias = norm.bias if smooth is None else norm.bias.detach() / smooth
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        if (to := self.outputs) is not None:
            return ops.layer_norm_bytes(x, self.weight, self.bias, self.eps, to.scale, to.zero, to.levels)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class InferenceBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); sums run in the norm and in the last product.

    ``products`` [qkv, proj, fc1, fc2] compute in what dtype they like; the residual stream keeps its own. ``heads``
    takes the place of the first of them and of attention. Bytes that a product takes are made where its input is made.
    """

    def __init__(
        self,
        num_heads: int,
        norms: tuple[Norm, Norm],
        products: tuple[nn.Module, ...],
        heads: ByteAttention | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = norms
        self.qkv, self.proj, self.fc1, self.fc2 = products
        self.heads = heads
        if isinstance(self.qkv, Int8Linear):
            self.norm1.outputs = self.qkv.inputs
        if isinstance(self.fc1, Int8Linear):
            self.norm2.outputs = self.fc1.inputs
            if isinstance(self.fc2, Int8Linear):
                self.fc1.outputs = self.fc2.inputs  # behind GELU

    @classmethod
    def plain(cls, block: Block) -> InferenceBlock:
        """Return a block of the layers as they are."""
        norms = Norm(block.norm1), Norm(block.norm2)
        return cls(block.attn.num_heads, norms, tuple(PlainLinear(layer_of(block, name)) for name in LAYERS))

    def forward(self, x_BND: Tensor) -> Tensor:
        norm, h_BND = self.norm2, self.norm1(x_BND)
        heads_BND = ops.attention(self.qkv(h_BND), self.num_heads) if self.heads is None else self.heads(h_BND)
        if norm.outputs is None:
            x_BND, h_BND = ops.add_layer_norm(x_BND, self.proj(heads_BND), norm.weight, norm.bias, norm.eps)
        else:
            x_BND = self.proj(heads_BND, onto=x_BND.clone())  # not into x itself, which may be a tap
            h_BND = norm(x_BND)
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
