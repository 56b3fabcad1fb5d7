"""What the benchmarks time: every op at the sizes of ViT-L at 512 and 768 pixels, forward and backward."""

from __future__ import annotations

import pytest

from setr_fast.ops import OPS
from setr_fast.ops._op import FULL, Op

SIZES = {
    "attention_bytes": ("vit_l_512px_4_heads", "vit_l_768px_2_heads"),
    "attention": ("vit_l_512px_b1", "vit_l_768px_b1"),
    "attention_backward": ("vit_l_512px_b1", "vit_l_768px_b1"),
    "augment_image": ("ade20k_crop512_hsv", "cityscapes_crop768"),
    "augment_label": ("ade20k_crop512", "cityscapes_crop768"),
    "confusion_matrix": ("ade20k_512x683", "crops_768x768"),
    "patch_embed_product": ("vit_l_512px_bfloat16", "vit_l_768px_bfloat16"),
    "patch_embed_rows": ("vit_l_512px_planar_float32", "vit_l_768px_planar_float32"),
    "to_bytes": ("tokens_1024", "tokens_2304"),
    "upsample_accumulate": ("slide_2x2_x4_logits", "slide_768px_x4_logits"),
    "upsample_accumulate_argmax": ("slide_2x2_x4", "slide_768px_x4"),
    "upsample_argmax": ("ade20k_x4", "cityscapes_x4"),
    "upsample_class_sums": ("ade20k_150_x4", "cityscapes_19_x4"),
    "upsample_class_sums_backward": ("ade20k_150_x4", "cityscapes_19_x4"),
    "upsample_conv": ("pup_first_512px", "pup_first_768px"),
    "upsample_conv_backward": ("pup_first_512px", "pup_first_768px"),
    "upsample_conv_classify": ("pup_128_to_256", "pup_192_to_384"),
    "upsample_conv_statistics": ("pup_64_to_128", "pup_96_to_192"),
    "upsample_lovasz": ("ade20k_150_x4", "cityscapes_19_x4"),
    "upsample_cross_entropy": ("ade20k_150_x4", "cityscapes_19_x4"),
    "upsample_cross_entropy_map": ("ade20k_150_x4", "cityscapes_19_x4"),
    "upsample_cross_entropy_map_backward": ("ade20k_150_x4", "cityscapes_19_x4"),
}
"""Cases of 512 and of 768 pixels, where they are not simply called vit_l_512px and vit_l_768px."""
FUSED = {
    "upsample_cross_entropy": "forward",
    "upsample_lovasz": "forward",
    "upsample_conv_statistics": "upsample_conv_backward",
}
"""Differentiable ops without a backward op of their own, and where their gradient is computed."""


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_every_op_is_timed_at_both_sizes_and_by_default(op: Op) -> None:
    cases = {case.name: case.bench for case in op.cases()}
    for name in SIZES.get(op.name, ("vit_l_512px", "vit_l_768px")):
        assert cases.get(name), f"{op.name} has no case {name} that is timed"
    assert True in cases.values(), "nothing in the default selection"


def test_full_means_long_and_not_everything() -> None:
    kinds = [case.bench for op in OPS.values() for case in op.cases()]
    assert kinds.count(FULL) >= len(OPS)
    assert kinds.count(True) >= len(OPS)


def test_every_gradient_is_timed() -> None:
    for op in OPS.values():
        if op.differentiable and op.name not in FUSED:
            assert f"{op.name}_backward" in OPS, f"{op.name}: its gradient is timed nowhere"
