"""Rare-class sampling: how often each class comes, and that the place alone decides."""

from __future__ import annotations

import numpy as np
import pytest

from setr_fast.data.balance import RareClassSource
from setr_fast.data.frequencies import class_frequencies, rare_class_shares
from setr_fast.data.loader import train_batches
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.data.source import open_source
from setr_fast.data.transforms import TrainTransform


@pytest.fixture(scope="module")
def balanced() -> RareClassSource:
    source = open_source(DataConfig(builtin_train=24, builtin_size=32), "train")
    return RareClassSource(source, class_frequencies(source), temperature=0.05)


def test_pictures_come_as_often_as_the_shares_say(balanced: RareClassSource) -> None:
    frequencies = class_frequencies(balanced.source)
    shares, shown = rare_class_shares(frequencies, 0.05), frequencies.pixels > 0
    wanted = (shown * (shares / np.maximum(shown.sum(0), 1))).sum(1)
    count = 6000
    drawn = np.bincount([balanced.at(0, 0, place) % 24 for place in range(count)], minlength=24) / count
    assert wanted.max() > 1.5 / 24, "the scenes must differ for this test to say anything"
    np.testing.assert_allclose(drawn, wanted, atol=4 * np.sqrt(wanted.max() / count))


def test_place_seed_and_epoch_decide(balanced: RareClassSource) -> None:
    first = [balanced.at(1, 2, place) for place in range(50)]
    assert first == [balanced.at(1, 2, place) for place in range(50)]
    assert first != [balanced.at(2, 2, place) for place in range(50)]
    assert first != [balanced.at(1, 3, place) for place in range(50)]
    assert len(set(first)) == 50, "each place has a number of its own"


def test_a_picture_that_comes_twice_is_changed_differently(balanced: RareClassSource) -> None:
    transform = TrainTransform(AugmentConfig(crop=(16, 16)), (0.0,) * 3, (1.0,) * 3)
    batches = list(train_batches(balanced, transform, batch_size=12, seed=0, first_step=0, last_step=4))
    names = [name for batch in batches for name in batch.names]
    images = [image for batch in batches for image in batch.image]
    assert len(set(names)) < len(names)
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    later = next(iter(train_batches(balanced, transform, batch_size=12, seed=0, first_step=3, last_step=4)))
    assert later.names == batches[3].names
    assert later.image.equal(batches[3].image)
