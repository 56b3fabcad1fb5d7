"""Scores of a segmentation from its confusion matrix.

The matrix counts pixels over the whole set: rows are labels, columns are predictions, ignored pixels are in no cell.
Summing matrices of pictures, ranks or runs and scoring the sum is the only averaging there is; scores of single
pictures are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from setr_fast.errors import ShapeError

AbsentRule = Literal["left_out", "counts_as_one"]


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] worked out of ``confusion``, an int64 matrix [K, K]."""

    confusion: npt.NDArray[np.int64]
    absent: AbsentRule = "left_out"
    """A class in neither the labels nor the predictions: left out of the mean (mmsegmentation, official SETR and
    Segmenter), or a perfect 1 (PaddleSeg, `paddleseg/utils/metrics.py`), which gives the higher mean."""

    @classmethod
    def of(cls, confusion: torch.Tensor | npt.NDArray[Any], absent: AbsentRule = "left_out") -> Scores:
        """Score a confusion matrix.

        Raises: ShapeError if it is not a square matrix of counts.
        """
        counts = confusion.detach().cpu().numpy() if isinstance(confusion, torch.Tensor) else np.asarray(confusion)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype.kind not in "iu":
            raise ShapeError(
                f"scores: confusion must be an integer matrix [K, K], got {counts.dtype} {list(counts.shape)}; "
                "sum the results of ops.confusion_matrix"
            )
        return cls(counts.astype(np.int64), absent)

    @property
    def pixels(self) -> int:
        """Number of pixels scored."""
        return int(self.confusion.sum())

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union per class; an absent class is NaN or 1 by the rule."""
        hits = np.diagonal(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        iou = _ratio(hits, union)
        return iou if self.absent == "left_out" else np.where(union == 0, 1.0, iou)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Share of each class's own pixels that were found; NaN for a class without pixels."""
        return _ratio(np.diagonal(self.confusion), self.confusion.sum(1))

    @property
    def miou(self) -> float:
        """Mean of ``iou`` over the classes that have one; NaN if none has."""
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        """Mean of ``accuracy`` over the classes that have pixels; NaN if none has."""
        return _mean(self.accuracy)

    @property
    def aacc(self) -> float:
        """Share of all scored pixels that are right; NaN if there are none."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    def as_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return what JSON can hold: ``mIoU aAcc mAcc``, ``IoU`` and ``Acc`` per class name; NaN becomes null.

        Raises: ShapeError if there is not one name per class.
        """
        if len(class_names) != len(self.confusion):
            raise ShapeError(
                f"scores: class_names must hold {len(self.confusion)} names, got {len(class_names)}; "
                "one for each row of the confusion matrix"
            )
        keys = _distinct(class_names)
        return {
            "mIoU": _number(self.miou),
            "aAcc": _number(self.aacc),
            "mAcc": _number(self.macc),
            "IoU": {key: _number(value) for key, value in zip(keys, self.iou, strict=True)},
            "Acc": {key: _number(value) for key, value in zip(keys, self.accuracy, strict=True)},
            "pixels": self.pixels,
            "absent_classes": self.absent,
        }


def majority_baseline(confusion: torch.Tensor | npt.NDArray[Any]) -> float:
    """Return the mIoU of always answering the commonest class: what any model has to beat.

    Only the labels of ``confusion`` matter. With an answer of one class, its IoU is its share of the pixels and
    every other class that occurs has 0.
    """
    labels = Scores.of(confusion).confusion.sum(1)
    total = labels.sum()
    return float(labels.max() / total / np.count_nonzero(labels)) if total else math.nan


def _ratio(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: npt.NDArray[np.float64]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _distinct(names: Sequence[str]) -> list[str]:
    """Two classes of one name (class tables of the wild have them) must not share one key of the report."""
    return [name if list(names).count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]
