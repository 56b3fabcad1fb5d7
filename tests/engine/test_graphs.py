"""Recordings per window size: what is recorded when, how many are kept, and on a GPU that they give the same answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from setr_fast.engine.graphs import Graphs
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.models.model import create_model


class Recorder:
    """Stands for the GPU: remembers what was recorded and replayed, by size."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        self.recorded.append(len(x))

        def replay(x: Tensor) -> Tensor:
            self.replayed.append(len(x))
            return run(x)

        return replay


def test_a_size_is_recorded_when_it_comes_for_the_second_time() -> None:
    recorder = Recorder()
    graphs = Graphs(lambda x: x * 2, record=recorder)
    for _ in range(4):
        torch.testing.assert_close(graphs(torch.ones(3)), torch.full((3,), 2.0))
    assert recorder.recorded == [3]
    assert recorder.replayed == [3, 3, 3]


def test_dtypes_are_sizes_of_their_own() -> None:
    recorder = Recorder()
    graphs = Graphs(lambda x: x + 1, record=recorder)
    for _ in range(2):
        graphs(torch.ones(2))
        graphs(torch.ones(2, dtype=torch.uint8))
    assert recorder.recorded == [2, 2]


def test_few_are_kept_those_used_last() -> None:
    recorder = Recorder()
    graphs = Graphs(lambda x: x, most=2, record=recorder)
    for size in (1, 1, 2, 2, 1, 3, 3):  # 3 takes the place of 2, which was not used since
        graphs(torch.ones(size))
    graphs(torch.ones(1))
    assert recorder.recorded == [1, 2, 3]
    graphs(torch.ones(2))
    assert recorder.recorded == [1, 2, 3, 2]
    assert len(graphs._kept) == 2


def test_ever_new_sizes_record_nothing_and_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setr_fast.engine.graphs.MOST_SIGHTS", 5)
    recorder = Recorder()
    graphs = Graphs(lambda x: x, record=recorder)
    for size in range(1, 20):
        graphs(torch.ones(size))
    assert recorder.recorded == []
    assert len(graphs._seen) <= 5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_windows_have_the_same_classes(precision: str) -> None:
    sizes: dict[str, Any] = {"depth": 2, "taps": (0, 1), "aux_levels": ()}
    model = create_model("setr_pup_vit_t16", num_classes=5, image_size=64, **sizes).eval().cuda()
    rng = np.random.default_rng(0)
    for _ in range(4):
        image = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
        plain = predict(model, image, InferenceConfig(precision=precision))  # type: ignore[arg-type]
        replayed = predict(model, image, InferenceConfig(precision=precision, cuda_graphs=True))  # type: ignore[arg-type]
        assert (plain == replayed).mean() > 0.999
