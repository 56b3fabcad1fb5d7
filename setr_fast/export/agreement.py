"""How far an exported program agrees with the model in Python, pixel by pixel, over odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from setr_fast.export.program import fixed_size, least_size
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec
from setr_fast.ops.upsample_argmax import upsample_argmax

Run = Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
LEVEL = 1e-4
"""Two classes are level at a pixel where their logits differ by less than this share of its largest logit."""


def agreement(model: SegmentationModel, run: Run, count: int) -> dict[str, Any]:
    """Compare ``run`` (uint8 [B, H, W, 3] -> classes [B, H, W]) with the model on ``count`` sizes.

    Returns plain values: what was tried, and how many pixels differ; those are ties where the model's own logits of the
    two answers are level, since rounding decides there.
    """
    rows: list[dict[str, Any]] = []
    pixels = different = ties = 0
    for size in odd_sizes(model.spec, count):
        pictures = draw_pictures(*size, seed=len(rows))
        logits, wanted = answer(model, pictures)
        found = torch.from_numpy(run(pictures.numpy()).astype(np.int64))
        if found.shape != wanted.shape:
            rows.append({"size": list(size), "different": wanted.numel(), "ties": 0, "shape": list(found.shape)})
        else:
            unequal = found != wanted
            level = int(_level(model, logits, size, wanted, found)[unequal].sum()) if unequal.any() else 0
            rows.append({"size": list(size), "different": int(unequal.sum()), "ties": level})
        pixels += wanted.numel()
        different += rows[-1]["different"]
        ties += rows[-1]["ties"]
    share = 1.0 - different / max(pixels, 1)
    return {
        "agreement": share,
        "pixels": pixels,
        "different": different,
        "ties": ties,
        "tie_below": LEVEL,
        "sizes": rows,
    }


def odd_sizes(spec: ModelSpec, count: int) -> Iterator[tuple[int, int, int]]:
    """Yield batch, height and width: the least, the training size, and odd ones up to a quarter above that."""
    random, fixed, least = np.random.default_rng(0), fixed_size(spec), least_size(spec)
    for index in range(count):
        batch = 2 if index % 5 == 4 else 1
        if fixed:
            yield batch, fixed[0], fixed[1]
        elif index < 2:
            yield batch, *((least, least) if index == 0 else spec.image_size)
        else:
            high, wide = (max(side * 5 // 4, least + 2) for side in spec.image_size)
            yield batch, int(random.integers(least, high)) | 1, int(random.integers(least, wide)) | 1


def draw_pictures(batch: int, height: int, width: int, seed: int) -> Tensor:
    """Return pictures of soft blobs under noise: they have areas and edges, as photographs do.

    Shapes: -> uint8 [B, H, W, 3].
    """
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 24 + 2, width // 24 + 2, generator=random)
    blobs = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    noise = torch.rand(batch, 3, height, width, generator=random)
    return (255 * (0.85 * blobs + 0.15 * noise)).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def answer(model: SegmentationModel, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the model's small logits of pictures of bytes, and their classes as int64 [B, H, W]."""
    with torch.inference_mode():
        logits = model.logits(pictures)
        grid = model.grid(pictures)
        classes = upsample_argmax(logits, model.resize_size(grid), model.spec.align_corners, grid.image)
    return logits, classes.to(torch.int64) & 0xFFFF


def _level(
    model: SegmentationModel, logits: Tensor, size: tuple[int, int, int], wanted: Tensor, found: Tensor
) -> Tensor:
    """Where the model's logits of the two answers are level. Shapes: -> bool [B, H, W]."""
    to = model.resize_size(model.grid_of(size[1:]))
    full = torch.nn.functional.interpolate(logits, to, mode="bilinear", align_corners=model.spec.align_corners)
    full = full[..., : size[1], : size[2]]
    known = found.clamp(0, full.shape[1] - 1)
    gap = full.gather(1, wanted[:, None]) - full.gather(1, known[:, None])
    return ((gap <= LEVEL * full.abs().amax(1, keepdim=True)) & (known == found)[:, None])[:, 0]
