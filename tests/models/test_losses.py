"""Hard-example mining, focal, Dice and Lovasz losses against their plain full-size forms, values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import full_size_losses as plain
from setr_fast.errors import ShapeError
from setr_fast.loss import LossAndAccuracy, dice_loss, focal_loss, lovasz_loss, ohem_loss, segmentation_loss
from setr_fast.ops import upsample_cross_entropy

ROOT = Path(__file__).resolve().parents[2]
CASES = {"doubled": ((2, 7, 6, 5), (12, 10), (12, 10)), "odd": ((2, 3, 4, 7), (31, 33), (29, 30))}
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0, 1.0, 0.7])
LOSSES = [ohem_loss, focal_loss, dice_loss, lovasz_loss]


def _draw(case: str) -> tuple[Tensor, Tensor, tuple[int, int]]:
    shape, size, crop = CASES[case]
    labels = torch.randint(0, shape[1], (shape[0], *crop))
    labels.view(-1)[::6] = 255
    return 2 * torch.randn(shape), labels, size


def _compare(
    case: str, ours: Callable[..., LossAndAccuracy], theirs: Callable[[Tensor, Tensor], Tensor], corners: bool
) -> None:
    logits, labels, size = _draw(case)
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        twin = leaf.detach().double().requires_grad_()
        loss, accuracy = ours(leaf, labels, size=size, align_corners=corners)
        want = theirs(plain.full_size(twin, labels, size, corners), labels)
        (loss * 3).backward()
        (want * 3).backward()
        assert loss.item() == pytest.approx(want.item(), rel=rel)
        worst = (leaf.grad.double() - twin.grad).abs().max() / twin.grad.abs().max()
        assert worst <= {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
        assert leaf.grad.dtype == dtype
        exact = upsample_cross_entropy(leaf.detach(), labels, size, corners).accuracy
        assert accuracy.item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 5), (0.1, 60), (0.3, 10**6), (None, 40), (None, 10**6)])
def test_hard_examples_by_mmsegs_rule(case: str, weighted: bool, threshold: float | None, min_kept: int) -> None:
    weights = WEIGHTS[: CASES[case][0][1]] if weighted else None
    _compare(
        case,
        lambda *a, **k: ohem_loss(*a, **k, threshold=threshold, min_kept=min_kept, class_weights=weights),
        lambda full, y: plain.mmseg_ohem(full, y, threshold, min_kept, None if weights is None else weights.double()),
        corners=False,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 5), (0.1, 60), (0.3, 10**6)])
def test_hard_examples_by_paddlesegs_rule(case: str, threshold: float, min_kept: int) -> None:
    _compare(
        case,
        lambda *a, **k: ohem_loss(*a, **k, threshold=threshold, min_kept=min_kept, rule="paddleseg"),
        lambda full, y: plain.paddleseg_ohem(full, y, threshold, min_kept),
        corners=True,
    )


def test_easy_pixels_count_in_the_average_over_all() -> None:
    logits, labels, size = _draw("odd")
    valid, everything, count = (
        ohem_loss(logits, labels, size=size, align_corners=False, min_kept=9, averaging=a).loss
        for a in ("valid", "all", "count")
    )
    torch.testing.assert_close(everything, valid * (labels != 255).sum() / labels.numel())
    torch.testing.assert_close(count, valid)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 1.0), (0.0, 1.0), (0.5, 0.25)])
def test_focal_loss(case: str, gamma: float, alpha: float) -> None:
    _compare(
        case,
        lambda *a, **k: focal_loss(*a, **k, gamma=gamma, alpha=alpha),
        lambda full, y: plain.focal(full, y, gamma, alpha),
        corners=False,
    )


def test_focal_loss_of_certain_pixels_has_a_finite_gradient() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 200.0
    leaf = logits.requires_grad_()
    labels = torch.ones(1, 8, 8, dtype=torch.uint8)
    focal_loss(leaf, labels, size=(8, 8), align_corners=False, gamma=0.5).loss.backward()
    assert not leaf.grad.any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("exponent", "smooth", "weighted"), [(1, 1.0, False), (2, 1.0, True), (1, 0.0, True)])
def test_dice_loss(case: str, exponent: int, smooth: float, weighted: bool) -> None:
    weights = WEIGHTS[: CASES[case][0][1]] if weighted else None
    _compare(
        case,
        lambda *a, **k: dice_loss(*a, **k, exponent=exponent, smooth=smooth, class_weights=weights),
        lambda full, y: plain.dice(full, y, exponent, smooth, None if weights is None else weights.double()),
        corners=True,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_lovasz_loss(case: str, weighted: bool) -> None:
    weights = WEIGHTS[: CASES[case][0][1]] if weighted else None
    _compare(
        case,
        lambda *a, **k: lovasz_loss(*a, **k, class_weights=weights),
        lambda full, y: plain.lovasz(full, y, None if weights is None else weights.double()),
        corners=False,
    )


def test_lovasz_loss_leaves_out_absent_classes() -> None:
    logits, labels, size = torch.randn(1, 9, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), (8, 8)
    labels[:, :3] = 4
    want = plain.lovasz(plain.full_size(logits.double(), labels.long(), size, False), labels.long(), None)
    got = lovasz_loss(logits, labels, size=size, align_corners=False).loss
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_labels_that_are_all_ignored_have_no_gradient(loss: Callable[..., LossAndAccuracy]) -> None:
    leaf = torch.randn(2, 5, 3, 4, requires_grad=True)
    labels = torch.full((2, 12, 16), 255, dtype=torch.uint8)
    result = loss(leaf, labels, size=(12, 16), align_corners=False)
    result.loss.backward()
    assert result.loss.isfinite()
    assert loss is dice_loss or result.loss.item() == 0.0
    assert not leaf.grad.any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_wrong_labels_are_refused(loss: Callable[..., LossAndAccuracy]) -> None:
    with pytest.raises(ShapeError, match="every label must be 0 to 4"):
        loss(torch.randn(1, 5, 3, 4), torch.full((1, 6, 8), 9), size=(6, 8), align_corners=False)
    with pytest.raises(ShapeError, match="labels must be at most"):
        loss(torch.randn(1, 5, 3, 4), torch.zeros((1, 7, 8), dtype=torch.uint8), size=(6, 8), align_corners=False)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_equal_sizes_and_cropped_labels_go_together(loss: Callable[..., LossAndAccuracy]) -> None:
    leaf = torch.randn(1, 5, 6, 8, requires_grad=True)
    labels = torch.randint(0, 5, (1, 5, 6), dtype=torch.uint8)
    loss(leaf, labels, size=(6, 8), align_corners=False).loss.backward()
    assert leaf.grad[..., :5, :6].any()
    assert not leaf.grad[..., 5:, :].any()
    assert not leaf.grad[..., 6:].any()


@pytest.mark.parametrize("loss", [dice_loss, lovasz_loss])
def test_losses_of_classes_are_worked_out_in_float32_under_autocast(loss: Callable[..., LossAndAccuracy]) -> None:
    logits, labels, size = _draw("odd")
    plain = loss(logits, labels, size=size, align_corners=False).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(logits, labels, size=size, align_corners=False).loss, plain)


def test_focal_loss_without_focus_is_the_cross_entropy() -> None:
    logits, labels, size = _draw("odd")
    got = focal_loss(logits, labels, size=size, align_corners=False, gamma=0.0).loss
    torch.testing.assert_close(got, segmentation_loss(logits, labels, size=size, align_corners=False))


MEMORY = """
import re, sys
import torch
from setr_fast import loss
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
run = getattr(loss, sys.argv[1])
run(torch.zeros(1, 60, 16, 16, requires_grad=True), torch.zeros(1, 64, 64, dtype=torch.uint8), size=(64, 64),
    align_corners=False).loss.backward()  # with what the library of products keeps for good
z = torch.randn(1, 60, 16, 16, requires_grad=True)
y = torch.randint(0, 60, (1, 256, 256), dtype=torch.uint8)
before = peak()
run(z, y, size=(256, 256), align_corners=False).loss.backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_memory_is_a_few_maps_and_not_one_per_class(loss: Callable[..., LossAndAccuracy]) -> None:
    """60 classes of 256 x 256 are 15 MiB; the softmax and its gradient on full-size logits take four such."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, loss.__name__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) <= 20
