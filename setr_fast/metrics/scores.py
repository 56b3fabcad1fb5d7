"""Scores of a segmentation from its confusion matrix.

The matrix counts pixels over the whole set: rows are labels, columns are predictions, ignored pixels are in no cell.
Summing matrices of pictures, ranks or runs and scoring the sum is the only averaging there is; scores of single
pictures are never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from setr_fast.errors import ShapeError
from setr_fast.metrics.options import AbsentRule

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] worked out of ``confusion``, an int64 matrix [K, K]."""

    confusion: npt.NDArray[np.int64]
    absent: AbsentRule = "left_out"
    """A class in neither the labels nor the predictions: left out of the means (mmsegmentation, official SETR and
    Segmenter), or a perfect 1 (PaddleSeg, `paddleseg/utils/metrics.py`), which gives the higher means."""

    @classmethod
    def of(cls, confusion: torch.Tensor | npt.NDArray[Any], absent: AbsentRule = "left_out") -> Scores:
        """Score a confusion matrix.

        Raises: ShapeError if it is not a square matrix of counts.
        """
        plain: Any = confusion
        counts = plain.detach().cpu().numpy() if hasattr(plain, "detach") else np.asarray(plain)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype.kind not in "iu":
            raise ShapeError(
                f"scores: confusion must be an integer matrix [K, K], got {counts.dtype} {list(counts.shape)}; "
                "sum the results of ops.confusion_matrix"
            )
        return cls(counts.astype(np.int64), absent)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Per class: pixels right, pixels of the class, pixels predicted as it. Shapes: [K, 3]."""
        return np.stack([np.diagonal(self.confusion), self.confusion.sum(1), self.confusion.sum(0)], axis=1)

    @property
    def pixels(self) -> int:
        """Number of pixels scored."""
        return int(self.confusion.sum())

    @property
    def iou(self) -> Floats:
        """Intersection over union per class; an absent class is NaN or 1 by the rule."""
        return iou_of(self.counts, self.absent)

    @property
    def dice(self) -> Floats:
        """Twice the intersection over the sum of both areas, per class; an absent class is NaN or 1 by the rule."""
        return dice_of(self.counts, self.absent)

    @property
    def accuracy(self) -> Floats:
        """Share of each class's own pixels that were found; NaN for a class without pixels."""
        return accuracy_of(self.counts)

    @property
    def miou(self) -> float:
        """Mean of ``iou`` over the classes that have one; NaN if none has."""
        return float(mean_of(self.iou))

    @property
    def mdice(self) -> float:
        """Mean of ``dice`` over the classes that have one; NaN if none has."""
        return float(mean_of(self.dice))

    @property
    def macc(self) -> float:
        """Mean of ``accuracy`` over the classes that have pixels; NaN if none has."""
        return float(mean_of(self.accuracy))

    @property
    def aacc(self) -> float:
        """Share of all scored pixels that are right; NaN if there are none."""
        return float(ratio(np.trace(self.confusion), self.confusion.sum()))

    def as_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return what JSON can hold: ``mIoU aAcc mAcc mDice``, ``IoU``, ``Acc`` and ``Dice`` per class name; NaN
        becomes null.

        Raises: ShapeError if there is not one name per class.
        """
        if len(class_names) != len(self.confusion):
            raise ShapeError(
                f"scores: class_names must hold {len(self.confusion)} names, got {len(class_names)}; "
                "one for each row of the confusion matrix"
            )
        return {
            "mIoU": number(self.miou),
            "aAcc": number(self.aacc),
            "mAcc": number(self.macc),
            "mDice": number(self.mdice),
            "IoU": by_name(class_names, self.iou),
            "Acc": by_name(class_names, self.accuracy),
            "Dice": by_name(class_names, self.dice),
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


def iou_of(counts: npt.NDArray[Any], absent: AbsentRule) -> Floats:
    """Return intersection over union. Shapes: [..., K, 3] (hits, labels, predictions) -> [..., K]."""
    return _by_rule(counts[..., 0], counts[..., 1] + counts[..., 2] - counts[..., 0], absent)


def dice_of(counts: npt.NDArray[Any], absent: AbsentRule) -> Floats:
    """Return the Dice coefficient. Shapes: [..., K, 3] (hits, labels, predictions) -> [..., K]."""
    return _by_rule(2 * counts[..., 0], counts[..., 1] + counts[..., 2], absent)


def accuracy_of(counts: npt.NDArray[Any]) -> Floats:
    """Return hits over labels. Shapes: [..., K, 3] (hits, labels, predictions) -> [..., K]."""
    return ratio(counts[..., 0], counts[..., 1])


def ratio(part: Any, whole: Any) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_of(values: Floats) -> Floats:
    """Return the mean over the last axis, NaN left out; NaN where nothing is left. Shapes: [..., K] -> [...]."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0.0).sum(-1), there.sum(-1))


def number(value: float) -> float | None:
    """Return a score as JSON can hold it: null for NaN."""
    return None if math.isnan(value) else float(value)


def by_name(names: Sequence[str], values: Floats) -> dict[str, float | None]:
    """Return each class's score by its name."""
    return {key: number(value) for key, value in zip(distinct(names), values, strict=True)}


def distinct(names: Sequence[str]) -> list[str]:
    """Two classes of one name (class tables of the wild have them) must not share one key of the report."""
    keys = [name if list(names).count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    return keys if len(set(keys)) == len(keys) else [f"{name} ({index})" for index, name in enumerate(names)]


def _by_rule(part: npt.NDArray[Any], whole: npt.NDArray[Any], absent: AbsentRule) -> Floats:
    shares = ratio(part, whole)
    return shares if absent == "left_out" else np.where(whole == 0, 1.0, shares)
