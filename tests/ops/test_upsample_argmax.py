"""upsample_argmax: against float64, ties, NaN, strides, sizes, memory."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, upsample_argmax

OP = OPS["upsample_argmax"]
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")
BACKENDS = ["reference", pytest.param("native", marks=needs_extension)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_right(found: Tensor, logits: Tensor, size: tuple[int, int], align: bool = False) -> None:
    """The class found must score, in float64, within rounding of the best: float32 errors of both at most."""
    exact = interpolate(logits.double(), size, mode="bilinear", align_corners=align)
    exact = exact[..., : found.shape[1], : found.shape[2]]
    lost = exact.amax(1) - exact.gather(1, found[:, None].long())[:, 0]
    # Positions are float32, so a weight may be off by a few units of the position's last place.
    steps = max(logits.shape[-2:]) * 4e-7 + 1e-6
    assert float(lost.max()) <= steps * float(logits.double().abs().max())


@needs_extension
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_shape_scale_dtype_and_stride(data):
    shape = tuple(data.draw(st.integers(1, most)) for most in (2, 40, 19, 37))
    size = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 300))
    crop = data.draw(st.integers(0, size[0])), data.draw(st.integers(0, size[1]))
    align = data.draw(st.booleans())
    logits = random(*shape, seed=sum(shape)) * data.draw(st.sampled_from([1.0, 1e4, 1e-6]))
    logits = logits.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    layout = data.draw(st.sampled_from(["packed", "channels_last", "sliced", "transposed"]))
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        wide = torch.full((shape[0], shape[1], shape[2] + 3, shape[3] + 5), float("nan"), dtype=logits.dtype)
        wide[..., 1:-2, 2:-3] = logits
        logits = wide[..., 1:-2, 2:-3]
    elif layout == "transposed":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    found = OP.run("native", logits, list(size), list(crop), align)
    assert found.shape == (shape[0], *crop)
    if found.numel():
        assert int(found.max()) < shape[1]
        assert_right(found, logits.float(), size, align)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [2, 4, 16])
@pytest.mark.parametrize("classes", [1, 19, 150, 151, 300])
def test_whole_factors_and_class_counts(backend, scale, classes):
    logits = random(1, classes, 9, 21, seed=classes)
    size = 9 * scale, 21 * scale
    found = OP.run(backend, logits, list(size), list(size), False)
    assert found.dtype == (torch.uint8 if classes <= 256 else torch.int16)
    assert_right(found, logits, size)


@needs_extension
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_first_of_equal_classes_wins(memory_format):
    """Of the kernel alone: interpolate itself rounds equal channels differently in the tail of a vector."""
    half = random(2, 7, 6, 9)
    logits = torch.cat([half, half, half], 1).contiguous(memory_format=memory_format)
    found = OP.run("native", logits, [24, 36], [24, 36], False)
    assert int(found.max()) < 7
    assert torch.equal(found, OP.run("native", half, [24, 36], [24, 36], False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_equal_is_class_0(backend):
    assert (OP.run(backend, torch.zeros(1, 5, 3, 3), [7, 7], [7, 7], True) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_is_the_largest_as_in_torch(backend):
    logits = random(1, 6, 8, 8)
    logits[0, 3, 4, 4] = float("nan")
    logits[0, 1, 4, 5] = float("nan")
    found = OP.run(backend, logits, [16, 16], [16, 16], False)
    expected = interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(found.long(), expected.argmax(1))
    touched = expected.isnan().any(1)
    assert int(touched.sum()) > 8
    assert set(found[touched].tolist()) == {1, 3}


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_and_infinite_logits(backend):
    logits = random(1, 5, 4, 4)
    logits[0, 2, 1, 1] = 3e38
    logits[0, 4, 2, 2] = -3e38
    assert_right(OP.run(backend, logits, [12, 12], [12, 12], True), logits, (12, 12), True)
    logits = random(1, 5, 4, 4)
    logits[0, 2] = float("inf")  # everywhere: no weight turns it into a NaN
    assert (OP.run("native" if backend == "native" else backend, logits, [4, 4], [4, 4], True) == 2).all()


@needs_extension
def test_threads_change_nothing():
    logits = random(1, 40, 30, 50)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(OP.run("native", logits, [240, 400], [239, 397], False))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "crop", "words"),
    [
        ((3, 4, 4), torch.float32, (8, 8), None, "logits must be floats"),
        ((1, 3, 4, 4), torch.int64, (8, 8), None, "logits must be floats"),
        ((1, 0, 4, 4), torch.float32, (8, 8), None, "logits must be floats"),
        ((1, 3, 4, 4), torch.float32, (0, 8), None, "size must be"),
        ((1, 3, 4, 4), torch.float32, (8, 8), (9, 8), "crop must lie within"),
        ((1, 40_000, 1, 1), torch.float32, (1, 1), None, "classes must be at most"),
    ],
)
def test_other_arguments_are_refused(shape, dtype, size, crop, words):
    with pytest.raises(ShapeError, match=words):
        upsample_argmax(torch.zeros(shape, dtype=dtype), size, crop=crop)


MEASURE = """
import re, torch
from pathlib import Path
from setr_fast.ops import upsample_argmax
from torch.nn.functional import interpolate
torch.set_num_threads(2)
logits = torch.randn(1, 150, {low}, {low})
upsample_argmax(logits[:, :, :8, :8], (32, 32))
interpolate(logits[:, :, :8, :8], (32, 32), mode="bilinear").argmax(1)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
upsample_argmax(logits, (512, 512))
ours = peak()
interpolate(logits, (512, 512), mode="bilinear").argmax(1)
print(ours - before, peak() - before)
"""


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("low", [128, 32])
def test_peak_memory_is_a_tenth_of_eager(low, request):
    code = MEASURE.format(low=low)
    root = request.config.rootpath
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    ours, eager = (float(word) for word in re.split(r"\s+", done.stdout.strip()))
    assert eager > 150
    assert ours <= eager / 10
