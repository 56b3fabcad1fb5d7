"""Evaluating a folder with sliding windows and mirroring: the engine against a plain loop, same confusion matrix.

The plain loop is what the published code does: one window at a time, logits at full size, a canvas and a count map,
softmax, mean over both views, argmax, histogram; ops forced to their references. Models differ in how much of the time
their encoder takes, which both sides share: rows name model, classes and size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import setr_fast
from benchmarks.job_contest import compare_jobs
from benchmarks.rows import Parity
from setr_fast.data.classes import ClassTable
from setr_fast.engine.evaluator import evaluate
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.windows import window_starts
from setr_fast.models.model import SegmentationModel, create_model

MOVED = 1e-4
"""Share of the pixels that may change class: random weights make many near ties, and rounding decides those."""
ENGINE, PLAIN = "engine", "plain loop"
full = pytest.mark.full
CASES = [
    pytest.param("setr_naive_vit_t16", 19, 256, (360, 480), 4, id="naive_t16_19"),
    pytest.param("setr_pup_vit_t16", 150, 512, (512, 683), 1, id="pup_t16_150"),
    pytest.param("setr_naive_vit_t16", 150, 512, (512, 683), 2, id="naive_t16_150", marks=full),
    pytest.param("setr_mla_vit_t16", 150, 512, (512, 683), 2, id="mla_t16_150", marks=full),
    pytest.param("segmenter_mask_vit_t16", 150, 512, (512, 683), 2, id="mask_t16_150", marks=full),
    pytest.param("setr_naive_vit_b16", 150, 512, (512, 683), 1, id="naive_b16_150", marks=full),
]


class Folder:
    """Random pictures with random masks, in memory: reading files is the same for both sides."""

    def __init__(self, size: tuple[int, int], classes: int, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.classes = ClassTable.numbered(classes)
        self.samples = []
        for _ in range(count):
            small = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 16)).astype(np.float32))
            smooth = interpolate(small, size, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
            label = rng.integers(0, classes, size).astype(np.uint8)
            label[:5] = 255
            self.samples.append((np.ascontiguousarray(smooth.numpy().astype(np.uint8)), label))
        self.names = [f"p{index}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples[index]


@torch.inference_mode()
def plain_loop(model: SegmentationModel, folder: Folder) -> np.ndarray:
    """Return the confusion matrix, computed the plain way."""
    spec = model.spec
    (height, width), stride, classes = spec.image_size, spec.stride, spec.num_classes
    total = torch.zeros(classes, classes, dtype=torch.int64)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    for image, label in folder.samples:
        picture = (torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std
        probability: Tensor | float = 0.0
        for mirrored in (False, True):
            seen = picture.flip(-1) if mirrored else picture
            canvas = torch.zeros(classes, *seen.shape[1:])
            count = torch.zeros(seen.shape[1:])
            for top in window_starts(seen.shape[1], height, stride[0]):
                for left in window_starts(seen.shape[2], width, stride[1]):
                    where = slice(top, top + height), slice(left, left + width)
                    logits = model(seen[None, :, where[0], where[1]])[0]
                    canvas[:, where[0], where[1]] += logits
                    count[where] += 1
            scores = (canvas / count).softmax(0)
            probability = probability + (scores.flip(-1) if mirrored else scores)
        assert isinstance(probability, Tensor)
        answer, truth = (probability / 2).argmax(0), torch.from_numpy(label).long()
        counted = truth != 255
        cells = torch.bincount(truth[counted] * classes + answer[counted], minlength=classes**2)
        total += cells.reshape(classes, classes)
    return total.numpy()


@pytest.mark.parametrize(("name", "classes", "window", "size", "count"), CASES)
def test_slide_and_flip(
    name: str,
    classes: int,
    window: int,
    size: tuple[int, int],
    count: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = create_model(name, num_classes=classes, image_size=window).eval()
    folder = Folder(size, classes, count, seed)
    config = InferenceConfig(mode="slide", flip=True)

    def plain() -> np.ndarray:
        with setr_fast.backend("reference"):
            return plain_loop(model, folder)

    compare_jobs(
        {ENGINE: lambda: evaluate(model, folder, config).confusion, PLAIN: plain},
        _verdict,
        PLAIN,
        ENGINE,
        benchmark,
        record,
        seconds=8.0,
        name="slide and flip",
        case=f"{name}, {classes} classes, windows of {window}, {count} of {size[0]}x{size[1]}",
        size=[count, *size],
        pictures=count,
    )


def _verdict(found: list[np.ndarray], want: np.ndarray) -> Parity:
    """Compare every confusion matrix that was counted while the clock ran with the plain loop's first."""
    share = max(int(np.abs(counts - want).sum()) / 2 for counts in found) / want.sum()
    why = "" if share <= MOVED else f"{share:.2%} of the pixels change class"
    return Parity(not why, share, MOVED, len(found), why)
