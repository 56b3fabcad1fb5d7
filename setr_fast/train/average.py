"""Exponential moving average of the weights, sharded as the weights are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Averaged copies of all parameters; buffers (batch statistics) are taken as they are.

    The decay grows as (1 + step) / (10 + step) up to its final value, so that early weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move every copy towards the current weight, after optimiser step number ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)
