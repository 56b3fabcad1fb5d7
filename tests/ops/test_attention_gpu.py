"""The attention op on a CUDA device: every launch, every backend, repeatability, CUDA graphs.

All tests share three heads, so that a kernel that one has compiled serves the others.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from benchmarks.launches import DESCRIPTORS
from setr_fast.ops import OPS, attention
from tests.kernels.imagined import compiling_only

pytestmark = pytest.mark.gpu
FORWARD, BACKWARD = OPS["attention"], OPS["attention_backward"]
HALF = (torch.float16, torch.bfloat16)
DEVICE, HEADS = "cuda", 3
# Every entry of the launch table with and without a tail; then what an entry serves beside its own width and dtype.
LAUNCHES = [
    (dtype, card, width, tokens)
    for card in ("sm_80", "sm_90")
    for dtype in (torch.bfloat16, torch.float32)
    for width in (64, 128)
    for tokens in (1024, 1025)
] + [
    (torch.float16, None, 64, 1024),
    (torch.float16, None, 64, 1025),
    (torch.float16, None, 128, 193),
    (torch.bfloat16, None, 16, 193),
    (torch.bfloat16, None, 48, 193),
    (torch.bfloat16, None, 80, 193),
    (torch.float32, None, 96, 193),
    (torch.bfloat16, None, 64, 1),
    (torch.bfloat16, None, 64, 7),
    (torch.float32, None, 64, 1),
]


def _kernels() -> Any:
    return importlib.import_module("setr_fast.kernels.attention")


def _atomic() -> Any:
    return importlib.import_module("setr_fast.kernels.attention_atomic")


def _beyond_this_card(card: str | None) -> bool:
    return card == "sm_90" and _kernels().card_class(None) != "sm_90"


def _all(qkv: Tensor, grad: Tensor, scale: float, card: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out, log-sum-exp, the gradient of the split backward and that in one pass."""
    out, lse = _kernels().attention(qkv, scale, card)
    split = _kernels().attention_backward(grad, qkv, out, lse, scale, card)
    return out, lse, split, _atomic().attention_backward(grad, qkv, out, lse, scale, card)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Compile all launches side by side: one after the other they would take minutes."""
    with compiling_only(forgiving=True):
        for dtype, card, width, tokens in LAUNCHES:
            if not _beyond_this_card(card):
                qkv = torch.empty((1, tokens, 3, HEADS, width), dtype=dtype, device=DEVICE)
                _all(qkv, qkv[:, :, 0].flatten(2), 1.0, card)


def _args(B: int, N: int, E: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(N)
    qkv = torch.randn((B, N, 3, HEADS, E), generator=generator).to(DEVICE, dtype)
    return qkv, torch.randn((B, N, HEADS * E), generator=generator).to(DEVICE, dtype), E**-0.5


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


def _poisoned(*shape: int, dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the next tensors of this size are given."""
    held = [torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(4)]
    del held


@pytest.mark.parametrize(("dtype", "card", "width", "tokens"), LAUNCHES, ids=lambda value: str(value).split(".")[-1])
def test_every_launch_is_as_exact_as_pytorch(dtype: torch.dtype, card: str | None, width: int, tokens: int) -> None:
    """Within 1.5 times the error of SDPA, or twice that of the reference in this dtype where that is more."""
    if _beyond_this_card(card):
        pytest.skip("launches of sm_90 may need more shared memory than this card has")
    qkv, grad, scale = _args(2, tokens, width, dtype)
    _poisoned(*qkv.shape, dtype=dtype)
    _poisoned(*grad.shape, dtype=dtype)
    out, lse, split, in_one_pass = _all(qkv, grad, scale, card)
    out64, lse64, dqkv64 = _exact(qkv, grad, scale)
    plain, _ = FORWARD.reference(qkv, scale)
    plain_dqkv = BACKWARD.reference(grad, qkv, out, lse, scale)
    sdpa_out, sdpa_dqkv = _of_pytorch(qkv, grad)
    for what, got, theirs, reference, truth in (
        ("out", out, sdpa_out, plain, out64),
        ("dqkv", split, sdpa_dqkv, plain_dqkv, dqkv64),
        ("dqkv in one pass", in_one_pass, sdpa_dqkv, plain_dqkv, dqkv64),
    ):
        floor = torch.finfo(dtype).eps * truth.abs().max()
        error, sdpa, own = ((x.double() - truth).abs().max() for x in (got, theirs, reference))
        assert error <= torch.maximum(1.5 * sdpa, 2.0 * own) + floor, (what, float(error), float(sdpa), float(own))
    torch.testing.assert_close(lse.double(), lse64, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("launch", DESCRIPTORS, ids=str)
def test_descriptors_give_what_pointers_give(launch: tuple[int, int, int, int]) -> None:
    """Those that specialise warps are left to benchmarks.launches: one that hangs would end all tests."""
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs the copy engine of capability 9.0")
    described = importlib.import_module("setr_fast.kernels.attention_descriptors")
    qkv, _, scale = _args(3, 1024, 64, torch.bfloat16)
    _poisoned(3, 1024, HEADS * 64, dtype=torch.bfloat16)
    out, lse = described.attention(qkv, scale, _kernels().Launch(*launch))
    want, lse_want = _kernels().attention(qkv, scale)
    torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(lse, lse_want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1024, 1025])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_the_split_backward_repeats_to_the_bit(dtype: torch.dtype, tokens: int) -> None:
    qkv, grad, scale = _args(16, tokens, 64, dtype)
    known = FORWARD.run("triton", qkv, scale)
    first = BACKWARD.run("triton", grad, qkv, *known, scale)
    for _ in range(10):
        assert all(map(torch.equal, FORWARD.run("triton", qkv, scale), known))
        assert torch.equal(BACKWARD.run("triton", grad, qkv, *known, scale), first)


@pytest.mark.parametrize("backend", ["triton", "triton_atomic", "default"])
@pytest.mark.parametrize("tokens", [1024, 1025])
def test_a_captured_graph_gives_what_eager_gives(backend: str, tokens: int) -> None:
    qkv, grad, scale = _args(2, tokens, 64, torch.bfloat16)
    ahead = FORWARD.choose(qkv, scale) if backend == "default" else backend
    known = FORWARD.run(ahead, qkv, scale)
    back = BACKWARD.choose(grad, qkv, *known, scale) if backend == "default" else backend

    def both() -> tuple[Tensor, Tensor]:
        known = FORWARD.run(ahead, qkv, scale)
        return known[0], BACKWARD.run(back, grad, qkv, *known, scale)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles what there is to compile before the capture
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    qkv.copy_(qkv.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, both(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-3)
        assert backend != "triton" or torch.equal(got, want)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(7, 64), (1025, 64), (193, 128)])
def test_forward_and_backward_of_any_two_backends_fit_together(tokens: int, width: int, dtype: torch.dtype) -> None:
    qkv, grad, scale = _args(2, tokens, width, dtype)
    out64, lse64, dqkv64 = _exact(qkv, grad, scale)
    assert all(b.name in BACKWARD.names() for b in FORWARD.backends)
    serving = [b.name for b in FORWARD.backends if not FORWARD.refusals(b, qkv, scale)]
    assert {"triton", "triton_atomic", "sdpa_math"} <= set(serving)
    for one in serving:
        out, lse = FORWARD.run(one, qkv, scale)
        torch.testing.assert_close(out.double(), out64, rtol=3e-2, atol=3e-3, msg=lambda m, one=one: f"{one}: {m}")
        torch.testing.assert_close(lse.double(), lse64, rtol=1e-3, atol=1e-3, msg=lambda m, one=one: f"{one}: {m}")
        for other in serving:
            dqkv = BACKWARD.run(other, grad, qkv, out, lse, scale)
            assert dqkv.is_contiguous()
            said = f"{one}, then {other}: "
            torch.testing.assert_close(
                dqkv.double(), dqkv64, rtol=5e-2, atol=2e-2, msg=lambda m, said=said: f"{said}{m}"
            )


def test_strided_qkv_and_gradients_are_read_as_they_look() -> None:
    qkv, grad, scale = _args(2, 1025, 64, torch.bfloat16)
    want = FORWARD.run("triton", qkv, scale)
    wide = torch.stack((qkv, qkv), dim=-1)[..., 0]
    for got, known in zip(FORWARD.run("triton", wide, scale), want, strict=True):
        assert torch.equal(got, known)
    flat = grad[:, :1].expand_as(grad)
    exact = BACKWARD.run("triton", flat.contiguous(), qkv, *want, scale)
    assert torch.equal(BACKWARD.run("triton", flat, wide, *want, scale), exact)


def test_another_stream_is_the_one_that_is_used() -> None:
    """What this stream will have written by then is what the kernels read."""
    qkv, grad, scale = _args(16, 1024, 64, torch.bfloat16)
    want = _all(qkv, grad, scale, None)
    late, stream = torch.zeros_like(qkv), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        late.copy_(qkv)
        got = _all(late, grad, scale, None)
    torch.cuda.synchronize()
    assert all(map(torch.equal, got[:3], want[:3]))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_a_device_that_is_not_the_current_one() -> None:
    qkv, grad, scale = _args(1, 1025, 64, torch.bfloat16)
    want = _all(qkv, grad, scale, None)
    got = _all(qkv.to("cuda:1"), grad.to("cuda:1"), scale, None)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got[:3], want[:3], strict=True))


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    """The last picture of a packed buffer of more than 2^31 values equals the same picture alone."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    B, N, M, E = 930, 4096, HEADS, 64
    qkv = torch.empty((B, N, 3, M, E), dtype=torch.bfloat16, device=DEVICE)
    assert qkv.numel() > 2**31
    qkv[-1].normal_()
    qkv[:-1].zero_()
    out, lse = _kernels().attention(qkv, E**-0.5)
    alone, lse_alone = _kernels().attention(qkv[-1:].clone(), E**-0.5)
    assert torch.equal(out[-1:], alone)
    assert torch.equal(lse[-1:], lse_alone)
    grad = torch.zeros_like(out)
    grad[-1].normal_()
    want = _kernels().attention_backward(grad[-1:].clone(), qkv[-1:].clone(), alone, lse_alone, E**-0.5)
    assert torch.equal(_kernels().attention_backward(grad, qkv, out, lse, E**-0.5)[-1:], want)
    in_one_pass = _atomic().attention_backward(grad, qkv, out, lse, E**-0.5)[-1:]
    torch.testing.assert_close(in_one_pass, want, rtol=2e-2, atol=2e-3)


def test_autocast_and_compile_take_our_kernels_when_told_to() -> None:
    x = torch.randn(2, 1025, 3 * HEADS * 64, device=DEVICE, requires_grad=True)
    with setr_fast.backend("attention=triton"), torch.autocast(DEVICE, torch.bfloat16):
        compiled = torch.compile(lambda x: attention(x, HEADS) * 2, fullgraph=True)
        got = compiled(x)
        want = attention(x, HEADS) * 2
        got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    assert x.grad is not None
    assert x.grad.isfinite().all()
