"""attention: shapes and refusals, any two backends together, autocast, checkpointing, torch.compile, FSDP2, dropout."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import setr_fast
from setr_fast.errors import BackendError, ShapeError
from setr_fast.models.model import create_model
from setr_fast.nn import block
from setr_fast.ops import OPS, _sdpa, attention
from setr_fast.ops._op import UNTRIED

FORWARD, BACKWARD = OPS["attention"], OPS["attention_backward"]
ON_CPU = ["sdpa_cpu", "sdpa_math", "reference"]
HALF = [torch.float16, torch.bfloat16]


def packed(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(qkv: Tensor, num_heads: int) -> Tensor:
    """PyTorch's attention on permuted views."""
    if qkv.ndim == 3:
        qkv = qkv.unflatten(2, (3, num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", [(2, 9, 3, 4, 16), (2, 9, 192), (1, 1, 3, 1, 8), (1, 196 + 150, 3, 3, 64)])
def test_packed_and_flat_give_what_pytorch_gives(shape: tuple[int, ...]) -> None:
    x, y = packed(*shape).requires_grad_(), packed(*shape).requires_grad_()
    heads = shape[3] if len(shape) == 5 else 4
    ours, theirs = attention(x, heads), plain(y, heads)
    assert ours.shape == (shape[0], shape[1], ours.shape[2])
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn_like(ours)
    ours.backward(seed)
    theirs.backward(seed)
    assert x.grad is not None
    assert x.grad.is_contiguous()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("one", ON_CPU)
@pytest.mark.parametrize("other", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_forward_and_backward_of_any_two_backends_fit_together(one: str, other: str, dtype: torch.dtype) -> None:
    qkv, grad = packed(2, 67, 3, 2, 32, dtype=dtype), packed(2, 67, 64, dtype=dtype, seed=1)
    exact = BACKWARD.reference(grad.double(), qkv.double(), None, None, 32**-0.5)
    known = FORWARD.run(one, qkv, 32**-0.5)
    got = BACKWARD.run(other, grad, qkv, *known, 32**-0.5)
    assert got.is_contiguous()
    error = (got.double() - exact).abs().max() / exact.abs().max()
    assert error < 8 * torch.finfo(dtype).eps + 1e-14


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_by_way_of_float32_is_as_exact_as_the_reference(dtype: torch.dtype) -> None:
    qkv, grad = packed(2, 67, 3, 2, 32, dtype=dtype), packed(2, 67, 64, dtype=dtype, seed=1)
    exact = BACKWARD.reference(grad.double(), qkv.double(), None, None, 32**-0.5)
    known = FORWARD.run("sdpa_cpu_float32", qkv, 32**-0.5)
    assert [t.dtype for t in known] == [dtype, torch.float32]
    torch.testing.assert_close(known[0], FORWARD.run("reference", qkv, 32**-0.5)[0])
    got = BACKWARD.run("sdpa_cpu_float32", grad, qkv, *known, 32**-0.5)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()
    with pytest.raises(BackendError, match="takes float16, bfloat16, got float32"):
        FORWARD.run("sdpa_cpu_float32", qkv.float(), 0.25)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_both_directions_of_a_backend_take_the_same_dtypes(dtype: torch.dtype) -> None:
    """The log-sum-exp beside 16-bit tensors is float32, and must not count."""
    qkv = packed(1, 4, 3, 1, 16, dtype=dtype)
    args = (packed(1, 4, 16, dtype=dtype), qkv, *FORWARD.reference(qkv, 0.25), 0.25)
    for ahead, back in zip(FORWARD.backends, BACKWARD.backends, strict=True):
        assert ahead.name == back.name
        assert FORWARD.refusals(ahead, qkv, 0.25) == BACKWARD.refusals(back, *args)


def test_gradcheck_of_the_default_in_float64() -> None:
    x = packed(2, 5, 3, 2, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, 2), x)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_gradient_that_arrives_expanded_or_permuted_is_read_as_it_looks(backend: str) -> None:
    qkv = packed(2, 6, 3, 2, 16)
    known = FORWARD.run("reference", qkv, 0.25)
    for grad in (torch.ones(1).expand(2, 6, 32), packed(2, 32, 6).transpose(1, 2), packed(32, 6, 2).permute(2, 1, 0)):
        want = BACKWARD.run("reference", grad.contiguous(), qkv, *known, 0.25)
        torch.testing.assert_close(BACKWARD.run(backend, grad, qkv, *known, 0.25), want)


@pytest.mark.parametrize("backend", ON_CPU)
def test_strided_qkv_is_read_as_it_looks(backend: str) -> None:
    qkv = packed(3, 2, 2, 6, 16).permute(1, 3, 0, 2, 4)
    want = FORWARD.run("reference", qkv.contiguous(), 0.25)
    got = FORWARD.run(backend, qkv, 0.25)
    assert all(x.is_contiguous() for x in got)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    grad = packed(2, 6, 32)
    want = BACKWARD.run("reference", grad, qkv.contiguous(), *want, 0.25)
    torch.testing.assert_close(BACKWARD.run(backend, grad, qkv, *got, 0.25), want)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_extreme_scores_stay_finite_and_right(backend: str, dtype: torch.dtype) -> None:
    qkv = torch.zeros(1, 5, 3, 1, 64, dtype=dtype)
    qkv[:, :, 0], qkv[:, 0, 1], qkv[:, 1, 1] = 35.0, 35.0, -35.0  # scores of about +1e4, -1e4 and 0
    qkv[:, :, 2] = torch.arange(5, dtype=dtype)[:, None, None]
    out, lse = FORWARD.run(backend, qkv, 64**-0.5)
    assert torch.equal(out, torch.zeros_like(out)), "all the weight is on the first key, whose value is zero"
    assert lse.isfinite().all()
    assert BACKWARD.run(backend, torch.ones_like(out), qkv, out, lse, 64**-0.5).isfinite().all()
    even = FORWARD.run(backend, torch.ones_like(qkv), 64**-0.5)[0]
    torch.testing.assert_close(even, torch.ones_like(even))


@pytest.mark.parametrize(
    ("qkv", "heads", "why"),
    [
        (torch.zeros(2, 4, 3, 2, 8), 3, r"must be \[B, N, 3, 3, E\]"),
        (torch.zeros(2, 4, 2, 2, 8), 2, r"must be \[B, N, 3, 2, E\]"),
        (torch.zeros(2, 4, 50), 2, "3 \\* num_heads must divide it"),
        (torch.zeros(2, 48), 2, r"got \[2, 48\]"),
        (torch.zeros(0, 4, 48), 2, "at least one token of one picture"),
        (torch.zeros(2, 0, 3, 2, 8), 2, "at least one token of one picture"),
        (torch.zeros(2, 4, 3, 2, 0), 2, "at least one token of one picture"),
        (torch.zeros(2, 4, 48, dtype=torch.int64), 2, "must be float16, bfloat16, float32, float64, got int64"),
        (torch.zeros(2, 4, 48), 0, "num_heads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(qkv: Tensor, heads: int, why: str) -> None:
    with pytest.raises(ShapeError, match=f"^attention: .*{why}"):
        attention(qkv, heads)


def test_every_backend_of_a_gpu_refuses_the_cpu_in_words() -> None:
    args = (packed(1, 4, 3, 1, 16), 0.25)
    for name in ("triton", "sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "xformers"):
        with pytest.raises(BackendError, match="takes tensors on cuda, got cpu"):
            FORWARD.run(name, *args)


@pytest.mark.parametrize("name", ["sdpa_cudnn", "sdpa_flash", "sdpa_efficient"])
def test_operators_of_a_gpu_are_called_as_pytorch_declares_them(name: str) -> None:
    """On the meta device they check arguments and work out shapes, all that can be known without a GPU."""
    qkv, grad = torch.empty(2, 197, 3, 4, 64, device="meta").bfloat16(), torch.empty(2, 197, 256, device="meta")
    ahead, back = (next(b for b in op.backends if b.name == name) for op in (FORWARD, BACKWARD))
    out, lse = ahead.find("attention")(qkv, 0.125)
    assert (out.shape, out.stride()) == ((2, 197, 256), (197 * 256, 256, 1))
    assert (lse.shape, lse.stride(), lse.dtype) == ((2, 4, 197), (4 * 197, 197, 1), torch.float32)
    dqkv = back.find("attention_backward")(grad.bfloat16(), qkv, out, lse, 0.125)
    assert (dqkv.shape, dqkv.stride(), dqkv.dtype) == (qkv.shape, qkv.stride(), qkv.dtype)


def test_our_kernels_name_what_they_cannot_do() -> None:
    triton = next(b for b in FORWARD.backends if b.name == "triton")
    assert triton.accepts is not None
    assert triton.accepts(torch.zeros(1, 2, 3, 1, 72), 1.0) == ["head width must be a multiple of 16 up to 128, got 72"]
    assert triton.accepts(torch.zeros(1, 2, 3, 1, 144), 1.0)
    huge = torch.empty(1, 2**25, 3, 2, 16, device="meta")
    assert triton.accepts(huge, 1.0) == [f"one picture must hold fewer than 2^31 values, got {huge.numel()}"]
    assert not triton.accepts(torch.zeros(1, 2, 3, 1, 128), 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_our_kernels_refuse_a_factor_that_turns_the_scores_round(scale: float) -> None:
    triton = next(b for b in FORWARD.backends if b.name == "triton")
    assert triton.accepts is not None
    assert triton.accepts(torch.zeros(1, 2, 3, 1, 64), scale) == [f"the scores' factor must be positive, got {scale}"]


@pytest.mark.parametrize(
    ("capability", "theirs", "first"),
    [
        ((9, 0), "sdpa_cudnn", ["sdpa_cudnn", "sdpa_flash"]),
        ((9, 0), "sdpa_flash", ["sdpa_flash", "sdpa_cudnn"]),  # a cuDNN that PyTorch does not trust
        ((12, 0), "sdpa_flash", ["sdpa_flash", "sdpa_efficient"]),
        ((8, 0), "sdpa_efficient", ["sdpa_efficient", "sdpa_flash"]),
    ],
)
def test_on_a_card_the_default_is_what_pytorch_would_choose(
    capability: tuple[int, int], theirs: str, first: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(_sdpa, "chosen_by_pytorch", lambda qkv: theirs)
    qkv = SimpleNamespace(device=torch.device("cuda", 0), ndim=5)
    grad = SimpleNamespace(device=torch.device("cuda", 0), ndim=3)
    assert FORWARD.prefer is not None
    assert BACKWARD.prefer is not None
    for order in (FORWARD.prefer(qkv, 1.0), BACKWARD.prefer(grad, qkv, None, None, 1.0)):
        assert list(order[:2]) == first
        assert set(order) <= {b.name for b in FORWARD.backends}


def test_pytorch_is_asked_as_the_caller_has_set_it() -> None:
    qkv = packed(1, 4, 3, 1, 16)
    assert _sdpa.chosen_by_pytorch(qkv) == "sdpa_flash"
    with sdpa_kernel(SDPBackend.MATH):
        assert _sdpa.chosen_by_pytorch(qkv) == "sdpa_math"
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        assert _sdpa.chosen_by_pytorch(qkv) == "sdpa_math", "it has none, and is not asked to run one"
    with torch.inference_mode():
        kept = qkv * 2
        assert _sdpa.chosen_by_pytorch(kept) == "sdpa_flash"
    assert _sdpa.chosen_by_pytorch(kept) == "sdpa_flash"  # it can never ask for a gradient


def test_scores_that_are_written_out_may_be_those_of_one_picture_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, grad = packed(3, 6, 3, 2, 16), packed(3, 6, 32)
    known = FORWARD.run("sdpa_math", qkv, 0.25)
    whole = BACKWARD.run("sdpa_math", grad, qkv, *known, 0.25)
    monkeypatch.setattr(_sdpa, "MOST_SCORES", 2 * 6 * 6)
    for a, b in zip(FORWARD.run("sdpa_math", qkv, 0.25), known, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(BACKWARD.run("sdpa_math", grad, qkv, *known, 0.25), whole)


def test_xformers_says_in_its_own_words_why_it_has_no_operator() -> None:
    pytest.importorskip("xformers", reason="xformers is not installed")
    (reason,) = _sdpa._asks_xformers(packed(1, 4, 3, 1, 16))
    assert reason.startswith("xformers")
    assert len(reason) > 40


def test_forcing_a_backend_takes_its_backward_too() -> None:
    qkv = packed(1, 4, 3, 1, 16)
    known = FORWARD.reference(qkv, 0.25)
    back = (torch.zeros(1, 4, 16), qkv, *known, 0.25)
    assert (FORWARD.choose(qkv, 0.25), BACKWARD.choose(*back)) == ("sdpa_cpu", "sdpa_cpu")
    with setr_fast.backend("attention=sdpa_math"):
        assert (FORWARD.choose(qkv, 0.25), BACKWARD.choose(*back)) == ("sdpa_math", "sdpa_math")
    with setr_fast.backend("attention=sdpa_math,attention_backward=reference"):
        assert (FORWARD.choose(qkv, 0.25), BACKWARD.choose(*back)) == ("sdpa_math", "reference")


def test_under_autocast_it_runs_in_the_dtype_of_autocast() -> None:
    x = packed(2, 7, 3, 2, 16).requires_grad_()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out = attention(x, 2)
            assert attention(x.detach().double(), 2).dtype == torch.float64
        assert out.dtype == dtype
        torch.testing.assert_close(out, attention(x.to(dtype), 2))
        (grad,) = torch.autograd.grad(out.float().sum(), x)
        assert grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert attention(x, 2).dtype == torch.float32


def _small_block(width: int = 32) -> nn.Module:
    torch.manual_seed(1)
    return block.Block(width, 2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    layer, x = _small_block(), packed(2, 9, 32)
    layer(x).square().sum().backward()
    want = {n: p.grad.clone() for n, p in layer.named_parameters()}
    layer.zero_grad()
    checkpoint(layer, x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    for name, p in layer.named_parameters():
        assert torch.equal(p.grad, want[name]), name


def test_a_selective_checkpoint_may_keep_the_output_and_recompute_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, calls = _small_block(), packed(2, 9, 32), []
    layer(x).square().sum().backward()
    want = {n: p.grad.clone() for n, p in layer.named_parameters()}
    layer.zero_grad()
    kept = FORWARD._remembered
    monkeypatch.setattr(FORWARD, "_remembered", lambda *args: calls.append(args) or kept(*args))

    def policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        save = op is torch.ops.setr_fast.attention.default
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    checkpoint(layer, x, use_reentrant=False, context_fn=contexts).square().sum().backward()
    assert len(calls) == 1, "attention ran once, not again in the backward"
    for name, p in layer.named_parameters():
        assert torch.equal(p.grad, want[name]), name


@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_whole_forward_and_backward(autocast: bool) -> None:
    layer, x = _small_block(), packed(2, 9, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        want, got = layer(x), compiled(x)
    torch.testing.assert_close(got, want)
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), [layer.attn.qkv.weight]) for y in (want, got))
    torch.testing.assert_close(a, b)


def test_compiled_with_any_size_it_is_one_graph() -> None:
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    compiled = torch.compile(lambda x: attention(x, 2) + 1, backend=count, fullgraph=True, dynamic=True)
    for tokens in (5, 9, 33):
        x = packed(2, tokens, 96)
        torch.testing.assert_close(compiled(x), attention(x, 2) + 1)
    assert len(graphs) == 1
    assert sum("setr_fast.attention" in name for name in graphs[0]) == 1


def test_fsdp2_takes_the_steps_that_one_process_takes() -> None:
    code = (
        "import torch, torch.distributed as dist\n"
        "from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard\n"
        "from setr_fast.nn.block import Block\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "torch.manual_seed(0); a, b = Block(32, 2), Block(32, 2); b.load_state_dict(a.state_dict())\n"
        "x = torch.randn(2, 9, 32)\n"
        "fully_shard(b, mesh=dist.init_device_mesh('cpu', (1,)))\n"
        "a(x).square().sum().backward(); b(x).square().sum().backward()\n"
        "for (n, p), q in zip(a.named_parameters(), b.parameters()):\n"
        "    torch.testing.assert_close(p.grad, q.grad.full_tensor())\n"
        "c = Block(32, 2)\n"
        "fully_shard(c, mesh=dist.init_device_mesh('cpu', (1,)),\n"
        "            mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))\n"
        "y = c(x); assert y.dtype == torch.bfloat16; y.float().sum().backward()\n"
        "assert all(p.grad.full_tensor().isfinite().all() for p in c.parameters())\n"
        "del a, b, c, x, y, p, q; dist.barrier(); dist.destroy_process_group()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["setr_naive_vit_t16", "segmenter_mask_vit_t16"])
def test_encoder_and_mask_decoder_go_through_the_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kept = FORWARD._remembered
    monkeypatch.setattr(FORWARD, "_remembered", lambda *args: seen.append(tuple(args[0].shape)) or kept(*args))
    model = create_model(name, num_classes=5, image_size=64, depth=4).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    patches = 16 + (model.spec.leading_tokens if model.spec.class_token == "keep" else 0)
    decoder = [(1, 16 + 5, 3, model.spec.decoder_num_heads, 64)] * model.spec.decoder_depth
    encoder = [(1, patches, 3, model.spec.num_heads, 64)] * 4
    assert seen == encoder + (decoder if "mask" in name else [])


def test_dropout_of_probabilities_takes_the_plain_path() -> None:
    qkv = packed(2, 40, 3, 2, 16)
    kept = [block.attention(qkv, 0.5) for _ in range(2)]
    assert not torch.equal(*kept)
    torch.testing.assert_close(block.attention(qkv, 0.0), attention(qkv, 2))
    mean = torch.stack([block.attention(qkv, 0.2) for _ in range(400)]).mean(0)
    assert (mean - attention(qkv, 2)).abs().max() < 0.25


def test_doctor_says_that_our_kernels_are_not_measured() -> None:
    done = subprocess.run([sys.executable, "-m", "setr_fast.doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split("  attention\n")[1].split("reference")[0]
    for name in FORWARD.names()[:-1]:
        assert f" {name} " in rows
    (ours,) = [row for row in rows.splitlines() if " triton " in row]
    assert UNTRIED in ours
    assert "* sdpa_cpu " in rows
