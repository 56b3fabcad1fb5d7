"""The training augmentation as others write it, step after step on whole pictures: with Pillow and NumPy, with OpenCV.

Both take the numbers that ``TrainTransform`` draws and do what it does: resize, choose a window that no class fills,
crop, flip, brightness, contrast, saturation and hue, normalise, pad. They differ from it only in how pixels are
computed. Neither does anything twice that these libraries need only once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from setr_fast.data.options import AugmentConfig
from setr_fast.data.transforms import NUM_DRAWS, REDRAWS, ColourChange, colour_change, resized_size

Bytes = NDArray[np.uint8]
Resize = Callable[[Bytes, tuple[int, int]], Bytes]


class PlainTransform:
    """``TrainTransform`` by a library: how it resizes pictures and labels, and how it changes colours."""

    def __init__(
        self,
        augment: AugmentConfig,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        library: tuple[Resize, Resize, Callable[[Bytes, ColourChange], Bytes]],
    ) -> None:
        self.augment = augment
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.resize, self.resize_label, self.recolour = library

    def __call__(self, image: Bytes, label: Bytes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a training crop as ``TrainTransform`` does."""
        config, draws = self.augment, rng.random(NUM_DRAWS).tolist()
        low, high = config.ratio_range
        size = resized_size(image.shape[0], image.shape[1], low + (high - low) * draws[0], config.base_scale)
        image, label = self.resize(image, size), self.resize_label(label, size)
        spare = [max(side - crop, 0) for side, crop in zip(size, config.crop, strict=True)]
        for attempt in range(REDRAWS + 1):
            row, column = draws[1 + 2 * attempt : 3 + 2 * attempt]
            top, left = int(row * (spare[0] + 1)), int(column * (spare[1] + 1))
            window = np.s_[top : top + config.crop[0], left : left + config.crop[1]]
            counts = np.bincount(label[window].ravel(), minlength=256)[:255]
            if np.count_nonzero(counts) > 1 and counts.max() < config.cat_max_ratio * counts.sum():
                break
        pixels, crop = image[window], label[window]
        if draws[23] < config.flip:
            pixels, crop = pixels[:, ::-1], crop[:, ::-1]
        pixels = self.recolour(np.ascontiguousarray(pixels), colour_change(draws[24:]))
        normalised = (pixels.astype(np.float32) - self.mean) / self.std
        out, ids = np.zeros((3, *config.crop), np.float32), np.full(config.crop, 255, np.uint8)
        out[:, : pixels.shape[0], : pixels.shape[1]] = normalised.transpose(2, 0, 1)
        ids[: crop.shape[0], : crop.shape[1]] = crop
        return torch.from_numpy(out), torch.from_numpy(ids)


def with_pillow() -> tuple[Resize, Resize, Callable[[Bytes, ColourChange], Bytes]]:
    """Pillow resizes, applies tables and goes through HSV (whose hue has 256 steps); NumPy does the rest."""

    def recolour(pixels: Bytes, change: ColourChange) -> Bytes:
        image = Image.fromarray(pixels)
        if change.pre is not None:
            image = image.point(change.pre.tolist() * 3)
        if change.saturation is not None or change.hue:
            hue = [(value + round(change.hue * 256 / 180)) % 256 for value in range(256)]
            saturation = list(range(256)) if change.saturation is None else change.saturation.tolist()
            image = image.convert("HSV").point([*hue, *saturation, *range(256)]).convert("RGB")
        if change.post is not None:
            image = image.point(change.post.tolist() * 3)
        return np.asarray(image)

    def resized(rule: Image.Resampling) -> Resize:
        return lambda pixels, size: np.asarray(Image.fromarray(pixels).resize(size[::-1], rule))

    return resized(Image.Resampling.BILINEAR), resized(Image.Resampling.NEAREST), recolour


def with_opencv() -> tuple[Resize, Resize, Callable[[Bytes, ColourChange], Bytes]]:
    """OpenCV does all of it, as in mmsegmentation."""
    import cv2

    cv2.setNumThreads(0)

    def table(pixels: Bytes, values: Any) -> Bytes:
        return np.asarray(cv2.LUT(pixels, values.numpy()), np.uint8)

    def recolour(pixels: Bytes, change: ColourChange) -> Bytes:
        if change.pre is not None:
            pixels = table(pixels, change.pre)
        if change.saturation is not None or change.hue:
            hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
            if change.saturation is not None:
                saturation = cv2.LUT(saturation, change.saturation.numpy())
            if change.hue:
                turned = (np.arange(256) + change.hue) % 180
                hue = cv2.LUT(hue, turned.astype(np.uint8))
            pixels = np.asarray(cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB), np.uint8)
        return pixels if change.post is None else table(pixels, change.post)

    def resized(rule: int) -> Resize:
        return lambda pixels, size: np.asarray(cv2.resize(pixels, size[::-1], interpolation=rule), np.uint8)

    return resized(cv2.INTER_LINEAR), resized(cv2.INTER_NEAREST), recolour
