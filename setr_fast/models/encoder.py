"""The plain vision transformer, giving the outputs of chosen blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from setr_fast.models.spec import ModelSpec
from setr_fast.nn.block import Block, growing_rates
from setr_fast.nn.chance import dropout
from setr_fast.nn.embed import PatchEmbed
from setr_fast.nn.lora import adapt
from setr_fast.nn.position import resize_positions
from setr_fast.shapes import Grid


class Encoder(nn.Module):
    """Patch tokens after the tapped blocks.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        rows = spec.leading_tokens + spec.pos_grid[0] * spec.pos_grid[1]
        # A class token that is cut off before the blocks takes part in nothing, yet files hold one.
        live = spec.class_token == "keep"
        self.patch_embed = PatchEmbed(spec.in_chans, spec.width, spec.patch_size, spec.patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width), requires_grad=live)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, spec.width), requires_grad=live) if spec.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, spec.width))
        self.blocks = nn.ModuleList(
            Block(
                spec.width,
                spec.num_heads,
                mlp_ratio=spec.mlp_ratio,
                qkv_bias=spec.qkv_bias,
                eps=spec.layer_norm_eps,
                dropout=spec.dropout,
                drop_path=rate,
                drop_path_on=spec.drop_path_on,
            )
            for rate in growing_rates(spec.drop_path, spec.depth)
        )
        self.blocks[spec.taps[-1] + 1 :].requires_grad_(False)  # in the file, but never run
        self.norm = nn.LayerNorm(spec.width, eps=spec.final_norm_eps) if spec.final_norm else None
        if spec.lora_rank:
            adapt(self, spec.lora_targets, spec.lora_rank, spec.lora_alpha)
            self.blocks[spec.taps[-1] + 1 :].requires_grad_(False)
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def forward(self, image: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return the patch tokens after each tapped block, shallow to deep.

        Shapes: image uint8 [B, H, W, 3], or normalised [B, C, H, W] -> len(taps) times [B, N, D].
        """
        x_BND = self.embed(image, grid)
        leading = x_BND.shape[1] - grid.tokens
        taps = []
        for index, block in enumerate(self.blocks[: self.spec.taps[-1] + 1]):
            x_BND = block(x_BND)
            if index in self.spec.taps:
                taps.append(x_BND[:, leading:])
        if self.norm is not None:
            taps[-1] = self.norm(taps[-1])
        return tuple(taps)

    def embed(self, image: Tensor, grid: Grid) -> Tensor:
        """Return what enters the first block: patch tokens, in front of them the class tokens where they are kept."""
        spec, leading = self.spec, self.spec.leading_tokens
        positions_TD = self.positions(grid)[0]
        x_BND = self.patch_embed(image, positions_TD[leading:], grid, spec.mean, spec.std)
        if spec.class_token == "keep":
            tokens = (self.cls_token,) if self.dist_token is None else (self.cls_token, self.dist_token)
            front_1LD = torch.cat(tokens, dim=1) + positions_TD[:leading]
            x_BND = torch.cat((front_1LD.expand(len(x_BND), -1, -1), x_BND), dim=1)
        return dropout(x_BND, spec.dropout, self.training)

    def positions(self, grid: Grid) -> Tensor:
        """Return the position table for a grid, resized where the spec says so."""
        old = self.spec.pos_grid
        if self.spec.pos_resize_when == "tokens" and grid.tokens == old[0] * old[1]:
            return self.pos_embed
        new = (grid.h, grid.w)
        return resize_positions(self.pos_embed, old, new, self.spec.leading_tokens, self.spec.pos_resize)
