"""Bytes of files: by several threads as by one, turned as by a transpose, kernels of Flax where PyTorch wants them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from setr_fast.checkpoints import reading as module
from setr_fast.checkpoints.faults import Unusable
from setr_fast.checkpoints.flax_layout import Kernels, Place, joined
from setr_fast.checkpoints.reading import Reading

F32 = np.dtype(np.float32)


def _file(folder: Path, count: int) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).standard_normal(count).astype(F32)
    (folder / "file").write_bytes(b"head" + values.tobytes())
    return folder / "file", values


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_read_what_one_reads(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, values = _file(tmp_path, 3_000_001)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with path.open("rb") as file:
        reading = Reading(file)
        plain = reading.array(4, values.shape, F32)
        turned = [reading.turned(4 + 4 * 600 * at, (600, 1111), F32) for at in range(3)]
        none = reading.array(9, (0, 4), F32)
        plain.fill(np.nan)
        for matrix in turned:
            matrix.fill(np.nan)
        reading.run()
    assert np.array_equal(plain, values)
    for at, matrix in enumerate(turned):
        assert np.array_equal(matrix, values[600 * at :][: 600 * 1111].reshape(600, 1111).T)
    assert none.shape == (0, 4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_ends_early_is_refused(
    threads: int, turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = _file(tmp_path, 100 * 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with path.open("rb") as file:
        reading = Reading(file)
        for start in (4, 8):  # one value more than there is
            (reading.turned if turned else reading.array)(start, (100, 1000), F32)
        with pytest.raises(Unusable, match="must hold all of its tensors, got a file that is cut off"):
            reading.run()


def test_a_system_that_reads_less_than_asked_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, values = _file(tmp_path, 200 * 300)
    whole = os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda fd, rows, at: whole(fd, [rows[0][:1000]], at))
    with path.open("rb") as file:
        reading = Reading(file)
        found = reading.turned(4, (200, 300), F32)
        reading.run()
    assert np.array_equal(found, values.reshape(200, 300).T)


@pytest.mark.parametrize(
    ("size", "takes"),
    [((1000, 100), True), ((1000,), False), ((4, 100), False), ((100_000, 2), False), ((4, 1_000_000), False)],
    ids=str,
)
def test_only_matrices_that_are_worth_it_are_turned(tmp_path: Path, size: tuple[int, ...], takes: bool) -> None:
    path, _ = _file(tmp_path, 1)
    with path.open("rb") as file:
        assert Reading(file).takes(size, F32) is takes
        assert not Reading(file).takes(size, np.dtype(">f4"))


def test_kernels_of_flax_lie_as_weights_and_keep_their_values(tmp_path: Path) -> None:
    shapes = {
        "a/query/kernel": (192, 3, 64),
        "a/key/kernel": (192, 3, 64),
        "a/value/kernel": (192, 3, 64),
        "a/out/kernel": (3, 64, 200),
        "b/query/kernel": (192, 3, 64),  # alone: joins nothing
        "Dense_0/kernel": (192, 768),
        "table": (1, 197, 192),
        "bias": (768,),
        "small/kernel": (3, 5),
    }
    path, values = _file(tmp_path, sum(map(math.prod, shapes.values())))
    places, start = {}, 4
    for name, shape in shapes.items():
        places[name] = Place(start, shape, F32)
        start += 4 * math.prod(shape)
    with path.open("rb") as file:
        reading = Reading(file)
        kernels = Kernels(reading, places)
        found = {name: kernels.read(name) for name in places}
        reading.run()
    for name, place in places.items():
        first = (place.start - 4) // 4
        wanted = values[first : first + math.prod(place.shape)].reshape(place.shape)
        assert np.array_equal(found[name].numpy(), wanted), name
    assert found["Dense_0/kernel"].T.is_contiguous()
    assert found["a/out/kernel"].flatten(0, 1).T.is_contiguous()
    parts = [found[f"a/{part}/kernel"].flatten(1).T for part in ("query", "key", "value")]
    whole = joined(parts)
    assert whole is not None
    assert torch.equal(whole, torch.cat(parts))
    assert joined(parts[::-1]) is joined(parts[:2]) is joined([parts[0], found["b/query/kernel"].flatten(1).T]) is None
