"""What the surfaces of the built-in scenes look like: brightness patterns, one function per kind of surface.

Every texture is an array [h, w] float32 of brightness changes in grey levels, about zero. Only sums, products and
comparisons are used (no sin, exp or dot products), because those are exact to the last bit on every machine.
Lengths are in pixels; ``unit`` is the length that one texture element should have at that depth of the scene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.draws import Draws

Plane = NDArray[np.floating]

_ONE = np.float32(1)


def _ramp(length: int, cell: float, phase: float) -> tuple[NDArray[np.intp], Plane]:
    """Return the lattice cell that each pixel lies in and how far into it, eased at both ends."""
    position = np.arange(length, dtype=np.float32) * (1 / cell) + phase
    index = position.astype(np.intp)
    part = position - index.astype(np.float32)
    return index, part * part * (3 - part - part)


def value_noise(draws: Draws, height: int, width: int, cell_y: float, cell_x: float) -> Plane:
    """Return smooth noise in [-1, 1] with features of about ``cell_y x cell_x`` pixels."""
    iy, fy = _ramp(height, cell_y, draws.uniform())
    ix, fx = _ramp(width, cell_x, draws.uniform())
    lattice = draws.octets(int(iy[-1]) + 2, int(ix[-1]) + 2).astype(np.float32) * (1 / 127.5) - _ONE
    top = lattice[iy]
    rows = top + (lattice[iy + 1] - top) * fy[:, None]
    left = rows.take(ix, axis=1)
    return left + (rows.take(ix + 1, axis=1) - left) * fx


def grain(draws: Draws, height: int, width: int) -> Plane:
    """Return noise without any smoothness, in [-1, 1]."""
    return draws.octets(height, width).astype(np.float32) * (1 / 127.5) - _ONE


def stripes(position: Plane, period: float, duty: float = 0.5) -> Plane:
    """Return +1 in the first ``duty`` share of each period along ``position``, -1 in the rest."""
    turns = position * (1 / period)
    return np.where(turns - np.floor(turns) < np.float32(duty), _ONE, -_ONE)


def clouds(draws: Draws, height: int, width: int, unit: float) -> Plane:
    """Sky: broad soft patches, wider than high."""
    return value_noise(draws, height, width, 3 * unit, 6 * unit) * draws.uniform(8, 30)


def soil(draws: Draws, height: int, width: int, unit: float) -> Plane:
    """Ground: grains over patches."""
    patches = value_noise(draws, height, width, 1.6 * unit, 3 * unit) * draws.uniform(4, 14)
    return patches + grain(draws, height, width) * draws.uniform(12, 30)


def ripples(draws: Draws, height: int, width: int, unit: float) -> Plane:
    """Water: short in height, long in width."""
    waves = value_noise(draws, height, width, max(0.3 * unit, 1.6), 3 * unit) * draws.uniform(16, 34)
    return waves + value_noise(draws, height, width, 4 * unit, 8 * unit) * 8


def leaves(draws: Draws, height: int, width: int, unit: float) -> Plane:
    """Bush: blotches as wide as they are high."""
    blotches = value_noise(draws, height, width, max(0.4 * unit, 2.0), max(0.4 * unit, 2.0))
    return blotches * draws.uniform(28, 55)


def windows(draws: Draws, y: Plane, x: Plane, unit: float) -> Plane:
    """Facade: a grid of panes (or, one time in four, only its rows), darker or lighter than the wall."""
    contrast = draws.uniform(25, 60) * (1 if draws.chance(0.3) else -1)
    rows = stripes(y, max(draws.uniform(0.7, 1.1) * unit, 3.0), draws.uniform(0.45, 0.65)) > 0
    columns = stripes(x, max(draws.uniform(0.6, 1.0) * unit, 3.0), draws.uniform(0.45, 0.65)) > 0
    panes = rows | np.zeros_like(columns) if draws.chance(0.25) else rows & columns
    return np.where(panes, np.float32(contrast), np.float32(0))
