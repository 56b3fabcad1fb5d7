"""A small model with the parts of a real one that the engine uses, and pictures to give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from setr_fast.engine import checkpoints


@dataclass(frozen=True)
class TinySpec:
    num_classes: int = 5
    image_size: tuple[int, int] = (32, 32)
    stride: tuple[int, int] | None = None
    patch_size: int = 4
    mean: tuple[float, float, float] = (120.0, 110.0, 100.0)
    std: tuple[float, float, float] = (60.0, 55.0, 50.0)
    inference_mode: str = "slide"
    palette: tuple[tuple[int, int, int], ...] | None = None
    class_names: tuple[str, ...] | None = None
    pos_resize: str = "bilinear"
    pos_grid: tuple[int, int] = (8, 8)
    fit: str = "pad"
    align_corners: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class TinyModel(nn.Module):
    """Patch convolution, a look at the whole window, classifier: a window's logits depend on what else is in it."""

    def __init__(self, spec: TinySpec) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(3)
        self.patches = nn.Conv2d(3, 8, spec.patch_size, spec.patch_size)
        self.norm = nn.BatchNorm2d(8)
        self.classify = nn.Conv2d(8, spec.num_classes, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.largest = 0

    def logits(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if self.spec.pos_resize == "none":
            assert (height, width) == (self.spec.pos_grid[0] * 4, self.spec.pos_grid[1] * 4)
        self.largest = max(self.largest, image.numel() // 3)
        if self.spec.fit == "pad":
            image = pad(image, (0, -width % self.spec.patch_size, 0, -height % self.spec.patch_size))
        features = self.norm(self.patches(image))
        return self.classify(torch.tanh(features + features.mean((2, 3), keepdim=True)))

    def logits_geometry(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        patch, (height, width) = self.spec.patch_size, size
        if self.spec.fit == "floor":
            return (height // patch, width // patch), size
        grid = -(-height // patch), -(-width // patch)
        return grid, (grid[0] * patch, grid[1] * patch)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        size = self.logits_geometry((height, width))[1]
        return interpolate(self.logits(image), size, mode="bilinear", align_corners=False)[..., :height, :width]


@pytest.fixture
def make_model() -> Callable[..., TinyModel]:
    def make(**values: Any) -> TinyModel:
        return TinyModel(TinySpec(**values)).eval()

    return make


@pytest.fixture
def make_picture() -> Callable[[int, int], np.ndarray]:
    """Smooth blobs with noise: neighbouring pixels are alike, and no two classes are everywhere close to a tie."""

    def make(height: int, width: int) -> np.ndarray:
        rng = np.random.default_rng(height * 10_007 + width)
        rows, columns = np.mgrid[:height, :width]
        waves = [np.sin(rows / (5 + c) + c) * np.cos(columns / (7 + c)) * 90 + 128 for c in range(3)]
        return np.clip(np.stack(waves, 2) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)

    return make


@pytest.fixture
def checkpoint(tmp_path, make_model, monkeypatch) -> Path:
    """A folder that looks like a saved model and loads as the tiny one."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(checkpoints, "load_model", lambda path, mapped: make_model())
    return folder
