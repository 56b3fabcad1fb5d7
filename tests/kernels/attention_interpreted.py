"""The attention kernels by triton's interpreter on the CPU, against float64: script of test_attention_interpreter.py.

The switch must be set before triton is imported, and turns every kernel of the process into an interpreted one: hence a
process of its own. bfloat16 is left to a GPU: the interpreter's products of it are wrong.

Usage: attention_interpreted.py CASES.json RESULTS.json
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

MOST_TOKENS_TWICE = 130  # longer cases run one backward, once: the interpreter is slow
GUARD = 4096  # values of NaN on either side of a tensor


def guarded(values: Tensor) -> Tensor:
    """Return the values in memory that is NaN all around them, as padding rows and columns would be."""
    memory = torch.full((values.numel() + 2 * GUARD,), math.nan, dtype=values.dtype)
    view = memory[GUARD : GUARD + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def untouched(view: Tensor) -> bool:
    """Return whether the guard around a tensor of :func:`guarded` is still all NaN."""
    memory = view.as_strided((view.numel() + 2 * GUARD,), (1,), view.storage_offset() - GUARD)
    return bool(memory[:GUARD].isnan().all() and memory[-GUARD:].isnan().all())


def make(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return qkv [B, N, 3, M, E] and the gradient of out of a case."""
    B, N, M, E = case["shape"]
    generator = torch.Generator().manual_seed(N + E)
    qkv = torch.randn((B, N, 3, M, E), generator=generator, dtype=torch.float64)
    grad = torch.randn((B, N, M * E), generator=generator, dtype=torch.float64)
    if case["kind"] == "zero_queries":
        qkv[:, :, 0] = 0
    if case["kind"] == "equal_rows":
        qkv[:] = qkv[:, :1]
    if case["kind"] == "scores_1e4_apart":  # every query gives key 0 a score of +1e4 and key 1 of -1e4
        side = math.sqrt(1e4 * math.sqrt(E) / E)
        qkv[:, :, 0], qkv[:, 0, 1] = side, side
        qkv[:, 1:2, 1] = -side
    if case["kind"] == "all_scores_low":  # all near -1e4: exp2(0 - lse) of a padded key is infinite
        side = math.sqrt(1e4 * math.sqrt(E) / E)
        qkv[:, :, 0], qkv[:, :, 1] = side, -side + 1e-3 * qkv[:, :, 1]
    return qkv, grad


def exact(qkv: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, log-sum-exp of base two and gradient of qkv, all as the given dtype computes them, plainly."""
    x = qkv.clone().requires_grad_()
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
    scores = q @ k.transpose(-1, -2) * scale
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    (dqkv,) = torch.autograd.grad(out, x, grad)
    return out.detach(), scores.logsumexp(-1).detach() / math.log(2), dqkv


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Return the largest errors of the kernels and of plain PyTorch in the same dtype, and what must hold beside."""
    kernels = importlib.import_module("setr_fast.kernels.attention")
    atomic = importlib.import_module("setr_fast.kernels.attention_atomic")
    described = importlib.import_module("setr_fast.kernels.attention_descriptors")
    nans = kernels.torch = atomic.torch = described.torch = _Poisoning(torch)
    dtype = getattr(torch, case["dtype"])
    qkv, grad = (x.to(dtype) for x in make(case))
    scale = qkv.shape[-1] ** -0.5
    wide, narrow = (exact(qkv.to(t), grad.to(t), scale) for t in (torch.float64, torch.float32))
    packed, gradient = guarded(qkv), guarded(grad)
    out, lse = kernels.attention(packed, scale, case["card"])
    dqkv = kernels.attention_backward(gradient, packed, out, lse, scale, case["card"])
    again = dqkv
    found = {"out": (out, wide[0], narrow[0]), "lse": (lse, wide[1], narrow[1]), "dqkv": (dqkv, wide[2], narrow[2])}
    if qkv.shape[1] <= MOST_TOKENS_TWICE:
        again = kernels.attention_backward(gradient, packed, out, lse, scale, case["card"])
        in_one_pass = atomic.attention_backward(gradient, packed, out, lse, scale, case["card"])
        found["dqkv_in_one_pass"] = (in_one_pass, wide[2], narrow[2])
    if case["dtype"] == "float16" and qkv.shape[1] % 64 == 0 and qkv.shape[-1] in (64, 128):
        launch = kernels.Launch(64, 64, 4, 2)
        by_blocks, lse_by_blocks = described.attention(packed, scale, launch)
        found["out_by_descriptors"] = (by_blocks, wide[0], narrow[0])
        found["lse_by_descriptors"] = (lse_by_blocks, wide[1], narrow[1])
    result: dict[str, Any] = {"same_bits": bool(torch.equal(dqkv, again)), "guards": all(map(untouched, nans.made))}
    dp = torch.einsum("bqme,bkme->bmqk", grad.double().unflatten(-1, qkv.shape[3:]), qkv[:, :, 2].double())
    result["terms"] = float(scale * dp.abs().max() * qkv[:, :, :2].double().abs().max())  # of dQ and dK, at most
    for name, (got, truth, plain) in found.items():
        kept = plain if name.startswith("lse") else plain.to(dtype)
        result[name] = {
            "error": float((got.double() - truth).abs().nan_to_num(nan=math.inf).max()),
            "plain": float((kept.double() - truth).abs().max()),
            "size": float(truth.abs().max()),
        }
    return result


class _Poisoning:
    """torch, but what it gives uninitialised is NaN, with NaN around it."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.made: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return NaN of a shape."""
        self.made.append(guarded(torch.full(shape, math.nan, dtype=dtype, device=device)))
        return self.made[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(case) for case in cases]))
