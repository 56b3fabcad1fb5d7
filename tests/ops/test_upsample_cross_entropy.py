"""What is peculiar to the upsampled cross entropy: averagings, weights, extremes, ties, layouts, repeatability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import setr_fast
from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, upsample_cross_entropy
from setr_fast.ops.upsample_cross_entropy_map import upsample_cross_entropy_map

needs_kernel = pytest.mark.skipif(bool(_native.missing("cpu")), reason=_native.missing("cpu") or "compiled")
LABELS = [torch.uint8, torch.int16, torch.int32, torch.int64]


def _draw(shape: tuple[int, ...], size: tuple[int, int], spread: float = 3.0) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, shape[1], (shape[0], *size))
    labels.view(-1)[::5] = 255 if shape[1] <= 255 else -1
    return torch.randn(shape) * spread, labels


def _truth(logits: Tensor, labels: Tensor, size: tuple[int, int], corners: bool = False, **kept: Any) -> Any:
    """Loss and gradient by plain PyTorch in float64; the ratio of sizes is rounded to float32 as for float logits."""
    exact = logits.detach().float().double().requires_grad_()
    full = F.interpolate(exact, size=size, mode="bilinear", align_corners=corners) if size != exact.shape[2:] else exact
    ignored = 255 if logits.shape[1] <= 255 else -1
    full = full[..., : labels.shape[1], : labels.shape[2]]
    loss = F.cross_entropy(full, labels.long(), ignore_index=ignored, **kept)
    loss.backward()
    hits = (full.argmax(1) == labels) & (labels != ignored)
    return loss.detach(), exact.grad, hits.sum() / (labels != ignored).sum()


def _ours(logits: Tensor, labels: Tensor, size: tuple[int, int], corners: bool = False, **kept: Any) -> Any:
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    ignored = 255 if logits.shape[1] <= 255 else -1
    loss, accuracy = upsample_cross_entropy(leaf, labels, size, corners, ignored, **kept)
    loss.backward()
    return loss.detach(), leaf.grad, accuracy


def _close(ours: Any, truth: Any, rel: float = 1e-5, grad: float = 1e-4, hits: float = 1e-6) -> None:
    assert ours[0].item() == pytest.approx(truth[0].item(), rel=rel, abs=1e-7)
    assert (ours[1].double() - truth[1]).abs().max() <= grad * truth[1].abs().max() + 1e-7
    assert ours[2].item() == pytest.approx(truth[2].item(), abs=hits)


@pytest.mark.parametrize("classes", [1, 2, 19, 150, 151, 300])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("low", "size"),
    [
        ((1, 1), (9, 6)),
        ((1, 5), (4, 33)),
        ((7, 1), (19, 3)),
        ((5, 6), (10, 12)),
        ((3, 4), (48, 64)),
        ((6, 7), (23, 17)),
    ],
)
def test_loss_gradient_and_accuracy_agree_with_float64(
    classes: int, corners: bool, low: tuple[int, int], size: tuple[int, int]
) -> None:
    logits, labels = _draw((2, classes, *low), size)
    _close(_ours(logits, labels, size, corners), _truth(logits, labels, size, corners))


@pytest.mark.parametrize("low", [(40, 30), (21, 50), (12, 11)])
def test_a_smaller_or_equal_size_is_right(low: tuple[int, int]) -> None:
    logits, labels = _draw((1, 19, *low), (12, 11))
    _close(_ours(logits, labels, (12, 11)), _truth(logits, labels, (12, 11)))


def test_more_low_rows_than_bands_meet_without_a_seam() -> None:
    logits, labels = _draw((2, 5, 70, 9), (141, 20))
    _close(_ours(logits, labels, (141, 20)), _truth(logits, labels, (141, 20)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("averaging", ["valid", "all", "count"])
def test_weights_smoothing_and_averaging(smoothing: float, weighted: bool, averaging: str) -> None:
    logits, labels = _draw((2, 19, 5, 6), (17, 23))
    weights = torch.rand(19) if weighted else None
    ours = _ours(logits, labels, (17, 23), averaging=averaging, class_weights=weights, label_smoothing=smoothing)
    kept = {"label_smoothing": smoothing, "weight": None if weights is None else weights.double()}
    truth = _truth(logits, labels, (17, 23), **kept)
    counted = labels != 255
    sums = float(weights[labels[counted]].double().sum()) if weighted else float(counted.sum())
    factor = sums / {"valid": sums, "all": labels.numel(), "count": float(counted.sum())}[averaging]
    _close(ours, (truth[0] * factor, truth[1] * factor, truth[2]))


@pytest.mark.parametrize("averaging", ["valid", "all", "count"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_labels_that_are_all_ignored_give_zero_everywhere(averaging: str, backend: str) -> None:
    if backend == "native" and _native.missing("cpu"):
        pytest.skip(_native.missing("cpu"))
    logits, labels = torch.randn(2, 4, 3, 3), torch.full((2, 9, 9), 255)
    with setr_fast.backend(f"upsample_cross_entropy={backend}"):
        loss, gradient, accuracy = _ours(logits, labels, (9, 9), averaging=averaging)
    assert loss.item() == 0.0
    assert not gradient.any()
    assert accuracy.item() == 0.0


def test_weights_of_zero_give_zero_and_no_nan() -> None:
    logits, labels = _draw((1, 4, 3, 3), (9, 9))
    loss, gradient, _ = _ours(logits, labels, (9, 9), class_weights=torch.zeros(4))
    assert loss.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_large_logits_stay_exact(offset: float) -> None:
    logits, labels = _draw((1, 19, 6, 6), (24, 24), spread=1.0)
    _close(_ours(logits + offset, labels, (24, 24)), _truth(logits + offset, labels, (24, 24)), rel=1e-5)


def test_logits_of_plus_and_minus_ten_thousand() -> None:
    """The classes that lead at the corners of a cell differ, so that in between the mixed maximum is far too high."""
    logits = torch.where(torch.rand(1, 19, 6, 6) < 0.2, 1e4, -1e4)
    labels = _draw((1, 19, 6, 6), (25, 31))[1]
    ours, truth = _ours(logits, labels, (25, 31)), _truth(logits, labels, (25, 31))
    _close(ours, truth, hits=0.01)  # half-way between two corners both lead, and rounding decides


def test_of_equal_logits_the_first_class_counts_as_predicted() -> None:
    logits, labels = torch.zeros(1, 40, 4, 4), torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[:, 8:] = 20
    loss, accuracy = upsample_cross_entropy(logits, labels, (16, 16))
    assert accuracy.item() == 0.5
    assert loss.item() == pytest.approx(torch.log(torch.tensor(40.0)).item(), rel=1e-6)
    logits[:, 20:] = 1.0
    assert upsample_cross_entropy(logits, labels, (16, 16)).accuracy.item() == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(bad: float) -> None:
    logits, labels = _draw((1, 19, 6, 6), (24, 24))
    logits[0, 3, 2, 2] = bad
    assert upsample_cross_entropy(logits, labels, (24, 24)).loss.isnan()


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_of_any_type_and_logits_of_any_layout(kind: torch.dtype, dtype: torch.dtype) -> None:
    logits, labels = _draw((2, 19, 5, 6), (20, 24))
    logits = logits.to(dtype)
    want = _ours(logits, labels, (20, 24))
    for other in (logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().transpose(2, 3)):
        got = _ours(other, labels.to(kind), (20, 24))
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        assert got[1].stride() == other.stride()
    strided = torch.stack((labels, labels), -1).to(kind)[..., 0]
    assert torch.equal(_ours(logits, strided, (20, 24))[1], want[1])
    expanded = logits[:1].expand(2, -1, -1, -1)
    assert torch.equal(_ours(expanded, labels, (20, 24))[1], _ours(expanded.contiguous(), labels, (20, 24))[1])


@needs_kernel
@pytest.mark.parametrize("classes", [19, 150])
def test_bits_do_not_depend_on_the_run_or_on_the_number_of_threads(classes: int) -> None:
    logits, labels = _draw((2, classes, 37, 21), (150, 85))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            results.append(_ours(logits, labels, (150, 85)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_kernel
def test_every_value_of_the_gradient_is_written() -> None:
    """Low pixels that no label reads (cut off, or stepped over by a smaller size) get a zero, not what lay there."""
    logits = torch.randn(1, 19, 40, 40)
    for size, crop in (((80, 80), (20, 30)), ((9, 11), (9, 11))):
        labels = torch.randint(0, 19, (1, *crop), dtype=torch.uint8)
        for _ in range(3):
            poison = [torch.full_like(logits, float("nan")) for _ in range(4)]
            del poison
            assert _ours(logits, labels, size)[1].isfinite().all()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("label", [19, 254, 200])
def test_a_label_that_is_no_class_is_an_error(backend: str, label: int) -> None:
    if backend == "native" and _native.missing("cpu"):
        pytest.skip(_native.missing("cpu"))
    logits, labels = _draw((1, 19, 3, 3), (9, 9))
    labels[0, 4, 4] = label
    with setr_fast.backend(f"upsample_cross_entropy={backend},upsample_cross_entropy_map={backend}"):
        for call in (upsample_cross_entropy, upsample_cross_entropy_map):
            with pytest.raises(ShapeError, match=rf"every label must be 0 to 18 or the ignored label 255, got {label}"):
                call(logits, labels.to(torch.uint8), (9, 9))
            with pytest.raises(ShapeError, match="got -1"):
                call(logits, torch.full_like(labels, -1), (9, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"averaging": "mean"}, "averaging must be all, valid, count"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie in"),
        ({"class_weights": torch.ones(3)}, r"class_weights must be \[5\], got \[3\]"),
        ({"size": (8, 12)}, "labels must be at most"),
        ({"labels": torch.zeros(1, 12, 12)}, "labels must be integers"),
        ({"labels": torch.zeros(12, 12, dtype=torch.uint8)}, "logits and labels must be"),
        ({"logits_low": torch.zeros(1, 5, 0, 3)}, "must hold a class and a pixel"),
        ({"logits_low": torch.zeros(1, 5, 3, 3, dtype=torch.int32)}, "must be floating-point"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=message):
        upsample_cross_entropy(**({"logits_low": torch.zeros(1, 5, 3, 3), "labels": labels, "size": (12, 12)} | change))


def test_an_empty_batch_is_zero() -> None:
    logits, labels = torch.zeros(0, 5, 3, 3, requires_grad=True), torch.zeros(0, 12, 12, dtype=torch.uint8)
    loss = upsample_cross_entropy(logits, labels, (12, 12)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


def test_gradcheck_of_the_reference_path() -> None:
    logits, labels = _draw((1, 3, 2, 3), (5, 6))
    leaf = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: upsample_cross_entropy(x, labels, (5, 6)).loss, leaf)
    assert torch.autograd.gradcheck(lambda x: upsample_cross_entropy_map(x, labels, (5, 6)).losses, leaf)


def test_the_incoming_gradient_scales_the_result() -> None:
    logits, labels = _draw((1, 19, 5, 5), (20, 20))
    leaf = logits.clone().requires_grad_()
    (upsample_cross_entropy(leaf, labels, (20, 20)).loss * 0.4).backward()
    torch.testing.assert_close(leaf.grad, _ours(logits, labels, (20, 20))[1] * 0.4)


def test_no_gradient_is_worked_out_where_none_is_needed() -> None:
    logits, labels = _draw((1, 19, 5, 5), (20, 20))
    with torch.no_grad():
        loss = upsample_cross_entropy(logits.requires_grad_(), labels, (20, 20)).loss
    assert not loss.requires_grad
    _, _, gradient = OPS["upsample_cross_entropy"](
        logits.detach(), labels, None, 20, 20, False, 255, "valid", 0.0, False
    )
    assert gradient.numel() == 0


def test_it_compiles_into_one_graph_under_autocast() -> None:
    weight, labels = torch.randn(19, 8), torch.randint(0, 19, (1, 20, 20))

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = (weight @ x.flatten(2)).unflatten(2, x.shape[2:])
            losses = upsample_cross_entropy_map(logits, labels, (20, 20)).losses
            return upsample_cross_entropy(logits, labels, (20, 20)).loss + losses.mean()

    values = torch.randn(1, 8, 5, 5)
    plain, compiled = values.clone().requires_grad_(), values.clone().requires_grad_()
    want, got = step(plain), torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    want.backward()
    got.backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(compiled.grad, plain.grad, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 150])
def test_the_map_is_each_pixels_cross_entropy(classes: int) -> None:
    logits, labels = _draw((2, classes, 5, 7), (21, 30))
    leaf, twin = logits.clone().requires_grad_(), logits.double().requires_grad_()
    losses, accuracy = upsample_cross_entropy_map(leaf, labels, (21, 30))
    full = F.interpolate(twin, size=(21, 30), mode="bilinear")
    want = F.cross_entropy(full, labels, ignore_index=255, reduction="none")
    torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-6)
    assert accuracy.item() == upsample_cross_entropy(logits, labels, (21, 30)).accuracy.item()
    assert not losses[labels == 255].any()
    shares = torch.randn_like(losses)
    (losses * shares).sum().backward()
    (want * shares).sum().backward()
    assert (leaf.grad - twin.grad).abs().max() <= 1e-4 * twin.grad.abs().max()
