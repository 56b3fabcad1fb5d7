"""Dice of volumes: the rule of the published helper, against brute force on stacks of slices."""

from __future__ import annotations

import numpy as np
import pytest

from setr_fast.metrics.options import MetricsConfig
from setr_fast.metrics.summary import summary
from setr_fast.metrics.tally import Tally
from setr_fast.metrics.volumes import volume_dice

NAMES = ("background", "spleen", "aorta", "stomach")


def published_rule(prediction: np.ndarray, label: np.ndarray) -> float:
    if prediction.sum() > 0 and label.sum() > 0:
        return float(2 * (prediction & label).sum() / (prediction.sum() + label.sum()))
    return 1.0 if prediction.sum() > 0 and label.sum() == 0 else 0.0


def test_volumes_are_scored_whole_not_slice_by_slice() -> None:
    rng = np.random.default_rng(0)
    tally, names, wanted = Tally(4), [], {}
    number = 0
    for case, depth in (("case0001", 3), ("case0002", 2)):
        most = 4 if case == "case0001" else 3  # the second volume has no stomach, and none is found there
        prediction, label = rng.integers(0, most, (2, depth, 8, 9))
        if case == "case0002":
            label[label == 2] = 0  # found where there is none
        for part in range(depth):
            tally.add(number, prediction[part].astype(np.uint8), label[part].astype(np.uint8))
            names.append(f"{case}_slice{part:03d}")
            number += 1
        wanted[case] = [published_rule(prediction == k, label == k) for k in range(4)]
    found = summary(tally, NAMES, names, MetricsConfig(metrics=("volumes",), bootstrap=0))["volumes"]
    means = np.mean(list(wanted.values()), axis=0)
    assert list(found["Dice"].values()) == pytest.approx(means)
    assert found["mDice"] == pytest.approx(means[1:].mean())
    assert found["volumes"] == pytest.approx({case: np.mean(dice[1:]) for case, dice in wanted.items()})
    assert wanted["case0002"][2] == 1.0
    assert wanted["case0002"][3] == 0.0
    assert "volumes" not in summary(tally, NAMES, names, MetricsConfig(bootstrap=0))


def test_empty_sides_follow_the_published_helper() -> None:
    counts = np.array([[[5, 10, 10], [0, 0, 4], [0, 4, 0], [0, 0, 0]]])
    assert volume_dice(counts).tolist() == [[0.5, 1.0, 0.0, 0.0]]
