"""Segmenter's mask transformer: class tokens join the patches, masks are cosines between the two.

Source: Strudel et al. 2021, arXiv 2105.05633, section 3.2; order of operations as github rstrudel/segmenter,
segm/model/decoder.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast.models.spec import ModelSpec
from setr_fast.nn.block import Block, growing_rates, linear
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


class MaskTransformerHead(nn.Module):
    """Decode the last tap together with one learned token per class."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.decoder_width
        self.cosine_eps = spec.cosine_eps
        self.proj_in = linear(spec.width, width)
        self.class_embed = nn.Parameter(torch.zeros(1, spec.num_classes, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                spec.decoder_num_heads,
                mlp_ratio=spec.decoder_mlp_ratio,
                qkv_bias=spec.decoder_qkv_bias,
                eps=spec.decoder_layer_norm_eps,
                dropout=spec.decoder_dropout,
                drop_path=rate,
                drop_path_on=spec.drop_path_on,
            )
            for rate in growing_rates(spec.decoder_drop_path, spec.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=spec.decoder_norm_eps)
        # Multiplied from the right, y = x @ M: not transposed as in a linear layer.
        self.proj_patch = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.proj_class = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.mask_norm = nn.LayerNorm(spec.num_classes, eps=spec.decoder_norm_eps)
        nn.init.trunc_normal_(self.class_embed, std=0.02)

    def forward(self, taps: tuple[Tensor, ...], grid: Grid) -> Tensor:
        """Shapes: taps [B, N, D] each -> logits [B, K, h, w]."""
        x_BND = self.proj_in(taps[-1])
        classes = self.class_embed.to(x_BND.dtype).expand(len(x_BND), -1, -1)
        x_BND = torch.cat((x_BND, classes), dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        x_BND = self.norm(x_BND)
        patches, classes = x_BND[:, : grid.tokens], x_BND[:, grid.tokens :]
        patches = _unit(patches @ self.proj_patch, self.cosine_eps)
        classes = _unit(classes @ self.proj_class, self.cosine_eps)
        # The norm over classes divides by the spread of the cosines, which can be small: 16 bits are too few.
        with torch.autocast(x_BND.device.type, enabled=False):
            cosines_BNK = patches @ classes.transpose(1, 2)
            weight, bias = self.mask_norm.weight.to(cosines_BNK.dtype), self.mask_norm.bias.to(cosines_BNK.dtype)
            masks_BNK = F.layer_norm(cosines_BNK, self.mask_norm.normalized_shape, weight, bias, self.mask_norm.eps)
        return tokens_to_map(masks_BNK, grid)


def _unit(x: Tensor, eps: float) -> Tensor:
    """Divide by the Euclidean norm along the last dimension, in 32 bits or more."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = x.norm(dim=-1, keepdim=True)
    return x / (norm.clamp_min(eps) if eps else norm)
