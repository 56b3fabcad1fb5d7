"""Any family, picture, window, stride, scale and merging rule against a plain loop in float64, written here.

The loop shares nothing with the engine but the rule for the size of a scaled picture; pictures are resized by OpenCV.
Classes must agree wherever the two best scores of the loop differ by more than rounding in float32 may change.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict, scaled_size
from setr_fast.models.model import SegmentationModel, create_model

cv2 = pytest.importorskip("cv2")
FAMILIES = ("setr_naive", "setr_pup", "setr_mla", "segmenter_linear", "segmenter_mask")
NEAR = 2e-4
"""Relative gap of the two best scores below which float32 may decide otherwise."""


def starts(length: int, window: int, stride: int, rule: str) -> list[int]:
    window = min(window, length)
    if rule == "segmenter":
        return [*range(0, length - window, stride), length - window]
    count = max(math.ceil((length - window) / stride), 0) + 1
    return [max(min(index * stride, length - window), 0) for index in range(count)]


@torch.inference_mode()
def plain(model: SegmentationModel, image: np.ndarray, config: InferenceConfig, size: tuple[int, int]) -> Tensor:
    """Return what the classes are the largest of. Shapes: -> [K, H, W] of ``size``."""
    spec, scores = model.spec, []
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (spec.mean, spec.std))
    for scale in config.scales:
        height, width = scaled_size(image.shape[:2], scale, config)
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        for flip in (False, True) if config.flip else (False,):
            picture = (torch.from_numpy(scaled).permute(2, 0, 1).double() - mean) / std
            picture = picture.flip(-1) if flip else picture
            window, stride = ((height, width),) * 2 if config.mode == "whole" else (config.crop, config.stride)
            total, count = torch.zeros(spec.num_classes, height, width).double(), torch.zeros(height, width)
            for top in starts(height, window[0], stride[0], config.window_rule):
                for left in starts(width, window[1], stride[1], config.window_rule):
                    where = slice(top, top + window[0]), slice(left, left + window[1])
                    total[:, where[0], where[1]] += model(picture[None, :, where[0], where[1]])[0]
                    count[where] += 1
            mean_logits = (total / count).flip(-1) if flip else total / count
            full = interpolate(mean_logits[None], size, mode="bilinear", align_corners=False)[0]
            scores.append(full.softmax(0) if config.merge == "probabilities" else full)
    return torch.stack(scores).mean(0)


def draw(seed: int) -> tuple[SegmentationModel, SegmentationModel, np.ndarray, InferenceConfig, tuple[int, int]]:
    """Return a tiny model, the same in float64, a picture, how to look at it, and the size of the class map."""
    pick = random.Random(seed)
    window = pick.choice([(32, 32), (48, 48), (32, 48)])
    family, classes = FAMILIES[seed % len(FAMILIES)], pick.choice([1, 2, 19, 150, 300])
    fields = {"width": 32, "depth": 2, "num_heads": 2, "ignore_index": 255 if classes < 256 else 65535}
    fields |= {"head_channels": 16} if family.startswith("setr") else {}
    fields |= {"branch_channels": 8} if family == "setr_mla" else {}
    torch.manual_seed(seed)
    model, exact = (create_model(f"{family}_vit_t16", classes, window, **fields).eval() for _ in range(2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if "classif" in name and pick.random() < 0.2:
                parameter.mul_(1e4)
    exact.load_state_dict(model.state_dict())
    shapes = [
        (1, pick.randint(1, 90)),
        (pick.randint(1, 90), 1),
        window,
        (window[0] + 1, window[1] + 1),
        (window[0] - 1, window[1] - 3),
        (pick.randint(2, 130), pick.randint(2, 130)),
        (pick.randint(60, 200), pick.randint(10, 60)),
    ]
    height, width = shapes[seed % len(shapes)]
    few = np.random.default_rng(seed).integers(0, 256, (max(height // 6, 1), max(width // 6, 1), 3), dtype=np.uint8)
    image = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)
    config = InferenceConfig(
        mode=pick.choice(["slide", "slide", "whole"]),
        crop=window,
        stride=(pick.randint(window[0] // 3, window[0]), pick.randint(window[1] // 3, window[1])),
        scales=pick.choice([(1.0,), (0.5, 1.0, 1.75), (0.75, 1.25), (1.37,)]),
        flip=pick.random() < 0.5,
        merge=pick.choice(["probabilities", "logits"]),
        window_rule=pick.choice(["mmseg", "segmenter", "paddleseg"]),
        resize_rule="opencv",
        window_batch=(batch := pick.choice([None, 1, 3])),
        memory_budget=pick.choice(["2GiB", "2GiB" if batch is None else "20kB"]),  # alone it would be refused
    )
    size = (height, width) if pick.random() < 0.7 else (pick.randint(1, 140), pick.randint(1, 140))
    return model, exact.double(), image, config, size


def compare(seed: int) -> None:
    model, exact, image, config, size = draw(seed)
    found, want = predict(model, image, config, out_size=size), plain(exact, image, config, size)
    assert found.shape == size
    assert found.dtype == (np.uint8 if len(want) <= 256 else np.uint16)
    different = torch.from_numpy(found.astype(np.int64)) != want.argmax(0)
    if not different.any():
        return
    first, second = want.topk(2, 0).values
    least = 1e-3 if config.merge == "probabilities" else 1.0
    gap = (first - second) / first.abs().clamp_min(least)
    assert float(gap[different].max()) <= NEAR, f"{int(different.sum())} pixels, {config}, {tuple(image.shape)}, {size}"


@pytest.mark.parametrize("seed", range(7))
def test_any_picture_and_rule(seed: int) -> None:
    compare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 300, 20))
def test_many_pictures_and_rules(first: int) -> None:
    for seed in range(first, first + 20):
        compare(seed)
