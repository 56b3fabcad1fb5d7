"""Colours for classes that nobody gave a colour."""

from __future__ import annotations

RGB = tuple[int, int, int]


def default_palette(count: int) -> tuple[RGB, ...]:
    """Return distinct colours for ``count`` classes (up to 256), the same ones every time.

    Source: the colour map of the PASCAL VOC development kit, VOCcolormap.m: the bits of the class index
    are dealt to R, G and B in turn, starting at the highest bit of the colour.
    """
    colours = []
    for index in range(count):
        red = green = blue = 0
        for bit in range(8):
            triple = index >> 3 * bit
            red |= (triple & 1) << 7 - bit
            green |= (triple >> 1 & 1) << 7 - bit
            blue |= (triple >> 2 & 1) << 7 - bit
        colours.append((red, green, blue))
    return tuple(colours)
