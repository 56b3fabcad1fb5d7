"""Weights that lie in a file's pages: read when they are used, and given back when they are not needed any more.

A mapping is private: writing to a weight changes memory, never the file. The file may be replaced (by a rename, as
everything here writes), but not written over, while a model that maps it lives.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of its pages."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dictionary


def release(tensors: Iterable[Tensor]) -> None:
    """Let go of the pages of weights that are mapped and were never written to; whoever reads them has them again.

    What is not mapped, was written to, or lies on a system that does not tell, stays.
    """
    if sys.platform != "linux":
        return
    spans = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors if tensor.nbytes)
    untouched = _untouched_mappings()
    libc = ctypes.CDLL(None, use_errno=True)
    for begin, end in spans:
        if any(low <= begin and end <= high for low, high in untouched):
            first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:  # pages that are shared with a neighbour stay
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _untouched_mappings() -> list[tuple[int, int]]:
    """Address ranges of mapped files of which no page was written to: dropping those loses nothing."""
    ranges: list[tuple[int, int]] = []
    current, of_file = (0, 0), False
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if "-" in words[0] and not words[0].endswith(":"):
                    low, high = (int(word, 16) for word in words[0].split("-"))
                    current, of_file = (low, high), len(words) > 5 and words[5].startswith("/")
                elif words[0] == "Anonymous:" and of_file and words[1] == "0":
                    ranges.append(current)
    except OSError:
        return []
    return ranges
