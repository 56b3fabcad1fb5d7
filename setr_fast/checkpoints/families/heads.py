"""Heads of the code bases: the names of their tensors, and from these both the rules and the sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from setr_fast.checkpoints.families.encoder import BlockKeys
from setr_fast.checkpoints.families.family import Fields, Shapes
from setr_fast.checkpoints.rules import SAME, Rule, Transform, affine, batch_norm, same
from setr_fast.models.spec import ModelSpec


@dataclass(frozen=True)
class StageKeys:
    """Prefixes of a convolution and of its batch norm, with their dots."""

    conv: str
    bn: str

    def rules(self, target: str, bias: bool, paddle: bool = False) -> list[Rule]:
        """Rules of one stage."""
        return affine(self.conv, f"{target}.conv", bias=bias) + batch_norm(self.bn, f"{target}.bn", paddle)


@dataclass(frozen=True)
class UpHeadKeys:
    """Head of Naive and PUP: LayerNorm, stages, 1x1 classifier."""

    norm: str
    stages: Sequence[StageKeys]
    classifier: str

    def rules(self, target: str, bias: bool, paddle: bool = False) -> list[Rule]:
        """Rules of one head, main or auxiliary."""
        return [
            *affine(self.norm, f"{target}.norm"),
            *(
                rule
                for index, stage in enumerate(self.stages)
                for rule in stage.rules(f"{target}.stages.{index}", bias, paddle)
            ),
            *affine(self.classifier, f"{target}.classifier"),
        ]

    def main_fields(self, shapes: Shapes) -> Fields:
        """Classes, channels, kernel, bias of the main head."""
        channels, _, kernel, _ = shapes.need(self.stages[0].conv + "weight", 4)
        return {
            "num_classes": shapes.need(self.classifier + "weight", 4)[0],
            "head_channels": channels,
            "head_kernel": kernel,
            "conv_bias": self.stages[0].conv + "bias" in shapes,
        }

    def aux_fields(self, shapes: Shapes) -> Fields:
        """Channels and kernel of an auxiliary head."""
        channels, _, kernel, _ = shapes.need(self.stages[0].conv + "weight", 4)
        return {"aux_channels": channels, "aux_kernel": kernel}


@dataclass(frozen=True)
class MlaKeys:
    """Neck, head and auxiliary classifiers of MLA; every list is shallow to deep."""

    norms: Sequence[str]
    reduce: Sequence[StageKeys]
    smooth: Sequence[StageKeys]
    branches: Sequence[tuple[StageKeys, StageKeys]]
    classifier: str

    def rules(self, bias: bool, paddle: bool = False) -> list[Rule]:
        """Rules of neck and head where each level has modules of its own."""
        rules = [rule for n, norm in enumerate(self.norms) for rule in affine(norm, f"neck.norms.{n}")]
        for level, (reduce, smooth) in enumerate(zip(self.reduce, self.smooth, strict=True)):
            rules += reduce.rules(f"neck.reduce.{level}", bias, paddle)
            rules += smooth.rules(f"neck.smooth.{level}", bias, paddle)
        for level, pair in enumerate(self.branches):
            for index, stage in enumerate(pair):
                rules += stage.rules(f"head.branches.{level}.{index}", bias, paddle)
        return rules + affine(self.classifier, "head.classifier")

    def fields(self, shapes: Shapes) -> Fields:
        """Classes, channels, kernel, bias."""
        classes, _, kernel, _ = shapes.need(self.classifier + "weight", 4)
        return {
            "num_classes": classes,
            "classifier_kernel": kernel,
            "head_channels": shapes.need(self.reduce[0].conv + "weight", 4)[0],
            "branch_channels": shapes.need(self.branches[0][0].conv + "weight", 4)[0],
            "conv_bias": self.reduce[0].conv + "bias" in shapes,
        }


@dataclass(frozen=True)
class MaskKeys:
    """Mask transformer."""

    class_embed: str
    proj_in: str
    blocks: BlockKeys
    proj_patch: str
    proj_class: str
    norm: str
    mask_norm: str
    linear: Transform = SAME
    """Of linear weights."""
    projection: Transform = SAME
    """Of the two projections, ours being right factors: x @ M."""

    def rules(self, spec: ModelSpec) -> list[Rule]:
        """Rules of the decoder."""
        return [
            same(self.class_embed, "head.class_embed"),
            *affine(self.proj_in, "head.proj_in", self.linear),
            *self.blocks.rules("head.blocks", spec.decoder_depth, spec.decoder_qkv_bias),
            Rule((self.proj_patch,), "head.proj_patch", self.projection),
            Rule((self.proj_class,), "head.proj_class", self.projection),
            *affine(self.norm, "head.norm"),
            *affine(self.mask_norm, "head.mask_norm"),
        ]

    def fields(self, shapes: Shapes) -> Fields:
        """Classes and sizes of the decoder."""
        _, classes, width = shapes.need(self.class_embed, 3)
        inner = self.blocks.fields(shapes, width)
        return {
            "num_classes": classes,
            "decoder_width": width,
            "decoder_depth": inner["depth"],
            "decoder_mlp_ratio": inner["mlp_ratio"],
            "decoder_qkv_bias": inner["qkv_bias"],
        }


def up_scales(head: str, stages: int, main: bool) -> tuple[int, ...] | None:
    """Upsampling factors of the official implementations; none where no published head has so many stages.

    The last factor of the main head is left to the model's last resize.
    """
    if stages == 4:
        return (2, 2, 2, 1)
    if stages == 1:
        return (1,) if main or head == "naive" else (4,)
    return None
