"""The objects of the built-in scenes: their outlines, and the patterns and shading that follow the outline.

Each function draws an object's measures once and returns an Outline. An outline says what box it lies in and, given the
rows and columns of (part of) that box, which pixels are inside, how two colours mix there and how the light falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.draws import Draws
from setr_fast.data.scenes.textures import Plane, leaves, stripes, windows

Surface = tuple[NDArray[np.bool_], Plane, Plane]
"""Inside [h, w]; share of the second colour [h, w] in [0, 1]; brightness change [h, w] in grey levels."""


def _nothing(y: Plane, x: Plane) -> Surface:
    raise AssertionError("this outline is only a box")


@dataclass(frozen=True)
class Outline:
    """A box in pixels, and what is drawn in it."""

    top: float
    bottom: float
    left: float
    right: float
    draw: Callable[[Plane, Plane], Surface] = _nothing


def building(draws: Draws, foot: float, middle: float, scale: float, light: float) -> Outline:
    """A block with panes, sometimes with a lower wing."""
    height, width = draws.uniform(0.25, 0.75) * scale, draws.uniform(0.15, 0.42) * scale
    top, left, right = foot - height, middle - width / 2, middle + width / 2
    step = draws.uniform(0.2, 0.6) if draws.chance(0.4) else 0.0
    wing = middle + draws.uniform(-0.25, 0.25) * width
    lower = top + step * height

    def draw(y: Plane, x: Plane) -> Surface:
        inside = (y >= top) & (y < foot) & (x >= left) & (x < right)
        if step:
            inside &= (y >= lower) | ((x >= wing) if light > 0 else (x < wing))
        panes = windows(draws, y - top, x - left, scale / 14)
        slope = (x - middle) * (light * draws.uniform(0, 30) / width)
        return inside, np.zeros_like(panes), panes + slope

    return Outline(top, foot, left, right, draw)


def ball(draws: Draws, foot: float, middle: float, scale: float, light: float) -> Outline:
    """A round thing, lit like a sphere, often in two colours."""
    radius = draws.uniform(0.08, 0.19) * scale
    centre = foot - radius
    banded = draws.chance(0.6)
    slant = draws.uniform(-1, 1)

    def draw(y: Plane, x: Plane) -> Surface:
        dy, dx = (y - centre) * (1 / radius), (x - middle) * (1 / radius)
        square = dy * dy + dx * dx
        bulge = np.sqrt(np.maximum(1 - square, 0))
        shade = bulge * 35 - 20 - (dy + dx * light) * 22
        across = dy + dx * slant
        mix = stripes(across + 10, draws.uniform(0.5, 1.0)) > 0 if banded else np.zeros(square.shape, bool)
        return square < 1, mix.astype(np.float32), shade

    return Outline(centre - radius, foot, middle - radius, middle + radius, draw)


def tent(draws: Draws, foot: float, middle: float, scale: float, light: float) -> Outline:
    """A triangle with a lit and a shaded side, often with stripes that run to its tip."""
    height, width = draws.uniform(0.2, 0.45) * scale, draws.uniform(0.25, 0.55) * scale
    top, left, right = foot - height, middle - width / 2, middle + width / 2
    tip = middle + draws.uniform(-0.2, 0.2) * width
    pattern = draws.pick((2, 3, 2))

    def draw(y: Plane, x: Plane) -> Surface:
        down = (y - top) * (1 / height)
        across = x - tip - (middle - tip) * down
        share = across / np.maximum(down, 0.02)
        inside = (down > 0) & (down < 1) & (np.abs(share) < width / 2)
        lit = share * light > draws.uniform(-0.2, 0.2) * width
        if pattern == 1:
            mix = stripes(share, width / draws.integer(3, 7)) > 0
        elif pattern == 2:
            mix = np.broadcast_to(stripes(down, 1 / draws.integer(2, 4)) > 0, inside.shape)
        else:
            mix = np.zeros(inside.shape, bool)
        return inside, mix.astype(np.float32), lit.astype(np.float32) * 36 - 18

    return Outline(top, foot, left, right, draw)


def pole(draws: Draws, foot: float, middle: float, scale: float, light: float) -> Outline:
    """A thin upright bar, often with bands, sometimes leaning."""
    height, width = draws.uniform(0.35, 0.8) * scale, max(draws.uniform(0.04, 0.09) * scale, 2.0)
    lean = draws.uniform(-0.12, 0.12) if draws.chance(0.5) else 0.0
    top, reach = foot - height, abs(lean) * height + width / 2
    bands = draws.chance(0.7)

    def draw(y: Plane, x: Plane) -> Surface:
        across = (x - middle - (foot - y) * lean) * (2 / width)
        inside = (np.abs(across) < 1) & (y >= top) & (y < foot)
        mix = stripes(y, draws.uniform(1.5, 4) * width) > 0 if bands else np.zeros((1, 1), bool)
        shade = (1 - np.abs(across + 0.4 * light)) * 25
        return inside, np.broadcast_to(mix, inside.shape).astype(np.float32), shade

    return Outline(top, foot, middle - reach, middle + reach, draw)


def bush(draws: Draws, foot: float, middle: float, scale: float, light: float) -> Outline:
    """Overlapping round clumps of leaves."""
    radius = draws.uniform(0.08, 0.2) * scale
    clumps = []
    for _ in range(draws.integer(4, 7)):
        size = draws.uniform(0.45, 0.75) * radius
        clumps.append((foot - size - draws.uniform(0, 1.1) * radius, middle + draws.uniform(-1, 1) * radius, size))
    top = min(y - r for y, _, r in clumps)
    left, right = min(x - r for _, x, r in clumps), max(x + r for _, x, r in clumps)

    def draw(y: Plane, x: Plane) -> Surface:
        texture = leaves(draws, y.shape[0], x.shape[1], scale / 14)
        edge = texture * 0.006  # the outline is ragged where the leaves are
        inside: NDArray[np.bool_] = np.zeros(texture.shape, bool)
        for centre_y, centre_x, size in clumps:
            dy, dx = (y - centre_y) * (1 / size), (x - centre_x) * (1 / size)
            inside |= dy * dy + dx * dx < 1 + edge
        slope = (foot - radius - y - (x - middle) * light) * (14 / radius)
        return inside, np.zeros_like(texture), texture + slope

    return Outline(top, foot, left, right, draw)
