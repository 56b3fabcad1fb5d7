"""Models small enough to be exported in seconds, one per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from setr_fast.models.model import SegmentationModel, create_model

NAMES = {
    "naive": "setr_naive_vit_t16",
    "pup": "setr_pup_vit_t16",
    "mla": "setr_mla_vit_t16",
    "linear": "segmenter_linear_vit_t16",
    "mask": "segmenter_mask_vit_t16",
}


@pytest.fixture
def make_small() -> Callable[..., SegmentationModel]:
    """Return a function that builds a model of one head whose classes change every few pixels."""

    def make(head: str, /, classes: int = 7, **changes: Any) -> SegmentationModel:
        torch.manual_seed(1)
        setr = head in ("naive", "pup", "mla")
        small: dict[str, Any] = {
            "depth": 1,
            "width": 32,
            "num_heads": 2,
            "taps": (0,),
            "aux_levels": (),
            "patch_size": 8,
        }
        small |= {"head_channels": 16} if setr else {"decoder_width": 32, "decoder_num_heads": 2, "decoder_depth": 1}
        model = create_model(NAMES[head], classes, 64, **(small | changes)).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.3, 2.0)
                elif tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        return model

    return make
