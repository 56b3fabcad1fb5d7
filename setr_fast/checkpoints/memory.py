"""Bytes of files in memory: read by several threads, turned on the way where a file has rows and columns swapped."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_ROWS = 128
_PIECE = 1 << 20  # bytes that are worth a thread


def new_bytes(length: int) -> np.ndarray[Any, Any]:
    """Return memory for the bytes of a tensor.

    PyTorch's: NumPy asks Linux for huge pages, and where memory is short that makes it move other pages out of the way,
    for seconds.
    """
    return torch.empty(length, dtype=torch.uint8).numpy()


def copy_turned(matrix_RC: Tensor, out_CR: Tensor) -> Tensor:
    """Write the transpose of a matrix into ``out`` and return it.

    Some rows at a time, which all threads share; PyTorch copies a whole transposed matrix in one thread, through blocks
    whose rows fall on the same lines of the cache: 12 ms for 1024x4096 values where this takes 4 (2 threads, Xeon).
    """
    for start in range(0, matrix_RC.shape[0], _ROWS):
        out_CR[:, start : start + _ROWS].copy_(matrix_RC[start : start + _ROWS].T)
    return out_CR


def contiguous(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor, itself where it is one."""
    if tensor.is_contiguous():
        return tensor
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    if tensor.ndim == 2 and tensor.T.is_contiguous():
        return copy_turned(tensor.T, out)
    return out.copy_(tensor)


def read_into(file: BinaryIO, start: int, content: np.ndarray[Any, Any]) -> bool:
    """Fill a contiguous array with a file's bytes from ``start``; False where the file ends early.

    Copying from the system's cache of files is work for a processor: as many threads share it as PyTorch has.
    """
    raw: Any = memoryview(content.reshape(-1)).cast("B") if content.nbytes else memoryview(b"")  # type: ignore[arg-type]
    workers = min(torch.get_num_threads(), len(raw) // _PIECE)
    if workers < 2:
        return _fill(file.fileno(), start, raw)
    step = -(-len(raw) // workers)
    with ThreadPoolExecutor(workers - 1) as pool:  # of this call alone: threads do not outlive a fork
        begins = range(step, len(raw), step)
        jobs = [pool.submit(_fill, file.fileno(), start + at, raw[at : at + step]) for at in begins]
        found = [_fill(file.fileno(), start, raw[:step]), *(job.result() for job in jobs)]
    return all(found)


def _fill(descriptor: int, start: int, raw: Any) -> bool:
    done = 0
    while done < len(raw):
        got = os.preadv(descriptor, [raw[done:]], start + done)
        if got == 0:
            return False
        done += got
    return True
