"""add_layer_norm by triton's interpreter, against float64: script of its test.

The switch must be set before triton is imported, and turns every kernel of the process into an interpreted one: hence a
process of its own.

Usage: add_layer_norm_interpreted.py CASES.json RESULTS.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor


def error(got: Tensor, truth: Tensor) -> float:
    """Return the largest error as a share of the largest true value."""
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-12))


def run(case: dict[str, Any]) -> dict[str, float]:
    """Return the errors of both outputs."""
    kernels = importlib.import_module("setr_fast.kernels.add_layer_norm")
    generator = torch.Generator().manual_seed(1)
    shape, dtype = case["shape"], getattr(torch, case["dtype"])

    def draw(*size: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=generator).to(of)

    x, branch = draw(*shape) + 0.5, draw(*shape, of=dtype)
    if case["strided"]:
        branch = branch.transpose(0, 1).contiguous().transpose(0, 1)
    weight, bias = draw(shape[-1]), draw(shape[-1])
    exact = x.double() + branch.double()
    normed = torch.nn.functional.layer_norm(exact, shape[-1:], weight.double(), bias.double(), 1e-6)
    found = kernels.add_layer_norm(x, branch, weight, bias, 1e-6)
    assert found[1].dtype == dtype
    return {"total": error(found[0], exact), "normed": error(found[1], normed)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(case) for case in cases]))
