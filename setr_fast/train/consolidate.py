"""From a sharded checkpoint to one model folder that ``eval``, ``predict`` and ``setr_fast.load`` read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from setr_fast.errors import CheckpointError
from setr_fast.models.store import save_model
from setr_fast.train import checkpoint
from setr_fast.train.saver import model_of


def consolidate(path: Path, out: Path, weights: Literal["best", "average", "raw"] = "best") -> Path:
    """Write the model of a checkpoint, or of a run folder's newest intact one, and return the checkpoint.

    ``best`` takes averaged weights where the run has them. One process reads every shard, however many wrote them.
    """
    saved = _checkpoint_of(path)
    if fault := checkpoint.fault_of(saved):
        raise CheckpointError(f"{fault}; give another checkpoint of the run")
    prefixes = ["buffers/", *{"best": ["average/", "weights/"], "average": ["average/"], "raw": ["weights/"]}[weights]]
    tensors: dict[str, Tensor] = {}
    for prefix in prefixes:
        if not any(key.startswith(("average/", "weights/")) for key in tensors):
            tensors |= checkpoint.read_tensors(saved, prefix)
    if weights == "average" and not any(key.startswith("average/") for key in tensors):
        raise CheckpointError(f"{saved}: must hold averaged weights, and does not; leave --weights out")
    save_model(model_of(tensors, checkpoint.read_progress(saved)), out)
    return saved


def _checkpoint_of(path: Path) -> Path:
    if checkpoint.NAME.fullmatch(path.name) and path.is_dir():
        return path
    saved = checkpoint.newest_intact(path / "checkpoints")
    if saved is None:
        got = "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{path}: must be a run folder or one of its checkpoints, got {got}")
    return saved
