"""Softmax attention of every token to every token, from packed QKV to what the projection takes, without a copy.

Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1; computed in blocks after Dao et al. 2022, arXiv 2205.14135,
algorithm 1, and Dao 2023, arXiv 2307.08691, section 3. Beside the output the op gives the log-sum-exp of each row of
scores in base two, from which any backend's backward recomputes the probabilities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import _sdpa
from setr_fast.ops._op import FULL, Bench, Case, Cost, Draw, declare_op, python

LOG2E = math.log2(math.e)
PYTORCHS = "what PyTorch chooses"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Which backends to try first, per card. Unmeasured until results of a card are committed (benchmarks/results/): until
# then what PyTorch would choose for this call (it knows this card, and its cuDNN's faults), so that nobody loses speed
# by using this op; SETR_FAST_BACKEND=attention=triton takes ours.
PREFERRED: dict[str, tuple[str, ...]] = {
    "cpu": ("sdpa_cpu",),
    # Measured: docs/design/0004-attention.md. A CPU whose matrix unit takes bfloat16 (amx_bf16) is unmeasured.
    "cpu_half_without_amx": ("sdpa_cpu_float32", "sdpa_cpu"),
    "sm_80": (PYTORCHS, "sdpa_flash", "sdpa_efficient", "triton"),
    "sm_90": (PYTORCHS, "sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "triton"),
}


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Return softmax(q k^T E^-0.5) v of every head, heads side by side.

    Shapes: qkv [B, N, 3, M, E] or [B, N, 3 * M * E], as the projection leaves it -> [B, N, M * E], dtype of qkv; under
    autocast the op runs in autocast's dtype and returns that.
    The gradient is bit-reproducible with backends triton, sdpa_math and reference, with sdpa_* and xformers where
    PyTorch's is; with triton_atomic, which is taken by name only, that of the queries is not.
    On a GPU the default is PyTorch's fastest kernel until a committed measurement says otherwise (PREFERRED).
    Raises: ShapeError if the shape does not hold three times num_heads heads, or nothing at all; or for other dtypes.
    """
    qkv = _checked(qkv, num_heads)
    kind = qkv.device.type
    if qkv.dtype is torch.float32 and torch.is_autocast_enabled(kind):
        qkv = qkv.to(torch.get_autocast_dtype(kind))
    out: Tensor = torch.ops.setr_fast.attention.default(qkv, qkv.shape[-1] ** -0.5)[0]
    return out


def _checked(qkv: Tensor, num_heads: int) -> Tensor:
    """Return qkv as [B, N, 3, M, E]."""
    where, shape = "attention: qkv", list(qkv.shape)
    if num_heads < 1:
        raise ShapeError(f"attention: num_heads must be at least 1, got {num_heads}")
    if qkv.dtype not in DTYPES:
        raise ShapeError(f"{where} must be {', '.join(str(d)[6:] for d in DTYPES)}, got {str(qkv.dtype)[6:]}")
    if qkv.ndim == 3:
        if qkv.shape[2] % (3 * num_heads):
            raise ShapeError(f"{where} must be [B, N, 3 * {num_heads} * E], got {shape}; 3 * num_heads must divide it")
        qkv = qkv.unflatten(2, (3, num_heads, -1))
    if qkv.ndim != 5 or qkv.shape[2] != 3 or qkv.shape[3] != num_heads:
        raise ShapeError(f"{where} must be [B, N, 3, {num_heads}, E] or [B, N, 3 * {num_heads} * E], got {shape}")
    if 0 in shape:
        raise ShapeError(f"{where} must hold at least one token of one picture, got {shape}")
    return qkv


def _reference(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(qkv.dtype, torch.float32)
    outs, sums = [], []
    for one in qkv.to(acc):  # picture by picture: the scores of a whole batch may not fit
        q, k, v = one.permute(1, 2, 0, 3).unbind(0)
        scores = q @ k.transpose(-1, -2) * scale
        outs.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
        sums.append(scores.detach().logsumexp(-1) * LOG2E)
    return torch.stack(outs).to(qkv.dtype), torch.stack(sums)


def _fake(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    B, N, _, M, E = qkv.shape
    lse = qkv.new_empty((B, M, N), dtype=torch.promote_types(qkv.dtype, torch.float32))
    return qkv.new_empty((B, N, M * E)), lse


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _grad_lse: Tensor | None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    return torch.ops.setr_fast.attention_backward.default(grad, *ctx.saved_tensors, ctx.scale), None


def _backward_reference(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Autograd of the reference, from nothing but qkv."""
    parts = []
    for one, slope in zip(qkv.detach().split(1), grad.split(1), strict=True):  # all their scores may not fit
        with torch.enable_grad():
            pull = torch.func.vjp(lambda x: _reference(x, scale)[0], one)[1]
            parts += pull(slope)
    return torch.cat(parts).contiguous()


def _backward_fake(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _triton_refuses(*args: Any) -> list[str]:
    qkv = _sdpa.packed_of(args)
    reasons, (_, N, _, M, E) = [], qkv.shape
    if qkv.dtype is torch.float64:
        reasons.append("takes float16, bfloat16, float32, got float64")
    if E % 16 or E > 128:
        reasons.append(f"head width must be a multiple of 16 up to 128, got {E}")
    if N * 3 * M * E >= 2**31:
        reasons.append(f"one picture must hold fewer than 2^31 values, got {N * 3 * M * E}")
    if not args[-1] > 0.0:  # the largest score times a factor is the largest product only then
        reasons.append(f"the scores' factor must be positive, got {args[-1]}")
    if qkv.is_cuda and torch.cuda.get_device_capability(qkv.device)[0] < 8:
        reasons.append("the card must be of compute capability 8.0 or newer")
    return reasons


def _contiguous(function: Any) -> Any:
    """Kernels read packed memory; a gradient may arrive expanded or permuted."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    return call


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) if hasattr(torch.cpu, "get_capabilities") else False


def _prefer(*args: Any) -> tuple[str, ...]:
    device = args[0].device
    if device.type != "cuda":
        half = args[0].dtype in (torch.float16, torch.bfloat16)
        return PREFERRED["cpu_half_without_amx" if half and not _has_amx() else "cpu"]
    order = PREFERRED["sm_90" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "sm_80"]
    if PYTORCHS not in order:
        return order
    theirs = _sdpa.chosen_by_pytorch(_sdpa.packed_of(args))
    return tuple(dict.fromkeys(theirs if name == PYTORCHS else name for name in order))


def _shapes() -> Iterator[tuple[str, tuple[int, int, int, int], Bench]]:
    """Yield name, (B, N, M, E), whether it is timed. On a CPU fewer heads and one picture, which time says as much."""
    for name, shape in (
        ("one_token", (2, 1, 2, 32)),
        ("seven_tokens", (2, 7, 3, 16)),
        ("blocks_exactly", (1, 128, 2, 64)),
        ("width_48", (1, 65, 2, 48)),
        ("width_80", (1, 33, 1, 80)),
        ("class_token_197", (2, 197, 3, 64)),
        ("mask_decoder_199", (1, 199, 2, 64)),
        ("width_128", (1, 130, 1, 128)),
    ):
        yield name, shape, False
    yield "vit_t_256px", (2, 256, 3, 64), True
    yield "vit_t_384px", (1, 576, 3, 64), True
    yield "vit_t_512px_class_token", (1, 1025, 3, 64), True
    if torch.cuda.is_available():
        for batch in (1, 8, 16, 64):
            yield f"vit_l_512px_b{batch}", (batch, 1024, 16, 64), True
            yield f"vit_l_768px_b{batch}", (batch, 2304, 16, 64), True
    else:
        yield "vit_l_512px_4_heads", (1, 1024, 4, 64), True
        yield "vit_l_768px_2_heads", (1, 2304, 2, 64), True
        yield "vit_l_512px_b1", (1, 1024, 16, 64), FULL
        yield "vit_l_768px_b1", (1, 2304, 16, 64), FULL


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int, int], draw: Draw) -> tuple[Any, ...]:
        B, N, M, E = shape
        return draw(B, N, 3, M, E), E**-0.5

    for name, shape, bench in _shapes():
        yield Case(name, partial(make, shape), bench=bench)


def _backward_cases() -> Iterator[Case]:
    def make(shape: tuple[int, int, int, int], draw: Draw) -> tuple[Any, ...]:
        B, N, M, E = shape
        qkv = draw(B, N, 3, M, E)
        known = _fake(qkv, E**-0.5) if qkv.is_meta else _reference(qkv, E**-0.5)
        return draw(B, N, M * E), qkv, *known, E**-0.5

    for name, shape, bench in _shapes():
        if shape[1] == 1:
            continue  # the reference is exact there: no rounding error of its own to hold a backend's against
        yield Case(name, partial(make, shape), bench=bench)


def _cost(qkv: Tensor, scale: float) -> Cost:
    B, N, _, M, E = qkv.shape
    return Cost(bytes=qkv.nbytes * 4 // 3 + 4 * B * M * N, flops=4 * B * M * N * N * E)


def _backward_cost(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Cost:
    B, N, _, M, E = qkv.shape
    return Cost(bytes=2 * qkv.nbytes + grad.nbytes + out.nbytes + lse.nbytes, flops=10 * B * M * N * N * E)


_triton = partial(python, device="cuda", name="triton", accepts=_triton_refuses, untried=True, adapt=_contiguous)
# The same forward, and a backward in one pass with atomic additions: its dQ is not bit-reproducible. By name only.
_atomic = partial(_triton, name="triton_atomic", repeats=False)

_op = declare_op(
    "attention(Tensor qkv, float scale) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=_cases,
    cost=_cost,
    backends=(
        _triton("setr_fast.kernels.attention:attention"),
        _atomic("setr_fast.kernels.attention:attention"),
        *_sdpa.backends("forward"),
    ),
    prefer=_prefer,
)
_backward_op = declare_op(
    "attention_backward(Tensor grad, Tensor qkv, Tensor out, Tensor lse, float scale) -> Tensor",
    reference=_backward_reference,
    fake=_backward_fake,
    cases=_backward_cases,
    cost=_backward_cost,
    backends=(
        _triton("setr_fast.kernels.attention:attention_backward"),
        _atomic("setr_fast.kernels.attention_atomic:attention_backward"),
        *_sdpa.backends("backward"),
    ),
    rounds=True,
    prefer=_prefer,
)
