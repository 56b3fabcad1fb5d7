"""Small models whose classes are not all ties, and pictures of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.models.model import SegmentationModel, create_model


@pytest.fixture
def make_model() -> Callable[..., SegmentationModel]:
    def make(name: str = "setr_pup_vit_t16", **values: Any) -> SegmentationModel:
        sizes: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 2, "taps": (0, 1), "aux_levels": ()}
        sizes |= {"decoder_width": 64, "decoder_num_heads": 2, "head_channels": 16}
        model = create_model(name, num_classes=5, image_size=64, **sizes | values)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def windows() -> Tensor:
    """Two pictures [2, 61, 64, 3] with smooth colours; the height is no multiple of a patch."""
    coarse = torch.rand(2, 3, 5, 6) * 255
    smooth = torch.nn.functional.interpolate(coarse, (61, 64), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).contiguous().to(torch.uint8)
