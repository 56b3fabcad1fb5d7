"""Segmenter's linear decoder: one linear layer per patch token.

Source: Strudel et al. 2021, arXiv 2105.05633, section 3.2.
"""

from __future__ import annotations

from torch import Tensor, nn

from setr_fast.models.spec import ModelSpec
from setr_fast.nn.block import linear
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


class LinearHead(nn.Module):
    """Classify each token of the last tap."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.classifier = linear(spec.width, spec.num_classes)

    def forward(self, taps: tuple[Tensor, ...], grid: Grid) -> Tensor:
        """Shapes: taps [B, N, D] each -> logits [B, K, h, w]."""
        return tokens_to_map(self.classifier(taps[-1]), grid)
