"""Class frequencies, and the weights and shares that are made of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr_fast.data.frequencies import (
    Frequencies,
    class_frequencies,
    enet_weights,
    frequency_table,
    median_frequency_weights,
    rare_class_shares,
    split_frequencies,
)
from setr_fast.data.options import DataConfig
from setr_fast.data.source import open_source
from setr_fast.errors import ConfigError, DataError

MASKS = {
    "a": np.array([[0, 0, 0, 0], [0, 0, 1, 1]]),
    "b": np.array([[0, 0, 255, 255], [2, 0, 0, 255]]),
    "c": np.array([[1, 0, 0, 0], [0, 0, 0, 0]]),
}


@pytest.fixture
def folder(tmp_path: Path) -> DataConfig:
    """Three pictures of 4 x 2 pixels with classes 0, 1, 2, and a class 3 that nothing shows."""
    for name, mask in MASKS.items():
        for place, content in (("images", np.zeros((2, 4, 3), np.uint8)), ("masks", mask.astype(np.uint8))):
            path = tmp_path / "train" / place / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    (tmp_path / "classes.csv").write_text("id,name\n0,ground\n1,wall\n2,pole\n3,sky\n")
    return DataConfig(root=tmp_path)


def test_pixels_are_counted_without_ignored_ones(folder: DataConfig) -> None:
    found = split_frequencies(folder)
    np.testing.assert_array_equal(found.pixels, [[6, 2, 0, 0], [4, 0, 1, 0], [7, 1, 0, 0]])
    np.testing.assert_array_equal(found.pictures, [3, 2, 1, 0])
    np.testing.assert_allclose(found.shares, np.array([17, 3, 1, 0]) / 21)
    np.testing.assert_allclose(found.shares_where_present, [17 / 21, 3 / 16, 1 / 5, math.nan])


def test_weights_follow_the_published_formulas(folder: DataConfig) -> None:
    found = split_frequencies(folder)
    # The median of 17/21, 3/16 and 1/5 is 1/5; the class that nothing shows has no say in it.
    assert median_frequency_weights(found) == pytest.approx([0.2 * 21 / 17, 0.2 * 16 / 3, 1.0, 1.0])
    assert enet_weights(found) == pytest.approx([1 / math.log(1.02 + n / 21) for n in (17, 3, 1, 0)])


def test_rare_classes_are_drawn_by_the_softmax_of_their_absence(folder: DataConfig) -> None:
    shares = rare_class_shares(split_frequencies(folder), temperature=0.1)
    raw = np.exp((1 - np.array([17, 3, 1]) / 21) / 0.1)
    np.testing.assert_allclose(shares, [*(raw / raw.sum()), 0.0])
    sharp = rare_class_shares(split_frequencies(folder), temperature=1e-4)
    np.testing.assert_allclose(sharp, [0, 0, 1, 0], atol=1e-12)


def test_some_pictures_alone_and_progress(folder: DataConfig) -> None:
    seen: list[tuple[int, int]] = []
    found = class_frequencies(open_source(folder, "train"), lambda done, of: seen.append((done, of)), [2, 0])
    np.testing.assert_array_equal(found.pixels[:, 1], [1, 2])
    assert seen == [(1, 2), (2, 2)]


def test_built_in_scenes_are_counted_too() -> None:
    config = DataConfig(builtin_train=3, builtin_size=32)
    found = split_frequencies(config)
    assert found.pixels.sum() == sum(np.sum(open_source(config, "train").read(i)[1] != 255) for i in range(3))


def test_table_has_a_line_per_class(folder: DataConfig) -> None:
    lines = frequency_table(split_frequencies(folder))
    assert len(lines) == 5
    assert lines[2].split() == ["wall", "14.286", "2", "1.0667", f"{1 / math.log(1.02 + 3 / 21):.4f}"]


def test_nothing_labelled_and_bad_constants_are_refused() -> None:
    nothing = Frequencies(("a", "b"), np.zeros((2, 2), np.int64))
    for weigh in (median_frequency_weights, enet_weights, rare_class_shares):
        with pytest.raises(DataError, match="ignored ones only"):
            weigh(nothing)
    with pytest.raises(ConfigError, match=r"above 1, got 1\.0"):
        enet_weights(Frequencies(("a",), np.ones((1, 1), np.int64)), 1.0)
    with pytest.raises(ConfigError, match="positive"):
        rare_class_shares(Frequencies(("a",), np.ones((1, 1), np.int64)), 0.0)
