"""Any weights file in, plain tensors and plain metadata out; nothing in the file is ever run."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from setr_fast.errors import CheckpointError

Kind = Literal["torch", "paddle", "npz", "safetensors", "native"]
WEIGHTS = (".pth", ".pt", ".pdparams", ".safetensors", ".npz")


@dataclass
class Source:
    """What a weights file holds."""

    path: Path
    """The file; of a model folder, the folder."""
    kind: Kind
    """Format, told by content: native is a model folder of this package."""
    tensors: dict[str, Tensor]
    """Every tensor by its name in the file, in the file's order and dtype, in memory of its own."""
    wrapper: Literal["state_dict", "model", ""] = ""
    """Key that the tensors were found under; empty where they are the top level."""
    beside: frozenset[str] = frozenset()
    """Top-level keys next to the wrapper."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain values: the file's ``meta`` (CLASSES, PALETTE, config text, ...) and plain values beside the wrapper."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Entries that are bookkeeping of the format, not weights: name to reason."""


def read_checkpoint(path: str | Path) -> Source:
    """Read a weights file, or a folder that holds exactly one.

    Raises: CheckpointError with one line that names the file and what is wrong with it.
    """
    file = weights_file(Path(path))
    if file.is_dir():
        return Source(file, "native", dict(load_file(file / "model.safetensors")))
    try:
        return _READERS[file.suffix](file)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{file}: must be a whole weights file, got {' '.join(str(error).split())}") from None


def weights_file(path: Path) -> Path:
    """Return the file that is meant: the path itself, or the one weights file of a folder."""
    if path.is_file():
        return path
    if (path / "model.safetensors").is_file() and (path / "config.json").is_file():
        return path
    found = sorted(p for p in path.glob("*") if p.suffix in WEIGHTS)
    if len(found) != 1:
        told = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(f"{path}: must be a weights file or a folder with one, got {told}")
    return found[0]


def _torch(file: Path) -> Source:
    content = torch.load(file, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            meta = dict(content.get("meta") or {})
            meta |= {k: v for k, v in content.items() if isinstance(v, (str, int, float))}
            return Source(file, "torch", content[wrapper], wrapper, frozenset(content) - {wrapper}, meta)
    return Source(file, "torch", content)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        arrays = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module not in arrays or name not in ("ndarray", "dtype", "_reconstruct"):
            raise pickle.UnpicklingError(f"{module}.{name} where only NumPy arrays may be")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _paddle(file: Path) -> Source:
    arrays = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
    arrays.pop("StructuredToParameterName@@", None)
    return Source(file, "paddle", {name: torch.from_numpy(value.copy()) for name, value in arrays.items()})


def _npz(file: Path) -> Source:
    with np.load(file, allow_pickle=False) as arrays:
        return Source(file, "npz", {name: torch.from_numpy(arrays[name]) for name in arrays.files})


def _safetensors(file: Path) -> Source:
    return Source(file, "safetensors", load_file(file))


_READERS = {".pth": _torch, ".pt": _torch, ".pdparams": _paddle, ".npz": _npz, ".safetensors": _safetensors}
