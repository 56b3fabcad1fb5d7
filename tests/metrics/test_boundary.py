"""Boundary IoU against the definition done class by class, and against erosion by OpenCV as the authors do it."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setr_fast.metrics.boundary import band, band_width, boundary_counts


def by_definition(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of the mask that have a pixel outside the mask, or outside the picture, within a square around them."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        rows, columns = range(y - distance, y + distance + 1), range(x - distance, x + distance + 1)
        found[y, x] = any(not (0 <= r < height and 0 <= c < width) or not mask[r, c] for r in rows for c in columns)
    return found


def by_erosion(mask: np.ndarray, distance: int) -> np.ndarray:
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (inner == 0)


def counts_by(outline, prediction, labels, classes, ignore, ratio):
    distance = max(1, round(ratio * math.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2)))
    counted, rows = labels != ignore, []
    for index in range(classes):
        truth, answer = (outline((ids == index) & counted, distance) for ids in (labels, prediction))
        rows.append([(truth & answer).sum(), truth.sum(), answer.sum()])
    return np.array(rows).reshape(classes, 3)


@given(st.integers(1, 4), st.integers(1, 13), st.integers(1, 13), st.integers(0, 10**6), st.floats(0.02, 0.4))
def test_counts_are_those_of_the_definition(classes, height, width, seed, ratio):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (2, height // 3 + 1, width // 3 + 1))
    labels, prediction = coarse.repeat(3, 1).repeat(3, 2)[:, :height, :width].astype(np.uint8)
    labels[rng.random(labels.shape) < 0.05] = 255
    expected = counts_by(by_definition, prediction, labels, classes, 255, ratio)
    np.testing.assert_array_equal(boundary_counts(prediction, labels, classes, 255, ratio), expected)


@pytest.mark.parametrize(("size", "ratio"), [((120, 200), 0.02), ((120, 200), 0.1), ((40, 400), 0.06), ((1, 1), 0.02)])
@pytest.mark.parametrize("classes", [2, 19, 300])
def test_counts_are_those_of_repeated_erosion(size, ratio, classes):
    rng = np.random.default_rng(3)
    dtype, ignore = (np.uint8, 255) if classes < 255 else (np.int64, 65535)
    coarse = rng.integers(0, classes, (2, size[0] // 20 + 1, size[1] // 20 + 1))
    labels, prediction = coarse.repeat(20, 1).repeat(20, 2)[:, : size[0], : size[1]].astype(dtype)
    prediction = np.where(rng.random(size) < 0.3, labels, prediction)
    labels[: size[0] // 5] = ignore
    expected = counts_by(by_erosion, prediction, labels, classes, ignore, ratio)
    np.testing.assert_array_equal(boundary_counts(prediction, labels, classes, ignore, ratio), expected)


def test_equal_maps_have_equal_bands_and_a_shift_shows_in_the_band_more_than_in_the_area():
    labels = np.zeros((200, 200), np.uint8)
    labels[50:150, 50:150] = 1
    hits, truth, answer = boundary_counts(labels, labels, 2, 255, 0.02)[1]
    assert hits == truth == answer > 0
    hits, truth, answer = boundary_counts(np.roll(labels, 3, 1), labels, 2, 255, 0.02)[1]
    area = 97 * 100 / (103 * 100)
    assert hits / (truth + answer - hits) < area - 0.15


@pytest.mark.parametrize("classes", [255, 256])
def test_every_class_number_next_to_the_ignored_one_keeps_its_own_band(classes):
    labels = np.full((9, 9), classes - 1, np.int64)
    labels[:, :4] = 65535
    counts = boundary_counts(np.full((9, 9), classes - 1), labels, classes, 65535, 0.02)
    assert counts[-1].tolist() == [5 * 9 - 3 * 7] * 3
    assert not counts[:-1].any()


def test_all_ignored_and_empty_maps_count_nothing():
    assert not boundary_counts(np.ones((5, 6)), np.full((5, 6), 255), 3, 255, 0.02).any()
    assert not boundary_counts(np.ones((0, 6), np.uint8), np.ones((0, 6), np.uint8), 3, 255, 0.02).any()


def test_width_is_a_share_of_the_diagonal_and_never_nothing():
    assert band_width((1024, 2048), 0.02) == 46
    assert band_width((3, 4), 0.02) == 1
    assert band(np.zeros((5, 5), np.uint8), 1).sum() == 16
    assert band(np.zeros((5, 5), np.uint8), 3).all()
