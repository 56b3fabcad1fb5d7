"""LayerNorm, stages of convolution and upsampling, classifier: what Naive and PUP are both made of."""

from __future__ import annotations

from torch import Tensor, nn

from setr_fast.models.spec import ModelSpec
from setr_fast.nn.conv import ConvStage, FoldedStage, classified, map_size, resize
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


class UpsamplingHead(nn.Module):
    """Classify the last of the taps it is given."""

    def __init__(self, spec: ModelSpec, channels: int, kernel: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.align_corners = spec.head_align_corners
        self.norm = nn.LayerNorm(spec.width, eps=spec.head_norm_eps)
        self.stages = nn.ModuleList(
            ConvStage(
                channels if index else spec.width,
                channels,
                kernel,
                bias=spec.conv_bias,
                eps=spec.batch_norm_eps,
            )
            for index in range(len(scales))
        )
        self.classifier = nn.Conv2d(channels, spec.num_classes, 1)

    def forward(self, taps: tuple[Tensor, ...], grid: Grid) -> Tensor:
        """Shapes: taps [B, N, D] each -> logits [B, K, s * h, s * w], s the product of the stages' scales."""
        x_BChw = tokens_to_map(self.norm(taps[-1]), grid)
        size = map_size(x_BChw)
        *stages, last = self.stages
        assert isinstance(last, (ConvStage, FoldedStage))
        for stage, scale in zip(stages, self.scales, strict=False):
            x_BChw = stage(x_BChw, size, self.align_corners)
            size = map_size(x_BChw, scale)  # the next convolution enlarges
        logits_BKhw = classified(x_BChw, last, self.classifier, size, self.align_corners)
        return resize(logits_BKhw, map_size(logits_BKhw, self.scales[-1]), self.align_corners)
