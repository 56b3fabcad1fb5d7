"""Random changes to a training sample: what is drawn, and the tables that the image operations take.

Every sample uses the same 33 uniform numbers, whatever becomes of them, so a sample's changes never depend on
another's:

======  ==========================================================================================
0       resize ratio
1-22    11 crop windows, (row, column) each: the first and ten redraws
23      flip
24-25   brightness: whether, how much          26      contrast before (1) or after (0) saturation and hue
27-28   contrast: whether, how much            29-30   saturation: whether, how much
31-32   hue: whether, how much
======  ==========================================================================================

With ``augment.distort``, number 26 says the order of the four operations (module ``distort``).

Source: mmsegmentation 0.x ``datasets/pipelines/transforms.py``, Resize, RandomCrop, RandomFlip,
PhotoMetricDistortion, Normalize and Pad, in this order. One difference: where both saturation and hue change, this goes
to HSV and back once, not twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from setr_fast.data.classes import IGNORED
from setr_fast.data.distort import distort, distortion
from setr_fast.data.options import AugmentConfig
from setr_fast.errors import ShapeError
from setr_fast.ops.augment_image import augment_image, covered
from setr_fast.ops.augment_label import augment_label

NUM_DRAWS = 33
REDRAWS = 10

_WINDOWS, _FLIP, _COLOURS = 1, 23, 24
_BRIGHTNESS = 32.0
_FACTOR = (0.5, 1.5)
_HUE = 18


def drawn_ratio(uniform: float, config: AugmentConfig) -> float:
    """Return the resize ratio that a uniform number stands for.

    Source: github PaddlePaddle/PaddleSeg, paddleseg/transforms, ResizeStepScaling, where there are steps.
    """
    low, high = config.ratio_range
    if not config.ratio_step:
        return low + (high - low) * uniform
    steps = int((high - low) / config.ratio_step + 1)
    return low + (high - low) * int(uniform * steps) / max(steps - 1, 1)


def resized_size(height: int, width: int, ratio: float, base_scale: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the height and width that a picture is resized to.

    With ``base_scale`` the picture is made as large as fits within its long and short edge times ``ratio``;
    without, the picture's own sides are multiplied.

    Units: pixels, rounded half up, at least 1.
    """
    factor = ratio
    if base_scale is not None:
        scaled = [int(edge * ratio) for edge in base_scale]
        factor = min(max(scaled) / max(height, width), min(scaled) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


@dataclass(frozen=True)
class ColourChange:
    """Look-up tables [256] uint8 (None: no change) in the order they act, and the turn of the hue (180 is full)."""

    pre: Tensor | None = None
    saturation: Tensor | None = None
    hue: int = 0
    post: Tensor | None = None


def colour_change(draws: Sequence[float]) -> ColourChange:
    """Return what nine uniform numbers (24-32 of the list above) do to the colours of a picture."""
    brightness, delta, mode, contrast, gain, saturation, strength, hue, turn = draws
    low, high = _FACTOR
    contrast_table = _scaled(low + (high - low) * gain, 0.0) if contrast < 0.5 else None
    pre = _scaled(1.0, _BRIGHTNESS * (2 * delta - 1)) if brightness < 0.5 else None
    post = None
    if mode < 0.5:
        post = contrast_table
    elif contrast_table is not None:
        pre = contrast_table if pre is None else contrast_table[pre]
    return ColourChange(
        pre=None if pre is None else torch.from_numpy(pre),
        saturation=torch.from_numpy(_scaled(low + (high - low) * strength, 0.0)) if saturation < 0.5 else None,
        hue=int(2 * _HUE * turn) - _HUE if hue < 0.5 else 0,
        post=None if post is None else torch.from_numpy(post),
    )


def _scaled(factor: float, shift: float) -> NDArray[np.uint8]:
    """Return the table of ``value * factor + shift``, in float32, clipped to 0..255, the fraction dropped."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(values, 0, 255).astype(np.uint8)


def normalise_table(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(value - mean) / std`` of every byte value.

    Shapes: C numbers each -> [C, 256] float32. Units: mean and std on the scale 0..255.
    """
    values = np.arange(256, dtype=np.float64)
    table = (values - np.array(mean, np.float64)[:, None]) / np.array(std, np.float64)[:, None]
    return torch.from_numpy(table.astype(np.float32))


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch warns of arrays it could not write to


def augment_channels(
    image: Tensor,
    size: tuple[int, int],
    offset: tuple[int, int],
    crop: tuple[int, int],
    flip: bool,
    colours: ColourChange,
    normalise: Tensor,
) -> Tensor:
    """Return what ``augment_image`` makes of the first three channels, and of the further ones without their colours
    changed: those are resized, cropped, mirrored and normalised alike, three at a time.

    Shapes: image uint8 [H, W, C], normalise [C, 256] -> float32 [C, crop_h, crop_w].
    Raises: ShapeError if the picture has another number of channels than ``normalise``, or as ``augment_image``.
    """
    channels = image.shape[-1]
    if channels != len(normalise):
        raise ShapeError(f"picture must have {len(normalise)} channels, got {list(image.shape)}; set --data.channels")
    place = size, offset, crop, flip
    if channels == 3:
        return augment_image(image, *place, colours.pre, colours.saturation, colours.hue, colours.post, normalise)
    parts = []
    for first in range(0, channels, 3):
        three = image[..., first : first + 3]
        table = normalise[first : first + 3]
        missing = 3 - len(table)
        three = torch.nn.functional.pad(three, (0, missing)).contiguous()
        table = torch.nn.functional.pad(table, (0, 0, 0, missing)).contiguous()
        change = colours if first == 0 else ColourChange()
        parts.append(
            augment_image(three, *place, change.pre, change.saturation, change.hue, change.post, table)[: 3 - missing]
        )
    return torch.cat(parts)


class TrainTransform:
    """Resize, crop, flip, change the colours of, normalise and pad a sample."""

    def __init__(self, augment: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        self.augment = augment
        self._normalise = normalise_table(mean, std)
        self._bytes = normalise_table([0.0] * len(mean), [1.0] * len(mean))
        self._padding = np.array(mean[:3], np.uint8)

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a training crop; the padding is 0 in the picture and 255 in the labels, below and to the right.
        (Paddle pads with the mean, and changes the colours of this, too.)

        Shapes: image [H, W, C] RGB first, label [H, W] training ids -> [C, h, w] float32, [h, w] uint8, h x w the
        crop.
        Raises: ShapeError if picture and labels differ in size, or the picture has other channels than mean and std.
        """
        channels = len(self._normalise)
        if image.ndim != 3 or image.shape[2] != channels or image.shape[:2] != label.shape:
            want = f"[H, W, {channels}] and [H, W]"
            raise ShapeError(f"train transform: image and label must be {want}, got {image.shape} and {label.shape}")
        config = self.augment
        draws = rng.random(NUM_DRAWS).tolist()
        ratio = drawn_ratio(draws[0], config)
        size = resized_size(image.shape[0], image.shape[1], ratio, config.base_scale)
        flip = draws[_FLIP] < config.flip
        offset, crop = self._window(_tensor(label), size, flip, draws)
        if config.photometric and config.distort:
            return self._distorted(_tensor(image), size, offset, flip, draws[_COLOURS:]), crop
        colours = colour_change(draws[_COLOURS:]) if config.photometric else ColourChange()
        pixels = augment_channels(_tensor(image), size, offset, config.crop, flip, colours, self._normalise)
        return pixels, crop

    def _distorted(
        self, image: Tensor, size: tuple[int, int], offset: tuple[int, int], flip: bool, draws: Sequence[float]
    ) -> Tensor:
        """Return the normalised crop with Paddle's colour changes; further channels keep their values."""
        config = self.augment
        values = augment_channels(image, size, offset, config.crop, flip, ColourChange(), self._bytes)
        pixels = values[:3].to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        height, width = (covered(*axis) for axis in zip(size, offset, config.crop, strict=True))
        pixels[height:] = pixels[:, width:] = self._padding
        changed = torch.from_numpy(distort(pixels, distortion(draws, config.distort)).copy()).permute(2, 0, 1)
        colours = torch.stack([table[channel.long()] for table, channel in zip(self._normalise, changed, strict=False)])
        further = [table[channel.long()] for table, channel in zip(self._normalise[3:], values[3:], strict=True)]
        for channel in further:
            channel[height:] = channel[:, width:] = 0
        return torch.cat([colours, torch.stack(further)]) if further else colours

    def _window(
        self, label: Tensor, size: tuple[int, int], flip: bool, draws: Sequence[float]
    ) -> tuple[tuple[int, int], Tensor]:
        """Return the top left corner of the crop in the resized picture, and the crop of the labels.

        A window that one class fills is redrawn; the last redraw is taken as it comes.
        """
        config = self.augment
        spare = [max(side - crop, 0) for side, crop in zip(size, config.crop, strict=True)]
        for attempt in range(REDRAWS + 1):
            row, column = draws[_WINDOWS + 2 * attempt : _WINDOWS + 2 * attempt + 2]
            offset = int(row * (spare[0] + 1)), int(column * (spare[1] + 1))
            crop = augment_label(label, size, offset, config.crop, flip, None, IGNORED)
            if not any(spare) or attempt == REDRAWS or config.cat_max_ratio == 1 or self._varied(crop):
                break
        return offset, crop

    def _varied(self, crop: Tensor) -> bool:
        """Return whether there are two classes or more, and none has the given share of the valid pixels."""
        counts = np.bincount(crop.numpy().reshape(-1), minlength=256)[:IGNORED]
        return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.augment.cat_max_ratio)
