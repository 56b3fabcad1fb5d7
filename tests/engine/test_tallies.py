"""Evaluations that count more than a confusion matrix: in shares, resumed, over ranks; and one class's probability."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import interpolate

from setr_fast.data.classes import ClassTable
from setr_fast.engine.evaluator import evaluate
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.probability import class_probability
from setr_fast.errors import ConfigError
from setr_fast.metrics import Tally


class Pictures:
    """Five pictures of different sizes with random labels, some ignored."""

    def __init__(self, make_picture) -> None:
        self.classes = ClassTable.numbered(5)
        self._samples = []
        for index in range(5):
            size = 20 + 9 * index, 50 - 7 * index
            label = np.random.default_rng(index).integers(0, 5, size).astype(np.uint8)
            label[:3] = 255
            self._samples.append((make_picture(*size), label))
        self.names = [f"p{index}" for index in range(5)]
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append(index)
        return self._samples[index]


def full() -> Tally:
    return Tally(5, boundary_ratio=0.05, probability_of=2)


def told(tally: Tally) -> list[list]:
    areas, bands = tally.areas, tally.bands
    assert bands is not None
    assert tally.errors is not None
    parts = [tally.confusion, tally.errors, areas.classes, areas.counts, areas.lengths, bands.classes, bands.counts]
    return [tally.pictures, *(part.tolist() for part in parts)]


def test_a_tally_holds_every_picture_and_the_scores_are_its_own(make_model, make_picture):
    model, source, tally = make_model(), Pictures(make_picture), full()
    scores = evaluate(model, source, tally=tally)
    np.testing.assert_array_equal(scores.confusion, tally.confusion)
    np.testing.assert_array_equal(evaluate(model, source).confusion, tally.confusion)
    assert tally.pictures == [0, 1, 2, 3, 4]
    for index in range(5):
        image, label = source.read(index)
        gap = np.abs(class_probability(model, image, 2).astype(np.float64) - (label == 2))[label != 255].mean()
        assert tally.errors[index] == gap


def test_a_resumed_evaluation_reads_only_what_is_missing(make_model, make_picture):
    model, whole = make_model(), full()
    evaluate(model, Pictures(make_picture), tally=whole)
    tally, first, second = full(), Pictures(make_picture), Pictures(make_picture)
    evaluate(model, first, rank=1, world_size=2, tally=tally)
    assert first.reads == tally.pictures == [1, 3]
    evaluate(model, second, tally=tally)
    assert second.reads == [0, 2, 4]
    assert told(tally) == told(whole)


def test_a_tally_of_other_classes_is_refused(make_model, make_picture):
    with pytest.raises(ConfigError, match="the model's 5 classes, got 4"):
        evaluate(make_model(), Pictures(make_picture), tally=Tally(4))


def _rank(rank: int, port: int, model, source, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    tally = full()
    evaluate(model, source, rank=rank, world_size=2, tally=tally)
    results[rank] = told(tally)
    dist.destroy_process_group()


def test_two_processes_end_with_the_tally_of_one(make_model, make_picture):
    model, source, whole = make_model(), Pictures(make_picture), full()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        processes = [context.Process(target=_rank, args=(r, port, model, source, results)) for r in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the processes: scores that nearly tie depend on it
        evaluate(model, source, tally=whole)
        torch.set_num_threads(threads)
        assert dict(results) == {0: told(whole), 1: told(whole)}


@pytest.mark.parametrize("size", [(40, 70), (9, 21), (61, 33)])
@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(mode="whole"),
        InferenceConfig(scales=(0.5, 1.0, 1.3), flip=True),
        InferenceConfig(scales=(0.5, 1.0), flip=True, merge="logits", window_rule="segmenter"),
        InferenceConfig(resize_short=30, min_short=32, stride=(20, 24)),
    ],
)
def test_of_two_classes_the_answer_is_the_one_above_one_half(make_model, make_picture, size, config):
    model, image = make_model(num_classes=2), make_picture(*size)
    share = class_probability(model, image, 1, config)
    assert share.shape == size
    assert share.dtype == np.float32
    sure = np.abs(share - 0.5) > 1e-5
    assert sure.mean() > 0.98
    np.testing.assert_array_equal((share > 0.5)[sure], predict(model, image, config)[sure] == 1)
    np.testing.assert_allclose(share + class_probability(model, image, 0, config), 1, atol=1e-5)


@pytest.mark.parametrize("spec", [{"pos_resize": "none"}, {"fit": "floor"}, {"inference_mode": "whole"}])
def test_pictures_smaller_than_the_model_are_padded_as_for_the_answer(make_model, make_picture, spec):
    model, image = make_model(num_classes=2, **spec), make_picture(3, 11)
    share = class_probability(model, image, 1)
    sure = np.abs(share - 0.5) > 1e-5
    np.testing.assert_array_equal((share > 0.5)[sure], predict(model, image)[sure] == 1)


def test_one_pass_is_the_softmax_of_the_model_resized_to_the_size_asked_for(make_model, make_picture):
    model, image = make_model(inference_mode="whole"), make_picture(24, 40)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.spec.mean, model.spec.std))
    batch = ((torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std)[None]
    with torch.inference_mode():
        expected = interpolate(model(batch), (30, 31), mode="bilinear").softmax(1)[0, 3]
    found = class_probability(model, image, 3, out_size=(30, 31))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
