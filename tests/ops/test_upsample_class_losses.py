"""What is peculiar to the ops on class probabilities: upsample_class_sums and upsample_lovasz."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import upsample_class_sums, upsample_cross_entropy, upsample_lovasz

Value = Callable[[Tensor, Tensor], Tensor]
SIZE = (37, 45)


def _sums(logits: Tensor, labels: Tensor, exponent: int = 1) -> Tensor:
    sums = upsample_class_sums(logits, labels, SIZE, exponent=exponent)
    return (sums.here / (sums.everywhere + 1.0)).sum()


def _lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    return upsample_lovasz(logits, labels, SIZE).loss


BOTH = pytest.mark.parametrize("value", [_sums, _lovasz], ids=["sums", "lovasz"])


def _draw(classes: int = 21, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (2, *SIZE), generator=generator)
    labels[:, 3:9] = 255
    return scale * torch.randn(2, classes, 9, 12, generator=generator), labels


def _with_gradient(value: Value, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    result = value(leaf, labels)
    result.backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad


@BOTH
def test_the_number_of_threads_changes_no_bit(value: Value) -> None:
    logits, labels = _draw()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(_with_gradient(value, logits, labels))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return upsample_cross_entropy(logits, labels, SIZE).loss


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 2.0, logits.shape[1], dtype=logits.dtype)
    return upsample_cross_entropy(logits, labels, SIZE, class_weights=weights, label_smoothing=0.1).loss


@pytest.mark.parametrize("value", [_sums, _lovasz, _entropy, _smoothed], ids=["sums", "lovasz", "entropy", "smoothed"])
@pytest.mark.parametrize("leaders", ["the same", "two kinds", "any"])
def test_logits_of_ten_thousand(value: Value, leaders: str) -> None:
    """Between low pixels whose leading classes differ, scores near 1e4 are mixed, and float32 has few digits left."""
    logits, labels = _draw(scale=1.0)
    if leaders == "any":
        logits = torch.where(torch.rand(logits.shape) < 0.1, 1e4 + logits % 1, logits % 1)
    else:
        logits[:, :2] += 1e4  # these and the last compete, the others do not count
        logits[:, 20] += 1e4
        logits[:, 5] -= 1e4
    if leaders == "two kinds":
        logits[:, :, :4] = logits[:, :, :4].roll(3, 1)
    exact, slope = _with_gradient(value, logits.double(), labels)
    loss, gradient = _with_gradient(value, logits, labels)
    assert slope.abs().max() > 1e-6
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - slope).abs().max() <= 1e-4 * slope.abs().max()


@BOTH
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_layouts_and_types_of_labels_change_no_bit(value: Value, dtype: torch.dtype) -> None:
    logits, labels = _draw()
    loss, gradient = _with_gradient(value, logits, labels)
    laid = logits.contiguous(memory_format=torch.channels_last)
    other, slope = _with_gradient(value, laid, labels.to(dtype).transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(loss, other)
    assert torch.equal(gradient, slope)


def test_pixels_that_cannot_matter_are_not_sorted_and_the_loss_is_that_of_all() -> None:
    """A class that is sure of its pixels leaves most others without a step; equal errors are in the order of pixels."""
    logits, labels = _draw(5, scale=0.5)
    logits[:, 1] += 6.0
    labels[labels != 255] = 1
    labels[:, 20:] = 3
    loss, gradient = _with_gradient(_lovasz, logits, labels)
    exact, slope = _with_gradient(_lovasz, logits.double(), labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (gradient - slope).abs().max() <= 1e-4 * slope.abs().max()


@pytest.mark.parametrize("exponent", [2, 3])
def test_other_exponents(exponent: int) -> None:
    logits, labels = _draw()
    loss, gradient = _with_gradient(lambda z, y: _sums(z, y, exponent), logits, labels)
    exact, slope = _with_gradient(lambda z, y: _sums(z, y, exponent), logits.double(), labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - slope).abs().max() <= 1e-5 * slope.abs().max()


def test_mistakes_are_named() -> None:
    logits, labels = _draw()
    options: dict[str, Any] = {"size": SIZE}
    with pytest.raises(ShapeError, match="exponent must be at least 1, got 0"):
        upsample_class_sums(logits, labels, exponent=0, **options)
    with pytest.raises(ShapeError, match=r"class_weights must be \[21\], got \[3\]"):
        upsample_lovasz(logits, labels, class_weights=torch.ones(3), **options)
