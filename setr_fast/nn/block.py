"""The pre-norm transformer block that all encoders and the mask decoder are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast import ops
from setr_fast.nn import chance


def attention(qkv_BN3ME: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention of every token to every token, scaled by E^-0.5, no mask.

    Dropout of the probabilities takes PyTorch's attention on permuted views: no fused backend of the op draws it. On a
    GPU its draws belong to the process (module ``chance``).

    Shapes: qkv [B, N, 3, M, E], as the projection leaves it -> [B, N, M * E].
    """
    if dropout == 0.0:
        return ops.attention(qkv_BN3ME, qkv_BN3ME.shape[3])
    q_BMNE, k_BMNE, v_BMNE = qkv_BN3ME.permute(2, 0, 3, 1, 4).unbind(0)
    if chance.are_set() and qkv_BN3ME.device.type == "cpu":  # where PyTorch too would write down the probabilities
        scores_BMNN = q_BMNE @ k_BMNE.transpose(-1, -2) * q_BMNE.shape[-1] ** -0.5
        out_BMNE = chance.dropout(scores_BMNN.softmax(-1), dropout, training=True) @ v_BMNE
    else:
        out_BMNE = F.scaled_dot_product_attention(q_BMNE, k_BMNE, v_BMNE, dropout_p=dropout)
    return out_BMNE.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projection to queries, keys and values, attention, projection back."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = linear(width, 3 * width, bias=qkv_bias)
        self.proj = linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN3ME = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1))
        x_BND = self.proj(attention(qkv_BN3ME, self.dropout if self.training else 0.0))
        return chance.dropout(x_BND, self.dropout, self.training)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = chance.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return chance.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each branch under stochastic depth."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        drop_path_on: str = "both",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads, qkv_bias, dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.attn_drop_path = drop_path if drop_path_on == "both" else 0.0
        self.mlp_drop_path = drop_path

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + drop_path(self.attn(self.norm1(x_BND)), self.attn_drop_path, self.training)
        return x_BND + drop_path(self.mlp(self.norm2(x_BND)), self.mlp_drop_path, self.training)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero whole samples with probability ``rate`` and divide the kept ones by 1 - rate.

    Source: Huang et al. 2016, arXiv 1603.09382.
    """
    if rate == 0.0 or not training:
        return x
    kept = chance.keep((x.shape[0],) + (1,) * (x.ndim - 1), rate, x.device).to(x.dtype)
    return x * (kept if rate == 1.0 else kept / (1.0 - rate))


def growing_rates(last: float, depth: int) -> list[float]:
    """Return the stochastic depth of each block: 0 at the first, ``last`` at the last."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer that starts as vision transformers do: truncated normal 0.02, bias 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
