"""Which precision is faster on this machine: one block is timed, the answer is kept in a file.

Only precisions that need no calibration take part. float32 stays unless another one is clearly faster.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr_fast.files import atomic_write
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.block import Block
from setr_fast.precision.block import InferenceBlock

CLEARLY = 1.1
"""How many times faster than float32 another precision must be to be taken."""
ROUNDS = 3


def fastest(model: SegmentationModel, windows: Tensor) -> tuple[str, dict[str, float]]:
    """Return ``fp32`` or ``bf16``, and seconds of one block in each; timed once per machine and kind of model.

    Shapes: windows as the model takes them; their number and size are what is timed.
    """
    from setr_fast.precision.prepare import half_block

    tokens = model.grid(windows).tokens
    key = _key(model, windows, tokens)
    path = cache_file()
    known = _read(path)
    if key not in known:
        block = model.encoder.blocks[0]
        assert isinstance(block, Block)
        x = torch.randn(len(windows), tokens, model.spec.width, device=windows.device)
        sides = {"fp32": InferenceBlock.plain(block).eval(), "bf16": half_block(block).eval()}
        known[key] = _timed(sides, x)
        _write(path, known)
    seconds = known[key]
    return ("bf16" if seconds["fp32"] > CLEARLY * seconds["bf16"] else "fp32"), seconds


def cache_file() -> Path:
    """Return where timings are kept: ``setr_fast/precision.json`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "setr_fast" / "precision.json"


def _timed(sides: dict[str, Any], x: Tensor) -> dict[str, float]:
    """Return the best of some rounds, in which the sides take turns."""
    best = dict.fromkeys(sides, float("inf"))
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for name, block in sides.items():
                _wait(x)
                before = time.perf_counter()
                block(x.clone())
                _wait(x)
                taken = time.perf_counter() - before
                best[name] = min(best[name], taken) if turn else best[name]  # the first round warms up
    return best


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _key(model: SegmentationModel, windows: Tensor, tokens: int) -> str:
    """Everything that the answer depends on: processor or card, threads, versions, sizes of a block."""
    found: Any = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    place = torch.cuda.get_device_name(windows.device) if windows.is_cuda else platform.node()
    spec = model.spec
    facts = [place, found, torch.get_num_threads(), torch.__version__, len(windows), tokens]
    facts += [spec.width, spec.num_heads, spec.mlp_ratio]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(path.read_text())
        return {key: {"fp32": float(value["fp32"]), "bf16": float(value["bf16"])} for key, value in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # none yet, or not ours: measured again


def _write(path: Path, known: dict[str, dict[str, float]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(known, indent=1) + "\n")
    except OSError:
        pass  # a home that cannot be written: measured again next time
