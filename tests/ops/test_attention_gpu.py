"""The attention op on a CUDA device: every launch, every backend, repeatability, CUDA graphs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.ops import OPS, attention

pytestmark = pytest.mark.gpu
FORWARD, BACKWARD = OPS["attention"], OPS["attention_backward"]
HALF = (torch.float16, torch.bfloat16)


def _kernels() -> Any:
    return importlib.import_module("setr_fast.kernels.attention")


def _args(B: int, N: int, M: int, E: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(N)
    qkv = torch.randn((B, N, 3, M, E), generator=generator).to("cuda", dtype)
    return qkv, torch.randn((B, N, M * E), generator=generator).to("cuda", dtype), E**-0.5


def _exact(qkv: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    known = FORWARD.reference(qkv.double(), scale)
    return (*known, BACKWARD.reference(grad.double(), qkv.double(), *known, scale))


def _of_pytorch(qkv: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return out and gradient of SDPA, as PyTorch chooses, in bfloat16 (float32 where that is asked for)."""
    dtype = torch.float32 if qkv.dtype is torch.float32 else torch.bfloat16
    x = qkv.detach().to(dtype).requires_grad_()
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return out.detach(), torch.autograd.grad(out, x, grad.to(dtype))[0]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
@pytest.mark.parametrize("width", [16, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("tokens", [1, 7, 64, 193, 1024, 1025])
def test_every_launch_is_as_exact_as_pytorch(dtype: torch.dtype, card: str, width: int, tokens: int) -> None:
    if card == "sm_90" and _kernels().card_class(None) != "sm_90":
        pytest.skip("launches of sm_90 may need more shared memory than this card has")
    qkv, grad, scale = _args(2, tokens, 3, width, dtype)
    out, lse = _kernels().attention(qkv, scale, card)
    dqkv = _kernels().attention_backward(grad, qkv, out, lse, scale, card)
    out64, lse64, dqkv64 = _exact(qkv, grad, scale)
    sdpa_out, sdpa_dqkv = _of_pytorch(qkv, grad)
    atomic = importlib.import_module("setr_fast.kernels.attention_atomic")
    in_one_pass = atomic.attention_backward(grad, qkv, out, lse, scale, card)
    for got, theirs, truth in ((out, sdpa_out, out64), (dqkv, sdpa_dqkv, dqkv64), (in_one_pass, sdpa_dqkv, dqkv64)):
        floor = torch.finfo(dtype).eps * truth.abs().max()
        error, allowed = (got.double() - truth).abs().max(), (theirs.double() - truth).abs().max()
        assert error <= 1.5 * allowed + floor, (float(error), float(allowed))
    torch.testing.assert_close(lse.double(), lse64, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1024, 1025])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_the_split_backward_repeats_to_the_bit(dtype: torch.dtype, tokens: int) -> None:
    qkv, grad, scale = _args(4, tokens, 16, 64, dtype)
    known = FORWARD.run("triton", qkv, scale)
    first = BACKWARD.run("triton", grad, qkv, *known, scale)
    for _ in range(10):
        assert all(map(torch.equal, FORWARD.run("triton", qkv, scale), known))
        assert torch.equal(BACKWARD.run("triton", grad, qkv, *known, scale), first)


@pytest.mark.parametrize("backend", ["triton", "triton_atomic", "default"])
@pytest.mark.parametrize("tokens", [256, 1025])
def test_a_captured_graph_gives_what_eager_gives(backend: str, tokens: int) -> None:
    qkv, grad, scale = _args(2, tokens, 4, 64, torch.bfloat16)
    name = FORWARD.choose(qkv, scale) if backend == "default" else backend

    def both() -> tuple[Tensor, Tensor]:
        known = FORWARD.run(name, qkv, scale)
        return known[0], BACKWARD.run(name, grad, qkv, *known, scale)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles what there is to compile before the capture
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    other = _args(2, tokens, 4, 64, torch.bfloat16)[0].flip(1)
    qkv.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, both(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-3)
        assert backend != "triton" or torch.equal(got, want)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(7, 32), (197, 64), (1025, 64), (300, 128)])
def test_forward_and_backward_of_any_two_backends_fit_together(tokens: int, width: int, dtype: torch.dtype) -> None:
    qkv, grad, scale = _args(2, tokens, 3, width, dtype)
    out64, lse64, dqkv64 = _exact(qkv, grad, scale)
    assert all(b.name in BACKWARD.names() for b in FORWARD.backends)
    serving = [b.name for b in FORWARD.backends if not FORWARD.refusals(b, qkv, scale)]
    assert {"triton", "triton_atomic", "sdpa_math"} <= set(serving)
    for one in serving:
        out, lse = FORWARD.run(one, qkv, scale)
        torch.testing.assert_close(out.double(), out64, rtol=3e-2, atol=3e-3)
        torch.testing.assert_close(lse.double(), lse64, rtol=1e-3, atol=1e-3)
        for other in serving:
            dqkv = BACKWARD.run(other, grad, qkv, out, lse, scale)
            assert dqkv.is_contiguous()
            torch.testing.assert_close(dqkv.double(), dqkv64, rtol=5e-2, atol=2e-2, msg=f"{one} then {other}")


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    """The last picture of a packed buffer of more than 2^31 values equals the same picture alone."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    B, N, M, E = 180, 4096, 16, 64
    qkv = torch.empty((B, N, 3, M, E), dtype=torch.bfloat16, device="cuda")
    assert qkv.numel() > 2**31
    qkv[-1].normal_()
    qkv[:-1].zero_()
    out, lse = _kernels().attention(qkv, E**-0.5)
    alone, lse_alone = _kernels().attention(qkv[-1:].clone(), E**-0.5)
    assert torch.equal(out[-1:], alone)
    assert torch.equal(lse[-1:], lse_alone)
    grad = torch.zeros_like(out)
    grad[-1].normal_()
    got = _kernels().attention_backward(grad, qkv, out, lse, E**-0.5)[-1:]
    want = _kernels().attention_backward(grad[-1:].clone(), qkv[-1:].clone(), alone, lse_alone, E**-0.5)
    assert torch.equal(got, want)


def test_autocast_and_compile_take_our_kernels_when_told_to() -> None:
    x = torch.randn(2, 65, 3 * 128, device="cuda", requires_grad=True)
    with setr_fast.backend("attention=triton"), torch.autocast("cuda", torch.bfloat16):
        compiled = torch.compile(lambda x: attention(x, 2) * 2, fullgraph=True)
        got = compiled(x)
        want = attention(x, 2) * 2
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    got.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
