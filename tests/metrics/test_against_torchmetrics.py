"""The same scores as torchmetrics' on the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from setr_fast.metrics import Tally


@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_those_of_torchmetrics(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (4, 60, 70), generator=generator)
    answer = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, classes, truth.shape, generator=generator),
    )
    truth[:, :5] = 255
    tally = Tally(classes)
    for index in range(4):
        tally.add(index, answer[index], truth[index])
    scores, given = tally.scores(), {"num_classes": classes, "ignore_index": 255}
    np.testing.assert_array_equal(scores.confusion, multiclass_confusion_matrix(answer, truth, **given).numpy())
    for ours, theirs in (
        (scores.iou, multiclass_jaccard_index(answer, truth, average="none", **given)),
        (scores.dice, multiclass_f1_score(answer, truth, average="none", **given)),
        (scores.accuracy, multiclass_accuracy(answer, truth, average="none", **given)),
        (scores.miou, multiclass_jaccard_index(answer, truth, average="macro", **given)),
        (scores.mdice, multiclass_f1_score(answer, truth, average="macro", **given)),
        (scores.macc, multiclass_accuracy(answer, truth, average="macro", **given)),
        (scores.aacc, multiclass_accuracy(answer, truth, average="micro", **given)),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_a_class_in_no_pixel_is_left_out_of_both_means():
    truth, answer = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    tally = Tally(4)
    tally.add(0, answer, truth)
    theirs = multiclass_jaccard_index(answer, truth, num_classes=4, average="macro")
    assert tally.scores().miou == pytest.approx(float(theirs))
