"""The probability of one class at every pixel, for scores that look at more than the answer.

The plain way, one window at a time, with the logits of one view whole in memory: K x height x width. What is resized,
averaged and mirrored in which order is what ``predict`` does; of two classes, class 1 is its answer where this is
above one half.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from setr_fast.data.transforms import normalise_table
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import Picture, as_pixels
from setr_fast.engine.predictor import _least_size, evaluating, scaled_size, windows_of
from setr_fast.engine.windows import window_starts
from setr_fast.ops.augment_image import augment_image


def class_probability(
    model: nn.Module,
    image: Picture,
    index: int,
    config: InferenceConfig | None = None,
    *,
    out_size: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the softmax probability of class ``index`` at the picture's own upright size (or at ``out_size``).

    Shapes: image as for ``predict``; -> [H, W].
    """
    spec: Any = model.spec
    config = config or InferenceConfig()
    if config.resize_short is None and getattr(spec, "resize_short", None) is not None:
        config = dataclasses.replace(config, resize_short=spec.resize_short)
    pixels = as_pixels(image)
    size = out_size or (pixels.shape[0], pixels.shape[1])
    several = len(config.scales) * (2 if config.flip else 1)
    total: Any = 0.0
    with torch.inference_mode(), evaluating(model):
        for scale in config.scales:
            for mirrored in (False, True) if config.flip else (False,):
                logits = interpolate(
                    _logits(model, pixels, scale, mirrored, config), size, mode="bilinear", align_corners=False
                )[0]
                total = total + (logits.softmax(0)[index] if config.merge == "probabilities" else logits) / several
    return (total if config.merge == "probabilities" else total.softmax(0)[index]).cpu().numpy()


def _logits(model: nn.Module, pixels: Tensor, scale: float, mirrored: bool, config: InferenceConfig) -> Tensor:
    """Mean logits of all windows on the picture at one scale, turned back if mirrored. Shapes: -> [1, K, h, w]."""
    spec: Any = model.spec
    height, width = size = scaled_size((pixels.shape[0], pixels.shape[1]), scale, config)
    window, stride = windows_of(spec, size, config)
    least, normalise = _least_size(spec), normalise_table(spec.mean, spec.std)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total = torch.zeros(1, spec.num_classes, height, width, device=device)
    count = torch.zeros(height, width, device=device)
    part = min(window[0], height), min(window[1], width)
    for top in window_starts(height, window[0], stride[0], config.window_rule):
        for left in window_starts(width, window[1], stride[1], config.window_rule):
            from_left = width - left - part[1] if mirrored else left
            seen = augment_image(pixels, size, (top, from_left), part, mirrored, None, None, 0, None, normalise)
            room = max(least[1] - part[1], 0), max(least[0] - part[0], 0)
            batch = pad(seen[None], (0, room[0], 0, room[1])).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(batch)
            where = slice(top, top + part[0]), slice(left, left + part[1])
            total[0, :, *where] += logits[0, :, : part[0], : part[1]].float()
            count[where] += 1
    mean = total / count
    return mean.flip(-1) if mirrored else mean
