"""Scores against counting by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setr_fast.errors import ShapeError
from setr_fast.metrics import Scores, majority_baseline


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes, classes), np.int64)
    for label, answer in zip(labels, predicted, strict=True):
        counts[label, answer] += 1
    return counts


@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_scores_equal_sets_of_pixels_counted_one_by_one(classes, pixels, seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, pixels))
    scores = Scores.of(torch.from_numpy(_confusion(labels, predicted, classes)))
    ious, accuracies = [], []
    for index in range(classes):
        truth, answer = set(np.flatnonzero(labels == index)), set(np.flatnonzero(predicted == index))
        ious.append(len(truth & answer) / len(truth | answer) if truth | answer else math.nan)
        accuracies.append(len(truth & answer) / len(truth) if truth else math.nan)
    np.testing.assert_allclose(scores.iou, ious)
    np.testing.assert_allclose(scores.accuracy, accuracies)
    np.testing.assert_allclose(scores.dice, [2 * value / (1 + value) for value in ious])
    there = [value for value in ious if not math.isnan(value)]
    np.testing.assert_allclose(scores.miou, sum(there) / len(there) if there else math.nan)
    np.testing.assert_allclose(scores.aacc, np.mean(labels == predicted) if pixels else math.nan)
    assert scores.pixels == pixels


def test_absent_classes_are_left_out_or_count_as_one():
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    left_out, as_one = Scores.of(counts), Scores.of(counts, absent="counts_as_one")
    assert left_out.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert as_one.miou == pytest.approx((3 / 4 + 4 / 5 + 1) / 3)
    assert math.isnan(left_out.iou[2])
    assert left_out.mdice == pytest.approx((6 / 7 + 8 / 9) / 2)
    assert as_one.mdice == pytest.approx((6 / 7 + 8 / 9 + 1) / 3)
    assert left_out.as_dict(["a", "b", "c"])["absent_classes"] == "left_out"
    assert as_one.as_dict(["a", "b", "c"])["absent_classes"] == "counts_as_one"
    assert left_out.aacc == as_one.aacc == pytest.approx(7 / 8)
    assert left_out.macc == pytest.approx((3 / 4 + 1) / 2)


def test_a_class_only_predicted_has_no_accuracy_and_an_iou_of_zero():
    scores = Scores.of(np.array([[1, 1], [0, 0]]))
    assert scores.iou[1] == 0
    assert math.isnan(scores.accuracy[1])
    assert scores.miou == 0.25


def test_counts_past_32_bits_stay_exact():
    many = 3 * 2**40
    scores = Scores.of(np.array([[many, 1], [0, many]]))
    assert scores.pixels == 2 * many + 1
    assert scores.iou[1] == many / (many + 1)


def test_as_dict_is_json_with_null_for_what_has_no_score():
    report = Scores.of(np.array([[2, 0], [0, 0]])).as_dict(["road", "sky"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["IoU"] == {"road": 1.0, "sky": None}
    assert report["mIoU"] == report["aAcc"] == report["mAcc"] == report["mDice"] == 1.0
    empty = Scores.of(np.zeros((2, 2), np.int64)).as_dict(["road", "sky"])
    assert empty["mIoU"] is empty["aAcc"] is empty["mAcc"] is None


def test_classes_of_one_name_keep_an_entry_each():
    report = Scores.of(np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])).as_dict(["wall", "door", "wall"])
    assert report["IoU"] == {"wall (0)": 1.0, "door": 0.5, "wall (2)": 0.0}


@pytest.mark.parametrize("labels", [[5, 3, 0], [0, 0, 9], [1, 1, 1]])
def test_majority_baseline_is_the_score_of_answering_the_commonest_class(labels):
    answers = np.zeros((3, 3), np.int64)
    answers[:, int(np.argmax(labels))] = labels
    assert majority_baseline(np.diag(labels)) == pytest.approx(Scores.of(answers).miou)
    assert majority_baseline(answers) == pytest.approx(Scores.of(answers).miou)


def test_majority_baseline_of_nothing_is_nan():
    assert math.isnan(majority_baseline(np.zeros((2, 2), np.int64)))


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), np.int64), np.zeros(4, np.int64), np.zeros((2, 2))])
def test_what_is_no_confusion_matrix_is_refused(wrong):
    with pytest.raises(ShapeError, match="integer matrix"):
        Scores.of(wrong)


def test_a_name_that_looks_like_a_numbered_one_keeps_its_entry_too():
    report = Scores.of(np.eye(3, dtype=np.int64)).as_dict(["wall", "wall", "wall (0)"])
    assert len(report["IoU"]) == 3


@pytest.mark.parametrize("absent", ["left_out", "counts_as_one"])
def test_one_class_and_no_pixels_have_scores_by_the_rule(absent):
    assert Scores.of(np.array([[7]]), absent).miou == Scores.of(np.array([[7]]), absent).mdice == 1.0
    nothing = Scores.of(np.zeros((3, 3), np.int64), absent)
    assert nothing.miou == 1.0 if absent == "counts_as_one" else math.isnan(nothing.miou)
    assert math.isnan(nothing.aacc)
    assert math.isnan(nothing.macc)


def test_wrong_number_of_names_is_refused():
    with pytest.raises(ShapeError, match="2 names, got 1"):
        Scores.of(np.eye(2, dtype=np.int64)).as_dict(["road"])
