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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def interleaved(
    sides: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Time every side once per round, in an order that turns from round to round.

    Returns: seconds per side and round. At least three rounds, at most ``rounds``, stopping after ``seconds``.
    """
    names = list(sides)
    for run in sides.values():
        run()
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
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
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
