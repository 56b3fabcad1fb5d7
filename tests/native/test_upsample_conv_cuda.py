"""The CUDA kernels of upsample_conv on a device: every type, odd channels, repeatability, CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from setr_fast.ops import OPS

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [  # (B, C, h, w), outputs, side, (H, W)
    ((2, 256, 32, 32), 256, 3, (64, 64)),
    ((1, 17, 5, 3), 19, 3, (13, 8)),
    ((3, 8, 1, 6), 16, 3, (3, 12)),
    ((1, 9, 1, 1), 2, 3, (4, 4)),
    ((2, 16, 9, 8), 7, 3, (4, 5)),
    ((2, 6, 4, 3), 5, 1, (8, 9)),
    ((5, 64, 40, 40), 24, 3, (160, 160)),
]


def _arguments(
    shape: tuple[int, int, int, int], outputs: int, side: int, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Any, ...]:
    x = torch.randn(shape).to("cuda", dtype)
    weight = (torch.randn(outputs, shape[1], side, side) * (shape[1] * side * side) ** -0.5).to("cuda", dtype)
    return x, weight, torch.randn(outputs).to("cuda", dtype), *size


def _double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_are_as_exact_as_pytorch(
    shape: Any, layout: torch.memory_format, align_corners: bool, dtype: torch.dtype
) -> None:
    forward, backward = OPS["upsample_conv"], OPS["upsample_conv_backward"]
    x, weight, bias, *size = _arguments(*shape, dtype)
    x = x.contiguous(memory_format=layout)
    grad = torch.randn(len(x), len(weight), *size, device="cuda").to(dtype).contiguous(memory_format=layout)
    calls = [(forward, (x, weight, b, *size, align_corners, relu)) for b in (bias, None) for relu in (True, False)]
    calls.append((backward, (grad, x, weight, align_corners)))
    for op, args in calls:
        got, plain, exact = op.run("native", *args), op.reference(*args), op.reference(*_double(args))
        again = op.run("native", *args)
        if isinstance(got, torch.Tensor):
            got, plain, exact, again = (got,), (plain,), (exact,), (again,)
            assert got[0].is_contiguous(memory_format=torch.channels_last)
        for one, other, truth, twice in zip(got, plain, exact, again, strict=True):
            error, allowed = ((t.double() - truth).abs().max() for t in (one, other))
            assert error <= 2 * allowed + torch.finfo(dtype).eps * truth.abs().max(), op.name
            assert torch.equal(one, twice), "two runs give the same bits"


def test_batches_beyond_one_chunk_of_tap_maps_equal_their_pictures_alone() -> None:
    op = OPS["upsample_conv"]
    x, weight, bias, *size = _arguments((7, 256, 64, 64), 256, 3, (128, 128), torch.bfloat16)
    whole = op.run("native", x, weight, bias, *size, False, True)
    for picture in range(len(x)):
        alone = op.run("native", x[picture : picture + 1], weight, bias, *size, False, True)
        torch.testing.assert_close(whole[picture : picture + 1], alone, rtol=2e-2, atol=2e-2)


def test_a_captured_graph_gives_what_eager_gives() -> None:
    op = OPS["upsample_conv"]
    args = (*_arguments((2, 64, 16, 16), 32, 3, (32, 32), torch.bfloat16), False, True)
    op.run("native", *args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op.run("native", *args)
    args[0].copy_(torch.randn(args[0].shape))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, op.run("native", *args))
