"""All losses at Cityscapes' training size against float64: 192 x 192 and 48 x 48 logits to 768 x 768 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import full_size_losses as plain
from setr_fast.loss import dice_loss, focal_loss, lovasz_loss, ohem_loss, segmentation_loss

CLASSES, SIZE = 19, (768, 768)
Loss = Callable[..., Any]
PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross entropy": (segmentation_loss, lambda full, y: F.cross_entropy(full, y, ignore_index=255)),
    "hard examples": (
        lambda *a, **k: ohem_loss(*a, **k, threshold=0.7, min_kept=100_000),
        lambda full, y: plain.mmseg_ohem(full, y, 0.7, 100_000, None),
    ),
    "focal": (
        lambda *a, **k: focal_loss(*a, **k, gamma=2.0, alpha=0.25),
        lambda full, y: plain.focal(full, y, 2.0, 0.25),
    ),
    "dice": (
        lambda *a, **k: dice_loss(*a, **k, exponent=2, smooth=1.0),
        lambda full, y: plain.dice(full, y, 2, 1.0, None),
    ),
    "lovasz": (lovasz_loss, lambda full, y: plain.lovasz(full, y, None)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("low", [192, 48])
@pytest.mark.parametrize("hostile", [False, True], ids=["ordinary", "leaders of 10000"])
def test_loss_and_gradient(name: str, low: int, hostile: bool) -> None:
    ours, theirs = PAIRS[name]
    logits = 2 * torch.randn(1, CLASSES, low, low)
    if hostile:
        logits = torch.where(torch.rand(logits.shape) < 0.1, 1e4 + logits, logits)
    labels = torch.randint(0, CLASSES, (1, 96, 96)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, 100:120] = 255
    leaf, twin = logits.requires_grad_(), logits.detach().double().requires_grad_()
    loss = ours(leaf, labels, size=SIZE, align_corners=False)
    loss = loss if isinstance(loss, Tensor) else loss.loss
    want = theirs(plain.full_size(twin, labels, SIZE, False), labels)
    loss.backward()
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert leaf.grad is not None
    assert twin.grad is not None
    assert (leaf.grad - twin.grad).abs().max() <= 1e-4 * twin.grad.abs().max()
