"""What callers hand in as a picture, as one kind of tensor, and windows read out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from setr_fast.data.formats.decode import to_rgb
from setr_fast.data.formats.signatures import Unusable
from setr_fast.data.reading import PictureReader
from setr_fast.data.transforms import ColourChange, augment_channels
from setr_fast.engine.resample import taps
from setr_fast.errors import ShapeError

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]
Pixels = Tensor
"""uint8 [H, W, C], RGB first, or normalised floats [C, H, W]."""


def as_pixels(image: Picture, channels: int = 3) -> Tensor:
    """Return a picture as a contiguous uint8 tensor [H, W, C], RGB first, upright.

    ``channels``: what the model takes; more than three are in an array, a .npy or an RGBA file. A Pillow image becomes
    what ``read_image`` makes of its file: turned by its EXIF orientation, alpha dropped, 16 bits to their high byte.

    Raises: ShapeError for an array that is not uint8 [H, W, C] or is empty, and for a Pillow image of floats or of
        32 bits; DataError for a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        array: Any = PictureReader(channels).file(Path(image))
    elif isinstance(image, Image.Image) and channels == 3:
        try:
            array = to_rgb(image)
        except Unusable as error:
            raise ShapeError(f"predict: image {error.what}; {error.remedy}") from None
    else:
        array = image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels:
        got = f"{array.dtype} {list(array.shape)}" if hasattr(array, "shape") else type(array).__name__
        kinds = "a Pillow image or a uint8 RGB array [H, W, 3]" if channels == 3 else f"or uint8 [H, W, {channels}]"
        raise ShapeError(
            f"predict: image must be a path, {kinds}, got {got}; "
            "scale floats to 0..255 and convert, repeat grey three times"
        )
    if 0 in array.shape:
        raise ShapeError(f"predict: image must have at least one pixel, got {list(array.shape)}; leave it out")
    # The ops take contiguous memory, and torch warns about arrays that are read-only.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def byte_reader(pixels: Tensor, size: tuple[int, int], mirrored: bool) -> Callable[[int, int, int, int], Tensor]:
    """Return the function that reads windows of bytes [h, w, C] out of the picture resized to ``size`` as OpenCV does.

    At the picture's own size a window is a view of it. Windows are counted from the left of the mirrored picture.

    Shapes: pixels uint8 [H, W, C].
    """
    plain = tuple(pixels.shape[:2]) == size
    levels = torch.arange(256, dtype=torch.float32).expand(pixels.shape[2], 256).contiguous()

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        left = size[1] - left - width if mirrored else left
        if plain:
            window = pixels[top : top + height, left : left + width]
            return window.flip(1) if mirrored else window
        window = augment_channels(pixels, size, (top, left), (height, width), mirrored, ColourChange(), levels)
        return window.permute(1, 2, 0).to(torch.uint8)  # whole numbers 0..255

    return read


def reader(
    pixels: Pixels, size: tuple[int, int], mirrored: bool, normalise: Tensor, *, as_bytes: bool
) -> Callable[[int, int, int, int], Tensor]:
    """Return the function that reads normalised windows [C, h, w] out of the picture resized to ``size``.

    It is resized as bytes, as OpenCV does, or (``as_bytes`` off, and always for a float picture) after normalisation,
    with ``interpolate``'s bilinear rule. Windows are counted from the left of the mirrored picture.
    """

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        left = size[1] - left - width if mirrored else left
        if as_bytes and not pixels.is_floating_point():
            place = size, (top, left), (height, width), mirrored
            return augment_channels(pixels, *place, ColourChange(), normalise)
        part = _resized(pixels, normalise, size, (top, left), (height, width))
        return part.flip(-1) if mirrored else part

    return read


def _resized(
    pixels: Pixels, normalise: Tensor, size: tuple[int, int], place: tuple[int, int], window: tuple[int, int]
) -> Tensor:
    """Read a window of the float picture resized to ``size``; only the pixels under it are touched."""
    shape = pixels.shape[1:] if pixels.is_floating_point() else pixels.shape[:2]
    axes = [taps(place[i], place[i] + window[i], size[i], int(shape[i])) for i in (0, 1)]
    (top, bottom), (left, right) = ((int(low[0]), int(high[-1]) + 1) for low, high, _ in axes)
    if pixels.is_floating_point():
        part = pixels[:, top:bottom, left:right].float()
    else:
        part = torch.stack([normalise[c][pixels[top:bottom, left:right, c].long()] for c in range(len(normalise))])
    for dim, (low, high, share) in ((1, axes[0]), (2, axes[1])):
        origin = int(low[0])
        weight = torch.from_numpy(share)[:, None] if dim == 1 else torch.from_numpy(share)
        first = part.index_select(dim, torch.from_numpy(low - origin))
        part = first.lerp_(part.index_select(dim, torch.from_numpy(high - origin)), weight)
    return part
