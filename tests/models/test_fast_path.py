"""Whole models through the kernels that are chosen by default, against the reference operators and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.models.model import SegmentationModel
from tests.models.test_independent_build import build

CASES = ["naive", "naive_mmseg", "pup", "pup_mmseg", "pup_corners", "mla", "mla_mmseg", "mla_shared"]
SIZES = [(24, 40), (19, 30), (64, 8)]  # pictures; patches of 8


def outputs(model: SegmentationModel, image: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
    """Logits of every head; then the loss, gradients and statistics of one training step."""
    model = model.eval()
    image = image.to(next(model.parameters()).dtype)
    with torch.no_grad():
        found = {"full": [model(image)], "logits": model.all_logits(image)}
    model.train()
    loss = model.loss(image, labels)
    loss.backward()
    found["loss"] = [loss.detach()]
    found["gradients"] = [p.grad for p in model.parameters() if p.grad is not None]
    found["statistics"] = [b for _, b in model.named_buffers() if b.is_floating_point()]
    return found


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Euclidean distance of all values together: some gradients are rounding noise by themselves."""
    squares = [float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)]
    return float(sum(squares) ** 0.5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_fast_path_is_as_close_to_float64_as_the_reference(case: str, size: tuple[int, int]) -> None:
    saved = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in build(case).state_dict().items()
    }
    image = torch.randn(2, 3, *size)
    labels = torch.randint(0, 5, (2, *size), dtype=torch.uint8)
    labels[0, 2:5] = 255

    def fresh() -> SegmentationModel:
        model = build(case).float()
        model.load_state_dict(saved)
        return model

    with setr_fast.backend("reference"):
        exact = outputs(fresh().double(), image, labels)
        reference = outputs(fresh(), image, labels)
    fast = outputs(fresh(), image, labels)
    for kind, wanted in exact.items():
        floor = torch.finfo(torch.float32).eps * distance(wanted, [torch.zeros_like(t) for t in wanted])
        assert distance(fast[kind], wanted) <= 2 * distance(reference[kind], wanted) + floor, kind
