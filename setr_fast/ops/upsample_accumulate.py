"""Sliding windows, scales and mirrored views of one picture merged into scores or classes, from small logits.

Upsampling a window's logits, cutting them to its size, averaging where windows overlap, resizing to the picture and
mirroring are linear and separable. Together they are two sparse tables per view: what an output column reads of which
window's columns, and what an output row reads of which rows. So no logits of a window's, let alone a picture's, size
are ever made: 150 classes x 512 x 683 pixels x 12 views would be 2.5 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Bench, Case, Cost, Draw, declare_op, native
from setr_fast.ops.upsample_argmax import MAX_CLASSES, class_dtype

MOST_CUDA_VIEWS = 48  # csrc/cuda/upsample_accumulate.h
FACTS = 6
"""Numbers per view: windows down, windows across, height and width of their logits, column taps, row taps."""


def upsample_accumulate(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
    probabilities: bool = True,
) -> Tensor:
    """Return the mean over the views of their logits, or with ``probabilities`` of the softmax of these.

    Everything of all views lies one after another in flat tensors; ``views`` holds, for each: windows down (a) and
    across (b), height (h) and width (w) of the logits of each window, column taps (s), row taps (t). An output value of
    a view is the sum over its windows across and both taps of row weight x column weight x logit; weights of 0 mean
    that nothing is read.

    Shapes: per view logits [a, b, h, K, w]; columns int32 [b, W], the first column of a window that is read;
    column_weights float32 [b, s, W]; rows int32 [H, t], a row's number in [a * h]; row_weights float32 [H, t]
    -> float32 [K, H, W] (float64 of float64 logits).
    Units: ``size`` is (H, W), in pixels. Logits must be finite.
    Raises: ShapeError if the tables are not what ``views`` says.
    """
    arguments = (logits, columns, column_weights, rows, row_weights, list(views), num_classes, list(size))
    _check(*arguments)
    return _scores(*arguments, probabilities)


def upsample_accumulate_argmax(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
    probabilities: bool = True,
    labels: Tensor | None = None,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """Return the class with the largest score of each pixel, and its confusion with ``labels`` where they are given.

    The scores are those of ``upsample_accumulate`` and are not stored; a single view is decided by its logits. The
    first of equal scores wins.

    Shapes: as above; labels uint8 [H, W] -> classes [H, W], uint8, above 256 classes int16; counts int64 [K, K], rows
    are labels, empty without labels.
    Raises: ShapeError if the tables are not what ``views`` says, or a label is neither a class nor ignored.
    """
    arguments = (logits, columns, column_weights, rows, row_weights, list(views), num_classes, list(size))
    _check(*arguments)
    if labels is not None and (labels.dtype != torch.uint8 or tuple(labels.shape) != tuple(size)):
        raise ShapeError(
            f"upsample_accumulate: labels must be uint8 {list(size)}, got {str(labels.dtype)[6:]} {list(labels.shape)}"
        )
    try:
        return _classes(*arguments, probabilities, labels, ignore_index)
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None


def _check(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
) -> None:
    if not views or len(views) % FACTS or min(views) < 1:
        raise ShapeError(f"upsample_accumulate: views must be {FACTS} positive numbers each, got {list(views)}")
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ShapeError(f"upsample_accumulate: num_classes must be 1 to {MAX_CLASSES}, got {num_classes}")
    if len(size) != 2 or min(size) < 0:
        raise ShapeError(f"upsample_accumulate: size must be a height and a width, got {list(size)}")
    wanted = [0, 0, 0, 0]
    for down, across, height, width, column_taps, row_taps in _facts(views):
        lengths = [num_classes * height * width * down * across, across * size[1]]
        lengths += [across * column_taps * size[1], row_taps * size[0]]
        wanted = [total + length for total, length in zip(wanted, lengths, strict=True)]
    for what, tensor, length in (
        ("logits", logits, wanted[0]),
        ("columns", columns, wanted[1]),
        ("column_weights", column_weights, wanted[2]),
        ("rows", rows, wanted[3]),
        ("row_weights", row_weights, wanted[3]),
    ):
        if tensor.dim() != 1 or tensor.numel() < length:
            raise ShapeError(
                f"upsample_accumulate: {what} must be flat and hold {length} numbers, got {list(tensor.shape)}"
            )


def _facts(views: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(views), FACTS):
        yield views[at : at + FACTS]


def _view_logits(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
) -> Iterator[Tensor]:
    """Yield each view's logits at ``size``, through dense matrices. Shapes: [K, H, W]."""
    real = torch.promote_types(logits.dtype, torch.float32)
    at, at_columns, at_weights, at_rows = 0, 0, 0, 0
    for down, across, height, width, column_taps, row_taps in _facts(views):
        count = down * across * num_classes * height * width
        windows = logits[at : at + count].to(real).reshape(down, across, height, num_classes, width)
        start = columns[at_columns : at_columns + across * size[1]].reshape(across, 1, size[1]).long()
        weight = column_weights[at_weights : at_weights + across * column_taps * size[1]]
        weight = weight.to(real).reshape(across, column_taps, size[1])
        taps = start + torch.arange(column_taps, device=start.device)[:, None]
        spread = weight.new_zeros(across, width + column_taps, size[1]).scatter_add_(1, taps, weight)[:, :width]
        source = rows[at_rows : at_rows + row_taps * size[0]].reshape(size[0], row_taps).long()
        share = row_weights[at_rows : at_rows + row_taps * size[0]].to(real).reshape(size[0], row_taps)
        stack = share.new_zeros(size[0], down * height).scatter_add_(1, source, share)
        strips = torch.einsum("abhkw,bwx->kahx", windows, spread).reshape(num_classes, down * height, size[1])
        # What no row reads may be memory that nothing was written to.
        yield stack @ strips.masked_fill((stack == 0).all(0)[None, :, None], 0)
        at, at_columns, at_weights = at + count, at_columns + start.numel(), at_weights + weight.numel()
        at_rows += source.numel()


def _reference(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
    probabilities: bool,
) -> Tensor:
    _check(logits, columns, column_weights, rows, row_weights, views, num_classes, size)
    parts = _view_logits(logits, columns, column_weights, rows, row_weights, views, num_classes, size)
    total = None
    for part in parts:
        score = part.softmax(0) if probabilities else part
        total = score if total is None else total + score
    assert total is not None
    return total / (len(views) // FACTS)


def _reference_argmax(
    logits: Tensor,
    columns: Tensor,
    column_weights: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    views: Sequence[int],
    num_classes: int,
    size: Sequence[int],
    probabilities: bool,
    labels: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    several = len(views) > FACTS
    scores = _reference(
        logits, columns, column_weights, rows, row_weights, views, num_classes, size, probabilities and several
    )
    classes = scores.argmax(0).to(class_dtype(num_classes))
    if labels is None:
        return classes, torch.zeros(0, 0, dtype=torch.int64, device=logits.device)
    counted = labels != ignore_index
    truth = labels[counted].long()
    if truth.numel() and int(truth.max()) >= num_classes:
        raise ShapeError(
            f"upsample_accumulate: every label must be 0 to {num_classes - 1} or the ignored label {ignore_index}, "
            f"got {int(truth.max())}"
        )
    cells = torch.bincount(truth * num_classes + classes[counted].long(), minlength=num_classes**2)
    return classes, cells.reshape(num_classes, num_classes)


def _fake(logits: Tensor, *rest: Any) -> Tensor:
    num_classes, size = rest[5], rest[6]
    return logits.new_empty((num_classes, *size), dtype=torch.promote_types(logits.dtype, torch.float32))


def _fake_argmax(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    num_classes, size, labels = rest[5], rest[6], rest[8]
    cells = 0 if labels is None else num_classes
    classes = logits.new_empty(tuple(size), dtype=class_dtype(num_classes))
    return classes, logits.new_empty((cells, cells), dtype=torch.int64)


def _tables(
    draw: Draw, geometry: Sequence[tuple[int, int, int, int, int, int]], classes: int, size: Sequence[int]
) -> list[Any]:
    """Random tables: rows and columns that are read go up through the windows, as in a picture."""
    height, width = size
    parts: dict[str, list[Tensor]] = {name: [] for name in ("logits", "columns", "weights", "rows", "row_weights")}
    for down, across, h, w, column_taps, row_taps in geometry:
        parts["logits"].append(3 * draw(down * across * classes * h * w))
        walk = (torch.arange(width) * w) // max(width, 1)
        parts["columns"].append(walk.clamp(max=max(w - column_taps, 0)).repeat(across).to(torch.int32))
        weights = draw.integers(1, 9, (across * column_taps * width,)).float()
        parts["weights"].append(weights / (9 * across * column_taps))
        climb = (torch.arange(height) * down * h) // max(height, 1)
        taps = (climb[:, None] + torch.arange(row_taps)).clamp(max=down * h - 1)
        parts["rows"].append(taps.reshape(-1).to(torch.int32))
        parts["row_weights"].append(draw.integers(1, 9, (height * row_taps,)).float() / (9 * row_taps))
    return [torch.cat(tensors).to(draw.device) for tensors in parts.values()]


def _geometries() -> Iterator[tuple[str, tuple[tuple[int, ...], ...], int, tuple[int, int], Bench]]:
    yield "slide_2x2_x4", ((2, 2, 128, 128, 2, 4),), 150, (512, 683), True
    yield "slide_flip_x4", ((1, 2, 128, 128, 2, 2),) * 2, 150, (512, 683), True
    yield "slide_flip_x16", ((1, 2, 32, 32, 2, 2),) * 2, 150, (512, 683), True
    yield "slide_768px_x4", ((2, 4, 192, 192, 2, 4),), 19, (1024, 2048), FULL
    yield "odd", ((2, 3, 5, 7, 3, 3), (1, 1, 9, 4, 2, 2)), 6, (23, 37), False
    yield "one_pixel", ((1, 1, 1, 1, 1, 1),), 1, (1, 1), False
    yield "many_classes", ((1, 2, 3, 3, 2, 5),), 300, (7, 18), False
    yield "nothing", ((1, 1, 2, 2, 2, 2),), 3, (0, 5), False


def _cases() -> Iterator[Case]:
    def make(geometry: Any, classes: int, size: tuple[int, int], probabilities: bool, draw: Draw) -> tuple[Any, ...]:
        tables = _tables(draw, geometry, classes, size)
        return (*tables, [n for view in geometry for n in view], classes, list(size), probabilities)

    for name, geometry, classes, size, bench in _geometries():
        if 0 in size:
            continue  # no scores, no largest error: the op of classes has this case
        for probabilities in (True, False):
            kind = "probabilities" if probabilities else "logits"
            yield Case(f"{name}_{kind}", partial(make, geometry, classes, size, probabilities), bench=bench)


def _cases_argmax() -> Iterator[Case]:
    def make(geometry: Any, classes: int, size: tuple[int, int], labelled: bool, draw: Draw) -> tuple[Any, ...]:
        tables = _tables(draw, geometry, classes, size)
        labels = draw.integers(0, min(classes, 255), size, torch.uint8) if labelled else None
        return (*tables, [n for view in geometry for n in view], classes, list(size), True, labels, 255)

    for name, geometry, classes, size, bench in _geometries():
        if bench:
            size = (256, 342)  # more pixels hold one whose two best scores differ by rounding alone
        for labelled in (False, True):
            kind = "_counted" if labelled else ""
            yield Case(
                name + kind, partial(make, geometry, classes, size, labelled), bench=False if labelled else bench
            )


def _cost(logits: Tensor, *rest: Any) -> Cost:
    views, num_classes, size = rest[4], rest[5], rest[6]
    values = num_classes * size[0] * size[1]
    sums = sum(2 * row_taps for *_, row_taps in _facts(views))
    return Cost(bytes=logits.nbytes + 4 * values + 1, flops=values * (sums + 20 * (len(views) // FACTS)))


_ARGUMENTS = (
    "Tensor logits, Tensor columns, Tensor column_weights, Tensor rows, Tensor row_weights, int[] views, "
    "int num_classes, int[] size, bool probabilities"
)


def _fits_a_launch(*args: Any) -> list[str]:
    views = len(args[5]) // FACTS
    return [] if views <= MOST_CUDA_VIEWS else [f"takes up to {MOST_CUDA_VIEWS} views, got {views}"]


_KERNELS = (
    native("cuda", dtypes=(torch.float32, torch.bfloat16), accepts=_fits_a_launch),
    native("cpu", dtypes=(torch.float32, torch.bfloat16)),
)
_scores = declare_op(
    f"upsample_accumulate({_ARGUMENTS}) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=_KERNELS,
    rounds=True,
)
_classes = declare_op(
    f"upsample_accumulate_argmax({_ARGUMENTS}, Tensor? labels, int ignore_index) -> (Tensor, Tensor)",
    reference=_reference_argmax,
    fake=_fake_argmax,
    cases=_cases_argmax,
    cost=_cost,
    backends=_KERNELS,
)
