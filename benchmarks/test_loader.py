"""A row per side: decoded pictures to training crops, on one core, by the fused ops and as others write it.

Crops of 512 pixels from pictures of 512, resized by 0.5 to 2: the recipe of ADE20K. Every timed crop is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.harness import interleaved, quantiles, ratio
from benchmarks.plain_augment import PlainTransform, with_opencv, with_pillow
from setr_fast.data.loader import stream
from setr_fast.data.options import AugmentConfig
from setr_fast.data.scenes.builtin import BuiltinScenes
from setr_fast.data.transforms import TrainTransform

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PICTURES = 16


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _levels(crops: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return crops as levels 0..255 again."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return torch.stack([image * std + mean for image, _ in crops])


def test_augmentation(benchmark: Any, record: Callable[[dict[str, Any]], None]) -> None:
    pytest.importorskip("cv2")
    config = AugmentConfig(crop=(512, 512))
    scenes = BuiltinScenes(PICTURES, 512, 0, "train")
    samples = [scenes.read(index) for index in range(PICTURES)]
    transforms: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "fused": TrainTransform(config, MEAN, STD),
        "opencv": PlainTransform(config, MEAN, STD, with_opencv()),
        "pillow and numpy": PlainTransform(config, MEAN, STD, with_pillow()),
    }
    crops: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in transforms}

    def run(name: str) -> None:
        crops[name].clear()
        for index, (image, label) in enumerate(samples):
            crops[name].append(transforms[name](image, label, stream(0, 0, index)))

    times = interleaved({name: (lambda name=name: run(name)) for name in transforms}, rounds=7, seconds=20)  # type: ignore[misc]
    fused, labels = _levels(crops["fused"]), torch.stack([label for _, label in crops["fused"]])
    gaps = {name: (_levels(crops[name]) - fused).abs() for name in transforms if name != "fused"}
    for name in gaps:
        other = torch.stack([label for _, label in crops[name]])
        rule = 1.0 if name == "opencv" else 0.99  # Pillow takes the pixel's middle, OpenCV its corner
        assert float((other == labels).float().mean()) >= rule, f"{name}: other labels"
    assert float((gaps["opencv"] > 0.01).float().mean()) < 0.005, "OpenCV rounds otherwise at the end of a row"
    assert float(gaps["pillow and numpy"].mean()) < 2.5, "Pillow smooths what it makes smaller; levels of 255"
    benchmark.pedantic(lambda: run("fused"), rounds=3)
    median = {name: quantiles(values)["median"] for name, values in times.items()}
    for name, values in times.items():
        record(
            {
                "kind": "loader",
                "name": "augmentation",
                "case": f"512 px to 512 px, {PICTURES} pictures",
                "side": name,
                "seconds": quantiles(values),
                "pictures_per_second_and_core": PICTURES / median[name],
                "fused_ratio": ratio(values, times["fused"]),
                "mean_gap_levels": 0.0 if name == "fused" else float(gaps[name].mean()),
            }
        )
        benchmark.extra_info[name] = round(PICTURES / median[name], 1)


def test_the_comparison_would_see_another_picture() -> None:
    """The parity above has teeth: the next sample's numbers give crops that it refuses."""
    config = AugmentConfig(crop=(64, 64))
    image, label = BuiltinScenes(1, 96, 0, "train").read(0)
    one, other = (TrainTransform(config, MEAN, STD)(image, label, stream(0, 0, index)) for index in (0, 1))
    assert float((_levels([one]) - _levels([other])).abs().mean()) > 2.5
    assert float((one[1] == other[1]).float().mean()) < 0.99
    assert np.isfinite(one[0].numpy()).all()
