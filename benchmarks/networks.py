"""The networks and pictures that model and peer comparisons share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import setr_fast
from benchmarks.machine import DEVICE
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.ops._op import REFERENCE

HEADS = ("setr_naive", "setr_pup", "setr_mla", "segmenter_linear", "segmenter_mask")
CLASSES = 150
NOTHING_RANDOM = {"drop_path": 0.0, "dropout": 0.0, "decoder_dropout": 0.0, "decoder_drop_path": 0.0}


def network(name: str, size: int, seed: int, **options: Any) -> SegmentationModel:
    """Return a network with random weights, without dropout, whose batch norms have statistics of a trained one.

    With PyTorch's first statistics all channels would fade.
    """
    torch.manual_seed(seed)
    model = create_model(name, CLASSES, size, **NOTHING_RANDOM, **options).to(DEVICE)
    for label, buffer in model.named_buffers():
        if label.endswith("running_var"):
            buffer.fill_(0.05)
    return model


def pictures(seed: int, batch: int, size: int) -> Tensor:
    """Return random bytes [B, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8).to(DEVICE)


def normalised(seed: int, batch: int, size: int) -> Tensor:
    """Return random numbers [B, 3, H, W], on the processor."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plainly(run: Callable[..., Any], *args: Any) -> Any:
    """Call with every op forced to its reference."""
    with setr_fast.backend(REFERENCE):
        return run(*args)


def inferring(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` without gradients."""

    def call(*args: Any) -> Any:
        with torch.inference_mode():
            return run(*args)

    return call


def facts(name: str, size: int, batch: int, direction: str, *more: str) -> dict[str, Any]:
    """Return the fields that all rows of one comparison of networks share."""
    return {
        "name": name,
        "case": ", ".join((f"{size}px", f"{CLASSES} classes", f"batch {batch}", *more)),
        "direction": direction,
        "size": [batch, size, size],
        "pictures": batch,
    }
