"""The patch embedding in whole numbers: exactness of its digits, hostile weights, borders, dtypes, threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from setr_fast.errors import BackendError
from setr_fast.ops import OPS, _native, patch_embed_products
from setr_fast.ops._op import Draw
from setr_fast.ops.patch_embed import IMAGENET

OP = OPS["patch_embed"]
MODULE = _native.load()
pytestmark = pytest.mark.skipif(
    MODULE is None or not MODULE.vnni_works(), reason=_native.reason() or "this processor has no AVX-512 VNNI"
)
ZERO_ONE = [0.0] * 3, [1.0] * 3


def arguments(
    B: int = 2,
    H: int = 19,
    W: int = 30,
    P: int = 8,
    D: int = 21,
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    h, w = grid or (-(-H // P), -(-W // P))
    draw = Draw.on(dtype=dtype)
    image = draw.integers(0, 256, (B, H, W, 3), torch.uint8)
    return image, draw(D, 3, P, P) * 0.05, draw(D), draw(h * w, D), *IMAGENET, h, w


def exact(*args: Any) -> Tensor:
    double = OP.reference(*(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args))
    assert isinstance(double, Tensor)
    return double


def check(*args: Any) -> Tensor:
    """Run both, assert that the error is at most twice the reference's, and return the result."""
    got, plain, truth = OP.run("native_vnni", *args), OP.reference(*args), exact(*args)
    assert got.dtype is plain.dtype
    assert got.is_contiguous()
    worst, allowed = ((x.double() - truth).abs().max() for x in (got, plain))
    assert worst <= 2 * allowed + torch.finfo(got.dtype).eps * truth.abs().max()
    return got


def test_it_is_the_default_for_more_than_a_few_patches() -> None:
    assert OP.choose(*arguments(H=200, W=200)) == "native_vnni"
    assert OP.choose(*arguments()) == "native"
    few = patch_embed_products.FEW_PATCHES
    assert OP.choose(*arguments(B=1, H=8, W=8 * few)) == "native"
    assert OP.choose(*arguments(B=1, H=8, W=8 * few + 1)) == "native_vnni"


@pytest.mark.parametrize(
    ("B", "H", "W", "P", "D", "grid"),
    [
        (2, 19, 30, 8, 21, None),
        (1, 5, 3, 7, 5, None),  # 147 bytes a patch: no multiple of four
        (3, 33, 47, 16, 16, (2, 2)),  # what the grid does not cover is cut
        (1, 5, 3, 4, 17, (5, 3)),  # patches wholly off the picture, below and to the right
        (1, 64, 9, 1, 33, None),  # a patch is a pixel: three bytes
        (5, 40, 52, 4, 40, None),  # several strips, the last one short, pictures that end inside a strip
        (1, 14, 30, 14, 70, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size(B: int, H: int, W: int, P: int, D: int, grid: Any, dtype: torch.dtype) -> None:
    check(*arguments(B, H, W, P, D, grid, dtype))


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [torch.float32, torch.bfloat16, None])
def test_dtypes_may_differ(weight: torch.dtype, positions: torch.dtype, bias: torch.dtype | None) -> None:
    image, w, b, p, *rest = arguments()
    args = image, w.to(weight), None if bias is None else b.to(bias), p.to(positions), *rest
    got = OP.run("native_vnni", *args)
    assert got.dtype is torch.promote_types(weight, positions)
    limit = 1e-6 if weight is torch.float32 else 1e-4  # digits of 24 and of 16 bits
    limit = limit if got.dtype is torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), exact(*args), rtol=limit, atol=limit)


def test_bytes_times_whole_weights_are_exact() -> None:
    """All digits in use, sums as large as they get; a weight of exactly 8355704 steps makes a step one."""
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    image[0, :16] = 255
    weight = torch.randint(-8355704, 8355705, (40, 3, 16, 16)).float()
    weight[:, 0, 0, 0] = 8355704
    weight[1], weight[2] = 8355704, -8355704
    args = image, weight, None, torch.zeros(16, 40), *ZERO_ONE, 4, 4
    got, truth = OP.run("native_vnni", *args).double(), exact(*args)
    assert ((got - truth).abs() <= 2e-7 * truth.abs() + 2e-7 * 256 * 2**24).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_next_to_the_largest_do_not_overflow_their_digits(dtype: torch.dtype) -> None:
    """A weight that rounds to one step more than the largest must not turn into the smallest."""
    image = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    largest = torch.rand(512, 1, 1, 1) + 0.5
    weight = (largest * (1 - torch.randint(0, 3, (512, 3, 16, 16)) * 2.0**-24)).to(dtype)
    weight *= torch.randint(0, 2, weight.shape) * 2 - 1
    check(image, weight, None, torch.zeros(1, 512, dtype=dtype), *IMAGENET, 1, 1)


def test_the_largest_patch_stays_within_32_bits() -> None:
    image = torch.full((1, 128, 128, 3), 255, dtype=torch.uint8)
    check(image, torch.ones(2, 3, 128, 128) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), None, torch.zeros(1, 2),
          *ZERO_ONE, 1, 1)  # fmt: skip
    with pytest.raises(BackendError, match="at most 128 pixels"):
        OP.run("native_vnni", image, torch.ones(2, 3, 129, 129), None, torch.zeros(1, 2), *ZERO_ONE, 1, 1)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
def test_channels_of_any_size_keep_their_own_precision(size: float) -> None:
    """One channel's weights do not coarsen another's."""
    image, weight, _, positions, *rest = arguments()
    weight[3] *= size
    got = OP.run("native_vnni", image, weight, None, positions * 0, *rest)
    truth = exact(image, weight, None, positions * 0, *rest)
    for channel in (2, 3):
        largest = truth[..., channel].abs().max()
        assert (got[..., channel].double() - truth[..., channel]).abs().max() <= max(1e-6 * largest, 1e-34)


def test_a_channel_of_zeros_gives_bias_and_positions_to_the_bit() -> None:
    image, weight, bias, positions, *rest = arguments()
    weight[4] = 0
    got = OP.run("native_vnni", image, weight, bias, positions, *rest)
    assert torch.equal(got[..., 4], (bias[4] + positions[:, 4]).expand(2, -1))


@pytest.mark.parametrize("hostile", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_without_a_number_stays_without_and_harms_no_other(hostile: float, dtype: torch.dtype) -> None:
    args = arguments(dtype=dtype)
    clean = OP.run("native_vnni", *args)
    args[1][5, 1, 2, 3] = hostile
    got = OP.run("native_vnni", *args)
    assert not got[..., 5].isfinite().any()
    others = [c for c in range(21) if c != 5]
    assert torch.equal(got[..., others], clean[..., others])


def test_threads_strips_and_memory_order_do_not_change_a_bit() -> None:
    image, weight, *rest = arguments(3, 70, 90, 8, 150)
    before, results = torch.get_num_threads(), []
    mirrored = image.flip(2).contiguous().flip(2)
    laid = weight.contiguous(memory_format=torch.channels_last)
    try:
        for threads, picture, values in ((1, image, weight), (2, mirrored, weight), (3, image, laid)):
            torch.set_num_threads(threads)
            results.append(OP.run("native_vnni", picture, values, *rest))
    finally:
        torch.set_num_threads(before)
    alone = OP.run("native_vnni", image[1:2], weight, *rest)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0][1:2], alone)


def test_poisoned_memory_beside_the_picture_is_not_read() -> None:
    image, *rest = arguments()
    around = torch.zeros(4, 40, 50, 3, dtype=torch.uint8)
    results = []
    for poison in (0, 255):
        around.fill_(poison)
        window = around[1:3, 5:24, 7:37]
        window.copy_(image)
        results.append(OP.run("native_vnni", window, *rest))
    assert torch.equal(*results)
    assert torch.equal(results[0], OP.run("native_vnni", image, *rest))


def test_no_picture_gives_no_tokens() -> None:
    image, *rest = arguments()
    assert OP.run("native_vnni", image[:0], *rest).shape == (0, 12, 21)


def test_the_kernel_refuses_what_does_not_fit() -> None:
    image, weight, bias, positions, mean, std, h, w = arguments()
    kernel = torch.ops.setr_fast_native.patch_embed.default
    for wrong in (
        (image[..., :2], weight, bias, positions, mean, std, h, w),
        (image, weight[:, :, :, :7], bias, positions, mean, std, h, w),
        (image, weight, bias[:-1], positions, mean, std, h, w),
        (image, weight, bias, positions[:-1], mean, std, h, w),
        (image, weight, bias, positions, mean[:2], std, h, w),
        (image, weight.half(), bias, positions, mean, std, h, w),
    ):
        with pytest.raises(ValueError, match="must"):
            kernel(*wrong)
