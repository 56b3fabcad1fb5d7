"""Upsampled cross entropy and class sums by triton's interpreter, against float64: script of their test.

The switch must be set before triton is imported, and turns every kernel of the process into an interpreted one: hence a
process of its own.

Usage: upsample_cross_entropy_interpreted.py CASES.json RESULTS.json
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
import torch.nn.functional as F
from torch import Tensor


def full(logits: Tensor, case: dict[str, Any]) -> Tensor:
    """Return full-size logits, cropped."""
    resized = F.interpolate(logits, size=case["size"], mode="bilinear", align_corners=case["corners"])
    return resized[..., : case["labels"][0], : case["labels"][1]]


def error(got: Tensor, truth: Tensor) -> float:
    """Return the largest error as a share of the largest true value."""
    return float((got.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-12))


def sums(logits: Tensor, labels: Tensor, case: dict[str, Any], exponent: int) -> dict[str, Any]:
    """Return errors of the class sums and their gradient, and what must hold beside."""
    kernels = importlib.import_module("setr_fast.kernels.upsample_class_sums")
    arguments = logits, labels, *case["size"], case["corners"], case["ignored"], exponent
    exact, valid = logits.double().requires_grad_(), (labels != case["ignored"])[:, None]
    p = full(exact, case).softmax(1) * valid
    here = F.one_hot(labels.long().clamp_min(0), logits.shape[1]).permute(0, 3, 1, 2)
    want = torch.stack(((p * here).sum((0, 2, 3)), (p**exponent).sum((0, 2, 3))))
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(want.shape, generator=generator)
    (slope,) = torch.autograd.grad(want, exact, grad.double())
    found, pixels = kernels.upsample_class_sums(*arguments)
    gradient = kernels.upsample_class_sums_backward(grad, *arguments)
    again = kernels.upsample_class_sums_backward(grad, *arguments)
    return {
        "sums": error(found, want.detach()),
        "sums_gradient": error(gradient, slope),
        "sums_same_bits": torch.equal(gradient, again),
        "sums_pixels": pixels.tolist(),
    }


def _sums_too(case: dict[str, Any]) -> bool:
    """Class sums walk the same cells and the interpreter is slow: half precision changes one load."""
    return bool(case["dtype"] == "float32" or case["corners"])


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Return errors of loss, map and gradients, and what must hold beside."""
    kernels = importlib.import_module("setr_fast.kernels.upsample_cross_entropy")
    generator = torch.Generator().manual_seed(1)
    B, K, h, w = case["logits"]
    logits = (case["spread"] * torch.randn((B, K, h, w), generator=generator)).to(getattr(torch, case["dtype"]))
    labels = torch.randint(0, K, (B, *case["labels"]), generator=generator, dtype=torch.int16)
    labels.view(-1)[::5] = case["ignored"]
    weights = torch.rand(K, generator=generator) + 0.1 if case["weighted"] else None
    exact = logits.double().requires_grad_()
    wide = None if weights is None else weights.double()
    place = (*case["size"], case["corners"], case["ignored"])
    want = F.cross_entropy(
        full(exact, case), labels.long(), wide, None, case["ignored"], None, "mean", case["smoothing"]
    )
    (slope,) = torch.autograd.grad(want, exact)
    arguments = (logits, labels, weights, *place, "valid", case["smoothing"], True)
    loss, pixels, gradient = kernels.upsample_cross_entropy(*arguments)
    again = kernels.upsample_cross_entropy(*arguments)[2]
    hits = (full(exact, case).argmax(1) == labels) & (labels != case["ignored"])
    shares = torch.randn(labels.shape, generator=generator)
    maps = F.cross_entropy(full(exact, case), labels.long(), ignore_index=case["ignored"], reduction="none")
    (map_slope,) = torch.autograd.grad(maps, exact, shares.double())
    losses, map_pixels = kernels.upsample_cross_entropy_map(logits, labels, *place)
    map_gradient = kernels.upsample_cross_entropy_map_backward(shares, logits, labels, *place)
    return (sums(logits, labels, case, 1 + case["corners"]) if _sums_too(case) else {}) | {
        "loss": error(loss, want.detach()),
        "gradient": error(gradient, slope),
        "map": error(losses, maps.detach()),
        "map_gradient": error(map_gradient, map_slope),
        "same_bits": torch.equal(gradient, again),
        "pixels": [pixels.tolist(), map_pixels.tolist(), [int(hits.sum()), int((labels != case["ignored"]).sum())]],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(case) for case in cases]))
