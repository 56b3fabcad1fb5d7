"""The built-in scenes: the same everywhere, all classes, and not to be solved by colour."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from setr_fast.data.classes import IGNORED
from setr_fast.data.scenes.builtin import CLASSES, BuiltinScenes
from setr_fast.errors import ConfigError

K = len(CLASSES)


def _read_all(scenes: BuiltinScenes) -> tuple[np.ndarray, np.ndarray]:
    drawn = [scenes.read(index) for index in range(len(scenes))]
    return np.stack([image for image, _ in drawn]), np.stack([label for _, label in drawn])


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    return _read_all(BuiltinScenes(60, 128, 0, "train"))


def _digest(scenes: BuiltinScenes, index: int) -> str:
    image, label = scenes.read(index)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16]


def _mean_iou(prediction: np.ndarray, label: np.ndarray) -> float:
    valid = label != IGNORED
    pairs = label[valid].astype(int) * K + prediction[valid]
    confusion = np.bincount(pairs, minlength=K * K).reshape(K, K)
    right = np.diag(confusion)
    return float((right / (confusion.sum(0) + confusion.sum(1) - right)).mean())


@pytest.mark.parametrize("size", [32, 33, 100, 128, 300])
def test_scene_has_the_size_asked_for_and_only_class_ids(size: int) -> None:
    image, label = BuiltinScenes(3, size, 5, "train").read(2)
    assert image.shape == (size, size, 3)
    assert label.shape == (size, size)
    assert image.dtype == label.dtype == np.uint8
    assert image.flags.c_contiguous
    assert set(np.unique(label).tolist()) <= {*range(K), IGNORED}


@pytest.mark.parametrize(
    ("size", "seed", "split", "index", "digest"),
    [
        (128, 0, "train", 0, "925e1beb4f074865"),
        (128, 0, "val", 0, "a37ebd7442f609e2"),
        (64, 7, "train", 31, "7c56a4cf1f5dda3f"),
        (33, -1, "test", 2, "e3fd488b2307a379"),
    ],
)
def test_scenes_never_change(size: int, seed: int, split: str, index: int, digest: str) -> None:
    assert _digest(BuiltinScenes(index + 1, size, seed, split), index) == digest


def test_a_scene_does_not_depend_on_count_order_or_who_read_it_before() -> None:
    few, many = BuiltinScenes(3, 48, 1, "train"), BuiltinScenes(20, 48, 1, "train")
    forwards = [_digest(few, index) for index in (0, 1, 2)]
    assert [_digest(many, index) for index in (2, 0, 1)] == [forwards[2], forwards[0], forwards[1]]
    image, label = few.read(0)
    image[:] = 0
    label[:] = 0
    assert _digest(few, 0) == forwards[0]


def test_splits_and_seeds_share_no_scene() -> None:
    digests = {
        _digest(BuiltinScenes(8, 32, seed, split), index)
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for index in range(8)
    }
    assert len(digests) == 2 * 3 * 8


def test_scenes_name_themselves_and_their_classes() -> None:
    scenes = BuiltinScenes(12, 32, 0, "val")
    assert len(scenes) == len(scenes.names) == len(set(scenes.names)) == 12
    assert scenes.classes.num_classes == K
    assert len(set(scenes.classes.palette)) == K
    with pytest.raises(IndexError):
        scenes.read(12)


@pytest.mark.parametrize(("count", "size"), [(0, 128), (4, 31)])
def test_impossible_sets_are_refused(count: int, size: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 and 32"):
        BuiltinScenes(count, size, 0, "train")


def test_every_class_is_common_and_borders_are_thin(train: tuple[np.ndarray, np.ndarray]) -> None:
    label = train[1]
    present = np.array([(label == kind).any(axis=(1, 2)).mean() for kind in range(K)])
    share = np.bincount(label.ravel(), minlength=256) / label.size
    assert (present > 0.3).all(), present
    assert (share[:K] > 0.015).all(), share[:K]
    assert 0.01 < share[IGNORED] < 0.06
    assert (label == IGNORED).any(axis=(1, 2)).mean() > 0.7


def test_neither_the_mean_colour_nor_a_colour_histogram_tells_the_classes_apart(
    train: tuple[np.ndarray, np.ndarray],
) -> None:
    image, label = train
    unseen, truth = _read_all(BuiltinScenes(20, 128, 0, "val"))
    valid = label != IGNORED

    means = np.stack([image[label == kind].mean(0) for kind in range(K)]).astype(np.float32)
    distance = np.stack([((unseen - mean) ** 2).sum(-1) for mean in means])
    assert _mean_iou(distance.argmin(0), truth) < 0.25

    def bins(picture: np.ndarray) -> np.ndarray:
        part = (picture >> 4).astype(int)
        return (part[..., 0] * 16 + part[..., 1]) * 16 + part[..., 2]

    counts = np.bincount(bins(image)[valid] * K + label[valid], minlength=4096 * K).reshape(4096, K)
    assert _mean_iou(counts.argmax(1)[bins(unseen)], truth) < 0.3
    balanced = counts / counts.sum(0)
    assert _mean_iou(balanced.argmax(1)[bins(unseen)], truth) < 0.3


def test_a_scene_is_drawn_fast_and_a_second_reading_faster() -> None:
    scenes = BuiltinScenes(20, 128, 3, "train")
    first = _seconds(scenes)
    assert first / 20 < 0.05, "a scene takes 2 to 3 ms on one core; 50 ms is far off"
    assert _seconds(scenes) < first / 3


def _seconds(scenes: BuiltinScenes) -> float:
    start = time.perf_counter()
    for index in range(len(scenes)):
        scenes.read(index)
    return time.perf_counter() - start
