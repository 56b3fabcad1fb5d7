"""Boundary IoU: how well the outlines fit, which the areas' own IoU hardly shows for large regions.

Of a class, G_d are the pixels of its mask within d of the mask's contour, P_d those of the prediction's. Boundary IoU
is |G_d and P_d| / |G_d or P_d|: both counted over the whole set, then divided per class. d is ``ratio`` of the
picture's diagonal in whole pixels, 1 at least. Within d means a square of 2 d + 1 pixels around, as erosion by 3 x 3
repeated d times takes it away; what lies outside the picture belongs to no class, so that its edge is a contour.
Ignored pixels are taken out of both masks first, and so are no class either.

Source: Cheng, Girshick, Dollar, Berg, Kirillov 2021, arXiv 2103.16562, and its `boundary_iou/utils/boundary_utils.py`,
there with ratio 0.02.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def boundary_counts(
    prediction: npt.NDArray[Any], labels: npt.NDArray[Any], num_classes: int, ignore_index: int, ratio: float
) -> npt.NDArray[np.int64]:
    """Count, per class, pixels in both bands, in the label's and in the prediction's.

    Shapes: prediction and labels [H, W], classes 0..K-1 where not ignored -> [K, 3].
    """
    small = np.uint8 if num_classes < 256 else np.uint16  # the class after the last stands for ignored
    ignored = labels == ignore_index
    truth = np.where(ignored, num_classes, labels).astype(small)
    answer = np.where(ignored, num_classes, prediction).astype(small)
    distance = band_width((labels.shape[0], labels.shape[1]), ratio)
    in_truth, in_answer = band(truth, distance), band(answer, distance)
    both = in_truth & in_answer & (truth == answer)
    found = [np.bincount(values, minlength=num_classes + 1) for values in (truth[both], truth[in_truth])]
    found.append(np.bincount(answer[in_answer], minlength=num_classes + 1))
    return np.stack(found, axis=1)[:num_classes].astype(np.int64)


def band_width(size: tuple[int, int], ratio: float) -> int:
    """Return d in pixels for a picture of (height, width)."""
    return max(1, round(ratio * math.hypot(*size)))


def band(classes: npt.NDArray[Any], distance: int) -> npt.NDArray[np.bool_]:
    """Tell the pixels that have another class, or the outside of the picture, within ``distance``.

    Shapes: [H, W] -> [H, W].
    """
    near = np.ones(classes.shape, np.bool_)
    height, width = classes.shape
    inside = slice(distance, height - distance), slice(distance, width - distance)
    if height > 2 * distance and width > 2 * distance:
        # A square holds one class alone where its largest and its smallest are the same: all classes in one pass.
        near[inside] = _extreme(classes, distance, np.maximum) != _extreme(classes, distance, np.minimum)
    return near


def _extreme(classes: npt.NDArray[Any], distance: int, pick: Callable[..., npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Largest or smallest of each square that lies in the picture. Shapes: [H, W] -> [H - 2 d, W - 2 d]."""
    length = 2 * distance + 1
    for axis in (0, 1):
        done = 1
        while done < length:  # an extreme of n pixels and the one next to it make one of up to 2 n
            step = min(done, length - done)
            if axis == 0:
                classes = pick(classes[:-step], classes[step:])
            else:
                classes = pick(classes[:, :-step], classes[:, step:])
            done += step
    return classes
