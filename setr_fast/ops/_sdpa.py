"""Attention as PyTorch and xformers compute it, as backends of ops/attention.py: a forward and a backward each.

They go by PyTorch's own names: the operators behind ``scaled_dot_product_attention`` under
``sdpa_kernel(SDPBackend.FLASH_ATTENTION)`` and so on, called directly because only these give the log-sum-exp. That of
PyTorch is of base e, ours of base two, and every backward takes ours, so forward and backward may come from different
backends.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from setr_fast.errors import BackendError
from setr_fast.ops._op import Backend

LOG2E = math.log2(math.e)
F16 = (torch.float16, torch.bfloat16)
F32 = (*F16, torch.float32)
F64 = (*F32, torch.float64)
MOST_SCORES = 2**29
"""At once in memory, where they are written out: 2 GiB of them in float32, and of their exponentials."""
aten = torch.ops.aten
_REFUSALS: dict[tuple[Any, ...], list[str]] = {}
_CHOICES: dict[tuple[Any, ...], str] = {}


def backends(direction: str) -> tuple[Backend, ...]:
    """Return the backends of one direction, ``"forward"`` or ``"backward"``."""
    back = direction == "backward"
    return (
        _backend("sdpa_cudnn", "cuda", _cudnn_backward if back else _cudnn, F16, _asks_torch("cudnn")),
        _backend("sdpa_flash", "cuda", _flash_backward if back else _flash, F16, _asks_torch("flash")),
        _backend("sdpa_efficient", "cuda", _efficient_backward if back else _efficient, F32, _asks_torch("efficient")),
        _backend("xformers", "cuda", _xformers_backward if back else _xformers, F32, _asks_xformers),
        _backend("sdpa_cpu", "cpu", _cpu_backward if back else _cpu, F64),
        _backend("sdpa_cpu_float32", "cpu", _cpu_float32_backward if back else _cpu_float32, F16),
        _backend("sdpa_math", None, _in_pictures(_math_backward if back else _math), F64),
    )


def _backend(
    name: str,
    device: str | None,
    function: Callable[..., Any],
    dtypes: tuple[torch.dtype, ...],
    asks: Callable[[Tensor], list[str]] | None = None,
) -> Backend:
    def accepts(*args: Any) -> list[str]:
        # The dtype of qkv decides: the log-sum-exp beside it is float32 or wider whatever that is.
        qkv = packed_of(args)
        if qkv.dtype not in dtypes:
            return [f"takes {', '.join(str(d)[6:] for d in dtypes)}, got {str(qkv.dtype)[6:]}"]
        return asks(qkv) if asks is not None and qkv.is_cuda else []

    def find(op_name: str) -> Callable[..., Any]:
        if name == "xformers" and not _installed(name):
            raise BackendError("xformers is not installed; pip install xformers")
        return function

    return Backend(name, find, device, accepts=accepts)


def _split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v. Shapes: [B, N, 3, M, E] -> three of [B, M, N, E]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _heads(x: Tensor, qkv: Tensor) -> Tensor:
    """View of out or its gradient. Shapes: [B, N, M * E] -> [B, M, N, E]."""
    return x.unflatten(-1, qkv.shape[3:]).transpose(1, 2)


def _joined(out: Tensor) -> Tensor:
    return out.transpose(1, 2).flatten(2).contiguous()


def _packed(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    """Shapes: three of [B, M, N, E] -> contiguous [B, N, 3, M, E]."""
    return torch.stack((dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)), dim=2)


def _base_two(lse: Tensor, qkv: Tensor) -> Tensor:
    """Shapes: PyTorch's, at times longer than N or with a last dimension of one -> contiguous [B, M, N]."""
    B, N, _, M, _ = qkv.shape
    if lse.shape != (B, M, N):
        lse = lse.reshape(B, M, -1)[..., :N]
    return (lse * LOG2E).contiguous()


def _cpu(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(*_split(qkv), scale=scale)
    return _joined(out), _base_two(lse, qkv)


def _cpu_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    return _packed(
        *aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _heads(grad, qkv), *_split(qkv), _heads(out, qkv), lse / LOG2E, 0.0, False, scale=scale
        )
    )


def _cpu_float32(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """For 16 bits on CPUs that have no matrix unit for them: PyTorch's kernel is then faster in float32."""
    out, lse = _cpu(qkv.float(), scale)
    return out.to(qkv.dtype), lse


def _cpu_float32_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    return _cpu_backward(grad.float(), qkv.float(), out.float(), lse, scale).to(qkv.dtype)


def _flash(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = aten._scaled_dot_product_flash_attention(*_split(qkv), 0.0, False, False, scale=scale)
    return _joined(out), _base_two(lse, qkv)


def _flash_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    N, nothing = qkv.shape[1], _no_dropout(qkv)
    return _packed(
        *aten._scaled_dot_product_flash_attention_backward(
            _heads(grad, qkv),
            *_split(qkv),
            _heads(out, qkv),
            lse / LOG2E,
            *(None, None, N, N, 0.0, False, nothing, nothing),
            scale=scale,
        )
    )


def _cudnn(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(*_split(qkv), None, True, 0.0, False, False, scale=scale)
    return _joined(out), _base_two(lse, qkv)


def _cudnn_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    N, nothing = qkv.shape[1], _no_dropout(qkv)
    return _packed(
        *aten._scaled_dot_product_cudnn_attention_backward(
            _heads(grad, qkv),
            *_split(qkv),
            _heads(out, qkv),
            (lse / LOG2E).unsqueeze(-1),
            *(nothing, nothing, None, None, None, N, N, 0.0, False),
            scale=scale,
        )
    )


def _efficient(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(*_split(qkv), None, True, 0.0, False, scale=scale)
    return _joined(out), _base_two(lse, qkv)


def _efficient_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    nothing = _no_dropout(qkv)
    # The kernel reads blocks of 32 rows; exp(score - inf) is the zero that a row beyond N adds.
    natural = F.pad(lse / LOG2E, (0, -qkv.shape[1] % 32), value=math.inf)
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        _heads(grad, qkv),
        *_split(qkv),
        None,
        _heads(out, qkv),
        natural,
        *(nothing, nothing, 0.0, [True, True, True, False], False),
        scale=scale,
    )
    return _packed(dq, dk, dv)


def _in_pictures(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function work picture by picture where the scores of all at once would be too many."""

    def call(*args: Any) -> Any:
        B, N, _, M, _ = packed_of(args).shape
        if B == 1 or B * M * N * N <= MOST_SCORES:
            return function(*args)
        parts = [function(*(a[i : i + 1] if isinstance(a, Tensor) else a for a in args)) for i in range(B)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    return call


def _math(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = _split(qkv)
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    acc = torch.promote_types(qkv.dtype, torch.float32)
    scores = torch.matmul(q.to(acc), k.to(acc).transpose(-1, -2)) * scale
    return _joined(out), _base_two(torch.logsumexp(scores, -1), qkv)


def _math_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Written out, with the forward's log-sum-exp in place of a second softmax."""
    acc = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = _split(qkv.to(acc))
    g, o = _heads(grad.to(acc), qkv), _heads(out.to(acc), qkv)
    p = torch.exp2(torch.matmul(q, k.transpose(-1, -2)) * (scale * LOG2E) - lse.unsqueeze(-1))
    delta = (g * o).sum(-1, keepdim=True)
    ds = p * (torch.matmul(g, v.transpose(-1, -2)) - delta) * scale
    return _packed(torch.matmul(ds, k), torch.matmul(ds.mT, q), torch.matmul(p.mT, g)).to(qkv.dtype)


def _xformers(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    fmha = importlib.import_module("xformers.ops.fmha")
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*qkv.unbind(2), scale=scale)
    return out.flatten(2).contiguous(), _base_two(lse, qkv)


def _xformers_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    fmha = importlib.import_module("xformers.ops.fmha")
    grad, out = (x.unflatten(-1, qkv.shape[3:]) for x in (grad, out))
    return torch.stack(
        fmha.memory_efficient_attention_backward(grad, out, lse / LOG2E, *qkv.unbind(2), scale=scale), dim=2
    )


def _no_dropout(qkv: Tensor) -> Tensor:
    """Return what stands for a random state where nothing is random."""
    return torch.zeros((), dtype=torch.int64, device=qkv.device)


def packed_of(args: tuple[Any, ...]) -> Tensor:
    """Return qkv among the arguments of either direction: (qkv, ...) or (grad, qkv, ...)."""
    qkv: Tensor = args[0] if args[0].ndim == 5 else args[1]
    return qkv


def chosen_by_pytorch(qkv: Tensor) -> str:
    """Return the backend that ``scaled_dot_product_attention`` would take, asked once per shape and switches."""
    key = (qkv.device, qkv.dtype, qkv.shape, *(getattr(torch.backends.cuda, name)() for name in _SWITCHES.values()))
    if key not in _CHOICES:
        q, k, v = _as_if_for_training(*_split(qkv))
        names = {f"{name.upper()}_ATTENTION": f"sdpa_{name}" for name in _SWITCHES}
        with torch.enable_grad():
            try:
                _CHOICES[key] = names.get(SDPBackend(torch._fused_sdp_choice(q, k, v)).name, "sdpa_math")
            except RuntimeError:  # the caller has switched all of them off
                _CHOICES[key] = "sdpa_math"
    return _CHOICES[key]


def _as_if_for_training(*tensors: Tensor) -> list[Tensor]:
    """Return tensors that ask for a gradient: a forward whose backward would refuse is no use."""
    return [t if t.is_inference() else t.detach().requires_grad_() for t in tensors]


def _asks_torch(kernel: str) -> Callable[[Tensor], list[str]]:
    """Return a check that puts PyTorch's own reasons against one of its kernels into words, once per shape."""

    def asks(qkv: Tensor) -> list[str]:
        enabled = getattr(torch.backends.cuda, _SWITCHES[kernel])()
        key = (kernel, enabled, qkv.device, qkv.dtype, qkv.shape)
        if key not in _REFUSALS:
            q, k, v = _as_if_for_training(*_split(qkv))
            params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
            with torch.enable_grad(), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                able = getattr(torch.backends.cuda, f"can_use_{kernel}_attention")(params, True)
            texts = [" ".join(str(w.message).split(" (Triggered")[0].split()) for w in said]
            _REFUSALS[key] = [] if able else (texts or [f"PyTorch's {kernel} attention does not take this call"])
        return _REFUSALS[key]

    return asks


_SWITCHES = {"cudnn": "cudnn_sdp_enabled", "flash": "flash_sdp_enabled", "efficient": "mem_efficient_sdp_enabled"}


def _asks_xformers(qkv: Tensor) -> list[str]:
    """Return why xformers has no operator for this qkv, in its own words, or nothing."""
    key = ("xformers", qkv.device, qkv.dtype, qkv.shape)
    if key not in _REFUSALS:
        try:
            fmha, dispatch = (importlib.import_module(f"xformers.ops.fmha{m}") for m in ("", ".dispatch"))
            inputs = fmha.Inputs(*_as_if_for_training(*qkv.unbind(2)))
            dispatch._dispatch_fw(inputs, needs_gradient=True)
            dispatch._dispatch_bw(inputs)
            _REFUSALS[key] = []
        except (ImportError, AttributeError) as error:
            _REFUSALS[key] = [f"xformers cannot be imported: {error}"]
        except (NotImplementedError, ValueError) as error:
            _REFUSALS[key] = [f"xformers has no operator: {' '.join(str(error).split())}"]
    return _REFUSALS[key]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # sys.modules may hold None for it
        return False
