"""The loss between low-resolution logits and labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from setr_fast.errors import ShapeError
from setr_fast.loss import segmentation_loss


def _case(ignored: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 5, (2, 12, 10), dtype=torch.uint8)
    labels.view(-1)[:ignored] = 255
    return torch.randn(2, 5, 3, 4), labels


def test_averaging_over_all_pixels_counts_the_ignored_ones() -> None:
    logits, labels = _case(ignored=60)
    size = (12, 16)
    valid, everything = (
        segmentation_loss(logits, labels, size=size, align_corners=False, averaging=a) for a in ("valid", "all")
    )
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[..., :10]
    torch.testing.assert_close(valid, F.cross_entropy(full, labels.long(), ignore_index=255))
    torch.testing.assert_close(everything, valid * (240 - 60) / 240)


@pytest.mark.parametrize("averaging", ["valid", "all"])
def test_labels_that_are_all_ignored_give_zero_and_no_gradient(averaging: str) -> None:
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    labels = torch.full((2, 12, 16), 255, dtype=torch.uint8)
    loss = segmentation_loss(logits, labels, size=(12, 16), align_corners=False, averaging=averaging)
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_ignored_pixels_do_not_reach_the_gradient() -> None:
    logits = torch.randn(1, 5, 12, 10, requires_grad=True)
    _, labels = _case()
    segmentation_loss(logits, labels[:1], size=(12, 10), align_corners=False).backward()
    assert not logits.grad[0][:, labels[0] == 255].any()
    assert logits.grad[0][:, labels[0] != 255].all()


def test_sixteen_bit_logits_are_summed_in_32_bits() -> None:
    logits, labels = _case()
    loss = segmentation_loss(logits.bfloat16(), labels, size=(12, 10), align_corners=True)
    assert loss.dtype == torch.float32
    exact = segmentation_loss(logits.bfloat16().double(), labels, size=(12, 10), align_corners=True)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_may_be_any_integers(kind: torch.dtype) -> None:
    logits, labels = _case()
    want = segmentation_loss(logits, labels, size=(12, 10), align_corners=False)
    assert torch.equal(segmentation_loss(logits, labels.to(kind), size=(12, 10), align_corners=False), want)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 5, 3, 4), torch.zeros(1, 12, 10, dtype=torch.uint8), "logits and labels must be"),
        (torch.zeros(5, 3, 4), torch.zeros(1, 12, 10, dtype=torch.uint8), "logits and labels must be"),
        (torch.zeros(1, 5, 3, 4), torch.zeros(1, 12, 10), "labels must be integers"),
        (torch.zeros(1, 5, 3, 4), torch.zeros(1, 13, 10, dtype=torch.uint8), "labels must be at most"),
    ],
)
def test_wrong_shapes_are_refused(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        segmentation_loss(logits, labels, size=(12, 10), align_corners=False)
