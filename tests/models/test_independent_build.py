"""Every head and encoder switch against an independent build from the formulas, in float64, at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.models.model import SegmentationModel, create_model
from tests.models import independent

SMALL = {"width": 24, "num_heads": 3, "depth": 5, "patch_size": 8, "head_channels": 6, "decoder_width": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("setr_naive_vit_t16", {}),
    "naive_mmseg": (
        "setr_naive_vit_t16",
        {"head_scales": (4,), "aux_scales": (4, 4), "aux_channels": 5, "conv_bias": False, "patch_bias": False},
    ),
    "naive_3x3": ("setr_naive_vit_t16", {"head_kernel": 3, "aux_kernel": 3, "taps": (1, 2, 3, 4)}),
    "naive_shared": (
        "setr_naive_vit_t16",
        {"shared_modules": True, "fit": "floor", "resize_to": "input", "align_corners": True},
    ),
    "pup": ("setr_pup_vit_t16", {}),
    "pup_mmseg": ("setr_pup_vit_t16", {"head_scales": (2, 2, 2, 2), "aux_scales": (4, 4), "aux_levels": (0, 1, 2)}),
    "pup_corners": ("setr_pup_vit_t16", {"head_align_corners": True, "resize_to": "input", "mlp_ratio": 3.0}),
    "pup_dropped_class_token": ("setr_pup_vit_t16", {"class_token": "drop", "distilled": True}),
    "mla": ("setr_mla_vit_t16", {}),
    "mla_mmseg": (
        "setr_mla_vit_t16",
        {
            "deep_first": True,
            "aux_levels": (3, 2, 1, 0),
            "aux_bias": True,
            "classifier_kernel": 1,
            "head_align_corners": False,
            "branch_channels": 4,
        },
    ),
    "mla_shared": ("setr_mla_vit_t16", {"shared_modules": True, "class_token": "keep", "conv_bias": True}),
    "mla_two_levels": ("setr_mla_vit_t16", {"taps": (2, 4), "branch_scale": 2}),
    "linear": ("segmenter_linear_vit_t16", {}),
    "linear_distilled": ("segmenter_linear_deit_b16", {"pos_resize": "bicubic", "resize_to": "input"}),
    "mask": ("segmenter_mask_vit_t16", {"decoder_num_heads": 2}),
    "mask_no_bias": (
        "segmenter_mask_vit_t16",
        {"decoder_qkv_bias": False, "qkv_bias": False, "cosine_eps": 0.0, "decoder_depth": 1, "decoder_num_heads": 4},
    ),
}


def build(case: str, num_classes: int = 5) -> SegmentationModel:
    """Return a small model in float64 and eval mode, with no weight left at a special value."""
    name, changes = CASES[case]
    model = create_model(name, num_classes, image_size=(24, 40), **(SMALL | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else -0.5))
    return model


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(24, 40), (19, 30), (33, 8)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_independent_build(case: str, size: tuple[int, int]) -> None:
    model = build(case)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        want = independent.all_logits(model.spec, model.state_dict(), image)
        got = model.all_logits(image)
        grid = model.grid(image)
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            close(one, other)
        close(model.logits(image), want[0])
        close(model(image), independent.full_logits(model.spec, want[0], image, grid.h, grid.w))
    assert model(image).shape == (2, 5, *size)


@pytest.mark.parametrize("averaging", ["all", "valid"])
@pytest.mark.parametrize("case", ["naive", "pup_corners", "mla_mmseg", "mask", "naive_shared"])
def test_loss_equals_the_independent_build(case: str, averaging: str) -> None:
    model = build(case)
    model = _with(model, loss_averaging=averaging, aux_weight=0.3)
    image = torch.randn(2, 3, 19, 13, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 19, 13), dtype=torch.uint8)
    labels[0, 3:9] = 255
    with torch.no_grad():
        grid = model.grid(image)
        losses = [
            independent.cross_entropy(
                independent.full_logits(model.spec, logits, image, grid.h, grid.w), labels, averaging
            )
            for logits in independent.all_logits(model.spec, model.state_dict(), image)
        ]
        want = losses[0] + 0.3 * sum(losses[1:])
        close(model.loss(image, labels), torch.as_tensor(want))
        close(model.loss(image, labels.long()), torch.as_tensor(want))


def _with(model: SegmentationModel, **changes: Any) -> SegmentationModel:
    other = SegmentationModel(model.spec.replace(**changes)).double().eval()
    other.load_state_dict(model.state_dict())
    return other
