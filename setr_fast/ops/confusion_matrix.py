"""Confusion matrix of predicted against true classes, from which every score of a segmentation is computed.

Integers throughout, so every backend gives the same counts in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops._op import FULL, Case, Cost, Draw, declare_op, native

DTYPES = (torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64)
MAX_CLASSES = 4096


def confusion_matrix(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of each true class (rows) that were given each class (columns).

    Shapes: prediction and labels of one shape, any integer dtypes up to 64 bits -> int64 [K, K].
    Pixels whose label is ``ignore_index`` are left out, whatever is predicted there.
    Raises: ShapeError if the shapes differ, or any other label or prediction is not in 0..K-1.
    """
    _check(prediction, labels, num_classes)
    try:
        return _op(prediction, labels, num_classes, ignore_index)
    except ShapeError:
        raise
    except ValueError as error:  # a compiled kernel's, which knows only ValueError
        raise ShapeError(str(error)) from None


def _check(prediction: Tensor, labels: Tensor, num_classes: int) -> None:
    for what, ids in (("prediction", prediction), ("labels", labels)):
        if ids.dtype not in DTYPES:
            names = ", ".join(str(d)[6:] for d in DTYPES)
            raise ShapeError(f"confusion_matrix: {what} must be {names}, got {str(ids.dtype)[6:]}")
    if prediction.shape != labels.shape:
        raise ShapeError(
            f"confusion_matrix: labels must have the prediction's shape {list(prediction.shape)}, "
            f"got {list(labels.shape)}; compare at the labels' own size"
        )
    if prediction.device != labels.device:
        raise ShapeError(
            f"confusion_matrix: labels must be on the prediction's device {prediction.device}, got {labels.device}"
        )
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ShapeError(f"confusion_matrix: num_classes must be 1 to {MAX_CLASSES}, got {num_classes}")


def _reference(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    _check(prediction, labels, num_classes)
    truth = labels.reshape(-1).to(torch.int64)
    counted = truth != ignore_index
    truth, predicted = truth[counted], prediction.reshape(-1).to(torch.int64)[counted]
    for what, ids in (("label", truth), ("prediction", predicted)):
        illegal = ids[(ids < 0) | (ids >= num_classes)]
        if illegal.numel():
            raise ShapeError(
                f"confusion_matrix: every {what} must be 0 to {num_classes - 1} or the ignored label {ignore_index}, "
                f"got {int(illegal[0])}"
            )
    counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def _fake(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return labels.new_empty((num_classes, num_classes), dtype=torch.int64)


def _cases() -> Iterator[Case]:
    def make(shape: tuple[int, ...], classes: int, of: tuple[torch.dtype, torch.dtype], draw: Draw) -> tuple[Any, ...]:
        labels = draw.integers(0, classes, shape, of[1])
        if labels.numel():
            labels.view(-1)[::7] = 255 if classes <= 255 else classes - 1
        return draw.integers(0, classes, shape, of[0]), labels, classes, 255 if classes <= 255 else classes - 1

    u8, i64 = torch.uint8, torch.int64
    for name, shape, classes, of, bench in (
        ("cityscapes_1024x2048", (1024, 2048), 19, (u8, u8), True),
        ("ade20k_512x683", (512, 683), 150, (u8, u8), True),
        ("camvid_360x480_argmax", (4, 360, 480), 11, (i64, u8), True),
        ("crops_768x768", (8, 768, 768), 19, (u8, u8), FULL),
        ("odd", (7, 5), 3, (torch.int16, torch.int32), False),
        ("one_pixel", (1, 1), 1, (u8, i64), False),
        ("empty", (0, 4), 2, (u8, u8), False),
        ("many_classes", (33, 31), 300, (torch.int32, torch.int16), False),
    ):
        yield Case(name, partial(make, shape, classes, of), bench=bench)


def _cost(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Cost:
    return Cost(bytes=prediction.nbytes + labels.nbytes + 8 * num_classes**2, flops=0)


_op = declare_op(
    "confusion_matrix(Tensor prediction, Tensor labels, int num_classes, int ignore_index) -> Tensor",
    reference=_reference,
    fake=_fake,
    cases=_cases,
    cost=_cost,
    backends=(native("cuda"), native("cpu")),
)
