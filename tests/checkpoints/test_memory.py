"""Bytes of files in memory: by several threads as by one, and turned as by a transpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from setr_fast.checkpoints.memory import contiguous, copy_turned, read_into


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (128, 7), (129, 300), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_turned_copy_is_the_transpose(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randint(-50, 50, shape).to(dtype)
    out = torch.full(shape[::-1], 77, dtype=dtype)
    assert copy_turned(matrix, out) is out
    assert torch.equal(out, matrix.T)
    assert torch.equal(contiguous(matrix.T), matrix.T)
    assert contiguous(matrix.T).is_contiguous()


def test_other_orders_of_axes_are_copied_and_contiguous_tensors_are_not() -> None:
    tensor = torch.randn(3, 4, 5, 6)
    assert contiguous(tensor) is tensor
    assert torch.equal(contiguous(tensor.permute(3, 2, 0, 1)), tensor.permute(3, 2, 0, 1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_read_what_one_reads(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 256, (5 << 20) + 13, np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with (tmp_path / "file").open("rb") as file:
        found = np.zeros(len(content) - 7, np.uint8)
        assert read_into(file, 7, found)
        assert np.array_equal(found, content[7:])
        assert not read_into(file, 8, found)  # one byte more than there is
        assert read_into(file, 0, np.zeros(0, np.uint8))
