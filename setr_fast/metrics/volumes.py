"""Dice of whole volumes, where the pictures are their slices: as papers on organs in CT report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from setr_fast.metrics.pictures import Ints, PictureCounts
from setr_fast.metrics.scores import Floats, by_name, number

SLICE = "_slice"
"""What stands between a volume's name and the number of a slice."""


def volume_scores(areas: PictureCounts, picture_names: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    """Return each class's Dice coefficient, the mean over volumes, and the mean of these over all but class 0.

    Class 0 is background.
    """
    volumes, counts = _by_volume(areas, picture_names)
    dice = volume_dice(counts)
    means = dice.mean(0)
    return {
        "mDice": number(float(means[1:].mean())) if len(means) > 1 else None,
        "Dice": by_name(class_names, means),
        "volumes": {name: number(float(row[1:].mean())) for name, row in zip(volumes, dice, strict=True)},
    }


def volume_dice(counts: Ints) -> Floats:
    """Return the Dice coefficients of volumes. Shapes: counts [V, K, 3] (hits, labels, predictions) -> [V, K].

    A class that is predicted where the labels have none counts as 1; otherwise, where either side is empty, as 0.
    Source: github Beckschen/TransUNet, utils.py, calculate_metric_percase.
    """
    hits, labels, predictions = (counts[..., place].astype(np.float64) for place in range(3))
    both = (labels > 0) & (predictions > 0)
    shares = np.divide(2 * hits, labels + predictions, out=np.zeros(both.shape), where=both)
    return np.where((predictions > 0) & (labels == 0), 1.0, shares)


def _by_volume(areas: PictureCounts, picture_names: Sequence[str]) -> tuple[list[str], Ints]:
    """Return the names of the volumes, in order of their first slices, and their counts [V, K, 3]."""
    owners = [name.rpartition(SLICE)[0] or name for name in picture_names]
    names = list(dict.fromkeys(owners))
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), areas.num_classes, 3), np.int64)
    for index, owner in enumerate(owners):
        counts[place[owner]] += areas.dense(index, index + 1)[0]
    return names, counts
