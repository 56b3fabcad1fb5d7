"""What the threads of the CUDA kernels do, run one after the other on the CPU.

A thread that reads or writes beyond its arrays, or writes what another wrote, raises; so does a value nobody wrote.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from setr_fast.ops import OPS, _native

AXES = [*itertools.product(range(1, 6), range(1, 12)), (7, 35), (20, 40), (33, 18), (5, 80)]


@pytest.fixture(scope="module")
def module() -> Any:
    if _native.load() is None:
        pytest.skip(_native.missing("cpu"))
    return _native.load()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 5, 7, 8, 14, 16])
def test_gather_of_patches(module: Any, patch: int, planar: bool) -> None:
    generator = np.random.default_rng(patch)
    shift, scale, fill = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [-1.0, 0.5, 2.0]
    for height, width, pictures in itertools.product(
        (1, 3, patch, 2 * patch + 1), (1, 4, patch, 3 * patch - 1), (1, 2)
    ):
        image = generator.integers(0, 256, (pictures, height, width, 3), dtype=np.uint8)
        for h, w in {(-(-height // patch), -(-width // patch)), (max(height // patch, 1), max(width // patch, 1))}:
            got = module.patch_embed_rows_threads(image, patch, h, w, shift, scale, fill, planar)
            args = (torch.from_numpy(image), patch, h, w, shift, scale, fill, planar, torch.float32)
            want = OPS["patch_embed_rows"].reference(*args)
            assert np.array_equal(got, want.numpy()), (height, width, h, w)


def _upsampled(x: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_combining_tap_maps_is_the_convolution_of_the_upsampled_map(
    module: Any, align_corners: bool, side: int
) -> None:
    """Every pair of small sizes as rows and as columns, and its gradient, against float64."""
    torch.manual_seed(side)
    for number, (small, large) in enumerate(AXES):
        other_small, other_large = AXES[(7 * number + 3) % len(AXES)]
        channels, inputs = (8, 1, 13, 16)[number % 4], 3
        padded = -(-channels // 8) * 8
        x = torch.randn(2, inputs, small, other_small, dtype=torch.float64, requires_grad=True)
        weight, bias = torch.randn(channels, inputs, side, side).double(), torch.randn(channels).double()
        relu = number % 2 == 0
        size = (large, other_large)
        want = F.conv2d(_upsampled(x, size, align_corners), weight, bias, padding=side // 2)
        taps = torch.einsum("bchw,octs->bhwtso", x, weight).flatten(3, 4)
        z = F.pad(taps, (0, padded - channels)).detach().float().numpy()
        got = module.upsample_combine_threads(z, bias.float().numpy(), *size, align_corners, relu)
        shown = (want.relu() if relu else want).permute(0, 2, 3, 1).detach().numpy()
        np.testing.assert_allclose(got, shown, rtol=1e-4, atol=2e-4, err_msg=f"{small} -> {large}, {channels}")

        grad = torch.randn_like(want)
        want.backward(grad)
        seen = grad.permute(0, 2, 3, 1).float().contiguous().numpy()
        dz = module.upsample_combine_backward_threads(seen, small, other_small, side, align_corners)
        assert not dz[..., channels:].any(), "channels that pad stay zero"
        of_taps = torch.from_numpy(dz[..., :channels]).double().unflatten(3, (side, side))
        dx = torch.einsum("bhwtso,octs->bchw", of_taps, weight)
        assert x.grad is not None
        np.testing.assert_allclose(dx, x.grad, rtol=1e-4, atol=5e-4, err_msg=f"{small} -> {large}")


def test_a_value_that_no_thread_writes_is_seen(module: Any) -> None:
    z, bias = np.zeros((1, 2, 2, 9, 8), np.float32), np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="y: value 8 is never written"):
        module.upsample_combine_threads(z, bias, 4, 4, False, False)
