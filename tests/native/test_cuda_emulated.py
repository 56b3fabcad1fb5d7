"""Every CUDA kernel, with its launcher and its registration, run on the CPU and held to float64.

Threads run forwards and backwards, memory is NaN until written and ends at a page that must not be touched
(cuda_on_cpu/emulator.h). This proves what the kernels compute. What they cost, only a GPU tells.
"""

from __future__ import annotations

import importlib
import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.ops import OPS, _native
from setr_fast.ops._op import Backend, Case, Draw, Op
from tests.native.emulated import SOURCES, call, library, serves

patch_embed_product = importlib.import_module("setr_fast.ops.patch_embed_product")  # the module, not the function
AXES = [*itertools.product(range(1, 6), range(1, 12)), (7, 35), (20, 40), (33, 18), (5, 80)]
LARGE = "slide"  # these merge pictures of 512 x 683 pixels
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EMULATED = sorted({name for p in SOURCES for name in re.findall(r'm\.impl\("(\w+)"', p.read_text())})


def _cuda(op: Op) -> Backend:
    return next(b for b in op.backends if b.device == "cuda" and b.name == "native")


def _outputs(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _accepted(op: Op, args: tuple[Any, ...]) -> bool:
    backend = _cuda(op)
    floats = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    known = backend.dtypes is None or all(a.dtype in backend.dtypes for a in floats)
    return known and not (backend.accepts(*args) if backend.accepts else [])


def _small_cases(op: Op) -> list[Case]:
    """What a GPU does at once, the emulator does thread by thread."""
    return [case for case in op.cases() if not case.bench and not case.name.startswith(LARGE)]


def _layout(x: Tensor) -> list[Any]:
    """Sizes with their strides, where there is more than one of a thing: what torch.compile relies on."""
    return [(n, step) for n, step in zip(x.shape, x.stride(), strict=True) if n > 1] if x.numel() else [*x.shape]


def hold_to_float64(op: Op, args: tuple[Any, ...]) -> None:
    """Compare with the reference, in both orders of threads."""
    exact, plain = _outputs(op.reference(*_double(args))), _outputs(op.reference(*args))
    ours, again = _outputs(call(op.name, *args)), _outputs(call(op.name, *args, backwards=True))
    assert len(ours) == len(plain)
    promised = getattr(torch.ops.setr_fast, op.name).default(
        *(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    )
    assert list(map(_layout, ours)) == list(map(_layout, _outputs(promised)))
    for got, twice, reference, truth in zip(ours, again, plain, exact, strict=True):
        assert (got.dtype, got.shape) == (reference.dtype, reference.shape)
        assert torch.equal(got, twice), "the order of threads must not matter"
        if not (op.rounds and got.is_floating_point()):
            assert torch.equal(got, reference)
            continue
        # What is said of a rounded map (statistics) inherits its rounding.
        eps = max(torch.finfo(x.dtype).eps for x in plain if x.is_floating_point())
        allowed = _cuda(op).error_factor * (reference.double() - truth).abs().max() + eps * truth.abs().max()
        assert (got.double() - truth).abs().max() <= allowed, f"{got.dtype} {(got.double() - truth).abs().max()}"


def test_every_registration_is_emulated() -> None:
    assert all(map(serves, EMULATED))
    assert {"confusion_matrix", "patch_embed_rows", "upsample_argmax", "upsample_conv"} <= set(EMULATED)


@pytest.mark.parametrize("name", EMULATED)
def test_kernels_agree_with_the_float64_reference(name: str) -> None:
    op, before, served = OPS[name], library().cuda_on_cpu_launches(), 0
    for case in _small_cases(op):
        for dtype in DTYPES:
            args = case.make(Draw.on(dtype=dtype))
            if _accepted(op, args):
                hold_to_float64(op, args)
                served += 1
    assert served
    assert library().cuda_on_cpu_launches() > before


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_upsample_conv_of_every_pair_of_small_sizes(align_corners: bool, side: int) -> None:
    """Rows and columns of any ratio, channels that are and are not a multiple of eight, and the gradient."""
    forward, backward = OPS["upsample_conv"], OPS["upsample_conv_backward"]
    for number, (small, large) in enumerate(AXES):
        other_small, other_large = AXES[(7 * number + 3) % len(AXES)]
        outputs = (8, 1, 13, 16)[number % 4]
        x, weight = torch.randn(2, 3, small, other_small), torch.randn(outputs, 3, side, side)
        bias = torch.randn(outputs) if number % 3 else None
        size = (large, other_large)
        grad = torch.randn(2, outputs, *size)
        for op, args in (
            (forward, (x, weight, bias, *size, align_corners, number % 2 == 0)),
            (backward, (grad, x, weight, align_corners)),
        ):
            ours, exact = _outputs(call(op.name, *args)), _outputs(op.reference(*_double(args)))
            for got, truth in zip(ours, exact, strict=True):
                torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=5e-4, msg=f"{small} -> {large}")


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 5, 7, 8, 14, 16])
def test_rows_of_patches_of_any_picture(patch: int, planar: bool) -> None:
    scaling = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [-1.0, 0.5, 2.0]
    sizes = itertools.product((1, 3, patch, 2 * patch + 1), (1, 4, patch, 3 * patch - 1), (1, 2))
    for height, width, pictures in sizes:
        image = torch.randint(0, 256, (pictures, height, width, 3), dtype=torch.uint8)
        for h, w in {(-(-height // patch), -(-width // patch)), (max(height // patch, 1), max(width // patch, 1))}:
            for dtype in (torch.float32, torch.bfloat16):
                args = (image, patch, h, w, *scaling, planar, dtype)
                assert torch.equal(call("patch_embed_rows", *args), OPS["patch_embed_rows"].reference(*args))


def test_strided_arguments_are_read_as_they_look() -> None:
    logits = torch.randn(2, 7, 9, 5).permute(0, 3, 1, 2)
    args = (logits, [13, 17], [13, 16], True)
    assert torch.equal(call("upsample_argmax", *args), OPS["upsample_argmax"].reference(*args))
    image = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)[:, 1:33, 3:35]
    rows = (image, 16, 2, 2, [0.0] * 3, [1.0] * 3, [0.0] * 3, False, torch.float16)
    assert torch.equal(call("patch_embed_rows", *rows), OPS["patch_embed_rows"].reference(*rows))
    x, weight = torch.randn(1, 6, 5, 9).transpose(2, 3), torch.randn(3, 3, 5, 6).permute(2, 3, 0, 1)
    torch.testing.assert_close(
        call("upsample_conv", x, weight, None, 18, 10, False, False),
        OPS["upsample_conv"].reference(x, weight, None, 18, 10, False, False),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_argmax_takes_values_as_the_cpu_kernel_does(value: float) -> None:
    if _native.load() is None:
        pytest.skip(_native.missing("cpu"))
    logits = torch.randn(1, 5, 4, 4)
    logits[0, 1:4, 1, 2] = value
    logits[0, :, 3, 3] = 0.0
    args = (logits, [16, 16], [16, 16], False)
    assert torch.equal(call("upsample_argmax", *args), OPS["upsample_argmax"].run("native", *args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_argmax_of_several_blocks_and_chunks_of_classes(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Sums are exact: eighths of few digits, and factors that are powers of two. Three classes tie."""
    logits = (torch.randn(1, 21, 9, 72) * 8).round().div(8).to(dtype)
    logits[:, 1:3] = logits[:, 20:].clone()
    for size in ([18, 144], [36, 288], [9, 72]):
        args = (logits.contiguous(memory_format=layout), size, size, False)
        assert torch.equal(call("upsample_argmax", *args), OPS["upsample_argmax"].reference(*args))


@pytest.mark.parametrize("name", ["confusion_matrix", "upsample_accumulate_argmax"])
def test_an_illegal_id_is_an_error(name: str) -> None:
    op = OPS[name]
    case = next(case for case in _small_cases(op) if "argmax" not in name or "_counted" in case.name)
    args = case.make(Draw.on())
    at = 9 if "argmax" in name else 1
    labels = args[at].clone()
    labels.view(-1)[-1] = 201
    with pytest.raises((ValueError, RuntimeError), match=r"label.* must be .*got 201"):
        call(name, *args[:at], labels, *args[at + 1 :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_fused_patch_embedding_is_as_exact_as_the_convolution(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel's own conditions on sizes, through the folding of mean and std into its arguments."""
    monkeypatch.setattr(Op, "run", lambda self, _name, *args: call(self.name, *args))
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    for (B, H, W), patch, width, bias in (((2, 64, 96), 16, 136, True), ((1, 35, 64), 32, 8, False)):
        grid = (H // patch, W // patch)
        image = torch.randint(0, 256, (B, H, W, 3), dtype=torch.uint8)
        weight = (torch.randn(width, 3, patch, patch) * (3 * patch * patch) ** -0.5).to(dtype)
        positions, shift = torch.randn(grid[0] * grid[1], width).to(dtype), torch.randn(width).to(dtype)
        args = (image, weight, shift if bias else None, positions, mean, std, *grid)
        assert not patch_embed_product.forward_refuses(*args)
        exact, plain = OPS["patch_embed"].reference(*_double(args)), OPS["patch_embed"].reference(*args)
        got = patch_embed_product.forward(*args)
        assert got.dtype == dtype
        allowed = 2 * (plain.double() - exact).abs().max()
        assert (got.double() - exact).abs().max() <= allowed


def test_views_that_start_anywhere_are_read_as_they_look() -> None:
    """Copies of the kernel start on 16 bytes; what a caller cut out of a larger tensor may not."""
    op = OPS["patch_embed_product"]
    image = torch.randint(0, 256, (2, 33, 35, 3), dtype=torch.uint8)[:, 1:, 1:33]
    factor, addend = torch.randn(1 + 8 * 768).half()[1:].view(8, 768), torch.randn(1 + 4 * 8)[1:].view(4, 8)
    args = (image, factor, addend, 16, 2, 2, [3.0, 1.0, 2.0], 0.5, torch.float32)
    got = torch.ops.setr_fast_emulated.patch_embed_product.default(*args)
    torch.testing.assert_close(got, op.reference(*args), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize("pixels", [1, 31, 1025, 9001])
def test_pixels_of_one_warp_count_together(pixels: int, classes: int) -> None:
    """150 classes do not fit into shared memory; most pixels are of one class, the last warp is not full."""
    ids = torch.randint(0, classes, (2, pixels), dtype=torch.uint8).where(torch.rand(2, pixels) < 0.3, 1)
    ids[1, ::5] = 255
    args = (ids[0], ids[1], classes, 255)
    assert torch.equal(call("confusion_matrix", *args), OPS["confusion_matrix"].reference(*args))


def test_shapes_that_the_fused_patch_embedding_cannot_take_are_refused_in_words() -> None:
    args = (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(12, 768).half(), torch.zeros(4, 12))
    with pytest.raises((ValueError, RuntimeError), match="D of 8"):
        call("patch_embed_product", *args, 16, 2, 2, [0.0] * 3, 1.0, torch.float32)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
