"""Colour changes as PaddleSeg and PaddleViT make them: brightness, contrast, saturation and hue, in any order.

Source: github PaddlePaddle/PaddleSeg, paddleseg/transforms, RandomDistort: each with probability 1/2; the first three
are Pillow's enhancers with a factor from [1 - amount, 1 + amount], the hue of Pillow's HSV moves by up to 18 of 256.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
HUE = 18.0
_ORDERS = tuple(itertools.permutations(range(len(OPERATIONS))))
_ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def distortion(draws: Sequence[float], amount: float) -> list[tuple[str, float]]:
    """Return what nine uniform numbers do to a picture: operations in their order, with factor or turn.

    ``draws``: whether and how much of each operation in turn, but the third says the order.
    """
    order = _ORDERS[int(draws[2] * len(_ORDERS))]
    pairs = [draws[0:2], draws[3:5], draws[5:7], draws[7:9]]
    chosen = []
    for index in order:
        name, (whether, how_much) = OPERATIONS[index], pairs[index]
        if whether < 0.5:
            spread = 2 * how_much - 1
            chosen.append((name, HUE * spread if name == "hue" else 1 + amount * spread))
    return chosen


def distort(pixels: NDArray[np.uint8], changes: Sequence[tuple[str, float]]) -> NDArray[np.uint8]:
    """Return a picture with these changes made one after the other. Shapes: uint8 RGB [H, W, 3] -> the same."""
    picture = Image.fromarray(pixels)
    for name, value in changes:
        if name == "hue":
            hsv = np.array(picture.convert("HSV"))
            hsv[..., 0] = (np.trunc(hsv[..., 0] + value).astype(np.int16) & 255).astype(np.uint8)
            picture = Image.frombytes("HSV", picture.size, hsv.tobytes()).convert("RGB")
        else:
            picture = _ENHANCE[name](picture).enhance(value)
    return np.asarray(picture)
