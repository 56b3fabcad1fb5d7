"""The machine a figure was taken on: card or processor, caches, clocks, versions, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import stamp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = ("mmsegmentation", "mmcv-lite", "transformers")
UNKNOWN_CACHE = 2**26
"""Bytes of last-level cache taken for granted where the system does not tell."""


@functools.cache
def machine() -> dict[str, Any]:
    """Return what does not change during a run, as when it began: card or CPU, versions, commit, clean tree or not."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    commit, dirty = git("rev-parse", "--short", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    if not commit:  # a copy without its history
        commit, dirty = stamp.verified()
    return {
        "machine": gpu or f"{capabilities.get('cpu_name', platform.machine())}, {os.cpu_count()} cores",
        "folder": (gpu or "cpu").lower().replace(" ", "-"),
        "isa": [] if gpu else [k for k in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(k)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "versions": versions(),
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
    }


def versions() -> dict[str, Any]:
    """Return what else a figure depends on: triton, xformers, peers; with a card also CUDA, cuDNN, ptxas, driver."""
    found: dict[str, Any] = {}
    for name in ("triton", "xformers", *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not torch.cuda.is_available():
        return found
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "ptxas": _ptxas()}
    return found | _asked_of_driver("driver_version", "clocks.max.sm", "power.limit")


def note_versions(found: dict[str, Any]) -> None:
    """Add to the facts of this run what runs in another process than this one."""
    machine()["versions"].update(found)


def clocks_mhz() -> list[float]:
    """Return the clock of the card, or of each core, at this moment; nothing where it cannot be read."""
    if torch.cuda.is_available():
        speeds = _asked_of_driver("clocks.sm").values()
        return [float(text.split()[0]) for text in speeds if re.match(r"\d", text)]
    try:
        return [round(float(found), 1) for found in re.findall(r"cpu MHz\s*: (\S+)", Path("/proc/cpuinfo").read_text())]
    except (OSError, ValueError):
        return []


@functools.cache
def last_level_cache_bytes() -> int:
    """Return how much the largest cache holds: the card's L2, or the processor's last level."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [UNKNOWN_CACHE // 1024]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.match(r"(\d+)K", path.read_text())
        sizes += [int(found[1])] if found else []
    return 1024 * (max(sizes[1:]) if sizes[1:] else sizes[0])


def git(*arguments: str) -> str:
    """Return what a git command prints, or nothing where it fails."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _asked_of_driver(*fields: str) -> dict[str, str]:
    asked = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        return dict(zip(fields, lines[0].split(", "), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}


def _ptxas() -> str:
    """Return the release of the assembler that Triton uses, or nothing."""
    path = os.environ.get("TRITON_PTXAS_PATH") or shutil.which("ptxas")
    if path is None:
        return ""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"release (\S+),", said)
    return found[1] if found else ""
