"""Low-rank adaptation: a linear layer that keeps its weight and learns a product of two thin matrices beside it.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1: h = W x + (alpha / rank) B A x, B zero at the start.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("lora_a", "lora_b")


class LoraLinear(nn.Linear):
    """Frozen weight and bias, trained ``lora_a`` [rank, inputs] and ``lora_b`` [outputs, rank]."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def adapt(module: nn.Module, targets: tuple[str, ...], rank: int, alpha: float) -> None:
    """Freeze a module and give its linear layers of these names (``attn.qkv``) adapters that learn."""
    module.requires_grad_(False)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and name.endswith(targets):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, LoraLinear(layer, rank, alpha))


@torch.no_grad()
def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return tensors of the same function without adapters: each product added to its weight, in float64."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith(PARTS)}
    for name in [name for name in state if name.endswith("lora_a")]:
        layer = name.removesuffix("lora_a")
        weight, product = state[layer + "weight"], state[layer + "lora_b"].double() @ state[name].double()
        result[layer + "weight"] = (weight.double() + scale * product).to(weight.dtype)
    return result
