"""SETR-MLA: multi-level aggregation.

The neck is a module of its own: training takes a higher learning rate for heads, but not for the neck.

Source: Zheng et al. 2021, arXiv 2012.15840, section 3.3 (3); sums and upsampling as github fudan-zvg/SETR,
mmseg/models/backbones/vit_mla.py and decode_heads/vit_mla_head.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setr_fast.models.spec import ModelSpec
from setr_fast.nn.conv import ConvStage, conv, map_size
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


class MlaNeck(nn.Module):
    """Bring every tap to few channels, and add the deep ones to the shallow ones."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        levels, channels = len(spec.taps), spec.head_channels
        self.norms = nn.ModuleList(
            nn.LayerNorm(spec.width, eps=spec.head_norm_eps) for _ in range(1 if spec.shared_modules else levels)
        )
        self.reduce = nn.ModuleList(
            ConvStage(spec.width, channels, 1, bias=spec.conv_bias, eps=spec.batch_norm_eps) for _ in range(levels)
        )
        self.smooth = nn.ModuleList(
            ConvStage(channels, channels, 3, bias=spec.conv_bias, eps=spec.batch_norm_eps) for _ in range(levels)
        )

    def forward(self, taps: tuple[Tensor, ...], grid: Grid) -> tuple[Tensor, ...]:
        """Shapes: taps [B, N, D], shallow to deep -> as many maps [B, C, h, w], in the same order."""
        maps = [
            reduce(tokens_to_map(self.norms[level % len(self.norms)](tap), grid))
            for level, (reduce, tap) in enumerate(zip(self.reduce, taps, strict=True))
        ]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = maps[level + 1] + maps[level]
        return tuple(smooth(x) for smooth, x in zip(self.smooth, maps, strict=True))


class MlaHead(nn.Module):
    """Two convolutions per level, then upsampling and one classifier over all of them, in one op."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        levels, channels = len(spec.taps), spec.branch_channels
        self.scale = spec.branch_scale
        self.align_corners = spec.head_align_corners
        self.deep_first = spec.deep_first
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvStage(spec.head_channels, channels, 3, bias=spec.conv_bias, eps=spec.batch_norm_eps),
                ConvStage(channels, channels, 3, bias=spec.conv_bias, eps=spec.batch_norm_eps),
            )
            for _ in range(1 if spec.shared_modules else levels)
        )
        kernel = spec.classifier_kernel
        self.classifier = nn.Conv2d(levels * channels, spec.num_classes, kernel, padding=kernel // 2)

    def forward(self, levels: tuple[Tensor, ...], grid: Grid) -> Tensor:
        """Shapes: maps of the neck [B, C, h, w] each -> logits [B, K, 4 * h, 4 * w]."""
        maps = [self.branches[index % len(self.branches)](x) for index, x in enumerate(levels)]
        maps_BChw = torch.cat(maps[::-1] if self.deep_first else maps, dim=1)
        return conv(maps_BChw, self.classifier, map_size(maps_BChw, self.scale), self.align_corners)


class MlaAuxHead(nn.Module):
    """A 1x1 classifier on the last of the levels it is given."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(spec.head_channels, spec.num_classes, 1, bias=spec.aux_bias)

    def forward(self, levels: tuple[Tensor, ...], grid: Grid) -> Tensor:
        """Shapes: maps of the neck [B, C, h, w] each -> logits [B, K, h, w]."""
        return self.classifier(levels[-1])
