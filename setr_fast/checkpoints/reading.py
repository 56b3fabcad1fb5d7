"""Bytes of a file into memory: all that is wanted of it at once, by several threads, turned on the way where asked.

Copying from the system's cache of files, and having the system clear new memory, is work for processors. Threads take
the next piece as they get done with one and wait for each other only at the end, so that a processor that is busy
otherwise slows its own share.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch

from setr_fast.checkpoints.faults import DISTRUST, Unusable

_PIECE = 2 << 20  # bytes; a piece that is turned stays in the processor's cache
_TURNED = 1 << 16  # bytes of a matrix that is worth turning on the way
_ROW = 64  # bytes of its rows at least, _PIECE at most
_LINE = 64  # bytes that a processor's cache holds together
_BUFFERS = 1024  # that Linux fills in one call

Array = np.ndarray[Any, Any]


def new_bytes(length: int) -> Array:
    """Return memory for the bytes of a tensor.

    PyTorch's: NumPy asks Linux for huge pages, and where memory is short that makes it move other pages out of the way,
    for seconds.
    Raises: MemoryError where the system has no such memory.
    """
    try:
        return torch.empty(length, dtype=torch.uint8).numpy()
    except RuntimeError:
        raise MemoryError from None


def _buffer(array: Array) -> memoryview:
    exported: Any = array
    return memoryview(exported)


def most_bytes(size: int) -> int:
    """Return how many bytes of tensors a file of that size may ask for: a few may be held under several names."""
    return 2 * size + (64 << 20)


class Reading:
    """What is to be read of one file. Memory is handed out at once; it holds the file's bytes after ``run``."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._left = most_bytes(os.fstat(self._descriptor).st_size)
        self._pieces: deque[Callable[[], bool]] = deque()
        self._scratch = threading.local()

    def array(self, start: int, size: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Return the array of that size that lies at ``start``.

        Raises: Unusable where the arrays of a file repeat its bytes without end; so does ``turned``.
        """
        self._take(math.prod(size) * dtype.itemsize)
        content = new_bytes(math.prod(size) * dtype.itemsize)
        raw = _buffer(content)
        for at in range(0, len(raw), _PIECE):
            self._pieces.append(partial(_fill, self._descriptor, start + at, raw[at : at + _PIECE]))
        return content.view(dtype).reshape(size)

    def takes(self, size: Sequence[int], dtype: np.dtype[Any]) -> bool:
        """Say whether ``turned`` is meant for an array."""
        if len(size) != 2 or not dtype.isnative:
            return False
        row = size[1] * dtype.itemsize
        return _ROW <= row <= _PIECE and size[0] * row >= _TURNED

    def turned(self, start: int, size: Sequence[int], dtype: np.dtype[Any], out_CR: Array | None = None) -> Array:
        """Return the transpose [C, R] of the matrix [R, C] that lies at ``start``; in ``out_CR`` where it is given."""
        rows, columns = size
        self._take(math.prod(size) * dtype.itemsize)
        if out_CR is None:
            out_CR = new_bytes(rows * columns * dtype.itemsize).view(dtype).reshape(columns, rows)
        # By one thread: several would have the system clear the same pages of the result.
        self._pieces.append(partial(self._turn, start, out_CR))
        return out_CR

    def _take(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise Unusable("its arrays must have bytes of their own, got many that repeat the same", DISTRUST)

    def run(self) -> None:
        """Read everything.

        Raises: Unusable where the file ends early.
        """
        workers = max(min(torch.get_num_threads(), len(self._pieces)), 1)
        with ThreadPoolExecutor(max(workers - 1, 1)) as pool:  # of this call alone: threads do not outlive a fork
            jobs = [pool.submit(self._work) for _ in range(workers - 1)]
            found = [self._work(), *(job.result() for job in jobs)]
        if not all(found):
            raise Unusable("must hold all of its tensors, got a file that is cut off")

    def _work(self) -> bool:
        while True:
            try:
                piece = self._pieces.popleft()
            except IndexError:
                return True
            if not piece():
                self._pieces.clear()
                return False

    def _turn(self, start: int, out_CR: Array) -> bool:
        """Read some rows at a time into memory that stays in the cache, and write them as columns."""
        row = out_CR.shape[0] * out_CR.dtype.itemsize
        step = min(_PIECE // row, _BUFFERS)
        for first in range(0, out_CR.shape[1], step):
            part_CR = out_CR[:, first : first + step]
            scratch, buffers = self._buffers(part_CR.shape[1], row)
            if not _fill_rows(self._descriptor, start + first * row, buffers):
                return False
            np.copyto(part_CR, scratch[:, :row].view(part_CR.dtype).T)
        return True

    def _buffers(self, rows: int, row: int) -> tuple[Array, list[memoryview]]:
        """Return this thread's memory for rows of so many bytes.

        They lie an odd number of cache lines apart: a column's values would else fall on the same few places of the
        cache, and turning would take two to three times as long.
        """
        known = getattr(self._scratch, "known", None)
        if known is None or known[0].shape[0] < rows or known[2] != row:
            pitch = (-(-row // _LINE) | 1) * _LINE
            scratch = new_bytes(rows * pitch).reshape(rows, pitch)
            known = self._scratch.known = (scratch, [_buffer(line[:row]) for line in scratch], row)
        return known[0][:rows], known[1][:rows]


def _fill_rows(descriptor: int, start: int, rows: list[memoryview]) -> bool:
    if os.preadv(descriptor, rows, start) == sum(map(len, rows)):
        return True
    # Linux may read less than it is asked for.
    return all(_fill(descriptor, start + index * len(row), row) for index, row in enumerate(rows))


def _fill(descriptor: int, start: int, raw: memoryview) -> bool:
    done = 0
    while done < len(raw):
        got = os.preadv(descriptor, [raw[done:]], start + done)
        if got == 0:
            return False
        done += got
    return True
