"""Checkpoints of a run: complete or absent, sharded, read by any number of processes, enough to go on to the bit.

``checkpoints/step_00000400/`` holds ``train_state.json`` (step, best score, configuration, model, sizes of all files)
and ``shards/``, which torch.distributed.checkpoint writes: ``weights/<name>``, ``buffers/<name>``, ``average/<name>``
and ``optimizer/<name>/<key>``. Random streams and the data's order follow from seed and step. Where no rank shards,
``config.json`` and ``model.safetensors`` stand beside them, for ``eval`` and ``setr_fast.load``; of a sharded
checkpoint, ``setr-fast consolidate`` makes them. A folder appears under its name when everything in it is on the disk.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from setr_fast.errors import CheckpointError
from setr_fast.models.spec import ModelSpec
from setr_fast.train.average import Average
from setr_fast.train.storage import Reader

NAME = re.compile(r"step_(\d{8})")
SHARDS = "shards"
ROOT = "run"  # DCP looks at every entry of the outermost table on its own, at 70 microseconds each
STATE = "train_state.json"
FORMAT = 3
READABLE = (2, FORMAT)

logger = logging.getLogger("setr_fast")

# DCP says so whenever one process saves or loads alone, which is what was asked of it.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, the best validation so far, the configuration, what the model is."""

    step: int
    best_miou: float
    config: dict[str, Any]
    spec: ModelSpec


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full on every rank (a collective), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """Return all that changes while training, under its names in a checkpoint, as it lies on this rank; not copied."""
    tensors = {f"weights/{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"buffers/{n}": b for n, b in model.named_buffers()}
    if average is not None:
        tensors |= {f"average/{n}": t for n, t in average.weights.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    return tensors


def restore(saved: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> None:
    """Put a checkpoint's tensors back in place (a collective); every tensor must be there and fit.

    The checkpoint may come from another number of ranks, sharded or not.
    """
    known = _metadata(saved)
    target = tensors_of(model, optimizer, average)
    for name, parameter in model.named_parameters():
        prefix = f"optimizer/{name}/"
        for key in [k for k in known if k.startswith(prefix)]:
            fits = known[key].size == parameter.shape
            empty = torch.zeros_like(parameter.detach()) if fits else torch.zeros(known[key].size)
            target[key] = optimizer.state[parameter][key[len(prefix) :]] = empty
    for key, tensor in target.items():
        if key not in known:
            raise CheckpointError(
                f"{saved}: must hold {key}, and does not; the configuration differs from the run's own"
            )
        if known[key].size != tensor.shape:
            raise CheckpointError(f"{saved}: {key} must be {tuple(tensor.shape)}, got {tuple(known[key].size)}")
    _load(saved, target)


def read_tensors(saved: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read a checkpoint's tensors whose names begin with ``prefix``, in full, on the CPU, in this process alone."""
    target = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in _metadata(saved).items()
        if key.startswith(prefix)
    }
    _load(saved, target, alone=True)
    return target


def read_progress(saved: Path) -> Progress:
    """Read where the run stood; CheckpointError in one line if the file is damaged."""
    try:
        facts = json.loads((saved / STATE).read_text())
        if facts["format"] not in READABLE:
            raise ValueError(f"its format is {facts['format']}, not one of {READABLE}")
        spec = ModelSpec.from_dict(facts["spec"])
        return Progress(facts["step"], facts["best_miou"], facts["config"], spec)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{saved}: cannot be read: {_line(error)}; delete it to use the one before") from None


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name) and p.is_dir())


def newest_intact(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files all have the sizes they were written with; warn about others.

    Raises: CheckpointError if there are checkpoints and none is intact.
    """
    damaged: list[str] = []
    for saved in reversed(complete(folder)):
        fault = fault_of(saved)
        if fault is None:
            for other in damaged:
                logger.warning("%s; it is passed over for %s", other, saved.name)
            return saved
        damaged.append(fault)
    if damaged:
        raise CheckpointError(f"{damaged[0]}; no other checkpoint is intact: start anew with another --run-dir")
    return None


def fault_of(saved: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or nothing."""
    try:
        facts = json.loads((saved / STATE).read_text())
        sizes: dict[str, int] = facts["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{saved}: {STATE} is damaged ({_line(error)})"
    for name, size in sizes.items():
        file = saved / name
        if not file.is_file():
            return f"{saved}: {name} is missing"
        if file.stat().st_size != size:
            return f"{saved}: {name} is damaged, it must have {size} bytes, got {file.stat().st_size}"
    return None


def _metadata(saved: Path) -> dict[str, TensorStorageMetadata]:
    try:
        known = Reader(saved / SHARDS).read_metadata().state_dict_metadata
    except (Exception, CheckpointException) as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{saved}: its list of tensors cannot be read: {_line(error)}; delete this folder"
        ) from None
    begin = ROOT + "."
    return {k.removeprefix(begin): v for k, v in known.items() if isinstance(v, TensorStorageMetadata)}


def _load(saved: Path, target: dict[str, Tensor], alone: bool = False) -> None:
    alone = alone or not torch.distributed.is_initialized()
    try:
        with torch.no_grad():
            dcp.load({ROOT: target}, storage_reader=Reader(saved / SHARDS), no_dist=alone)
    except (Exception, CheckpointException) as error:  # the latter, of any rank's failure, is a BaseException
        raise CheckpointError(
            f"{saved}: its tensors cannot be read: {_line([*of_ranks(error), error][0])}; delete this folder"
        ) from None


def of_ranks(error: BaseException) -> list[BaseException]:
    """Return what went wrong on each rank, where an error is torch.distributed.checkpoint's sum of that."""
    failures = getattr(error, "failures", {})
    return [value[0] if isinstance(value, tuple) else value for value in failures.values()]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
