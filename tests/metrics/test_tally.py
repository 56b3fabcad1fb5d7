"""Shares of an evaluation: whatever the order, the ranks and the breaks, the same numbers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from setr_fast.errors import ConfigError, ShapeError
from setr_fast.metrics import Scores, Tally
from setr_fast.metrics.pictures import PictureCounts
from setr_fast.ops.confusion_matrix import confusion_matrix


def pictures(count: int = 7, classes: int = 5, ignore: int = 255) -> list[tuple[np.ndarray, np.ndarray]]:
    rng, found = np.random.default_rng(1), []
    dtype = np.uint8 if ignore < 256 else np.int64
    for index in range(count):
        size = 20 + 3 * index, 31 - 2 * index
        labels = rng.integers(0, classes, size).astype(dtype)
        prediction = np.where(rng.random(size) < 0.6, labels, rng.integers(0, classes, size)).astype(dtype)
        labels[:2] = ignore
        found.append((prediction, labels))
    return found


def tally_of(chosen, data, **rules) -> Tally:
    tally = Tally(5, boundary_ratio=0.02, probability_of=1, **rules)
    for index in chosen:
        prediction, labels = data[index]
        tally.add(index, prediction, labels)
        tally.add_error(index, np.full(labels.shape, 0.25, np.float32), labels)
    return tally


def everything(tally: Tally) -> list[np.ndarray]:
    areas, bands = tally.areas, tally.bands
    assert bands is not None
    assert tally.errors is not None
    parts = [np.array(tally.pictures), tally.confusion, tally.errors]
    for counts in (areas, bands):
        parts += [counts.lengths, counts.classes, counts.counts]
    return parts


def assert_same(found: Tally, expected: Tally) -> None:
    for x, y in zip(everything(found), everything(expected), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_integers_of_either_library_give_the_confusion_matrix_of_all_pixels(dtype, kind):
    data, tally = pictures(), Tally(5)
    for index, pair in enumerate(data):
        prediction, labels = (ids.astype(dtype) for ids in pair)
        if kind == "torch":
            tally.add(index, torch.from_numpy(prediction), torch.from_numpy(labels))
        else:
            tally.add(index, prediction, labels)
    joined = [torch.from_numpy(np.concatenate([pair[side].reshape(-1) for pair in data])) for side in (0, 1)]
    np.testing.assert_array_equal(tally.confusion, confusion_matrix(*joined, 5).numpy())
    np.testing.assert_array_equal(tally.areas.totals(), tally.scores().counts)


def test_counts_of_single_pictures_are_theirs():
    data = pictures()
    tally = tally_of(range(7), data)
    dense = tally.areas.dense(0, 7)
    for index, (prediction, labels) in enumerate(data):
        alone = Scores.of(confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(labels), 5))
        np.testing.assert_array_equal(dense[index], alone.counts)
    np.testing.assert_array_equal(tally.areas.dense(2, 5), dense[2:5])
    assert tally.areas.dense(3, 3).shape == (0, 5, 3)


def test_order_and_shares_do_not_matter():
    data = pictures()
    whole = tally_of(range(7), data)
    assert_same(tally_of([3, 0, 6, 1, 5, 2, 4], data), whole)
    shares = [tally_of(range(rank, 7, 3), data) for rank in range(3)]
    for share in shares[1:]:
        shares[0].merge(share)
    assert_same(shares[0], whole)
    assert len(whole) == 7
    assert 3 in whole
    assert 7 not in whole


def test_an_interrupted_evaluation_goes_on_from_what_was_kept():
    data = pictures()
    kept = pickle.loads(pickle.dumps(tally_of(range(4), data)))
    for index in range(4, 7):
        kept.add(index, *data[index])
        kept.add_error(index, np.full(data[index][1].shape, 0.25, np.float32), data[index][1])
    assert_same(kept, tally_of(range(7), data))


def test_no_picture_counts_twice_and_a_refused_one_leaves_no_trace():
    data = pictures()
    tally, before = tally_of(range(4), data), tally_of(range(4), data)
    with pytest.raises(ConfigError, match="got 3 again"):
        tally.add(3, *data[3])
    with pytest.raises(ConfigError, match="got 3 again"):
        tally.merge(tally_of([3, 4], data))
    with pytest.raises(ShapeError, match="every prediction"):
        tally.add(5, np.full((2, 2), 9, np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ShapeError, match="of 5 classes, got 4"):
        tally.add(5, *data[5], confusion=torch.zeros(4, 4, dtype=torch.int64))
    assert_same(tally, before)


@pytest.mark.parametrize("rules", [{"ignore_index": 254}, {"boundary_ratio": 0.1}, {"probability_of": 2}])
def test_shares_that_count_otherwise_are_refused(rules):
    with pytest.raises(ConfigError, match="count alike"):
        Tally(5, boundary_ratio=0.02).merge(Tally(5, **({"boundary_ratio": 0.02} | rules)))


def test_a_matrix_that_is_known_is_taken_as_it_is():
    prediction, labels = pictures()[0]
    known = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(labels), 5)
    one, other = Tally(5), Tally(5)
    one.add(0, prediction, labels)
    other.add(0, prediction, labels, confusion=known)
    np.testing.assert_array_equal(one.confusion, other.confusion)
    np.testing.assert_array_equal(one.areas.counts, other.areas.counts)


def test_nothing_and_nothing_but_ignored_pixels():
    tally = Tally(3, boundary_ratio=0.02, probability_of=0)
    assert np.isnan(tally.scores().miou)
    assert len(tally.areas) == 0
    assert tally.areas.totals().shape == (3, 3)
    tally.add(0, np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    tally.add_error(0, np.zeros((4, 4)), np.full((4, 4), 255, np.uint8))
    assert tally.scores().pixels == 0
    assert tally.areas.lengths.tolist() == [0]
    assert np.isnan(tally.errors).all()
    assert tally.areas.dense(0, 1).tolist() == [[[0, 0, 0]] * 3]


@pytest.mark.parametrize("classes", [1, 300])
def test_one_class_and_three_hundred(classes):
    data = pictures(classes=classes, ignore=65535)
    tally = Tally(classes, ignore_index=65535, boundary_ratio=0.02)
    for index, (prediction, labels) in enumerate(data):
        tally.add(index, prediction.astype(np.int64), labels.astype(np.int64))
    there = np.concatenate([labels[labels != 65535] for _, labels in data])
    np.testing.assert_array_equal(tally.scores().counts[:, 1], np.bincount(there, minlength=classes))
    if classes == 1:
        assert tally.scores().miou == 1.0


def test_error_is_the_mean_gap_on_pixels_that_count():
    tally = Tally(2, probability_of=1)
    labels = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    probability = np.array([[0.25, 0.5, 0.9], [1.0, 0.0, 1.0]], np.float32)
    tally.add(0, (probability > 0.5).astype(np.uint8), labels)
    tally.add_error(0, probability, labels)
    assert tally.errors.tolist() == [(0.25 + 0.5 + 0 + 1 + 1) / 5]
    assert Tally(2).errors is Tally(2).bands is None


def test_a_picture_takes_room_for_its_own_classes_only():
    tally, rng = Tally(300, ignore_index=65535), np.random.default_rng(0)
    for index in range(50):
        tally.add(index, *rng.integers(0, 4, (2, 8, 8)))
    areas = tally.areas
    assert len(areas.classes) <= 50 * 4
    assert areas.counts.nbytes + areas.classes.nbytes + areas.lengths.nbytes <= 50 * (4 * 32 + 8)
    assert isinstance(areas, PictureCounts)
