"""The changes to a training sample: ranges, mmsegmentation's rules, and picture and labels that stay together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from setr_fast.data import transforms
from setr_fast.data.options import AugmentConfig
from setr_fast.data.transforms import NUM_DRAWS, ColourChange, TrainTransform, colour_change, resized_size
from setr_fast.errors import ShapeError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""Statistics that leave the byte values as they are."""


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _sample(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = _rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 5, (height, width), np.uint8)


@pytest.mark.parametrize("shape", [(512, 683), (1024, 2048), (375, 500), (500, 375), (3, 2000), (1, 1)])
@pytest.mark.parametrize("scale", [(2048, 512), (520, 520), (2049, 1025), (4160, 520)])
@pytest.mark.parametrize("ratio", [0.5, 0.731, 1.0, 1.999])
def test_base_scale_follows_the_keep_ratio_rule(shape: tuple[int, int], scale: tuple[int, int], ratio: float) -> None:
    height, width = shape
    long_edge, short_edge = int(scale[0] * ratio), int(scale[1] * ratio)
    factor = min(long_edge / max(shape), short_edge / min(shape))
    expected = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    assert resized_size(height, width, ratio, scale) == expected
    assert max(expected) <= long_edge + 1
    assert resized_size(width, height, ratio, scale) == expected[::-1]


def test_base_scale_gives_the_published_test_sizes() -> None:
    assert resized_size(1024, 2048, 1.0, (2049, 1025)) == (1025, 2049)
    assert resized_size(512, 683, 1.0, (2048, 512)) == (512, 683)
    assert resized_size(375, 500, 1.0, (520, 520)) == (390, 520)


def test_without_base_scale_the_sides_are_multiplied_and_never_vanish() -> None:
    assert resized_size(101, 55, 1.5) == (152, 83)
    assert resized_size(7, 3, 0.5) == (4, 2)
    assert resized_size(2, 1, 0.1) == (1, 1)


@dataclass
class _Seen:
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    colours: ColourChange


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[_Seen]]:
    """Return a function that transforms a sample many times and lists what the image operation was asked for."""

    def run(config: AugmentConfig, image: np.ndarray, label: np.ndarray, times: int) -> list[_Seen]:
        seen: list[_Seen] = []

        def note(
            picture: Tensor, size: Any, offset: Any, crop: Any, flip: bool,
            pre: Any, saturation: Any, hue: int, post: Any, normalise: Tensor,
        ) -> Tensor:  # fmt: skip
            seen.append(_Seen(size, offset, flip, ColourChange(pre, saturation, hue, post)))
            return torch.zeros(3, *crop)

        monkeypatch.setattr(transforms, "augment_image", note)
        transform = TrainTransform(config, MEAN, STD)
        rng = _rng(11)
        for _ in range(times):
            transform(image, label, rng)
        monkeypatch.undo()
        return seen

    return run


def test_no_change_is_asked_for_where_none_is_wanted(watch: Callable[..., list[_Seen]]) -> None:
    config = AugmentConfig(crop=(8, 8), ratio_range=(1.0, 1.0), flip=0.0, photometric=False)
    for one in watch(config, *_sample(8, 8), 20):
        assert one == _Seen((8, 8), (0, 0), False, ColourChange())


def _distorted(pixels: np.ndarray, draws: list[float], hsv: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what PhotoMetricDistortion does step by step to the pixels themselves; ``hsv`` does both middle steps."""

    def convert(values: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    brightness, delta, mode, contrast, gain = draws[:5]
    if brightness < 0.5:
        pixels = convert(pixels, beta=-32 + 64 * delta)
    if mode >= 0.5 and contrast < 0.5:
        pixels = convert(pixels, alpha=0.5 + gain)
    pixels = hsv(pixels)
    if mode < 0.5 and contrast < 0.5:
        pixels = convert(pixels, alpha=0.5 + gain)
    return pixels


def _looked_up(pixels: np.ndarray, table: Tensor | None) -> np.ndarray:
    return pixels if table is None else table.numpy()[pixels]


def test_brightness_and_contrast_tables_equal_the_steps_on_pixels() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    rng = _rng(3)
    orders = set()
    for _ in range(300):
        draws = rng.random(9).tolist()
        change = colour_change(draws)
        orders.add((change.pre is None, change.post is None))
        middle = rng.permutation(256).astype(np.uint8)  # any change of colour between the two
        expected = _distorted(pixels, draws, lambda values, table=middle: table[values])
        actual = _looked_up(middle[_looked_up(pixels, change.pre)], change.post)
        np.testing.assert_array_equal(actual, expected)
    assert len(orders) == 4


def test_fractions_are_dropped_after_every_step() -> None:
    #                          brightness +0.6   before  contrast x1.5
    change = colour_change([0.0, 0.5 + 0.6 / 64, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert change.pre is not None
    assert change.pre[:4].tolist() == [0, 1, 3, 4], "0.6 is dropped first, then a half"
    assert int(change.pre[255]) == 255
    assert (change.saturation, change.hue, change.post) == (None, 0, None)


def test_whole_colour_change_equals_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    shape = (32, 64)  # cv2 rounds differently in the last pixels of a row that do not fill a vector
    config = AugmentConfig(crop=shape, ratio_range=(1.0, 1.0), flip=0.0)
    image, label = _sample(*shape)
    transform = TrainTransform(config, **PLAIN)
    for seed in range(40):
        draws = _rng(seed).random(NUM_DRAWS).tolist()[24:]
        strength, turn = draws[6], int(36 * draws[8]) - 18

        def hsv(pixels: np.ndarray, draws: list[float] = draws, gain: float = 0.5 + strength, turn: int = turn) -> Any:
            if draws[5] >= 0.5 and draws[7] >= 0.5:
                return pixels
            planes = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
            if draws[5] < 0.5:
                planes[..., 1] = np.clip(planes[..., 1].astype(np.float32) * gain, 0, 255).astype(np.uint8)
            if draws[7] < 0.5:
                planes[..., 0] = (planes[..., 0].astype(int) + turn) % 180
            return cv2.cvtColor(planes, cv2.COLOR_HSV2RGB)

        if draws[7] < 0.5 and turn == 0 and draws[5] >= 0.5:
            continue  # a hue turned by nothing is left alone here, and goes to HSV and back there
        pixels, _ = transform(image, label, _rng(seed))
        np.testing.assert_array_equal(pixels.numpy().transpose(1, 2, 0), _distorted(image, draws, hsv))


def test_values_are_normalised_by_channel() -> None:
    table = transforms.normalise_table(MEAN, STD)
    assert table.shape == (3, 256)
    assert table.dtype == torch.float32
    for channel in range(3):
        for value in (0, 1, 127, 255):
            assert float(table[channel, value]) == np.float32((value - MEAN[channel]) / STD[channel])


def test_same_number_of_draws_whatever_happens() -> None:
    for config in (AugmentConfig(crop=(9, 9)), AugmentConfig(crop=(64, 64), flip=0.0, photometric=False)):
        for sample in (_sample(30, 20), (np.zeros((30, 20, 3), np.uint8), np.zeros((30, 20), np.uint8))):
            used, expected = _rng(5), _rng(5)
            TrainTransform(config, MEAN, STD)(*sample, used)
            expected.random(NUM_DRAWS)
            assert used.bit_generator.random_raw() == expected.bit_generator.random_raw()


def test_picture_and_labels_stay_together_pixel_by_pixel() -> None:
    image, label = _sample(30, 40)
    image[..., 0] = label  # the labels ride along in the red channel
    config = AugmentConfig(crop=(16, 48), ratio_range=(1.0, 1.0), photometric=False)
    flips = set()
    for seed in range(12):
        pixels, labels = TrainTransform(config, **PLAIN)(image, label, _rng(seed))
        assert pixels.shape == (3, 16, 48)
        assert pixels.dtype == torch.float32
        assert labels.shape == (16, 48)
        assert labels.dtype == torch.uint8
        assert torch.equal(pixels[0, :, :40], labels[:, :40].float())
        assert (pixels[:, :, 40:] == 0).all()
        assert (labels[:, 40:] == 255).all()
        flips.add(_rng(seed).random(NUM_DRAWS)[23] < 0.5)
    assert flips == {True, False}


def test_marker_lands_where_the_draws_say() -> None:
    image, label = np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), np.uint8)
    image[14, 19], label[14, 19] = 200, 3
    config = AugmentConfig(crop=(24, 36), ratio_range=(1.0, 1.0), cat_max_ratio=1.0, photometric=False)
    for seed in range(8):
        draws = _rng(seed).random(NUM_DRAWS)
        row, column = 14 - int(draws[1] * 7), 19 - int(draws[2] * 5)
        if draws[23] < 0.5:
            column = 35 - column
        pixels, labels = TrainTransform(config, **PLAIN)(image, label, _rng(seed))
        assert (labels == 3).nonzero().tolist() == [[row, column]]
        assert (pixels[0] == 200).nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("ratio", [0.6, 1.7])
def test_edges_stay_together_when_resized(ratio: float) -> None:
    image, label = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    image[20:50, 30:70], label[20:50, 30:70] = 255, 1
    config = AugmentConfig(crop=(110, 110), ratio_range=(ratio, ratio), photometric=False)
    for seed in range(6):
        pixels, labels = TrainTransform(config, **PLAIN)(image, label, _rng(seed))
        valid = labels != 255
        assert (valid.sum(0) > 0).sum() == min(round(80 * ratio), 110)
        agree = (pixels[0] > 127) == (labels == 1)
        assert agree[valid].float().mean() > 0.97


def test_crop_is_redrawn_until_no_class_fills_it() -> None:
    image, label = _sample(60, 60)
    label[:] = 0
    label[:, 48:] = 1
    label[:6] = 255
    config = AugmentConfig(crop=(20, 20), ratio_range=(1.0, 1.0), flip=0.0, photometric=False)
    attempts = set()
    for seed in range(40):
        draws = _rng(seed).random(NUM_DRAWS)
        for attempt in range(11):
            row, column = (int(value * 41) for value in draws[1 + 2 * attempt : 3 + 2 * attempt])
            window = label[row : row + 20, column : column + 20]
            classes, counts = np.unique(window[window != 255], return_counts=True)
            if len(classes) > 1 and counts.max() / counts.sum() < 0.75:
                break
        attempts.add(attempt)
        _, labels = TrainTransform(config, **PLAIN)(image, label, _rng(seed))
        np.testing.assert_array_equal(labels.numpy(), window)
    assert {0, 1} <= attempts
    assert max(attempts) > 2


@pytest.mark.parametrize("value", [0, 255])
def test_last_redraw_is_taken_as_it_comes(watch: Callable[..., list[_Seen]], value: int) -> None:
    config = AugmentConfig(crop=(20, 20), ratio_range=(1.0, 1.0))
    image, _ = _sample(60, 60)
    seen = watch(config, image, np.full((60, 60), value, np.uint8), 3)
    rng = _rng(11)
    for one in seen:
        draws = rng.random(NUM_DRAWS)
        assert one.offset == (int(draws[21] * 41), int(draws[22] * 41))


@pytest.mark.filterwarnings("error")
def test_samples_may_be_read_only_views_and_are_left_alone() -> None:
    image, label = _sample(64, 64)
    before = image.copy(), label.copy()
    views = image[::2, ::-1], label[::2, ::-1]
    copies = np.ascontiguousarray(views[0]), np.ascontiguousarray(views[1])
    for view in views:
        view.setflags(write=False)
    transform = TrainTransform(AugmentConfig(crop=(24, 24)), MEAN, STD)
    for actual, expected in zip(transform(*views, _rng(2)), transform(*copies, _rng(2)), strict=True):
        assert torch.equal(actual, expected)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


@pytest.mark.parametrize("shape", [(8, 9), (9, 8, 1), (9,)])
def test_labels_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    transform = TrainTransform(AugmentConfig(crop=(8, 8)), MEAN, STD)
    with pytest.raises(ShapeError, match=r"image and label must be \[H, W, 3\]"):
        transform(np.zeros((9, 8, 3), np.uint8), np.zeros(shape, np.uint8), _rng())
