"""A row per small model and direction: one picture through the network, one training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.harness import interleaved, quantiles, ratio
from setr_fast.models.model import create_model

NAMES = [
    "setr_naive_vit_t16",
    "setr_pup_vit_t16",
    "setr_mla_vit_t16",
    "segmenter_linear_vit_t16",
    "segmenter_mask_vit_t16",
]
SIZE = (256, 256)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_inference(name: str, benchmark: Any, record: Callable[[dict[str, Any]], None]) -> None:
    """fp32 eager beside bf16 autocast of the same weights; both must name the same classes nearly everywhere."""
    model = create_model(name, num_classes=19, image_size=SIZE).eval().to(DEVICE)
    image = torch.randn(1, 3, *SIZE, device=DEVICE)

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        return model(image)

    @torch.inference_mode()
    def half() -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return model(image)

    difference = (plain() - half()).abs().max() / plain().abs().max()
    assert difference < 0.1, "bf16 must stay near fp32"
    times = interleaved({"fp32": plain, "bf16": half})
    benchmark.pedantic(plain, rounds=3, warmup_rounds=1)
    speed = ratio(times["fp32"], times["bf16"])
    benchmark.extra_info.update(ratio=speed["median"])
    record(
        {
            "kind": "inference",
            "model": name,
            "size": list(SIZE),
            "fp32_seconds": quantiles(times["fp32"]),
            "bf16_seconds": quantiles(times["bf16"]),
            "bf16_ratio": speed,
        }
    )


@pytest.mark.parametrize("name", ["setr_pup_vit_t16", "segmenter_mask_vit_t16"])
def test_training_step(name: str, benchmark: Any, record: Callable[[dict[str, Any]], None]) -> None:
    model = create_model(name, num_classes=19, image_size=SIZE).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    image = torch.randn(2, 3, *SIZE, device=DEVICE)
    label = torch.randint(0, 19, (2, *SIZE), device=DEVICE)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(image, label)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    times = interleaved({"fp32": step})
    benchmark.pedantic(step, rounds=3)
    assert step() < first, "the steps that are timed must lower the loss of their batch"
    record({"kind": "training", "model": name, "size": list(SIZE), "batch": 2, "seconds": quantiles(times["fp32"])})
