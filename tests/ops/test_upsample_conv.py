"""What is peculiar to upsampling and convolution in one op: guard bands, poison, layouts, refusals, bits, memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import setr_fast
from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, upsample_conv, upsample_conv_classify

ROOT = Path(__file__).resolve().parents[2]
OP, BACKWARD, CLASSIFY = OPS["upsample_conv"], OPS["upsample_conv_backward"], OPS["upsample_conv_classify"]
compiled = pytest.mark.skipif(bool(_native.missing("cpu")), reason="the extension is not compiled")
SIZES = [(1, 1), (1, 4), (3, 1), (2, 3), (5, 4)]
TARGETS = [(1, 1), (1, 7), (6, 1), (2, 3), (4, 6), (9, 5), (13, 11), (3, 2)]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int], corners: bool, relu: bool) -> Tensor:
    """The plain order, apart from the op's reference."""
    up = F.interpolate(x, size, mode="bilinear", align_corners=corners)
    y = F.conv2d(up, weight, bias, padding=weight.shape[-1] // 2)
    return y.clamp_min(0) if relu else y


@compiled
@pytest.mark.parametrize("corners", [False, True], ids=["halves", "corners"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_small_size_equals_interpolation_and_convolution(kernel: int, corners: bool) -> None:
    for small, large in itertools.product(SIZES, TARGETS):
        x, weight, bias = torch.randn(2, 3, *small), torch.randn(18, 3, kernel, kernel), torch.randn(18)
        want = plain(x.double(), weight.double(), bias.double(), large, corners, True)
        got = OP.run("native", x, weight, bias, *large, corners, True)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5, msg=f"{small} to {large}")


@compiled
@pytest.mark.parametrize("corners", [False, True], ids=["halves", "corners"])
def test_every_small_size_has_the_gradient_of_interpolation_and_convolution(corners: bool) -> None:
    for small, large in itertools.product(SIZES, TARGETS):
        x, weight = torch.randn(2, 3, *small), torch.randn(5, 3, 3, 3)
        grad = torch.randn(2, 5, *large)
        wide = [t.double().requires_grad_() for t in (x, weight, torch.zeros(5))]
        want = torch.autograd.grad(plain(*wide, large, corners, False), wide, grad.double())
        got = BACKWARD.run("native", grad, x, weight, corners)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5, msg=f"{small} to {large}")


def guarded(values_BHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values in channels-last memory between two bands of NaN, and the whole buffer."""
    buffer = torch.full((values_BHWC.numel() + 256,), float("nan"), dtype=values_BHWC.dtype)
    inside = buffer[128:-128].view(values_BHWC.shape)
    inside.copy_(values_BHWC)
    return inside.permute(0, 3, 1, 2), buffer


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("channels", "outputs", "w", "W"), [(3, 5, 7, 15), (130, 33, 17, 40), (8, 16, 9, 4)])
def test_kernels_read_nothing_around_their_inputs(
    channels: int, outputs: int, w: int, W: int, dtype: torch.dtype
) -> None:
    x, band = guarded(torch.randn(2, 4, w, channels).to(dtype))
    weight, bias = torch.randn(outputs, channels, 3, 3).to(dtype), torch.randn(outputs).to(dtype)
    grad, _ = guarded(torch.randn(2, 9, W, outputs).to(dtype))
    results = [OP.run("native", x, weight, bias, 9, W, False, False), *BACKWARD.run("native", grad, x, weight, False)]
    results.append(CLASSIFY.run("native", x, weight, bias, torch.randn(3, outputs, 1, 1).to(dtype), None, 9, W, False))
    assert all(r.isfinite().all() for r in results)
    assert band[:128].isnan().all()
    assert band[-128:].isnan().all()


@compiled
def test_every_output_is_written_even_on_poisoned_memory() -> None:
    """Freed blocks full of NaN are what the next allocation of that size is likely to get."""
    x, weight = torch.randn(1, 6, 9, 11), torch.randn(21, 6, 3, 3)
    want = plain(x, weight, None, (20, 23), False, False)
    for _ in range(4):
        poison = [torch.full((1, 21, 20, 23), float("nan")) for _ in range(3)]
        del poison
        torch.testing.assert_close(OP.run("native", x, weight, None, 20, 23, False, False), want, rtol=1e-4, atol=1e-4)


@compiled
def test_not_a_number_passes_through_relu_and_borders_stay_clean() -> None:
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    y = OP.run("native", x, torch.ones(1, 1, 3, 3), None, 12, 12, False, True)
    assert y[0, 0, :3, :3].isnan().all()
    assert not y[0, 0, 5:, 5:].isnan().any()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_any_memory_format_gives_the_same_bits(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 5, 4, 6).to(dtype), torch.randn(7, 5, 3, 3).to(dtype)
    args = (None, 8, 12, False, True)
    want = OP.run("native", x, weight, *args)
    strided = torch.randn(2, 10, 4, 12).to(dtype)[:, ::2, :, ::2]
    strided.copy_(x)
    for other in (x.contiguous(memory_format=torch.channels_last), strided, x.transpose(2, 3).clone().transpose(2, 3)):
        assert torch.equal(OP.run("native", other, weight, *args), want)
    assert torch.equal(OP.run("native", x, weight.contiguous(memory_format=torch.channels_last), *args), want)
    grad = torch.randn(1, 7, 1, 1).to(dtype).expand(2, 7, 8, 12)
    for one, other in zip(
        BACKWARD.run("native", grad, x, weight, False),
        BACKWARD.run("native", grad.contiguous(), x, weight, False),
        strict=True,
    ):
        assert torch.equal(one, other)


@compiled
def test_two_runs_and_any_number_of_threads_give_the_same_forward_bits() -> None:
    x, weight, bias = torch.randn(1, 40, 34, 18), torch.randn(36, 40, 3, 3), torch.randn(36)
    grad = torch.randn(1, 36, 70, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7, 7):
            torch.set_num_threads(threads)
            results.append(OP.run("native", x, weight, bias, 70, 40, False, True))
            gradients = [BACKWARD.run("native", grad, x, weight, False) for _ in range(2)]
            assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])


def test_no_picture_gives_no_output_and_no_gradient() -> None:
    x, weight = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    y = upsample_conv(x, weight, size=(8, 8), relu=True)
    assert y.shape == (0, 5, 8, 8)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert not weight.grad.any()
    assert upsample_conv_classify(x, weight, None, torch.zeros(2, 5, 1, 1), size=(8, 8)).shape == (0, 2, 8, 8)


@pytest.mark.parametrize(("kernel", "size"), [(3, (7, 6)), (3, (3, 2)), (1, (7, 5)), (3, (3, 4))])
@pytest.mark.parametrize("corners", [False, True], ids=["halves", "corners"])
def test_gradcheck(kernel: int, size: tuple[int, int], corners: bool) -> None:
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    for relu in (False, True):
        torch.autograd.gradcheck(
            lambda *a, relu=relu: upsample_conv(*a, size=size, align_corners=corners, relu=relu), (x, weight, bias)
        )


@compiled
def test_the_gradient_runs_through_relu_and_bias_in_float32() -> None:
    leaves = [torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(6)]
    ours = [t.clone().requires_grad_() for t in leaves]
    theirs = [t.double().requires_grad_() for t in leaves]
    pull = torch.randn(1, 6, 10, 10)
    upsample_conv(*ours, size=(10, 10), relu=True).backward(pull)
    plain(*theirs, (10, 10), False, True).backward(pull.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_the_cheaper_order_is_chosen_where_enlarging_saves_nothing() -> None:
    weight = torch.zeros(2, 3, 3, 3)
    x = torch.zeros(1, 3, 4, 4)
    assert OP.choose(x, weight, None, 4, 4, False, True) == "library"
    assert OP.choose(x, weight, None, 2, 3, False, True) == "library"
    assert OP.choose(x, weight[..., :1, :1], None, 8, 8, False, True) == "library"
    fast = "library" if _native.missing("cpu") else "native"
    assert OP.choose(x, weight, None, 8, 8, False, True) == fast
    assert OP.choose(x.double(), weight.double(), None, 8, 8, False, True) == "library"


def test_autocast_runs_the_op_in_its_dtype_and_float64_is_left_alone() -> None:
    x, weight, bias = torch.randn(1, 4, 4, 4), torch.randn(3, 4, 3, 3), torch.randn(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert upsample_conv(x, weight, bias, size=(8, 8)).dtype == torch.bfloat16
        assert upsample_conv(x.double(), weight.double(), None, size=(8, 8)).dtype == torch.float64
        head = torch.randn(2, 3, 1, 1)
        assert upsample_conv_classify(x, weight, bias, head, size=(8, 8)).dtype == torch.bfloat16


def test_compiles_with_any_size_without_a_graph_break() -> None:
    weight, classes = torch.randn(3, 4, 3, 3), torch.randn(2, 3, 1, 1)

    def two(x: Tensor) -> Tensor:
        size = (2 * x.shape[2], 2 * x.shape[3])
        y = upsample_conv(x, weight, size=size, relu=True)
        return y.sum() + upsample_conv_classify(x, weight, None, classes, size=size).sum()

    compiled_two = torch.compile(two, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((1, 4, 3, 5), (2, 4, 6, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled_two(x), two(x), rtol=1e-4, atol=1e-3)


X, W3 = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "size", "message"),
    [
        ((X[0], W3), (8, 8), r"x must be \[B, C, h, w\]"),
        ((X, torch.zeros(2, 4, 3, 3)), (8, 8), r"weight must be \[O, 3, 1, 1\] or"),
        ((X, torch.zeros(2, 3, 5, 5)), (8, 8), r"weight must be \[O, 3, 1, 1\] or"),
        ((X, W3, torch.zeros(3)), (8, 8), r"bias must be \[2\], got \[3\]"),
        ((X, W3.double()), (8, 8), "weight must be float32 on cpu as x is, got float64"),
        ((X, W3), (0, 8), r"size must be at least \(1, 1\), got \(0, 8\)"),
        ((X.int(), W3.int()), (8, 8), "x must be float16, bfloat16"),
        ((X[:, :, :0], W3), (8, 8), "with at least one pixel"),
    ],
)
def test_wrong_arguments_are_one_line(args: Any, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        upsample_conv(*args, size=size)
    assert "\n" not in str(caught.value)


def test_wrong_classifiers_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"classes must be \[K, 2, 1, 1\]"):
        upsample_conv_classify(X, W3, None, torch.zeros(5, 3, 1, 1), size=(8, 8))
    with pytest.raises(ShapeError, match=r"class_bias must be \[5\]"):
        upsample_conv_classify(X, W3, None, torch.zeros(5, 2, 1, 1), torch.zeros(4), size=(8, 8))


def test_the_compiled_kernels_check_for_themselves() -> None:
    if reason := _native.missing("cpu"):
        pytest.skip(reason)
    with pytest.raises(ValueError, match="weight must be"):
        OP.run("native", X, torch.zeros(2, 4, 3, 3), None, 8, 8, False, False)
    with pytest.raises(ValueError, match="grad must be"):
        BACKWARD.run("native", torch.zeros(1, 5, 8, 8), X, W3, False)


MEMORY = """
import torch
from setr_fast.ops import upsample_conv_classify
def status(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) * 1024
weight, classes = torch.randn(64, 64, 3, 3), torch.randn(4, 64, 1, 1)
x = torch.randn(1, 64, 128, 128)
with torch.inference_mode():
    upsample_conv_classify(x[..., :8, :8], weight, None, classes, size=(16, 16))
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    upsample_conv_classify(x, weight, None, classes, size=(512, 512))
print(status("VmHWM") - before)
"""


@compiled
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_inference_never_holds_the_wide_map() -> None:
    with setr_fast.backend(""):
        done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    logits, wide = 4 * 4 * 512 * 512, 4 * 64 * 512 * 512
    assert logits <= int(done.stdout) < wide / 3


def test_maps_in_channels_last_memory_are_convolved_as_exactly_as_others() -> None:
    """PyTorch's own CPU convolution is four times less exact of these."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1024, 12, 12, generator=generator)
    weight = torch.randn(32, 1024, 3, 3, generator=generator) / 96
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    plain = (F.conv2d(x, weight, padding=1) - exact).abs().max()
    last = upsample_conv(x.contiguous(memory_format=torch.channels_last), weight, None, size=(12, 12))
    assert (last - exact).abs().max() <= 2 * plain
