"""What the recipes' augmentations draw, family by family, held to the published distributions.

Samples are many and their seeds fixed. A distribution passes where Kolmogorov and Smirnov, or Pearson for counts, would
reject one true sample in a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from setr_fast.config import Config, read_config, recipe_path
from setr_fast.data import transforms
from setr_fast.data.distort import OPERATIONS, distort, distortion
from setr_fast.data.options import AugmentConfig
from setr_fast.data.transforms import TrainTransform, colour_change

MANY = 2000
HEIGHT = 20000
FAMILIES = {
    # family: (a recipe of it, range of ratios, their step, long edge of ratio 1, share of one class, Paddle's amount)
    "mmseg ADE20K": ("SETR_PUP_512x512_160k_ade20k_bs_16", (0.5, 2.0), 0, 2048, 0.75, 0.0),
    "mmseg Cityscapes": ("SETR_MLA_768x768_80k_cityscapes_bs_8", (0.5, 2.0), 0, 2049, 0.75, 0.0),
    "mmseg Pascal Context": ("SETR_PUP_480x480_80k_pascal_context_bs_16", (0.5, 2.0), 0, 520, 0.75, 0.0),
    "Segmenter ADE20K": ("segmenter_mask_vit_s16_ade20k_512_161728", (0.5, 2.0), 0, 2048, 0.75, 0.0),
    "Segmenter ADE20K 640": ("segmenter_mask_vit_l16_ade20k_640_161728", (0.5, 2.0), 0, 2560, 0.75, 0.0),
    "Segmenter Cityscapes": ("segmenter_mask_vit_l16_cityscapes_768_80352", (0.5, 2.0), 0, 2048, 0.75, 0.0),
    "Segmenter Pascal Context": ("segmenter_mask_vit_l16_pascal_context_480_80128", (0.5, 2.0), 0, 4160, 0.75, 0.0),
    "PaddleSeg SETR": ("setr_pup_large_cityscapes_769x769_40k", (0.25, 2.0), 0.25, None, 1.0, 0.5),
    "PaddleSeg Segmenter": ("segmenter_vit_base_mask_ade20k_512x512_160k", (0.5, 2.0), 0.25, None, 1.0, 0.4),
    "PaddleViT SETR": ("SETR_PUP_Large_512x512_160k_ade20k_bs_16", (0.5, 2.0), 0, None, 1.0, 0.4),
}


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def assert_uniform(values: Sequence[float], low: float, high: float, grain: float = 0.0) -> None:
    """Kolmogorov and Smirnov against the uniform distribution; ``grain``: distance of values that were rounded."""
    placed = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    assert -1e-9 <= placed[0] <= placed[-1] <= 1 + 1e-9
    steps = np.arange(1, len(placed) + 1) / len(placed)
    distance = max(np.max(steps - placed), np.max(placed - steps + 1 / len(placed)))
    assert distance < 1.95 / np.sqrt(len(placed)) + grain / (high - low), distance


def assert_shares(counts: Sequence[int], shares: Sequence[float]) -> None:
    """Pearson's test of counts against shares; the limit is Wilson and Hilferty's, at one in a thousand."""
    counts, expected = np.asarray(counts), np.asarray(shares) * np.sum(counts)
    freedom = len(counts) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert np.sum((counts - expected) ** 2 / expected) < limit, counts


@dataclass(frozen=True)
class Seen:
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    windows: int
    """How many windows were looked at."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[AugmentConfig, NDArray[np.uint8], int], list[Seen]]:
    """Return a function that transforms a sample many times, and lists what was asked of the operations."""

    def run(config: AugmentConfig, label: NDArray[np.uint8], times: int) -> list[Seen]:
        seen, looked = [], [0]
        real = transforms.augment_label

        def windows(label: Tensor, size: Any, offset: Any, crop: Any, *rest: Any) -> Tensor:
            looked[0] += 1
            return real(label, size, offset, crop, *rest) if label.shape[0] < HEIGHT else torch.zeros(1)

        def note(image: Tensor, size: Any, offset: Any, crop: Any, flip: bool, *rest: Any) -> Tensor:
            seen.append(Seen(size, offset, flip, looked[0]))
            looked[0] = 0
            return torch.zeros(3, 1, 1)

        monkeypatch.setattr(transforms, "augment_label", windows)
        monkeypatch.setattr(transforms, "augment_image", note)
        transform = TrainTransform(replace(config, distort=0.0), (0.0,) * 3, (1.0,) * 3)
        image, draws = np.zeros((*label.shape, 3), np.uint8), rng()
        for _ in range(times):
            transform(image, label, draws)
        return seen

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_window_and_flip(family: str, watch: Callable[..., list[Seen]]) -> None:
    name, span, step, edge, share, amount = FAMILIES[family]
    config = read_config(recipe_path(name), Config()).augment
    assert (config.cat_max_ratio, config.distort, config.flip) == (share, amount, 0.5)
    side = config.crop[0]
    config = replace(config, crop=(64, 64), cat_max_ratio=1.0)  # windows of one class are the next test's subject
    seen = watch(config, np.zeros((HEIGHT, 4), np.uint8), MANY)
    ratios = np.array([one.size[0] for one in seen]) / (edge or HEIGHT)
    if step:
        steps = np.rint((ratios - span[0]) / step).astype(int)
        assert np.abs(span[0] + steps * step - ratios).max() < 1e-4
        count = round((span[1] - span[0]) / step) + 1
        assert_shares(np.bincount(steps, minlength=count), [1 / count] * count)
    else:
        assert_uniform(ratios, *span, grain=1 / (edge or HEIGHT))
    flips = np.array([one.flip for one in seen])
    assert_shares(np.bincount(flips), [0.5, 0.5])
    margin = np.array([one.size[0] - 64 for one in seen])
    offsets = np.array([one.offset[0] for one in seen])
    assert ((offsets >= 0) & (offsets <= margin)).all()
    assert_uniform((offsets + 0.5) / (margin + 1), 0, 1, grain=1 / margin.min())
    assert {one.offset[1] for one in seen} == {0}, "the picture is at most as wide as the crop"
    together = np.corrcoef([ratios, flips, offsets / margin])
    assert np.abs(together - np.eye(3)).max() < 3.3 / np.sqrt(MANY), "none says anything of another"
    assert side in (480, 512, 640, 768, 769)


def test_every_offset_of_a_small_margin_is_as_likely(watch: Callable[..., list[Seen]]) -> None:
    """Random integers of both languages leave the upper bound out; the margin itself must be among the offsets."""
    config = AugmentConfig(crop=(8, 8), ratio_range=(1.0, 1.0), cat_max_ratio=1.0)
    seen = watch(config, np.zeros((11, 9), np.uint8), MANY)
    pairs = [one.offset[0] * 2 + one.offset[1] for one in seen]
    assert_shares(np.bincount(pairs, minlength=8), [1 / 8] * 8)


def test_windows_are_drawn_again_as_often_as_the_rule_says(watch: Callable[..., list[Seen]]) -> None:
    """The share of windows that pass is counted by hand; then the number of draws is geometric, and ends at eleven."""
    label = np.zeros((24, 24), np.uint8)
    label[:, 16:], label[:3] = 1, 255
    config = AugmentConfig(crop=(12, 12), ratio_range=(1.0, 1.0), cat_max_ratio=0.75)
    good = 0
    for top in range(13):
        for left in range(13):
            counts = np.bincount(label[top : top + 12, left : left + 12].ravel(), minlength=256)[:255]
            good += np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < 0.75
    passing = good / 13**2
    assert 0.2 < passing < 0.8
    tries = np.bincount([one.windows for one in watch(config, label, MANY)], minlength=12)[1:]
    shares = passing * (1 - passing) ** np.arange(11)
    shares[10] = (1 - passing) ** 10  # the tenth redraw is taken as it comes
    assert_shares([*tries[:6], tries[6:].sum()], [*shares[:6], shares[6:].sum()])
    assert len(tries) == 11


def test_colours_of_mmsegmentation() -> None:
    changes = [colour_change(draws) for draws in rng().random((MANY, 9)).tolist()]
    # Brightness 1/2, contrast 1/4 before and 1/4 after, saturation 1/2, hue 1/2 (one turn in 36 is by nothing).
    kinds = [8 * (c.pre is None) + 4 * (c.post is None) + 2 * (c.saturation is None) + (c.hue == 0) for c in changes]
    turned = 0.5 * 35 / 36
    contrast = {(False, False): 0.125, (False, True): 0.5, (True, False): 0.125, (True, True): 0.25}
    shares = [
        contrast[before, after] * 0.5 * (1 - turned if still else turned)
        for before in (False, True)
        for after in (False, True)
        for _ in (False, True)
        for still in (False, True)
    ]
    assert_shares(np.bincount(kinds, minlength=16), shares)
    assert_shares(np.bincount([c.hue + 18 for c in changes if c.hue], minlength=36)[np.arange(36) != 18], [1 / 35] * 35)
    saturations = [int(c.saturation[100]) + 0.5 for c in changes if c.saturation is not None]
    assert_uniform(saturations, 50, 150, grain=1)
    contrasts = [int(c.post[100]) + 0.5 for c in changes if c.post is not None]
    assert_uniform(contrasts, 50, 150, grain=1)
    shifts = [int(c.pre[128]) + 0.5 for c in changes if c.pre is not None and int(c.pre[160]) - int(c.pre[96]) == 64]
    assert_uniform(shifts, 96, 160, grain=1)


@pytest.mark.parametrize("amount", [0.4, 0.5])
def test_colours_of_paddle(amount: float) -> None:
    drawn = [distortion(draws, amount) for draws in rng().random((2 * MANY, 9)).tolist()]
    kinds = [sum(2 ** OPERATIONS.index(name) for name, _ in changes) for changes in drawn]
    assert_shares(np.bincount(kinds, minlength=16), [1 / 16] * 16)
    for name in OPERATIONS:
        values = [value for changes in drawn for other, value in changes if other == name]
        assert_uniform(values, *((-18, 18) if name == "hue" else (1 - amount, 1 + amount)))
    orders = [tuple(OPERATIONS.index(name) for name, _ in changes) for changes in drawn if len(changes) == 4]
    found = {order: orders.count(order) for order in set(orders)}
    assert_shares(list(found.values()), [1 / 24] * 24)


def test_steps_of_paddle_on_pixels() -> None:
    pixels = rng().integers(0, 256, (6, 8, 3), np.uint8)
    exact = pixels.astype(np.float64)
    grey = (exact @ [19595, 38470, 7471] + 0x8000) // 0x10000
    wanted = {
        "brightness": (0.7, exact * 0.7),
        "contrast": (1.3, int(grey.mean() + 0.5) * -0.3 + exact * 1.3),
        "saturation": (0.6, grey[..., None] * 0.4 + exact * 0.6),
    }
    for name, (factor, want) in wanted.items():
        assert np.abs(distort(pixels, [(name, factor)]) - np.clip(want, 0, 255)).max() <= 1, name
    twice = distort(distort(pixels, [("saturation", 0.6)]), [("contrast", 1.3)])
    np.testing.assert_array_equal(distort(pixels, [("saturation", 0.6), ("contrast", 1.3)]), twice)
    hsv = np.array(Image.fromarray(pixels).convert("HSV")).astype(int)
    turned = np.array(Image.fromarray(distort(pixels, [("hue", -17.9)])).convert("HSV")).astype(int)
    strong = (hsv[..., 1] > 120) & (hsv[..., 2] > 120)
    away = (turned[..., 0] - hsv[..., 0] + 17 + 128) % 256 - 128
    assert strong.sum() > 5
    assert np.abs(away[strong]).max() <= 3, "HSV of eight bits there and back"


def test_paddle_pads_with_the_mean_and_distorts_this_too() -> None:
    config = AugmentConfig(crop=(40, 40), ratio_range=(1.0, 1.0), flip=0.0, distort=0.5)
    image, label = rng(1).integers(0, 256, (30, 20, 3), np.uint8), np.zeros((30, 20), np.uint8)
    transform = TrainTransform(config, (127.5,) * 3, (127.5,) * 3)
    padded = np.full((40, 40, 3), 127, np.uint8)
    padded[:30, :20] = image
    for seed in range(6):
        pixels, labels = transform(image, label, rng(seed))
        changed = distort(padded, distortion(rng(seed).random(33).tolist()[24:], 0.5))
        np.testing.assert_allclose(pixels.numpy().transpose(1, 2, 0), (changed - 127.5) / 127.5, atol=1e-6)
        assert (labels[30:] == 255).all()
    four = TrainTransform(config, (127.5,) * 3 + (10.0,), (127.5,) * 3 + (2.0,))
    pixels, _ = four(np.concatenate([image, np.full((30, 20, 1), 30, np.uint8)], -1), label, rng(5))
    assert (pixels[3, :30, :20] == 10).all()
    assert (pixels[3, 30:] == 0).all()
