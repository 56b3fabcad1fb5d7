"""From a decoded picture to a normalised training crop in one pass: resize, crop, flip, colour, normalise, pad.

Source: OpenCV. The resize equals ``cv2.resize(INTER_LINEAR)`` on uint8 bit for bit: 11-bit weights, and the mean of
four pixels where both sides are halved exactly. RGB to HSV equals ``cv2.cvtColor`` bit for bit. HSV to RGB equals its
vector code on a machine with FMA for every input; cv2 itself rounds to nearest instead of truncating in the last
pixels of a row that do not fill a vector, and there a third of all values is one level higher than here.
Every row is treated alike here, so the result does not depend on where a pixel lies or on the machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import Case, Cost, Draw, declare_op, python

MAX_SIDE = 1 << 20
MAX_CROP_SIDE = 1 << 15


def augment_image(
    image: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    pre: Tensor | None,
    saturation: Tensor | None,
    hue: int,
    post: Tensor | None,
    normalise: Tensor,
) -> Tensor:
    """Return the part ``crop`` of the picture resized to ``size``, coloured and normalised.

    Only the crop's pixels are computed. Order: resize, crop, flip, ``pre``, HSV, ``post``, ``normalise``, padding.

    Shapes: image uint8 [H, W, 3] RGB; pre, saturation, post uint8 [256] or None; normalise float32 [3, 256], the value
    of each channel and level -> float32 [3, crop_h, crop_w].
    Units: ``size`` and ``crop`` (height, width), ``offset`` (top, left), all in pixels of the resized picture.
    ``flip`` mirrors the part that the picture covers; the rest, at the bottom and right, is 0. ``pre`` and ``post``
    act on R, G and B, ``saturation`` on S (0..255), and ``hue`` is added to H (0..179, modulo 180); the way through
    8-bit HSV, which loses levels, is taken only with a ``saturation`` or a ``hue`` other than 0.
    Raises: ShapeError on a wrong shape, dtype or size.
    """
    _check(image, size, offset, crop, pre, saturation, post, normalise)
    if normalise.dtype != torch.float32:  # the reference alone takes others
        raise ShapeError(f"augment_image: normalise must be float32 [3, 256], got {str(normalise.dtype)[6:]}")
    return _op(image, size, offset, crop, flip, pre, saturation, hue, post, normalise)


def check_geometry(
    where: str, source: Sequence[int], size: Sequence[int], offset: Sequence[int], crop: Sequence[int]
) -> None:
    """Raise ShapeError unless the four can describe a crop of a resized picture."""
    for what, pair, low, high in (
        ("the picture", source[:2], 1, MAX_SIDE),
        ("size", size, 1, MAX_SIDE),
        ("offset", offset, 0, MAX_SIDE),
        ("crop", crop, 1, MAX_CROP_SIDE),
    ):
        if len(pair) != 2 or not all(low <= n <= high for n in pair):
            raise ShapeError(f"{where}: {what} must be two numbers of {low} to {high}, got {tuple(pair)}")


def covered(size: int, offset: int, crop: int) -> int:
    """Return how many of ``crop`` pixels from ``offset`` on lie inside the resized picture."""
    return min(max(size - offset, 0), crop)


def nearest_axis(source: int, size: int, first: int, count: int) -> Tensor:
    """Return the source pixel of each of ``count`` pixels from ``first`` on, by OpenCV's INTER_NEAREST."""
    position = torch.arange(first, first + count, dtype=torch.float64) * _scale(source, size)
    return position.floor().to(torch.int64).clamp(max=source - 1)


def _scale(source: int, size: int) -> float:
    return 1.0 / (size / source)  # as OpenCV: the inverse of the rounded inverse differs in the last bit


def _check(
    image: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    pre: Tensor | None,
    saturation: Tensor | None,
    post: Tensor | None,
    normalise: Tensor,
) -> None:
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3:
        raise ShapeError(
            f"augment_image: image must be uint8 [H, W, 3], got {str(image.dtype)[6:]} {list(image.shape)}"
        )
    check_geometry("augment_image", image.shape, size, offset, crop)
    for name, table in (("pre", pre), ("saturation", saturation), ("post", post)):
        if table is not None and (table.dtype != torch.uint8 or table.shape != (256,)):
            raise ShapeError(
                f"augment_image: {name} must be uint8 [256], got {str(table.dtype)[6:]} {list(table.shape)}"
            )
    if not normalise.is_floating_point() or normalise.shape != (3, 256):
        raise ShapeError(
            f"augment_image: normalise must be float32 [3, 256], got {str(normalise.dtype)[6:]} {list(normalise.shape)}"
        )


def _reference(
    image: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    pre: Tensor | None,
    saturation: Tensor | None,
    hue: int,
    post: Tensor | None,
    normalise: Tensor,
) -> Tensor:
    _check(image, size, offset, crop, pre, saturation, post, normalise)
    picture = _resized_crop(image, size, offset, crop)
    if flip:
        picture = picture.flip(1)
    if pre is not None:
        picture = pre[picture.long()]
    if saturation is not None or hue != 0:
        picture = _adjust_hsv(picture, saturation, hue)
    if post is not None:
        picture = post[picture.long()]
    out = normalise.new_zeros((3, *crop))
    for channel in range(3):
        out[channel, : picture.shape[0], : picture.shape[1]] = normalise[channel][picture[..., channel].long()]
    return out


def _resized_crop(image: Tensor, size: Sequence[int], offset: Sequence[int], crop: Sequence[int]) -> Tensor:
    """Return uint8 [h, w, 3]: the part of the crop that the resized picture covers."""
    (top, left), height, width = offset, covered(size[0], offset[0], crop[0]), covered(size[1], offset[1], crop[1])
    if tuple(image.shape[:2]) == tuple(size):
        return image[top : top + height, left : left + width]
    pixels = image.to(torch.int32)
    if image.shape[0] == 2 * size[0] and image.shape[1] == 2 * size[1]:
        pixels = pixels[2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]
        total = pixels[0::2, 0::2] + pixels[0::2, 1::2] + pixels[1::2, 0::2] + pixels[1::2, 1::2]
        return ((total + 2) >> 2).to(torch.uint8)
    columns = _linear_axis(image.shape[1], size[1], left, width, whole_border=True)
    rows = _linear_axis(image.shape[0], size[0], top, height, whole_border=False)
    x_low, x_high, x_low_weight, x_high_weight = (t.to(image.device) for t in columns)
    y_low, y_high, y_low_weight, y_high_weight = (t.to(image.device) for t in rows)

    def mixed(row: Tensor) -> Tensor:
        low, high = pixels[row][:, x_low], pixels[row][:, x_high]
        return (low * x_low_weight[None, :, None] + high * x_high_weight[None, :, None]) >> 4

    above = (mixed(y_low) * y_low_weight[:, None, None]) >> 16
    below = (mixed(y_high) * y_high_weight[:, None, None]) >> 16
    return ((above + below + 2) >> 2).to(torch.uint8)


def _linear_axis(
    source: int, size: int, first: int, count: int, whole_border: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two source pixels of each pixel and their int32 weights in 1/2048.

    Beyond the border, columns take the border pixel whole; rows mix it with itself, which rounds differently.
    """
    position = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * _scale(source, size) - 0.5
    position = position.to(torch.float32)
    low = position.floor()
    fraction = position - low
    low = low.to(torch.int64)
    if whole_border:
        fraction = fraction.masked_fill((low < 0) | (low >= source - 1), 0.0)
    weights = ((w * 2048.0).round().to(torch.int32) for w in (1.0 - fraction, fraction))
    return low.clamp(0, source - 1), (low + 1).clamp(0, source - 1), *weights  # type: ignore[return-value]


def _adjust_hsv(rgb: Tensor, saturation: Tensor | None, hue: int) -> Tensor:
    """Go to 8-bit HSV and back, with S looked up and H turned in between. Shapes: uint8 [h, w, 3] -> the same."""
    h, s, v = rgb_to_hsv(rgb).unbind(-1)
    h = (h.to(torch.int32) + hue % 180) % 180
    if saturation is not None:
        s = saturation[s.long()]
    return hsv_to_rgb(torch.stack((h.to(torch.uint8), s, v), -1))


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """Convert uint8 [..., 3] to OpenCV's 8-bit HSV, H in 0..179."""
    saturation_of, hue_of = (t.to(rgb.device) for t in _division_tables())
    r, g, b = rgb.to(torch.int32).unbind(-1)
    v = torch.maximum(torch.maximum(r, g), b)
    difference = v - torch.minimum(torch.minimum(r, g), b)
    s = (difference * saturation_of[v] + 2048) >> 12
    h = torch.where(v == g, b - r + 2 * difference, r - g + 4 * difference)
    h = torch.where(v == r, g - b, h)
    h = (h * hue_of[difference] + 2048) >> 12
    h = torch.where(h < 0, h + 180, h)
    return torch.stack((h, s, v), -1).to(torch.uint8)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Convert OpenCV's 8-bit HSV, H in 0..179, to uint8 RGB [..., 3]."""
    h, s, v = hsv.to(torch.float32).unbind(-1)
    turn = h * torch.tensor(6.0 / 180.0, dtype=torch.float32, device=hsv.device)
    sector = turn.floor()
    part = turn - sector
    unit = torch.tensor(1.0 / 255.0, dtype=torch.float32, device=hsv.device)
    s, v = s * unit, v * unit
    part = torch.where(sector.to(torch.int64) % 2 == 0, 1.0 - part, part)
    # float64, rounded once: what a fused multiply-add in float32 gives
    middle = (1.0 - s.to(torch.float64) * part.to(torch.float64)).to(torch.float32)
    shades = torch.stack((v * 255.0, v * (1.0 - s) * 255.0, v * middle * 255.0), -1).to(torch.uint8)
    # which of (largest, smallest, middle) R, G and B are, per sector of 60 degrees
    order = torch.tensor([[0, 2, 1], [2, 0, 1], [1, 0, 2], [1, 2, 0], [2, 1, 0], [0, 1, 2]], device=hsv.device)
    return shades.gather(-1, order[sector.to(torch.int64)])


@functools.cache
def _division_tables() -> tuple[Tensor, Tensor]:
    value = torch.arange(256, dtype=torch.float64).clamp(min=1)
    tables = [(numerator / value).round().to(torch.int32) for numerator in (255 * 4096, 30 * 4096)]
    for table in tables:
        table[0] = 0
    return tables[0], tables[1]


def _fake(
    image: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    pre: Tensor | None,
    saturation: Tensor | None,
    hue: int,
    post: Tensor | None,
    normalise: Tensor,
) -> Tensor:
    return normalise.new_empty((3, *crop))


def _cases() -> Iterator[Case]:
    def make(arguments: tuple[Any, ...], draw: Draw) -> tuple[Any, ...]:
        source, colour, *geometry = arguments

        def table() -> Tensor:
            return draw.integers(0, 256, (256,), torch.uint8)

        pre, post = (table() if "p" in colour else None for _ in range(2))
        saturation, hue = (table() if "s" in colour else None), (11 if "h" in colour else 0)
        normalise = draw.integers(-500, 500, (3, 256)).to(torch.float32) / 128
        return (draw.integers(0, 256, (*source, 3), torch.uint8), *geometry, pre, saturation, hue, post, normalise)

    for name, source, colour, size, offset, crop, flip, bench in (
        ("camvid_crop256", (360, 480), "p", (493, 658), (101, 237), (256, 256), True, True),
        ("camvid_crop256_hsv", (360, 480), "psh", (493, 658), (101, 237), (256, 256), True, True),
        ("ade20k_crop512_hsv", (512, 683), "psh", (701, 935), (100, 200), (512, 512), False, True),
        ("cityscapes_crop768", (1024, 2048), "", (820, 1640), (40, 300), (768, 768), False, True),
        ("halved", (12, 10), "", (6, 5), (1, 1), (5, 4), True, False),
        ("own_size_hue", (5, 7), "h", (5, 7), (0, 0), (5, 7), False, False),
        ("padded_flip", (6, 9), "ps", (4, 5), (1, 2), (8, 7), True, False),
        ("one_row", (1, 13), "h", (3, 29), (0, 0), (3, 29), False, False),
        ("one_pixel", (1, 1), "", (2, 3), (0, 0), (2, 3), False, False),
        ("outside", (5, 5), "s", (5, 5), (0, 6), (2, 3), False, False),
    ):
        arguments = (source, colour, size, offset, crop, flip)
        yield Case(name, partial(make, arguments), bench=bench)


def _cost(image: Tensor, size: Sequence[int], offset: Sequence[int], crop: Sequence[int], *rest: object) -> Cost:
    read = [crop[i] * min(1.0, crop[i] / size[i]) * max(1.0, image.shape[i] / size[i]) for i in (0, 1)]
    pixels = covered(size[0], offset[0], crop[0]) * covered(size[1], offset[1], crop[1])
    return Cost(bytes=int(3 * read[0] * read[1]) + 12 * crop[0] * crop[1], flops=3 * 7 * pixels)


_op = declare_op(
    "augment_image(Tensor image, int[] size, int[] offset, int[] crop, bool flip, Tensor? pre, Tensor? saturation, "
    "int hue, Tensor? post, Tensor normalise) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(python("setr_fast._native:augment_image", device="cpu", arrays=True, dtypes=(torch.float32,)),),
)
