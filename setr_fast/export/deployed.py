"""The whole way of a picture as one module that can be exported: bytes in, class map out, any size and batch.

    uint8 [B, H, W, 3] -> normalised, padded, patches -> encoder -> head -> small logits -> upsampled, classes [B, H, W]

No branch on a size is left, so that one program serves all of them: where the model picks a rule by size (equal grids
are not resized, wide maps are convolved in another order), this takes the rule that gives the same for every size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr_fast.errors import ConfigError
from setr_fast.export.kernels import Kernels, packed
from setr_fast.models.heads.linear import LinearHead
from setr_fast.models.heads.mask_transformer import MaskTransformerHead, _unit
from setr_fast.models.heads.mla import MlaHead
from setr_fast.models.heads.upsampling import UpsamplingHead
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.nn.block import Attention
from setr_fast.nn.conv import ConvStage, folded, map_size
from setr_fast.nn.embed import tokens_to_map
from setr_fast.shapes import Grid


class Deployed(nn.Module):
    """A model whose answer is the class map of a picture in one pass, as ``predict(mode="whole")`` gives it.

    Weights are shared with the model, but those of convolutions that took in their batch norm.
    """

    def __init__(self, model: SegmentationModel, kernels: Kernels) -> None:
        super().__init__()
        spec = model.spec
        if spec.head == "none" or spec.in_chans != 3:
            raise ConfigError(
                "export: model must have a head and take pictures of 3 channels, got "
                f"head {spec.head} and {spec.in_chans} channels"
            )
        self.spec = spec
        self.kernels = kernels
        self.encoder = _replaced(model.encoder, kernels)
        self.neck = None if model.neck is None else _replaced(model.neck, kernels)
        self.head = _replaced(model.head, kernels)
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the class of each pixel.

        Shapes: uint8 [B, H, W, 3] RGB -> [B, H, W], uint8, int16 above 256 classes.
        """
        spec = self.spec
        size = (pictures.shape[1], pictures.shape[2])
        grid = any_size_grid(size, spec)
        levels = self._taps(pictures, grid)
        levels = levels if self.neck is None else self.neck(levels, grid)
        logits_BKhw = _HEADS[spec.head](self.head, levels, grid, self.kernels)
        to = grid.pixels if spec.resize_to == "padded" else grid.image
        return self.kernels.upsample_argmax(logits_BKhw, list(to), list(grid.image), spec.align_corners)

    def _taps(self, pictures: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """As ``Encoder.forward``."""
        spec, encoder = self.spec, self.encoder
        leading = spec.leading_tokens
        positions_TD = any_size_positions(encoder.pos_embed, spec, grid)[0]
        patches, rules = encoder.patch_embed, (list(spec.mean), list(spec.std), grid.h, grid.w)
        x_BND = self.kernels.patch_embed(pictures, patches.weight, patches.bias, positions_TD[leading:], *rules)
        first = 0
        if spec.class_token == "keep":
            tokens = [encoder.cls_token] + ([] if encoder.dist_token is None else [encoder.dist_token])
            front_1LD = torch.cat(tokens, dim=1) + positions_TD[:leading]
            x_BND = torch.cat((front_1LD.expand(x_BND.shape[0], -1, -1), x_BND), dim=1)
            first = leading
        taps = []
        for index, block in enumerate(encoder.blocks[: spec.taps[-1] + 1]):
            x_BND = block(x_BND)
            if index in spec.taps:
                taps.append(x_BND[:, first:])
        if encoder.norm is not None:
            taps[-1] = encoder.norm(taps[-1])
        return tuple(taps)


def any_size_grid(size: tuple[int, int], spec: ModelSpec) -> Grid:
    """As ``SegmentationModel.grid_of``, of symbols; no division of negative numbers, which ONNX rounds otherwise."""
    patch = spec.patch_size
    more = patch - 1 if spec.fit == "pad" else 0
    return Grid(size, patch, (size[0] + more) // patch, (size[1] + more) // patch)


def any_size_positions(table_1TD: Tensor, spec: ModelSpec, grid: Grid) -> Tensor:
    """Fit the position table to a grid; of an equal grid the resize gives back the table, bit for bit.

    Shapes: [1, T, D] -> [1, leading + h * w, D].
    """
    old, leading = spec.pos_grid, spec.leading_tokens
    if spec.pos_resize == "none":
        return table_1TD
    front, rows = table_1TD[:, :leading], table_1TD[:, leading:]
    picture = rows.transpose(1, 2).unflatten(2, old)
    picture = F.interpolate(picture, size=(grid.h, grid.w), mode=spec.pos_resize, align_corners=False)
    fitted = picture.flatten(2).transpose(1, 2)
    if spec.pos_resize_when == "tokens":  # as many patches, whatever their rows and columns: the table as it lies
        count = torch.arange(grid.h * grid.w)
        as_it_lies = rows[:, count.clamp_max(rows.shape[1] - 1)]
        same = torch.full((1, 1, 1), grid.h * grid.w, dtype=torch.int64) == rows.shape[1]
        fitted = torch.where(same, as_it_lies, fitted)
    return torch.cat((front, fitted), dim=1)


class FoldedStage(nn.Module):
    """A stage whose batch norm is part of its convolution."""

    def __init__(self, stage: ConvStage, kernels: Kernels) -> None:
        super().__init__()
        weight, bias = folded(stage.conv, stage.bn)
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.upsample_conv = kernels.upsample_conv

    def forward(self, x_BChw: Tensor, size: tuple[int, int] | None = None, align_corners: bool = False) -> Tensor:
        if size is None:
            return F.relu(F.conv2d(packed(x_BChw), self.weight, self.bias, padding=self.weight.shape[-1] // 2))
        return self.upsample_conv(x_BChw, self.weight, self.bias, *size, align_corners, True)


class AnySizeAttention(nn.Module):
    """A block's attention, by one of the kernels."""

    def __init__(self, attention: Attention, kernels: Kernels) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj
        self.attention = kernels.attention

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN3ME = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1))
        return self.proj(self.attention(qkv_BN3ME, qkv_BN3ME.shape[-1] ** -0.5)[0])


_REPLACED: dict[type[nn.Module], Callable[[Any, Kernels], nn.Module]] = {
    ConvStage: FoldedStage,
    Attention: AnySizeAttention,
}


def _replaced(module: Any, kernels: Kernels) -> Any:
    """Return a module with the same parameters whose stages and attentions are those of this file."""
    if type(module) in _REPLACED:
        return _REPLACED[type(module)](module, kernels)
    copied = copy.copy(module)
    copied._modules = {name: child and _replaced(child, kernels) for name, child in module._modules.items()}
    return copied


def _upsampling(head: UpsamplingHead, levels: tuple[Tensor, ...], grid: Grid, kernels: Kernels) -> Tensor:
    """As ``UpsamplingHead.forward``."""
    x_BChw = tokens_to_map(head.norm(levels[-1]), grid)
    stages: list[Any] = list(head.stages)
    last, corners = stages[-1], head.align_corners
    size: tuple[int, int] | None = None  # the first convolution enlarges nothing
    for stage, scale in zip(stages[:-1], head.scales, strict=False):
        x_BChw = stage(x_BChw, size, corners)
        size = map_size(x_BChw, scale)
    layer: Any = head.classifier
    if size is None or last.weight.shape[-1] == 1:
        x_BChw = last(x_BChw, size, corners)
        logits_BKhw = F.conv2d(packed(x_BChw), layer.weight, layer.bias)
    else:
        classify = kernels.upsample_conv_classify
        logits_BKhw = classify(x_BChw, last.weight, last.bias, layer.weight, layer.bias, *size, corners)
    if head.scales[-1] == 1:
        return logits_BKhw
    return F.interpolate(logits_BKhw, map_size(logits_BKhw, head.scales[-1]), mode="bilinear", align_corners=corners)


def _mla(head: MlaHead, levels: tuple[Tensor, ...], grid: Grid, kernels: Kernels) -> Tensor:
    """As ``MlaHead.forward``."""
    maps = [head.branches[index % len(head.branches)](x) for index, x in enumerate(levels)]
    maps_BChw, layer = torch.cat(maps[::-1] if head.deep_first else maps, dim=1), head.classifier
    size = map_size(maps_BChw, head.scale)
    return kernels.upsample_conv(maps_BChw, layer.weight, layer.bias, *size, head.align_corners, False)


def _linear(head: LinearHead, levels: tuple[Tensor, ...], grid: Grid, _kernels: Kernels) -> Tensor:
    return head(levels, grid)


def _mask(head: MaskTransformerHead, levels: tuple[Tensor, ...], grid: Grid, _kernels: Kernels) -> Tensor:
    """As ``MaskTransformerHead.forward``, for float32; ``bmm``, since ``@`` asks whether the batch is one picture."""
    x_BND = head.proj_in(levels[-1])
    classes = head.class_embed.expand(x_BND.shape[0], -1, -1)
    x_BND = torch.cat((x_BND, classes), dim=1)
    for block in head.blocks:
        x_BND = block(x_BND)
    x_BND = head.norm(x_BND)
    patches, classes = packed(x_BND[:, : grid.tokens]), packed(x_BND[:, grid.tokens :])
    patches = _unit(torch.bmm(patches, head.proj_patch.expand(patches.shape[0], -1, -1)), head.cosine_eps)
    classes = _unit(torch.bmm(classes, head.proj_class.expand(classes.shape[0], -1, -1)), head.cosine_eps)
    return tokens_to_map(head.mask_norm(torch.bmm(patches, packed(classes.transpose(1, 2)))), grid)


_HEADS: dict[str, Callable[[Any, tuple[Tensor, ...], Grid, Kernels], Tensor]] = {
    "naive": _upsampling,
    "pup": _upsampling,
    "mla": _mla,
    "linear": _linear,
    "mask": _mask,
}
