"""Training batches: the seed and the step decide, and nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from setr_fast.data.loader import Batch, epoch_order, step_keys, stream, train_batches
from setr_fast.data.options import AugmentConfig, DataConfig
from setr_fast.data.scenes.builtin import BuiltinScenes
from setr_fast.data.source import open_source
from setr_fast.data.transforms import TrainTransform
from setr_fast.errors import ConfigError, DataError, SetrFastError

SCENES = BuiltinScenes(10, 32, 0, "train")
TRANSFORM = TrainTransform(AugmentConfig(crop=(24, 24)), (127.5,) * 3, (127.5,) * 3)


def _batches(first: int = 0, last: int = 5, **changes: Any) -> Iterator[Batch]:
    options: dict[str, Any] = {"batch_size": 4, "seed": 3, "first_step": first, "last_step": last}
    return train_batches(SCENES, TRANSFORM, **(options | changes))


def _assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.names == other.names
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)


def _wait_for_no_children() -> list[Any]:
    gc.collect()
    for _ in range(100):
        if not multiprocessing.active_children():
            break
        time.sleep(0.05)
    return multiprocessing.active_children()


def test_order_is_a_permutation_of_its_own_for_each_epoch_and_seed() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 6


def test_order_and_streams_never_change() -> None:
    assert epoch_order(7, 1, 8).tolist() == [4, 3, 1, 0, 6, 5, 7, 2]
    assert stream(7, 1, 2).bit_generator.random_raw() == 6913829022415478642


def test_every_first_place_is_as_likely() -> None:
    first = np.bincount([int(epoch_order(0, epoch, 4)[0]) for epoch in range(800)])
    assert first.min() > 160


def test_streams_differ_by_seed_epoch_and_sample() -> None:
    words = {stream(seed, epoch, sample).random() for seed in (0, 1) for epoch in range(4) for sample in range(4)}
    assert len(words) == 32


def test_every_sample_comes_once_per_epoch_across_batch_borders() -> None:
    keys = [key for step in range(15) for key in step_keys(step, batch_size=4, count=10, seed=0)]
    assert len(keys) == len(set(keys)) == 60
    for epoch in range(6):
        assert sorted(index for turn, index in keys if turn == epoch) == list(range(10))
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    keys = step_keys(0, batch_size=8, count=3, seed=0)
    assert sorted(keys[:6]) == [(epoch, index) for epoch in (0, 1) for index in range(3)]
    assert len(set(keys)) == 8


def test_batches_have_the_promised_form() -> None:
    batches = list(_batches())
    assert len(batches) == 5
    for batch in batches:
        assert batch.image.shape == (4, 3, 24, 24)
        assert batch.image.dtype == torch.float32
        assert batch.label.shape == (4, 24, 24)
        assert batch.label.dtype == torch.uint8
    names = [name for batch in batches for name in batch.names]
    assert sorted(names[:10]) == sorted(names[10:]) == sorted(SCENES.names)


def test_batches_reach_page_locked_memory_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor) or tensor.clone())
    batch = Batch(torch.rand(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8), ["a", "b"])
    found = torch.utils.data._utils.pin_memory.pin_memory(batch)  # what torch's loader does with what workers give
    assert isinstance(found, Batch)
    _assert_same([found], [batch])
    assert [t is x for t, x in zip(locked, (batch.image, batch.label), strict=True)] == [True, True]


def test_a_sample_is_changed_differently_in_the_next_epoch() -> None:
    batches = list(_batches())
    of_first = [
        batch.image[place] for batch in batches for place, name in enumerate(batch.names) if name == SCENES.names[0]
    ]
    assert len(of_first) == 2
    assert not torch.equal(*of_first)


def test_resumed_run_gets_the_rest_of_the_full_run() -> None:
    full = list(_batches())
    for first in (1, 3, 5):
        _assert_same(list(_batches(first)), full[first:])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_what_one_process_would_get(world_size: int) -> None:
    parts = [list(_batches(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, whole in enumerate(_batches()):
        for rank in range(world_size):
            part = parts[rank][step]
            assert part.names == whole.names[rank::world_size]
            assert torch.equal(part.image, whole.image[rank::world_size])
            assert torch.equal(part.label, whole.label[rank::world_size])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers: int) -> None:
    torch.manual_seed(1)
    expected = list(_batches())
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    _assert_same(list(_batches(workers=workers)), expected)
    _assert_same(list(_batches(3, workers=workers)), expected[3:])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    assert not _wait_for_no_children()


def test_without_workers_nothing_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = BuiltinScenes.read
    monkeypatch.setattr(BuiltinScenes, "read", lambda self, index: (read.append(index), original(self, index))[1])
    batches = _batches()
    assert read == []
    next(batches)
    assert len(read) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_no_steps_left_means_no_batches_and_no_processes(workers: int) -> None:
    assert list(_batches(5, 5, workers=workers)) == []
    assert not multiprocessing.active_children()


def test_workers_end_when_the_batches_are_given_up_and_ignore_ctrl_c() -> None:
    expected = list(_batches(0, 40))
    batches = _batches(0, 40, workers=2)
    got = [next(batches)]
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    got += [next(batches) for _ in range(12)]
    _assert_same(got, expected[:13])
    batches.close()
    assert not _wait_for_no_children()


def test_ctrl_c_ends_the_workers_while_its_traceback_is_held() -> None:
    batches = _batches(0, 2000, workers=1)
    next(batches)
    with pytest.raises(KeyboardInterrupt) as caught:
        batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not _wait_for_no_children()
    assert caught.tb is not None


@pytest.mark.parametrize("attempt", range(3))  # it may die while a batch is being fetched from it, or between two
def test_killed_worker_is_reported_in_one_line(attempt: int) -> None:
    batches = _batches(0, 400, workers=1)
    next(batches)
    (child,) = multiprocessing.active_children()
    child.kill()
    with pytest.raises(SetrFastError, match=r"a worker process ended.*--data\.workers") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def _train_until_killed(told: Any) -> None:
    batches = _batches(0, 2000, workers=1)
    next(batches)
    told.send([child.pid for child in multiprocessing.active_children()])
    signal.pause()


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_of_a_killed_trainer_end() -> None:
    """Their parent is the server process, which does not end before they do."""
    context = multiprocessing.get_context("forkserver")
    told, tell = context.Pipe(duplex=False)
    trainer = context.Process(target=_train_until_killed, args=(tell,))
    trainer.start()
    assert told.poll(150)
    (worker,) = told.recv()
    assert _is_there(worker)
    trainer.kill()
    trainer.join()
    deadline = time.monotonic() + 20
    while _is_there(worker):
        assert time.monotonic() < deadline, "a worker outlived its trainer"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_error_reaches_the_caller_as_it_is(tmp_path: Path, workers: int) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / f"train/images/{index}.png")
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / f"train/masks/{index}.png")
    source = open_source(DataConfig(root=tmp_path, num_classes=2, check="off"), "train")
    broken = tmp_path / "train/images/1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError) as direct:
        source.read(1)
    with pytest.raises(DataError) as caught:
        list(train_batches(source, TRANSFORM, batch_size=2, seed=0, first_step=0, last_step=3, workers=workers))
    assert type(caught.value) is type(direct.value)
    assert str(caught.value) == str(direct.value)
    assert "1.png" in str(caught.value)
    assert "\n" not in str(caught.value)
    del caught
    assert not _wait_for_no_children()


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (6, 4), (2, 4)])
def test_batch_that_does_not_divide_is_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(ConfigError, match="multiple of the number of processes"):
        _batches(batch_size=batch_size, world_size=world_size)
