"""What a CUDA graph cannot record must not happen on a window's way: copies from the host, and waiting for the card.

Both are asked for by few functions of torch. They are looked out for on the CPU, so no card is needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from setr_fast.models.model import create_model
from setr_fast.ops._op import Op
from setr_fast.precision.prepare import _plain
from setr_fast.precision.tree import with_modules

COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}
WAITS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.unique}
WAITS |= {Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}


class _Unrecordable(TorchFunctionMode):
    """Notes what copies from the host or waits for what was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES | WAITS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name", ["setr_pup_vit_t16", "setr_naive_vit_t16", "setr_mla_vit_t16", "segmenter_mask_vit_t16"]
)
def test_nothing_on_a_windows_way_is_beyond_a_recording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the references, which serve on a card until its kernels were tried there."""
    sizes: dict[str, Any] = {"width": 64, "depth": 2, "num_heads": 1, "taps": (0, 1), "aux_levels": ()}
    sizes |= {"decoder_width": 64, "decoder_num_heads": 1, "head_channels": 16}
    model: Any = with_modules(create_model(name, num_classes=5, image_size=64, **sizes).eval(), _plain)
    called: list[str] = []

    def by_reference(op: Op, *args: Any) -> Any:
        called.append(op.name)
        return op.reference(*args)

    monkeypatch.setattr(Op, "_dispatch", by_reference)
    monkeypatch.setattr(Op, "__call__", by_reference)
    with torch.inference_mode(), _Unrecordable() as noted:
        model.logits(torch.zeros(2, 64, 80, 3, dtype=torch.uint8))
    assert "patch_embed" in called
    assert noted.found == []


def test_what_cannot_be_recorded_is_noticed() -> None:
    with _Unrecordable() as noted:
        x = torch.zeros(3) * 2.0 + 1
        assert noted.found == []
        x = x + torch.tensor([1.0, 2.0, 3.0])
        assert bool(x.sum() > 0)
    assert noted.found == ["tensor", "__bool__"]
