"""Peak memory of one call, measured and not added up."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
STATUS, CLEAR, MEMORY = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def keep_freed_memory() -> bool:
    """Let the process keep what it frees; return whether it can (glibc).

    Else large tensors come as fresh pages from the system at every call, and on a virtual machine from its host: plain
    PyTorch with its large intermediates then pays several times what it does in a loop, and ours would shine by that.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_extra_bytes(run: Callable[[], Any]) -> int | None:
    """Return how far one call lifts the memory in use above what is there before it, its result included.

    On a card that is the allocator's peak. On a CPU it is the process's own peak of resident pages, after all free
    memory of the heap went back to the system, so that no call hides in what an earlier one left; libraries keep some
    of theirs for good, hence call it once before. None where the system does not tell (no Linux).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    try:
        give_back()
        CLEAR.write_text("5")  # forgets the peak so far
        before = status("VmRSS")
    except (OSError, AttributeError):
        return None
    kept = run()
    peak = status("VmHWM") - before
    del kept
    return max(peak, 0)


def give_back() -> None:
    """Return the heap's free memory to the system, where that is possible."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def lacking(needed: float) -> str:
    """Return why so many bytes are more than the processor's memory has free, or nothing."""
    if torch.cuda.is_available():
        return ""
    try:
        found = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return ""
    free = 1024 * int(found.split()[1])
    return f"needs about {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free" if needed > free else ""


def status(field: str) -> int:
    """Return one of the sizes of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
