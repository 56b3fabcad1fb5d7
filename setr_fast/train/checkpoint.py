"""Checkpoints of a run: complete or absent, readable by anyone, enough to go on to the bit.

``checkpoints/step_00000400/`` holds ``config.json`` and ``model.safetensors`` (what ``eval`` and ``setr_fast.load``
read: averaged weights where there are any), ``train_state.safetensors`` (raw weights, optimiser state) and
``train_state.json``. A folder appears under its name only when everything in it is on the disk.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from setr_fast.errors import CheckpointError
from setr_fast.files import atomic_folder
from setr_fast.models.model import SegmentationModel
from setr_fast.models.store import load_model, write_model
from setr_fast.train.average import Average

NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, the best validation so far, the configuration."""

    step: int
    best_miou: float
    config: dict[str, Any]


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full on every rank (a collective), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """Collect raw weights, buffers, averages and optimiser state, in full, on the CPU (a collective)."""
    tensors = {f"weights/{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"buffers/{n}": b for n, b in model.named_buffers()}
    if average is not None:
        tensors |= {f"average/{n}": t for n, t in average.weights.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    return {key: whole(value).cpu().contiguous() for key, value in tensors.items()}


def restore(
    state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put a gathered state back, sharding it as the parameters are; every tensor must be there and fit."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_like(_take(state, f"weights/{name}", parameter), parameter))
            if average is not None:
                average.weights[name].copy_(_like(_take(state, f"average/{name}", parameter), parameter))
        for name, buffer in model.named_buffers():
            buffer.copy_(_take(state, f"buffers/{name}", buffer))
    for name, parameter in parameters.items():
        prefix = f"optimizer/{name}/"
        for key in [k for k in state if k.startswith(prefix)]:
            value = state[key]
            fits = value.shape == parameter.shape
            optimizer.state[parameter][key[len(prefix) :]] = _like(value, parameter) if fits else value


def save(folder: Path, state: dict[str, Tensor], model: SegmentationModel, progress: Progress, *, keep: int) -> Path:
    """Write one checkpoint and delete all but the newest ``keep``. Only the first rank calls this.

    ``model`` is the plain model whose weights are to be evaluated; ``state`` comes from ``gather``.
    """
    target = folder / f"step_{progress.step:08d}"
    with atomic_folder(target) as temporary:
        write_model(model, temporary)
        save_file(state, temporary / "train_state.safetensors")
        facts = {"step": progress.step, "best_miou": progress.best_miou, "config": progress.config}
        (temporary / "train_state.json").write_text(json.dumps(facts, indent=2))
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())


def read(checkpoint: Path) -> tuple[dict[str, Tensor], Progress]:
    """Read what ``save`` wrote; CheckpointError in one line if it is damaged."""
    try:
        facts = json.loads((checkpoint / "train_state.json").read_text())
        state = load_file(checkpoint / "train_state.safetensors")
        return state, Progress(facts["step"], facts["best_miou"], facts["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: cannot be resumed from: {reason}; delete it to use the one before"
        ) from None
    except Exception as error:  # safetensors raises a class of its own
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: train_state.safetensors is damaged: {reason}; delete this folder"
        ) from None


def start_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a saved model of the same shape into ``model``."""
    saved = load_model(path).state_dict()
    own = model.state_dict()
    wrong = [n for n in own if n not in saved or saved[n].shape != own[n].shape] + [n for n in saved if n not in own]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit this model in {len(wrong)} tensors, first {wrong[0]}; give the model's own options"
        )
    model.load_state_dict(saved)


def _take(state: dict[str, Tensor], key: str, target: Tensor) -> Tensor:
    if key not in state:
        raise CheckpointError(
            f"checkpoint: must hold {key}, and does not; the configuration differs from the run's own"
        )
    if state[key].shape != target.shape:
        raise CheckpointError(f"checkpoint: {key} must be {tuple(target.shape)}, got {tuple(state[key].shape)}")
    return state[key].to(target.dtype)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Bring a full tensor to a parameter's device and sharding; every rank has the full one, so nothing is sent."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device_mesh.device_type)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)
