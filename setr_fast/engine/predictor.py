"""From a picture of any size to its class map.

    picture -> per scale: size -> windows, resized and normalised when they are read -> model
            -> mean logits, row by row -> back to the picture's size -> softmax, mean over scales -> class

Resizing reads windows out of the original picture, so neither a resized nor a normalised copy of it exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from setr_fast.data.transforms import normalise_table
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import Picture, as_pixels
from setr_fast.engine.views import View, class_map
from setr_fast.ops.augment_image import augment_image

WHOLE_MAX_PIXELS = 2048 * 2048
"""Above this, mode auto takes windows also for models whose rule is one pass: a pass needs memory with the picture."""
LONGEST_TO_SHORT = 8
"""Limit of the longer edge in units of resize_short, where resize_long is not given; official Segmenter's largest."""


def predict(
    model: nn.Module,
    image: Picture,
    config: InferenceConfig | None = None,
    *,
    out_size: tuple[int, int] | None = None,
) -> npt.NDArray[Any]:
    """Return the class of every pixel, at the picture's own upright size (or at ``out_size``).

    ``model`` has a ``spec`` (classes, mean, std, image size) and returns logits at the size of its input. What the
    configuration leaves open is the spec's: mode auto its ``inference_mode``, no ``resize_short`` its own. Slide is
    windows of the training size, of which a picture that is no larger has exactly one. Pictures smaller than what the
    model takes are padded with zeros, below and to the right.

    Shapes: image uint8 [H, W, 3] RGB, or a path or Pillow image; -> [H, W] uint8, uint16 above 256 classes.
    Raises: ShapeError for an array of another kind; DataError for a file that cannot be read; ConfigError for a
    stride larger than the window.
    """
    config = config or InferenceConfig()
    pixels = as_pixels(image)
    spec: Any = model.spec
    if config.resize_short is None and getattr(spec, "resize_short", None) is not None:
        config = dataclasses.replace(config, resize_short=spec.resize_short)
    normalise = normalise_table(spec.mean, spec.std)
    views = []
    for scale in config.scales:
        size = scaled_size((pixels.shape[0], pixels.shape[1]), scale, config)
        window, stride = windows_of(spec, size, config)
        for mirrored in (False, True) if config.flip else (False,):
            views.append(View(_reader(pixels, size, mirrored, normalise), size, mirrored, window, stride))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    least = _least_size(spec)

    def run(batch: Tensor) -> Tensor:
        height, width = batch.shape[-2:]
        short = least[0] > height or least[1] > width
        padded = pad(batch, (0, max(least[1] - width, 0), 0, max(least[0] - height, 0))) if short else batch
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            logits = model(padded.to(device))
        return logits[..., :height, :width]

    with torch.inference_mode(), evaluating(model):
        return class_map(
            run,
            views,
            out_size or (pixels.shape[0], pixels.shape[1]),
            spec.num_classes,
            probabilities=config.merge == "probabilities",
            rule=config.window_rule,
            batch=config.window_batch,
            budget=config.canvas_mib * 2**20,
        )


def scaled_size(size: tuple[int, int], scale: float, config: InferenceConfig) -> tuple[int, int]:
    """Return the height and width that a picture of ``size`` is resized to; the aspect is kept, no side reaches 0.

    The factor is ``scale``, or brings the shorter edge to ``int(resize_short * scale)`` as long as the longer edge
    stays within its own limit (mmcv's ``rescale_size``); ``min_short`` then raises it where the shorter edge is below.
    """
    height, width = size
    short, long = min(size), max(size)
    factor = scale
    if config.resize_short is not None:
        limit = config.resize_long or LONGEST_TO_SHORT * config.resize_short
        wanted = max(int(config.resize_short * scale), config.min_short or 1)
        factor = min(wanted / short, max(int(limit * scale), wanted) / long)
    elif config.min_short is not None and scale * short < config.min_short:
        factor = min(config.min_short / short, max(LONGEST_TO_SHORT * config.min_short / long, scale))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def windows_of(spec: Any, size: tuple[int, int], config: InferenceConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return window and stride for a picture resized to ``size``; one pass is one window as large as the picture."""
    mode = config.mode
    if mode == "auto":
        fits = size[0] * size[1] <= WHOLE_MAX_PIXELS
        mode = "whole" if getattr(spec, "inference_mode", "slide") == "whole" and fits else "slide"
    if mode == "whole":
        return size, size
    window = config.crop or tuple(spec.image_size)
    if config.stride is not None:
        return window, config.stride
    own = getattr(spec, "stride", None)
    if config.crop is None and own is not None and own[0] <= window[0] and own[1] <= window[1]:
        return window, tuple(own)
    return window, (max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back in the mode it was in (frozen parts stay as they were)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _least_size(spec: Any) -> tuple[int, int]:
    """Smallest picture the model takes: any, a patch, or (positions that cannot be resized) exactly its own grid."""
    patch: int = getattr(spec, "patch_size", 1)
    if getattr(spec, "pos_resize", None) == "none":
        return spec.pos_grid[0] * patch, spec.pos_grid[1] * patch
    return (patch, patch) if getattr(spec, "fit", "pad") == "floor" else (1, 1)


def _reader(
    pixels: Tensor, size: tuple[int, int], mirrored: bool, normalise: Tensor
) -> Callable[[int, int, int, int], Tensor]:
    def read(top: int, left: int, height: int, width: int) -> Tensor:
        left = size[1] - left - width if mirrored else left
        return augment_image(pixels, size, (top, left), (height, width), mirrored, None, None, 0, None, normalise)

    return read
