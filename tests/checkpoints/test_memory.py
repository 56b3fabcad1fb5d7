"""Tensors in memory: turned as by a transpose."""

from __future__ import annotations

import pytest
import torch

from setr_fast.checkpoints.memory import contiguous, copy_turned


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
