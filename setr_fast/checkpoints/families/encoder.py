"""Encoders of the code bases: the names of their tensors, and from these both the rules and the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from setr_fast.checkpoints.families.family import Fields, Shapes, common, ratio
from setr_fast.checkpoints.rules import SAME, TRANSPOSED, Rule, affine, same
from setr_fast.errors import CheckpointError
from setr_fast.models.spec import ModelSpec

TIMM_PARTS = {
    "norm1": "norm1.",
    "attn.qkv": "attn.qkv.",
    "attn.proj": "attn.proj.",
    "norm2": "norm2.",
    "mlp.fc1": "mlp.fc1.",
    "mlp.fc2": "mlp.fc2.",
}
_OLD_SMALL = (768, 8, 3.0)  # vit_small_patch16_224 of timm before 0.4 and of PaddleSeg
_LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class BlockKeys:
    """Names inside a stack of transformer blocks."""

    block: str
    """Prefix of block {}, with its dot."""
    parts: Mapping[str, str]
    """Our name of each layer: theirs, with its separator."""
    paddle: bool = False
    """Linear weights are [in, out]."""

    def key(self, index: int, part: str, leaf: str) -> str:
        """Return a key of the file."""
        return self.block.format(index) + self.parts[part] + leaf

    def rules(self, target: str, depth: int, qkv_bias: bool) -> list[Rule]:
        """Rules of ``depth`` blocks."""
        linear = TRANSPOSED if self.paddle else SAME
        return [
            rule
            for index in range(depth)
            for part, theirs in self.parts.items()
            for rule in affine(
                self.block.format(index) + theirs,
                f"{target}.{index}.{part}",
                linear if part in _LINEAR else SAME,
                bias=qkv_bias or part != "attn.qkv",
            )
        ]

    def fields(self, shapes: Shapes, width: int) -> Fields:
        """Depth, MLP ratio, bias of the qkv projection (named as the encoder's)."""
        depth = max(shapes.blocks(self.block), 1)
        hidden = common(
            (shapes.need(self.key(i, "mlp.fc1", "weight"), 2)[1 if self.paddle else 0] for i in range(depth)),
            shapes.where,
            "widths of the MLPs",
        )
        biased = [self.key(i, "attn.qkv", "bias") in shapes for i in range(depth)]
        return {"depth": depth, "mlp_ratio": ratio(hidden, width), "qkv_bias": any(biased)}


@dataclass(frozen=True)
class EncoderKeys:
    """Names of an encoder."""

    cls: str
    pos: str
    patch: str
    """Prefix of the patch projection, with its dot."""
    blocks: BlockKeys
    norm: str = ""
    """Prefix of the norm after the last block, with its dot."""
    dist: str = ""
    """Distillation token; empty where the code base has none."""

    def rules(self, spec: ModelSpec) -> list[Rule]:
        """Rules of the encoder; the final norm's only where the spec has one."""
        return [
            same(self.cls, "encoder.cls_token"),
            *([same(self.dist, "encoder.dist_token")] if spec.distilled and self.dist else []),
            same(self.pos, "encoder.pos_embed"),
            *affine(self.patch, "encoder.patch_embed", bias=spec.patch_bias),
            *self.blocks.rules("encoder.blocks", spec.depth, spec.qkv_bias),
            *(affine(self.norm, "encoder.norm") if spec.final_norm and self.norm else []),
        ]

    def fields(self, shapes: Shapes) -> tuple[Fields, int]:
        """Sizes of the encoder, and the patch rows of its position table."""
        width, in_chans, patch, _ = shapes.need(self.patch + "weight", 4)
        distilled = bool(self.dist) and self.dist in shapes
        rows = shapes.need(self.pos, 3)[1] - (2 if distilled else 1)
        blocks = self.blocks.fields(shapes, width)
        if (width, blocks["depth"], blocks["mlp_ratio"]) == _OLD_SMALL:
            raise CheckpointError(
                f"{shapes.where}: the encoder must scale its attention by its heads' width, got the old small ViT (768 "
                "wide, 8 blocks, MLP ratio 3), which scales by 768; no published SETR or Segmenter uses it"
            )
        return {
            "width": width,
            "in_chans": in_chans,
            "patch_size": patch,
            "patch_bias": self.patch + "bias" in shapes,
            "distilled": distilled,
            **blocks,
        }, rows


def timm_keys(prefix: str, *, norm: bool = True, dist: str = "dist_token", paddle: bool = False) -> EncoderKeys:
    """Names of timm, which official SETR, official Segmenter and PaddleSeg use too."""
    return EncoderKeys(
        cls=prefix + "cls_token",
        pos=prefix + "pos_embed",
        patch=prefix + "patch_embed.proj.",
        blocks=BlockKeys(prefix + "blocks.{}.", TIMM_PARTS, paddle),
        norm=prefix + "norm." if norm else "",
        dist=prefix + dist if dist else "",
    )
