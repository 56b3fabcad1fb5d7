"""Evaluation of a source: counts, ranks, sizes."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from setr_fast.data.classes import ClassTable
from setr_fast.data.options import DataConfig
from setr_fast.data.source import FolderSource
from setr_fast.engine.evaluator import evaluate
from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import predict
from setr_fast.engine.turns import Turns
from setr_fast.errors import ConfigError


class Pictures:
    """Five pictures of different sizes with random labels, some ignored."""

    def __init__(self, make_picture, classes: int = 5) -> None:
        self.classes = ClassTable.numbered(classes)
        self.samples = []
        for index in range(5):
            size = 20 + 9 * index, 50 - 7 * index
            label = np.random.default_rng(index).integers(0, classes, size).astype(np.uint8)
            label[:3] = 255
            self.samples.append((make_picture(*size), label))
        self.names = [f"p{index}" for index in range(5)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples[index]


def test_every_pixel_is_counted_once_and_ignored_ones_never(make_model, make_picture):
    model, source = make_model(), Pictures(make_picture)
    expected = np.zeros((5, 5), np.int64)
    for index in range(len(source)):
        image, label = source.read(index)
        answers = predict(model, image, InferenceConfig(flip=True))
        for truth, answer in zip(label[label != 255], answers[label != 255], strict=True):
            expected[truth, answer] += 1
    seen = []
    scores = evaluate(model, source, InferenceConfig(flip=True), progress=lambda done, of: seen.append((done, of)))
    np.testing.assert_array_equal(scores.confusion, expected)
    assert seen == [(i, 5) for i in range(1, 6)]


def test_windows_of_several_pictures_pass_through_the_model_together(make_model, make_picture):
    model, source = make_model(), Pictures(make_picture)
    source.samples = [source.samples[2]] * 6
    single = evaluate(model, source, InferenceConfig(window_batch=1)).confusion
    sizes: list[int] = []
    model.patches.register_forward_hook(lambda module, given, result: sizes.append(len(given[0])))
    np.testing.assert_array_equal(evaluate(model, source, InferenceConfig(window_batch=5)).confusion, single)
    assert len(sizes) > 1
    assert set(sizes[:-1]) == {5}


def test_strips_of_a_small_budget_change_nothing(make_model, make_picture):
    model, source = make_model(), Pictures(make_picture)
    label = np.random.default_rng(0).integers(0, 5, (40, 300)).astype(np.uint8)
    source.samples = [(make_picture(40, 300), label)] * 2
    whole = evaluate(model, source).confusion
    small = InferenceConfig(memory_budget="2kB", window_batch=4)
    np.testing.assert_array_equal(evaluate(model, source, small).confusion, whole)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_of_all_ranks_add_up_to_the_whole(make_model, make_picture, world_size):
    model, source = make_model(), Pictures(make_picture)
    parts = [evaluate(model, source, rank=rank, world_size=world_size).confusion for rank in range(world_size)]
    np.testing.assert_array_equal(sum(parts), evaluate(model, source).confusion)


def test_a_mask_of_another_size_is_compared_at_its_own(make_model, make_picture):
    model, source = make_model(), Pictures(make_picture)
    image, _ = source.read(0)
    label = np.zeros((7, 9), np.uint8)
    source.samples = [(image, label)]
    scores = evaluate(model, source)
    assert scores.pixels == 63
    counts = np.bincount(predict(model, image, out_size=(7, 9)).reshape(-1), minlength=5)
    np.testing.assert_array_equal(scores.confusion[0], counts)


def test_model_and_data_of_different_classes_are_refused(make_model, make_picture):
    with pytest.raises(ConfigError, match="the model's 5 classes, got 4"):
        evaluate(make_model(), Pictures(make_picture, classes=4))


def _rank(rank: int, port: int, model, source, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results[rank] = evaluate(model, source, rank=rank, world_size=2).confusion.tolist()
    dist.destroy_process_group()


def test_two_processes_sum_over_gloo(make_model, make_picture):
    """Threads would share one process group, so these are processes."""
    model, source = make_model(), Pictures(make_picture)
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
        expected = evaluate(model, source).confusion.tolist()
        assert dict(results) == {0: expected, 1: expected}


@pytest.mark.parametrize("broken", [False, True])
def test_files_are_decoded_while_the_model_does_not_compute(make_model, make_picture, tmp_path, broken, monkeypatch):
    monkeypatch.setattr("setr_fast.engine.evaluator.turns_of", lambda device: Turns())
    for kind in ("images", "masks"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    for index in range(12):
        Image.fromarray(make_picture(40, 50)).save(tmp_path / f"val/images/{index}.png")
        Image.fromarray(np.full((40, 50), index % 5, np.uint8)).save(tmp_path / f"val/masks/{index}.png")
    source = FolderSource(DataConfig(root=tmp_path, num_classes=5), "val")
    model, before = make_model(), threading.active_count()
    computing, reading, done, read = threading.Event(), threading.Event(), [], source.read
    overlaps: list[int] = []
    one = InferenceConfig(window_batch=1)

    def noted(index: int) -> tuple[np.ndarray, np.ndarray]:
        reading.set()
        time.sleep(0.01)
        overlaps.extend([index] * computing.is_set())
        reading.clear()
        return read(index)

    def compute(*_) -> None:
        computing.set()
        time.sleep(0.001)
        overlaps.extend([-1] * reading.is_set())
        computing.clear()
        done.append(True)
        if broken and len(done) > 3:
            raise ValueError("broken")

    monkeypatch.setattr(source, "read", noted)
    model.patches.register_forward_hook(compute)
    if broken:
        with pytest.raises(ValueError, match="broken") as caught:
            evaluate(model, source, one)
        assert caught.tb is not None, "what the error holds on to is still there"
        assert threading.active_count() == before
    else:
        assert evaluate(model, source, one).confusion.sum() == 12 * 40 * 50
        assert len(done) == 4 * 12, "windows"
    assert overlaps == []
