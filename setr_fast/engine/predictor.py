"""From a picture of any size to its class map.

    picture -> per scale: size -> windows of bytes, resized when they are read -> model, in batches
            -> small logits -> merged row by row: upsampled, averaged, resized, softmax, mean over views -> class

Neither a resized or normalised copy of the picture nor logits of its size exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from setr_fast.data.transforms import normalise_table
from setr_fast.engine.batches import assemble
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.pictures import Picture, Pixels, as_pixels, byte_reader, reader
from setr_fast.engine.runner import Runner, evaluating
from setr_fast.engine.views import Assembly, View
from setr_fast.errors import ShapeError

__all__ = ["evaluating", "predict", "predict_scores", "predict_views", "scaled_size", "windows_of"]

WHOLE_MAX_PIXELS = 2048 * 2048
"""Above this, mode auto takes windows also for models whose rule is one pass: a pass needs memory with the picture."""
LONGEST_TO_SHORT = 8
"""Limit of the longer edge in units of resize_short, where resize_long is not given; official Segmenter's largest."""


def predict(
    model: nn.Module,
    image: Picture | Tensor,
    config: InferenceConfig | None = None,
    *,
    out_size: tuple[int, int] | None = None,
    waiting: int = 0,
) -> npt.NDArray[Any]:
    """Return the class of every pixel, at the picture's own upright size (or at ``out_size``).

    ``model`` has a ``spec`` (classes, mean, std, image size) and returns logits at the size of its input; where it has
    ``logits`` and ``logits_geometry``, its small logits are used. What the configuration leaves open is the spec's:
    mode auto its ``inference_mode``, no ``resize_short`` its own, and so on. Slide is windows of the training size, of
    which a picture that is no larger has exactly one. Pictures smaller than what the model takes are padded with zeros,
    below and to the right. ``waiting``: bytes of the memory budget that are left to other pictures.

    Shapes: image uint8 [H, W, 3] RGB, a path or a Pillow image, or a normalised float tensor [C, H, W]; -> [H, W]
    uint8, uint16 above 256 classes.
    Raises: ShapeError for an array of another kind; DataError for a file that cannot be read; ConfigError for a
    stride larger than the window.
    """
    config = settled(config, model)
    pixels, size = _pixels(image, model)
    return predict_views(model, views_of(model, pixels, config), out_size or size, config, waiting=waiting)


def predict_views(
    model: nn.Module,
    views: Sequence[View],
    out_size: tuple[int, int],
    config: InferenceConfig | None = None,
    *,
    waiting: int = 0,
) -> npt.NDArray[Any]:
    """Return the class of every pixel of a picture that is given as views, as ``predict`` does.

    Shapes: -> [H, W] uint8, uint16 above 256 classes.
    """
    runner = Runner(model, settled(config, model), waiting)
    with torch.inference_mode(), evaluating(model):
        parts = assemble(strips(runner, views, out_size), runner.run, runner.batch_of, runner.held, runner.bytes_of)
        return joined(list(parts))


def predict_scores(
    model: nn.Module,
    image: Picture | Tensor | Sequence[View],
    config: InferenceConfig | None = None,
    *,
    out_size: tuple[int, int] | None = None,
    take_rows: Callable[[int, Tensor], None] | None = None,
) -> npt.NDArray[np.float32] | None:
    """Return what ``predict`` takes the largest of: of one view its logits, of several their mean (``merge``).

    ``take_rows(first, scores)`` is handed the rows from ``first`` on as they are made, and nothing is returned: a whole
    picture of scores is large.

    Shapes: image as for ``predict``, or its views (with ``out_size``); -> [K, H, W]; take_rows gets [K, rows, W].
    """
    config = settled(config, model)
    if isinstance(image, Sequence) and not isinstance(image, str):
        views, size = list(image), out_size
    else:
        pixels, size = _pixels(image, model)
        views, size = views_of(model, pixels, config), out_size or size
    if size is None:
        raise ShapeError("predict_scores: out_size must be given with views, got none; say the picture's size")
    runner = Runner(model, config)
    kept: list[Tensor] = []
    take = take_rows or (lambda first, scores: kept.append(scores.cpu()))
    whole = Assembly(views, size, runner.spec.num_classes, runner.geometry, **runner.rules, take_rows=take)
    with torch.inference_mode(), evaluating(model):
        list(assemble([whole], runner.run, runner.batch_of, runner.held, runner.bytes_of))
    return torch.cat(kept, 1).numpy() if take_rows is None else None


def settled(config: InferenceConfig | None, model: nn.Module) -> InferenceConfig:
    """Return the configuration with what it leaves open taken from the model's spec."""
    config, spec = config or InferenceConfig(), model.spec
    own: dict[str, Any] = {"window_rule": "mmseg", "merge": "probabilities", "resize_rule": "opencv"}
    own |= {"resize_short": None, "min_short": None}
    open_fields = {name: getattr(spec, name, value) for name, value in own.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **open_fields)


def views_of(model: nn.Module, pixels: Pixels, config: InferenceConfig) -> list[View]:
    """Return the views of a picture: every scale, and mirrored where asked for."""
    spec: Any = model.spec
    normalise = normalise_table(spec.mean, spec.std)
    size = _size(pixels)
    as_bytes = config.resize_rule == "opencv" and pixels.dtype is torch.uint8
    takes_bytes = as_bytes and channels_of(model) == 3 and getattr(model, "takes_bytes", False)
    views = []
    for scale in config.scales:
        scaled = scaled_size(size, scale, config)
        window, stride = windows_of(spec, scaled, config)
        for mirrored in (False, True) if config.flip else (False,):
            if takes_bytes:
                read = byte_reader(pixels, scaled, mirrored)
            else:
                read = reader(pixels, scaled, mirrored, normalise, as_bytes=config.resize_rule == "opencv")
            views.append(View(read, scaled, mirrored, window, stride))
    return views


def strips(
    runner: Runner, views: Sequence[View], out_size: tuple[int, int], labels: Tensor | None = None
) -> Iterator[Assembly]:
    """Yield the assemblies of a picture: one, or as many equal strips as the memory for logits asks for."""

    def part(columns: tuple[int, int]) -> Assembly:
        inside = None if labels is None else labels[:, slice(*columns)].contiguous()
        return Assembly(
            views, out_size, runner.spec.num_classes, runner.geometry, **runner.rules, columns=columns, labels=inside
        )

    def parts(count: int) -> Iterator[Assembly]:
        for index in range(count):
            yield part((out_size[1] * index // count, out_size[1] * (index + 1) // count))

    whole = part((0, out_size[1]))
    share = max(runner.share(whole), 1)
    narrowest = max(-(-min(view.window[1], view.size[1]) * out_size[1] // view.size[1]) for view in views)
    most = max(out_size[1] // max(narrowest, 1), 1)
    count, largest = 1, runner.bytes_of(whole)
    while largest > share and count < most:  # a strip is more than its part: neighbours share windows
        count = min(max(-(-count * largest // share), count + 1), most)
        largest = max(map(runner.bytes_of, parts(count)))
    if largest > share:
        runner.check(max(parts(count), key=runner.bytes_of))
    yield from [whole] if count == 1 else parts(count)


def joined(parts: Sequence[Assembly]) -> npt.NDArray[Any]:
    """Return the class map of a picture's strips. Shapes: -> [H, W], uint8 or uint16."""
    classes = parts[0].classes if len(parts) == 1 else torch.cat([part.classes for part in parts], 1)
    return classes.numpy() if classes.dtype == torch.uint8 else classes.numpy().view(np.uint16)


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


def channels_of(model: nn.Module) -> int:
    """Return how many channels a model's pictures have; one that does not say takes three."""
    return int(getattr(model.spec, "in_chans", 3))


def _pixels(image: Picture | Tensor, model: nn.Module) -> tuple[Pixels, tuple[int, int]]:
    pixels = image if isinstance(image, Tensor) else as_pixels(image, channels_of(model))
    if isinstance(image, Tensor) and (pixels.dim() != 3 or not pixels.is_floating_point()):
        raise ShapeError(
            f"predict: tensor must be a normalised float picture [C, H, W], got {str(pixels.dtype)[6:]} "
            f"{list(pixels.shape)}; give a uint8 picture as an array"
        )
    return pixels, _size(pixels)


def _size(pixels: Pixels) -> tuple[int, int]:
    shape = pixels.shape[1:] if pixels.is_floating_point() else pixels.shape[:2]
    return int(shape[0]), int(shape[1])
