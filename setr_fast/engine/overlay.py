"""Class maps as files to look at: index PNG with a palette, and the picture with the classes laid over it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from setr_fast.errors import ShapeError

Palette = Sequence[tuple[int, int, int]]

_ROWS = 256  # blended at a time: Pillow holds three copies, and a 48-megapixel picture has 144 million values
_RUNS = 3  # Z_RLE of zlib: matches of distance one only
_LINE_PX, _SWATCH_PX, _LETTER_PX = 16, 12, 6  # legend; letters of Pillow's built-in font are 6 pixels wide


def index_png(classes: npt.NDArray[Any], palette: Palette) -> bytes:
    """Return a class map as a PNG whose pixel values are the classes: 8 bits with a palette, 16 bits grey above 255.

    Shapes: classes [H, W].
    """
    if classes.dtype == np.uint8:
        picture = Image.fromarray(classes)
        picture.putpalette(_flat(palette))  # turns the grey picture into a palette one, values untouched
    else:
        picture = Image.fromarray(classes.astype(np.uint16))
    # Areas are runs: as small as by any search for longer matches, at a fourth of the time.
    return _packed(picture, "png", compress_level=1, compress_type=_RUNS)


def overlay(
    image: npt.NDArray[np.uint8], classes: npt.NDArray[Any], palette: Palette, alpha: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Return the picture with its classes' colours mixed in; ``alpha`` is the colours' share, classes past the palette
    (255: ignored) leave the picture as it is.

    Shapes: image [H, W, 3], classes [H, W] -> [H, W, 3].
    Raises: ShapeError if the class map has another size than the picture.
    """
    _check_sizes(image, classes)
    mixed = np.empty_like(image)
    for top, blend in _blended(image, classes, palette, alpha):
        mixed[top : top + _ROWS] = np.asarray(blend)
    return mixed


def _blended(
    image: npt.NDArray[np.uint8], classes: npt.NDArray[Any], palette: Palette, alpha: float
) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the picture of some rows at a time."""
    known = int(classes.max(initial=0)) < len(palette)
    for top in range(0, image.shape[0], _ROWS):
        part, below = classes[top : top + _ROWS], Image.fromarray(image[top : top + _ROWS])
        # Pillow's look-up and mixing take a sixth of NumPy's time, and let other threads run.
        blend = Image.blend(below, _coloured(part, palette), alpha)
        yield top, blend if known else Image.composite(blend, below, Image.fromarray(part < len(palette)))


def overlay_file(
    kind: Literal["png", "jpg"],
    image: npt.NDArray[np.uint8],
    classes: npt.NDArray[Any],
    palette: Palette,
    *,
    alpha: float = 0.5,
    names: Sequence[str] | None = None,
) -> bytes:
    """Return the overlay, of the picture's size, as PNG or JPEG; ``names`` puts a legend of the classes present below
    it."""
    _check_sizes(image, classes)
    height, width = classes.shape
    strip = None
    if names is not None:
        present = [int(index) for index in np.unique(classes) if index < min(len(names), len(palette))]
        strip = Image.fromarray(legend(width, [(names[i], palette[i]) for i in present]))
    mixed = Image.new("RGB", (width, height + (0 if strip is None else strip.height)))
    for top, blend in _blended(image, classes, palette, alpha):
        mixed.paste(blend, (0, top))
    if strip is not None:
        mixed.paste(strip, (0, height))
    # Photographs hardly get smaller by packing them better, only slower.
    how = {"compress_level": 1, "compress_type": _RUNS} if kind == "png" else {"quality": 90}
    return _packed(mixed, kind, **how)


def _check_sizes(image: npt.NDArray[np.uint8], classes: npt.NDArray[Any]) -> None:
    if image.shape[:2] != classes.shape:
        raise ShapeError(
            f"overlay: classes must have the picture's size {list(image.shape[:2])}, got {list(classes.shape)}; "
            "predict returns it at that size"
        )


def legend(width: int, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> npt.NDArray[np.uint8]:
    """Draw names beside swatches of their colours, in as many lines as the width needs.

    Shapes: -> [lines * 16, width, 3].
    """
    places: list[tuple[int, int]] = []
    left, line = 2, 0
    for name, _ in entries:
        needed = _SWATCH_PX + 4 + _LETTER_PX * len(name) + 8
        if left > 2 and left + needed > width:
            left, line = 2, line + 1
        places.append((left, line * _LINE_PX))
        left += needed
    strip = Image.new("RGB", (width, (line + 1) * _LINE_PX), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y + 2, x + _SWATCH_PX, y + 2 + _SWATCH_PX), fill=colour, outline=(0, 0, 0))
        draw.text((x + _SWATCH_PX + 4, y + 2), name.encode("ascii", "replace").decode(), fill=(0, 0, 0))
    return np.asarray(strip)


def _coloured(classes: npt.NDArray[Any], palette: Palette) -> Image.Image:
    """Return a class map in its colours."""
    if classes.dtype == np.uint8:
        picture = Image.fromarray(classes)
        picture.putpalette(_flat(palette))
        return picture.convert("RGB")
    colours = np.asarray(palette, np.uint8).reshape(-1, 3)
    return Image.fromarray(colours[np.minimum(classes, len(colours) - 1)])


def _flat(palette: Palette) -> list[int]:
    flat = [channel for colour in palette[:256] for channel in colour]
    return flat + [0] * (768 - len(flat))


def _packed(picture: Image.Image, kind: Literal["png", "jpg"], **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if kind == "png" else "JPEG", **how)
    return buffer.getvalue()
