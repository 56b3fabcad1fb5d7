"""A label map's training crop in one pass: nearest resize, crop, flip, id table, padding.

Source: OpenCV's INTER_NEAREST (cv2.resize; pixel i takes source pixel floor(i * scale)), bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import Case, Cost, Draw, declare_op, python
from setr_fast.ops.augment_image import check_geometry, covered, nearest_axis

DTYPES = (torch.uint8, torch.uint16, torch.int32)


def augment_label(
    label: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    table: Tensor | None = None,
    fill: int = 255,
) -> Tensor:
    """Return the part ``crop`` of the label map resized to ``size``, as training ids.

    Shapes: label [H, W] uint8, uint16 or int32, table uint8 [256] or [65536] or None -> uint8 [crop_h, crop_w].
    Units: ``size`` and ``crop`` (height, width), ``offset`` (top, left), all in pixels of the resized map. ``flip``
    mirrors the part that the map covers; the rest, at the bottom and right, is ``fill``. ``table`` holds the training
    id of each stored id; without one, ids are kept.
    Raises: ShapeError on wrong shapes or sizes, or if an id in the crop has no entry in the table.
    """
    _check(label, size, offset, crop, table, fill)
    return _op(label, size, offset, crop, flip, table, fill)


def _check(
    label: Tensor, size: Sequence[int], offset: Sequence[int], crop: Sequence[int], table: Tensor | None, fill: int
) -> None:
    if label.dtype not in DTYPES or label.dim() != 2:
        raise ShapeError(
            f"augment_label: label must be uint8, uint16 or int32 [H, W], got {str(label.dtype)[6:]} "
            f"{list(label.shape)}"
        )
    check_geometry("augment_label", label.shape, size, offset, crop)
    if table is not None and (table.dtype != torch.uint8 or table.shape not in ((256,), (65536,))):
        raise ShapeError(
            f"augment_label: table must be uint8 [256] or [65536], got {str(table.dtype)[6:]} {list(table.shape)}"
        )
    if not 0 <= fill <= 255:
        raise ShapeError(f"augment_label: fill must be 0 to 255, got {fill}")


def _reference(
    label: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    table: Tensor | None,
    fill: int,
) -> Tensor:
    _check(label, size, offset, crop, table, fill)
    rows, columns = (
        nearest_axis(label.shape[i], size[i], offset[i], covered(size[i], offset[i], crop[i])).to(label.device)
        for i in (0, 1)
    )
    ids = label.to(torch.int64)[rows][:, columns]
    entries = 256 if table is None else table.numel()
    illegal = ids[(ids < 0) | (ids >= entries)]
    if illegal.numel():
        raise ShapeError(
            f"augment_label: every id must be 0 to {entries - 1}, got {int(illegal[0])}; "
            "correct the mask, or give a table that covers it"
        )
    ids = ids.to(torch.uint8) if table is None else table[ids]
    out = torch.full(tuple(crop), fill, dtype=torch.uint8, device=label.device)
    out[: len(rows), : len(columns)] = ids.flip(1) if flip else ids
    return out


def _fake(
    label: Tensor,
    size: Sequence[int],
    offset: Sequence[int],
    crop: Sequence[int],
    flip: bool,
    table: Tensor | None,
    fill: int,
) -> Tensor:
    return label.new_empty(tuple(crop), dtype=torch.uint8)


def _cases() -> Iterator[Case]:
    def make(arguments: tuple[Any, ...], draw: Draw) -> tuple[Any, ...]:
        source, dtype, entries, *geometry = arguments
        table = None if entries is None else draw.integers(0, 256, (entries,), torch.uint8)
        return (draw.integers(0, min(entries or 256, 300), source, dtype), *geometry, table, 255)

    u8 = torch.uint8
    for name, source, dtype, entries, size, offset, crop, flip, bench in (
        ("camvid_crop256", (360, 480), u8, 256, (493, 658), (101, 237), (256, 256), True, True),
        ("ade20k_crop512", (512, 683), u8, 256, (701, 935), (100, 200), (512, 512), False, True),
        ("cityscapes_crop768", (1024, 2048), torch.int32, 65536, (1281, 2562), (400, 900), (768, 768), False, True),
        ("own_size", (5, 7), u8, None, (5, 7), (0, 0), (5, 7), False, False),
        ("padded_flip", (6, 9), torch.uint16, 65536, (4, 5), (1, 2), (8, 7), True, False),
        ("one_row", (1, 13), u8, 256, (3, 29), (0, 0), (3, 29), False, False),
        ("outside", (5, 5), u8, None, (5, 5), (6, 0), (2, 3), False, False),
    ):
        arguments = (source, dtype, entries, size, offset, crop, flip)
        yield Case(name, partial(make, arguments), bench=bench)


def _cost(label: Tensor, size: Sequence[int], offset: Sequence[int], crop: Sequence[int], *rest: object) -> Cost:
    return Cost(bytes=crop[0] * crop[1] * (label.element_size() + 1), flops=0)


_op = declare_op(
    "augment_label(Tensor label, int[] size, int[] offset, int[] crop, bool flip, Tensor? table, int fill) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(python("setr_fast._native:augment_label", device="cpu", arrays=True),),
)
