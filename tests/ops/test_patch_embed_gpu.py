"""The patch embedding on a CUDA device: exact rows, parity of the products, repeatability, CUDA graphs, offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from setr_fast.ops import OPS

pytestmark = pytest.mark.gpu
FORWARD, BACKWARD, ROWS = OPS["patch_embed"], OPS["patch_embed_backward"], OPS["patch_embed_rows"]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _arguments(B: int, H: int, W: int, P: int, D: int, dtype: torch.dtype) -> tuple[Any, ...]:
    h, w = -(-H // P), -(-W // P)
    image = torch.randint(0, 256, (B, H, W, 3), dtype=torch.uint8)
    weight, bias, positions = torch.randn(D, 3, P, P) * 0.03, torch.randn(D), torch.randn(h * w, D)
    return image.cuda(), *(t.to("cuda", dtype) for t in (weight, bias, positions)), MEAN, STD, h, w


def _double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("patch", [2, 7, 8, 14, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (61, 100), (5, 3)], ids=str)
def test_rows_are_exact(size: tuple[int, int], patch: int, planar: bool, dtype: torch.dtype) -> None:
    image = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8).cuda()
    for pictures in (image, image[:, 1:, 1:], image.flip(2)):  # off 16 bytes, and out of order
        h, w = -(-pictures.shape[1] // patch), -(-pictures.shape[2] // patch)
        for fill, grid in (([0.0] * 3, (h, w)), ([-1.5, 0.25, 2.0], (h + 1, w + 2))):
            args = (pictures, patch, *grid, MEAN, STD, fill, planar, dtype)
            assert torch.equal(ROWS.run("native", *args), ROWS.reference(*args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 512, 512, 16, 1024), (3, 61, 100, 14, 96), (1, 5, 3, 8, 17)], ids=str)
def test_tokens_and_weight_gradient_are_as_exact_as_the_convolution(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    args = _arguments(*shape, dtype)
    out = FORWARD.run("native", *args)
    grad = torch.randn_like(out)
    backward = (grad, args[0], args[1], *args[4:])
    for op, call in ((FORWARD, args), (BACKWARD, backward)):
        got, plain, exact = op.run("native", *call), op.reference(*call), op.reference(*_double(call))
        error, allowed = ((t.double() - exact).abs().max() for t in (got, plain))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * exact.abs().max(), op.name
        assert torch.equal(got, op.run("native", *call)), "two runs give the same bits"


def test_positions_wider_than_the_weight_are_added_in_their_own_precision() -> None:
    args = list(_arguments(2, 64, 64, 16, 64, torch.bfloat16))
    args[3] = args[3].float()
    got, exact = FORWARD.run("native", *args), FORWARD.reference(*_double(tuple(args)))
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-2, atol=2e-2)


def test_a_captured_graph_gives_what_eager_gives() -> None:
    args = _arguments(2, 128, 96, 16, 64, torch.bfloat16)
    FORWARD.run("native", *args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = FORWARD.run("native", *args)
    args[0].copy_(torch.randint(0, 256, args[0].shape, dtype=torch.uint8))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, FORWARD.run("native", *args))


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    """The last picture of more than 2^31 bytes gives the rows that it gives alone."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    image = torch.zeros(180, 2048, 2048, 3, dtype=torch.uint8, device="cuda")
    assert image.numel() > 2**31
    image[-1] = torch.randint(0, 256, image.shape[1:], dtype=torch.uint8)
    rest = (16, 128, 128, MEAN, STD, [0.0] * 3, False, torch.bfloat16)
    assert torch.equal(ROWS.run("native", image, *rest)[-(128**2) :], ROWS.run("native", image[-1:].clone(), *rest))
