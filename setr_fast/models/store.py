"""The package's own model folder: ``config.json`` (the spec) beside ``model.safetensors`` (the weights)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from setr_fast.errors import CheckpointError, ConfigError
from setr_fast.fields import nearest
from setr_fast.files import atomic_folder
from setr_fast.models.mapping import mapped_tensors, release
from setr_fast.models.model import SegmentationModel
from setr_fast.models.spec import ModelSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"  # of checkpoints/adapters.py
FORMAT = "setr_fast"
BEST = "best"
"""Folder of a run's best model."""
VERSION = 1
_MAX_CONFIG_BYTES = 1 << 20
_READ_BYTES = 16 << 20
_CHECKED_BYTES = 64 << 20
_NAMED = 5  # keys that one message names
_VARIANCES = ("running_var", "_variance")  # of batch norms, as PyTorch and Paddle call them


def is_complete(folder: Path) -> bool:
    """Return whether a folder has both files of a model; what they hold is seen when they are read."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def model_folder(path: Path) -> Path | None:
    """Return the model folder that a path means: the folder itself, or of a run folder its best; None if neither."""
    return next((folder for folder in (path, path / BEST) if is_complete(folder)), None)


def save_model(
    model: SegmentationModel, folder: str | Path, extra_files: Mapping[str, str | bytes] | None = None
) -> None:
    """Write a model folder; a crash leaves the old folder or the new one, never a mixture.

    ``extra_files`` (name to content) are written beside the weights.

    Raises: ConfigError for a file, and for a folder of other files.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: must be a folder, got a file; choose another name")
    if target.is_dir() and any(target.iterdir()) and not (target / CONFIG_FILE).is_file():
        # The folder is replaced as a whole: never at the price of files that are not ours.
        raise ConfigError(f"{target}: must be new, empty or a model folder, got other files; choose another name")
    with atomic_folder(target) as temporary:
        write_model(model, temporary)
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)


def write_model(model: SegmentationModel, folder: Path) -> None:
    """Write the two files of a model into an existing folder (an ``atomic_folder``, where it must not be half done)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(spec_text(model.spec), encoding="utf-8")


def load_model(folder: str | Path, *, mapped: bool = False, **overrides: Any) -> SegmentationModel:
    """Read a model folder: eval mode, float32, CPU. The overrides are fields of ``ModelSpec``.

    ``mapped``: the weights are the file's own pages (see ``mapping``), which processes share and nobody copies; the
    file must not be written over while the model lives. Else the model has memory of its own.

    Raises: CheckpointError with one line that names the file and what is wrong with it.
    """
    path = Path(folder)
    if not path.is_dir():
        kind = "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{path}: must be a model folder with {CONFIG_FILE} and {WEIGHTS_FILE}, got {kind}")
    spec = read_spec(path / CONFIG_FILE, **overrides)
    tensors = read_tensors(path / WEIGHTS_FILE, mapped=mapped)
    return fill_model(spec, tensors, where=str(path / WEIGHTS_FILE), copy=False)


def read_spec(path: Path, **overrides: Any) -> ModelSpec:
    """Read the spec of a model folder's ``config.json``."""
    _present(path)
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: must be at most {_MAX_CONFIG_BYTES} bytes, got {path.stat().st_size}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: must be JSON, got {_one_line(error)}; save the model again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT or not isinstance(config.get("spec"), dict):
        raise CheckpointError(f"{path}: must be the config of a {FORMAT} model, got another; give its family")
    if config.get("version") != VERSION:
        found = config.get("version")
        raise CheckpointError(f"{path}: format version must be {VERSION}, got {found!r}; update setr_fast")
    try:
        return ModelSpec.from_dict(config["spec"]).replace(**overrides)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file into memory of its own, so that the file may be written over while the model lives; or
    ``mapped``, as its pages.

    The file is mapped anew for every few tensors: pages that were read leave the process's memory again, and loading
    takes the file's size once.
    """
    _present(path)
    tensors: dict[str, Tensor] = {}
    try:
        if mapped:
            return mapped_tensors(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        while len(tensors) < len(names):
            budget = _READ_BYTES
            with safe_open(path, framework="pt") as file:
                for name in names[len(tensors) :]:
                    tensors[name] = file.get_tensor(name).clone()
                    budget -= tensors[name].nbytes
                    if budget < 0:
                        break
        return tensors
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        size = os.path.getsize(path)
        raise CheckpointError(
            f"{path}: must be a whole safetensors file, got {size} bytes ({_one_line(error)}); copy or save it again"
        ) from None


def fill_model(spec: ModelSpec, tensors: Mapping[str, Tensor], where: str, copy: bool = True) -> SegmentationModel:
    """Build the model of a spec from tensors, every one of which must fit: eval mode, float32, CPU.

    Without ``copy`` the model takes tensors of the right dtype over as they are: they must be its own.

    Raises: CheckpointError for missing, extra, wrongly shaped or not finite tensors.
    """
    with torch.device("meta"):  # nothing is allocated before the shapes are known to agree
        model = SegmentationModel(spec)
    wanted = model.state_dict()
    faults = _key_faults(wanted.keys(), tensors.keys())
    faults += [
        f"{name} must be {list(tensor.shape)}, got {list(tensors[name].shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults += [
        f"{name} must be {'floating point' if wanted[name].is_floating_point() else 'integer'}, got {tensor.dtype}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point()
    ]
    if not faults:
        faults = _all_finite(tensors)
    if faults:
        more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
        raise CheckpointError(f"{where}: weights must fit the model {spec.name}: " + "; ".join(faults[:_NAMED]) + more)
    state = {name: tensor.to("cpu", wanted[name].dtype, copy=copy) for name, tensor in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _all_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what is not finite. Weights that are mapped leave the process's memory again as they are checked."""
    faults, checked, pending = [], list[Tensor](), 0
    for name, tensor in tensors.items():
        if fault := finite_fault(name, tensor):
            faults.append(fault)
        checked.append(tensor)
        pending += tensor.nbytes
        if pending > _CHECKED_BYTES:
            release(checked)
            checked, pending = [], 0
    return faults


def finite_fault(name: str, tensor: Tensor) -> str:
    """Say how many values are NaN or infinite, or of a variance negative (a batch norm would make NaN of them); empty
    where none is. One pass where all is well, a second over a batch norm's few."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return ""
    if math.isfinite(tensor.sum().item()):  # a NaN or an infinity stays in a sum
        negative = int((tensor < 0).sum()) if name.endswith(_VARIANCES) else 0
        return f"{name} must be 0 or more, got {negative} negative values" if negative else ""
    count = int((~torch.isfinite(tensor)).sum())
    return f"{name} must be finite, got {count} NaN or infinite values" if count else ""


def _key_faults(wanted: Any, got: Any) -> list[str]:
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    return [f"{name} is missing{nearest(name, extra)}" for name in missing] + [
        f"{name} is not a tensor of this model{nearest(name, missing)}" for name in extra
    ]


def spec_text(spec: ModelSpec) -> str:
    """Return the content of ``config.json`` for a model."""
    return json.dumps(_config(spec), indent=1) + "\n"


def _config(spec: ModelSpec) -> dict[str, Any]:
    names = spec.class_names or tuple(f"class {index}" for index in range(spec.num_classes))
    return {
        "format": FORMAT,
        "version": VERSION,
        "spec": spec.to_dict(),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _present(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: must be a file, got {'a folder' if path.exists() else 'nothing'}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: must hold something, got 0 bytes; the copy or the save was cut off")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
