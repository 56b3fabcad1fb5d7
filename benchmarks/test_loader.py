"""A row per side: decoded pictures to training crops, on one core, by the fused ops and as others write it.

Crops of 512 pixels from pictures of 512, resized by 0.5 to 2: the recipe of ADE20K. Every timed crop is compared with
OpenCV's of the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.harness import granted, least, undisturbed
from benchmarks.outcome_rows import rows_of_times
from benchmarks.plain_augment import PlainTransform, with_opencv, with_pillow
from benchmarks.rows import Parity
from setr_fast.data.loader import stream
from setr_fast.data.options import AugmentConfig
from setr_fast.data.scenes.builtin import BuiltinScenes
from setr_fast.data.transforms import TrainTransform
from setr_fast.measure import LEAST, clocked, in_turns

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PICTURES, VALUES = 16, 3
FUSED, OPENCV, PILLOW = "fused", "opencv", "pillow and numpy"
Crops = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _levels(image: Tensor) -> Tensor:
    """Return a crop as levels 0..255 again."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return image * std + mean


def _fault(name: str, crops: Crops, oracle: Crops) -> tuple[float, float, str]:
    """Return how far a side's crops are from OpenCV's, how far they may be, and what is wrong beyond that.

    The fused ops and OpenCV: the share of values that differ, since OpenCV rounds otherwise at the end of a row.
    Pillow smooths what it makes smaller: mean difference in levels of 255, and it takes a pixel's middle for labels.
    """
    labels = sum(float((a == b).float().mean()) for (_, a), (_, b) in zip(crops, oracle, strict=True)) / len(crops)
    gaps = [(_levels(a) - _levels(b)).abs() for (a, _), (b, _) in zip(crops, oracle, strict=True)]
    if name == PILLOW:
        error, allowed, rule = sum(float(gap.mean()) for gap in gaps) / len(gaps), 2.5, 0.99
    else:
        error, allowed, rule = sum(float((gap > 0.01).float().mean()) for gap in gaps) / len(gaps), 0.005, 1.0
    why = "" if error <= allowed else f"pixels are off by {error:.3g}, may be by {allowed:.3g}"
    return error, allowed, why if labels >= rule else f"{1 - labels:.2%} of the labels are others"


def test_augmentation(benchmark: Any, record: Callable[[Any], None], seed: int) -> None:
    pytest.importorskip("cv2")
    config = AugmentConfig(crop=(512, 512))
    scenes = BuiltinScenes(PICTURES, 512, 0, "train")
    samples = [scenes.read(index) for index in range(PICTURES)]
    transforms: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        FUSED: TrainTransform(config, MEAN, STD),
        OPENCV: PlainTransform(config, MEAN, STD, with_opencv()),
        PILLOW: PlainTransform(config, MEAN, STD, with_pillow()),
    }
    checked = {name: [(0.0, 0.0, "")] for name in transforms}

    def run(name: str, value: int) -> Crops:
        transform = transforms[name]
        return [transform(*sample, stream(seed, value, index)) for index, sample in enumerate(samples)]

    oracle = [run(OPENCV, value) for value in range(VALUES)]

    def sample(name: str, turn: int) -> float:
        crops: Crops = []
        seconds = clocked(lambda: crops.extend(run(name, turn % VALUES)))
        checked[name].append(_fault(name, crops, oracle[turn % VALUES]))
        return seconds

    calls = {name: partial(sample, name) for name in transforms}
    for call in calls.values():
        call(0)
    times = undisturbed(lambda: in_turns(calls, rounds=7, seconds=granted(10.0), least=least(LEAST)))
    parity = {name: _worst(found) for name, found in checked.items()}
    rows = rows_of_times(
        times,
        parity,
        OPENCV,
        kind="loader",
        name="augmentation",
        case=f"512 px to 512 px, {PICTURES} pictures, 1 thread",
        direction="crops",
        dtypes=dict.fromkeys(times, "uint8"),
        size=[PICTURES, 512, 512],
        pictures=PICTURES,
        chosen=FUSED,
    )
    record(rows)
    # Another library's rows are only kept out: where Pillow's labels lead to another window, all of a crop differs.
    assert parity[FUSED].passed, parity[FUSED].why
    benchmark.extra_info.update({row.side: row.images_per_second for row in rows})
    benchmark.pedantic(lambda: run(FUSED, 0), rounds=3)


def _worst(found: list[tuple[float, float, str]]) -> Parity:
    why = next((text for *_, text in found if text), "")
    return Parity(not why, max(error for error, *_ in found), found[-1][1], len(found) - 1, why)


def test_the_comparison_would_see_another_picture() -> None:
    """The parity above has teeth: the next sample's numbers give crops that it refuses."""
    config = AugmentConfig(crop=(64, 64))
    image, label = BuiltinScenes(1, 96, 0, "train").read(0)
    one, other = (TrainTransform(config, MEAN, STD)(image, label, stream(0, 0, index)) for index in (0, 1))
    assert np.isfinite(one[0].numpy()).all()
    for name in (FUSED, OPENCV, PILLOW):
        assert "labels are others" in _fault(name, [one], [other])[2]
        assert "pixels are off" in _fault(name, [(one[0], label)], [(other[0], label)])[2]
        assert not _fault(name, [one], [one])[2]
