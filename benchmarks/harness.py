"""Timing of two or more ways to do one thing: interleaved in one process, so that noise hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.disturbance import Disturbance, between, read_clock

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


ATTEMPTS = 3
"""Times that a disturbed measurement is made before the least disturbed one is kept, and marked."""

disturbances: list[Disturbance | None] = []
"""Of the measurements kept since the last row; ``record`` writes the worst into the row."""


def interleaved(
    sides: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Time every side once per round, in an order that turns from round to round.

    A measurement during which other processes were busy is made again, up to three times in all.

    Returns: seconds per side and round. At least three rounds, at most ``rounds``, stopping after ``seconds``.
    """
    for run in sides.values():
        run()
    kept: tuple[Disturbance | None, dict[str, list[float]]] | None = None
    for _ in range(ATTEMPTS):
        before = read_clock()
        times = _rounds(sides, rounds, seconds)
        found = between(before, read_clock())
        if kept is None or (found is not None and kept[0] is not None and found.others < kept[0].others):
            kept = found, times
        if found is None or not found.heavy:
            break
    assert kept is not None
    disturbances.append(kept[0])
    return kept[1]


def _rounds(sides: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _synchronize()
            before = time.perf_counter()
            sides[name]()
            _synchronize()
            times[name].append(time.perf_counter() - before)
        if turn >= 2 and time.perf_counter() - started > seconds:
            break
    return times


def worst_disturbance() -> dict[str, Any]:
    """Return, and forget, what the measurements since the last call suffered from others: fields of a row."""
    known = [found for found in disturbances if found is not None]
    disturbances.clear()
    if not known:
        return {"others": None, "steal": None, "disturbed": False}
    return {
        "others": round(max(found.others for found in known), 4),
        "steal": round(max(found.steal for found in known), 4),
        "disturbed": any(found.heavy for found in known),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p20": values[0], "p80": values[0]}
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": cuts[0], "p80": cuts[3]}


def ratio(baseline: list[float], ours: list[float]) -> dict[str, float]:
    """Return how many times faster ``ours`` is, round by round: a disturbed round disturbs both of its sides."""
    return quantiles([b / o for b, o in zip(baseline, ours, strict=True)])


def machine() -> dict[str, Any]:
    """Return what a figure must be read with: card or CPU, versions, commit, whether the tree was clean, load."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "machine": gpu or f"{capabilities.get('cpu_name', platform.machine())}, {os.cpu_count()} cores",
        "folder": (gpu or "cpu").lower().replace(" ", "-"),
        "isa": [] if gpu else [k for k in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(k)],
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "versions": versions(),
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def versions() -> dict[str, Any]:
    """Return what a GPU figure depends on beside torch; empty without one."""
    if not torch.cuda.is_available():
        return {}
    found: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        pass
    fields = "driver_version,clocks.sm,clocks.max.sm,power.limit"
    try:
        asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        found |= dict(zip(fields.split(","), lines[0].split(", "), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        pass
    return found


def ceilings() -> dict[str, float]:
    """Return what this machine reaches now: GB/s of a copy beyond the caches, TFLOP/s of a matrix product.

    Rows are read as shares of these, measured in the same run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count = 2**28 if device == "cuda" else 2**25
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    side = 8192 if device == "cuda" else 2048
    sides: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(side, side, device=device).to(dtype)
        sides[str(dtype)[6:]] = lambda matrix=matrix: matrix @ matrix  # type: ignore[misc]
    for run in sides.values():
        run()
    best = {name: min(values) for name, values in _rounds(sides, 7, 3.0).items()}
    return {
        "copy_gigabytes_per_second": 2 * source.nbytes / best.pop("copy") / 1e9,
        **{f"{name}_teraflops": 2 * side**3 / value / 1e12 for name, value in best.items()},
    }


def git(*arguments: str) -> str:
    """Return what a git command prints, or nothing where it fails."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
