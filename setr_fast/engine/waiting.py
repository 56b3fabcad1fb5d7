"""What pictures hold in memory while they are read, wait and are written, beside their way through the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from setr_fast.data.formats.decode import image_header
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.errors import DataError

_ALONE = 256 * 2**20
"""Memory budgets up to this are the model's: pictures go one at a time."""
_DECODED = {"WEBP": 22, "RGBA": 18, "LA": 18, "PA": 18, "CMYK": 18}
"""Bytes per pixel while a file becomes an array, by its format or mode; others 13, arrays on disk 24 a channel."""
_WRITTEN = {"png": 17, "jpg": 11, "none": 7}
"""Bytes per pixel while an overlay and the class map are written, beside the picture and its classes (4)."""


def waiting_room(budget: int) -> int:
    """Return what of a memory budget is for pictures that wait to be computed or to be written."""
    return min(max(budget - _ALONE, 0), budget // 4)


def with_waiting_room(least: int) -> int:
    """Return the least memory budget that leaves ``least`` bytes beside its waiting room."""
    return least if least <= _ALONE else -(-least * 4 // 3)


def picture_bytes(path: Path, channels: int, overlays: str, max_pixels: int = MAX_PIXELS) -> int:
    """Return the most that a picture holds between its file and its results', the way through the model left out; 0
    for a file that cannot be read, whose reading says why."""
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            height, width, decoded = int(shape[0]), int(shape[1]), 24 * channels
        else:
            header = image_header(path, max_pixels)
            height, width = header.height, header.width
            decoded = _DECODED.get(header.format, _DECODED.get(header.mode, 13)) + 24 * max(channels - 3, 0)
    except (DataError, OSError, ValueError, IndexError):
        return 0
    return height * width * max(decoded, frame_bytes(overlays, channels))


def frame_bytes(overlays: str, channels: int = 3) -> int:
    """Return the most that a pixel holds once it is decoded, until its results are written."""
    return _WRITTEN[overlays] + 4 + 3 * (channels > 3) + channels - 3
